//! Least request: of two endpoints drawn by weight, the one with fewer active requests per weight.
//!
//! On a tie the one drawn first is taken, so that an idle cluster serves exactly by weight; with
//! equal weights that is a fair coin. Under load the comparison levels active / weight. Envoy does
//! the same for equal weights and walks a schedule of weight / (active + 1) for unequal ones; both
//! settle on requests in proportion to weight, ours without a schedule to keep per worker.

use super::{Candidates, Loads, power_of_two};
use crate::random::Random;

pub(super) fn pick<L: Loads>(candidates: &Candidates<'_, L>, random: &mut Random) -> Option<usize> {
    let (first, second) = power_of_two::draw(candidates, random)?;
    let Some(second) = second else {
        return Some(first);
    };
    // first active / first weight <= second active / second weight, without dividing.
    let load = |one: usize, other: usize| {
        u64::from(candidates.active(one)) * u64::from(candidates.weights.of(other))
    };
    Some(if load(first, second) <= load(second, first) {
        first
    } else {
        second
    })
}
