//! Per endpoint slot a line per worker: active requests for the balancer, totals for metrics.
//!
//! Which endpoint a slot means is said by the snapshot; a slot is not reused before every worker
//! has left the generation that used it (`WorkerTotals::oldest_generation`).

use std::rc::Rc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use super::SharedMemory;
use super::layout::HEADER_ENDPOINTS_USED;

/// One endpoint slot, summed over workers.
#[derive(Clone, Debug)]
pub struct EndpointTotals {
    /// The endpoint slot.
    pub slot: u32,
    /// Requests sent whose response is not finished.
    pub active: u64,
    /// Requests, ever.
    pub requests: u64,
    /// Connects that failed, ever.
    pub connect_failures: u64,
}

#[derive(Clone, Copy)]
#[repr(usize)]
enum Word {
    Active,
    Requests,
    ConnectFailures,
    Retrying,
}

/// One worker's lines, for writing, and the sums over all, for choosing.
pub(crate) struct EndpointLines {
    memory: Rc<SharedMemory>,
    slot: u32,
}

impl EndpointLines {
    pub(super) fn take(memory: &Rc<SharedMemory>, slot: u32) -> Self {
        clear(memory, slot);
        Self {
            memory: Rc::clone(memory),
            slot,
        }
    }

    pub(crate) fn request_started(&self, endpoint: u32) {
        if endpoint >= used(&self.memory).load(Relaxed) {
            used(&self.memory).fetch_max(endpoint + 1, Relaxed);
        }
        self.change(endpoint, Word::Active, |active| active + 1);
        self.change(endpoint, Word::Requests, |requests| requests + 1);
    }

    pub(crate) fn request_finished(&self, endpoint: u32) {
        self.change(endpoint, Word::Active, |active| active.saturating_sub(1));
    }

    pub(crate) fn connect_failed(&self, endpoint: u32) {
        self.change(endpoint, Word::ConnectFailures, |failures| failures + 1);
    }

    /// A request that this endpoint failed is tried again, here or elsewhere.
    pub(crate) fn retry_started(&self, endpoint: u32) {
        self.change(endpoint, Word::Retrying, |retrying| retrying + 1);
    }

    pub(crate) fn retry_finished(&self, endpoint: u32) {
        self.change(endpoint, Word::Retrying, |retrying| {
            retrying.saturating_sub(1)
        });
    }

    /// Active requests of an endpoint over all workers.
    pub(crate) fn active(&self, endpoint: u32) -> u32 {
        self.sum(endpoint, Word::Active)
    }

    /// Requests over all workers that this endpoint failed last and that are tried again.
    pub(crate) fn retrying(&self, endpoint: u32) -> u32 {
        self.sum(endpoint, Word::Retrying)
    }

    fn sum(&self, endpoint: u32, which: Word) -> u32 {
        let sum: u64 = (0..self.memory.layout.worker_slots)
            .map(|slot| word(&self.memory, endpoint, slot, which).load(Relaxed))
            .sum();
        u32::try_from(sum).unwrap_or(u32::MAX)
    }

    fn change(&self, endpoint: u32, which: Word, with: impl Fn(u64) -> u64) {
        let word = word(&self.memory, endpoint, self.slot, which);
        word.store(with(word.load(Relaxed)), Relaxed);
    }
}

pub(super) fn read_all(memory: &SharedMemory) -> Vec<EndpointTotals> {
    let sum = |endpoint, which| {
        (0..memory.layout.worker_slots)
            .map(|slot| word(memory, endpoint, slot, which).load(Relaxed))
            .sum::<u64>()
    };
    (0..used(memory).load(Relaxed))
        .map(|slot| EndpointTotals {
            slot,
            active: sum(slot, Word::Active),
            requests: sum(slot, Word::Requests),
            connect_failures: sum(slot, Word::ConnectFailures),
        })
        .filter(|totals| totals.requests + totals.connect_failures > 0)
        .collect()
}

/// Takes the requests of a worker that is gone out of the sums.
pub(super) fn clear(memory: &SharedMemory, slot: u32) {
    for endpoint in 0..used(memory).load(Relaxed) {
        for which in [Word::Active, Word::Retrying] {
            word(memory, endpoint, slot, which).store(0, Relaxed);
        }
    }
}

fn used(memory: &SharedMemory) -> &AtomicU32 {
    memory.mapping.word32(HEADER_ENDPOINTS_USED)
}

fn word(memory: &SharedMemory, endpoint: u32, slot: u32, which: Word) -> &AtomicU64 {
    memory
        .mapping
        .word64(memory.layout.endpoint(endpoint, slot) + which as usize * 8)
}
