//! The power of two choices: two distinct usable endpoints, drawn at random by weight.
//!
//! Distinct matters with few endpoints: of two, the busier one is never chosen, where drawing with
//! replacement would choose it in a quarter of the cases.

use super::{Candidates, Loads};
use crate::random::Random;

/// Two distinct usable endpoints in the order drawn; the second is None when there is only one.
pub(super) fn draw<L: Loads>(
    candidates: &Candidates<'_, L>,
    random: &mut Random,
) -> Option<(usize, Option<usize>)> {
    let first = candidates.draw(random, None)?;
    Some((first, candidates.draw(random, Some(first))))
}
