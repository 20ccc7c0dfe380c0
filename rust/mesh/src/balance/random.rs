//! Random: any usable endpoint, by weight, whatever its load.

use super::{Candidates, Loads};
use crate::random::Random;

pub(super) fn pick<L: Loads>(candidates: &Candidates<'_, L>, random: &mut Random) -> Option<usize> {
    candidates.draw(random, None)
}
