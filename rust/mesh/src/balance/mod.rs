//! Which endpoint of a cluster serves the next request or connection.
//!
//! Every policy chooses among the usable endpoints: available, and not tried before for the same
//! request. Nothing is remembered between choices but the caller's round-robin cursor; load is read
//! through [`Loads`] at the moment of the choice. A choice allocates nothing.
//!
//! Weights follow one rule: an idle cluster serves each endpoint its weight / sum of the weights.
//! What load does to that is the policy's.
//!
//! Tests: `tests.rs`; statistical claims in `tests/properties.rs`.

mod least_request;
mod power_of_two;
mod random;
mod round_robin;
#[cfg(test)]
mod tests;

use crate::document::Balancer;
use crate::random::Random;
use crate::snapshot::{Cluster, Endpoint};

/// Draws before all endpoints are looked at: with half of them usable, 15 of 16 choices stay short.
const DRAWS_MAX: u32 = 4;

/// What is known of endpoints at this moment, by slot.
pub trait Loads {
    /// Requests sent to the endpoint whose response is not finished.
    fn active(&self, slot: u32) -> u32;
    /// Whether the endpoint may be chosen: not ejected, not failing its health check.
    fn available(&self, slot: u32) -> bool;
}

impl Cluster {
    /// The index of the endpoint to use next, or None when none is usable.
    ///
    /// `exclude` lists the slots already tried for this request. `turn` is the caller's cursor for
    /// round robin, one per worker and cluster: start it anywhere, best at random so that workers
    /// do not begin with the same endpoint.
    pub fn pick(
        &self,
        loads: &impl Loads,
        random: &mut Random,
        exclude: &[u32],
        turn: &mut u32,
    ) -> Option<usize> {
        let candidates = Candidates {
            endpoints: &self.endpoints,
            weights: &self.weights,
            loads,
            exclude,
        };
        match self.balancer {
            Balancer::LeastRequest => least_request::pick(&candidates, random),
            Balancer::Random => random::pick(&candidates, random),
            Balancer::RoundRobin => round_robin::pick(&candidates, turn),
        }
    }
}

/// The weights of a cluster's endpoints, divided by what they have in common.
#[derive(Clone, Debug)]
pub(crate) struct Weights {
    /// Sum of the weights up to and with each endpoint; strictly rising.
    ends: Vec<u32>,
    /// Whether all weights are 1.
    are_equal: bool,
    /// How far round robin goes each turn.
    stride: u32,
}

impl Weights {
    /// None when the sum does not fit 32 bits (Envoy has the same bound); every weight is above 0.
    pub(crate) fn new(endpoints: &[Endpoint]) -> Option<Self> {
        let weights = || endpoints.iter().map(|endpoint| endpoint.weight);
        weights().try_fold(0u32, u32::checked_add)?;
        let common = weights().fold(0, greatest_common_divisor).max(1);
        let ends: Vec<u32> = weights()
            .scan(0, |end, weight| {
                *end += weight / common;
                Some(*end)
            })
            .collect();
        let are_equal = weights().all(|weight| weight == common);
        let stride = round_robin::stride(ends.last().copied().unwrap_or(0), are_equal);
        Some(Self {
            ends,
            are_equal,
            stride,
        })
    }

    fn sum(&self) -> u32 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Sum of the weights before an endpoint.
    fn start(&self, index: usize) -> u32 {
        index.checked_sub(1).map_or(0, |before| self.ends[before])
    }

    fn of(&self, index: usize) -> u32 {
        self.ends[index] - self.start(index)
    }

    /// The endpoint on which a number below the sum falls.
    fn at(&self, number: u32) -> usize {
        if self.are_equal {
            return number as usize;
        }
        self.ends.partition_point(|&end| end <= number)
    }
}

fn greatest_common_divisor(mut one: u32, mut other: u32) -> u32 {
    while other != 0 {
        (one, other) = (other, one % other);
    }
    one
}

/// The endpoints of one choice.
struct Candidates<'c, L> {
    endpoints: &'c [Endpoint],
    weights: &'c Weights,
    loads: &'c L,
    exclude: &'c [u32],
}

impl<L: Loads> Candidates<'_, L> {
    fn is_usable(&self, index: usize) -> bool {
        let slot = self.endpoints[index].slot;
        !self.exclude.contains(&slot) && self.loads.available(slot)
    }

    fn active(&self, index: usize) -> u32 {
        self.loads.active(self.endpoints[index].slot)
    }

    /// A usable endpoint other than `not`, each with its weight's share of the chances.
    fn draw(&self, random: &mut Random, not: Option<usize>) -> Option<usize> {
        let (gap_start, gap) = not.map_or((0, 0), |not| {
            (self.weights.start(not), self.weights.of(not))
        });
        let sum = self.weights.sum() - gap;
        if sum == 0 {
            return None;
        }
        for _ in 0..DRAWS_MAX {
            let number = random.below(u64::from(sum)) as u32;
            let skipped = if number < gap_start { 0 } else { gap };
            let index = self.weights.at(number + skipped);
            if self.is_usable(index) {
                return Some(index);
            }
        }
        self.draw_among_all(random, not)
    }

    /// The same in one pass: each usable endpoint replaces the one held with the chance that keeps
    /// all shares exact, however many follow.
    fn draw_among_all(&self, random: &mut Random, not: Option<usize>) -> Option<usize> {
        let mut held = None;
        let mut sum = 0;
        for index in 0..self.endpoints.len() {
            if Some(index) != not && self.is_usable(index) {
                let weight = u64::from(self.weights.of(index));
                sum += weight;
                if random.below(sum) < weight {
                    held = Some(index);
                }
            }
        }
        held
    }
}
