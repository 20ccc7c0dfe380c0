//! Round robin: each usable endpoint in its turn, exactly by weight over one round.
//!
//! A round has as many turns as the sum of the weights. Equal weights are served in the order of
//! the document. Unequal ones are walked with a stride near the golden section of the round and
//! without a divisor in common with it: every place is visited once a round, and the turns of a
//! heavy endpoint are spread over the round instead of following each other.

use super::{Candidates, Loads, greatest_common_divisor};

pub(super) fn pick<L: Loads>(candidates: &Candidates<'_, L>, turn: &mut u32) -> Option<usize> {
    let round = candidates.weights.sum();
    if round == 0 {
        return None;
    }
    let stride = u64::from(candidates.weights.stride);
    for _ in 0..candidates.endpoints.len() {
        let place = u64::from(*turn % round) * stride % u64::from(round);
        *turn = (*turn % round + 1) % round;
        let index = candidates.weights.at(place as u32);
        if candidates.is_usable(index) {
            return Some(index);
        }
    }
    // Heavy endpoints that are not usable can fill that many turns: take the next that is.
    let count = candidates.endpoints.len();
    let from = *turn as usize % count;
    (from..count)
        .chain(0..from)
        .find(|&index| candidates.is_usable(index))
}

/// How far the walk goes each turn, in a round of `round` places.
pub(super) fn stride(round: u32, are_equal: bool) -> u32 {
    if are_equal {
        return 1;
    }
    let golden = (u64::from(round) * 618 / 1000) as u32;
    (golden.max(1)..=round)
        .find(|&stride| greatest_common_divisor(stride, round) == 1)
        .expect("weights above 0 that differ make a round of 3 or more: round - 1 is such a stride")
}
