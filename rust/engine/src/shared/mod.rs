//! The memory all processes of one sidecar share: one `memfd`, one layout, one writer per line.
//!
//! Workers write counters, gauges, series, access-log lines and spans here; every worker reads the active
//! requests of all (least request over all workers), and the agent reads everything for metrics.
//! There is no lock. What it refuses: a mapping whose magic, layout version or length is not ours.
//!
//! Invariants:
//! 1. Every line has one writer, the worker of its slot; readers sum over slots.
//! 2. Counters live by worker *slot*, not by process: a worker that takes over a slot after a crash
//!    continues its counters, so that they never go backwards, and zeroes its gauges.
//! 3. The file is sparse and made once at its full size; it is never remapped or grown.
//! 4. A series' labels are complete before its index entry says so (release/acquire).
//!
//! Tests: at the end of this file, `series.rs` and `ring.rs`.

mod endpoints;
mod layout;
mod ring;
mod series;
mod workers;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::rc::Rc;
use std::sync::atomic::Ordering;

use crate::os::{self, SharedMapping};

pub(crate) use endpoints::EndpointLines;
pub use endpoints::EndpointTotals;
pub use layout::{BUCKET_COUNT, BUCKETS_MS, ENDPOINT_SLOTS, LAYOUT_VERSION};
use layout::{Layout, Lines, MAGIC};
pub(crate) use ring::Ring;
pub use series::{Histogram, HttpTotals, Kind, SeriesTotals, TcpTotals};
pub(crate) use series::{HttpSample, Series, SeriesTable};
pub(crate) use workers::WorkerLine;
pub use workers::{State, WorkerTotals};

/// The shared memory of one sidecar.
pub struct SharedMemory {
    mapping: SharedMapping,
    layout: Layout,
}

impl SharedMemory {
    /// Makes the memory for `worker_slots` workers (twice the number that serve at once).
    ///
    /// # Errors
    /// What the kernel answers; `InvalidInput` for 0 or more than 1,024 slots.
    pub fn create(worker_slots: u32) -> io::Result<Self> {
        let layout = Layout::new(worker_slots)?;
        let mapping = SharedMapping::create(layout.length())?;
        mapping
            .word32(layout::HEADER_WORKER_SLOTS)
            .store(worker_slots, Ordering::Relaxed);
        mapping
            .word32(layout::HEADER_VERSION)
            .store(LAYOUT_VERSION, Ordering::Relaxed);
        mapping
            .word64(layout::HEADER_MAGIC)
            .store(MAGIC, Ordering::Release);
        Ok(Self { mapping, layout })
    }

    /// Maps the memory that another process made.
    ///
    /// # Errors
    /// `InvalidData` when it is not of this layout, else what the kernel answers.
    pub fn open(descriptor: BorrowedFd<'_>) -> io::Result<Self> {
        let mapping = SharedMapping::open(descriptor)?;
        let refused = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
        if mapping.length() < layout::HEADER_BYTES {
            return Err(refused("shared memory is shorter than its header"));
        }
        if mapping.word64(layout::HEADER_MAGIC).load(Ordering::Acquire) != MAGIC {
            return Err(refused("not the shared memory of a meshfast sidecar"));
        }
        let version = mapping
            .word32(layout::HEADER_VERSION)
            .load(Ordering::Relaxed);
        if version != LAYOUT_VERSION {
            return Err(refused(&format!(
                "shared memory has layout {version}, this meshfast reads {LAYOUT_VERSION}"
            )));
        }
        let layout = Layout::new(
            mapping
                .word32(layout::HEADER_WORKER_SLOTS)
                .load(Ordering::Relaxed),
        )?;
        if mapping.length() < layout.length() {
            return Err(refused("shared memory is shorter than its layout"));
        }
        Ok(Self { mapping, layout })
    }

    /// Maps the memory behind a descriptor number of this process, which stays the caller's.
    ///
    /// # Errors
    /// As [`SharedMemory::open`], and when the number is not open.
    pub fn open_number(number: RawFd) -> io::Result<Self> {
        Self::open(os::cloned(number)?.as_fd())
    }

    /// The descriptor, for handing to another process.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.mapping.descriptor()
    }

    /// How many worker slots there are.
    #[must_use]
    pub fn worker_slots(&self) -> u32 {
        self.layout.worker_slots
    }

    /// What each worker slot says of itself.
    #[must_use]
    pub fn workers(&self) -> Vec<WorkerTotals> {
        (0..self.layout.worker_slots)
            .map(|slot| workers::read(self, slot))
            .collect()
    }

    /// Resets what a worker that is gone has left in its gauges, if `pid` is still the last worker of
    /// the slot; `true` when it was. For slots without a successor: a successor does it itself.
    pub fn reap(&self, slot: u32, pid: u32) -> bool {
        let reaped = slot < self.layout.worker_slots && workers::reap(self, slot, pid);
        if reaped {
            endpoints::clear(self, slot);
        }
        reaped
    }

    /// Every series, equal labels summed over all workers.
    #[must_use]
    pub fn series(&self) -> Vec<SeriesTotals> {
        series::read_all(self)
    }

    /// Every endpoint slot that was ever used.
    #[must_use]
    pub fn endpoints(&self) -> Vec<EndpointTotals> {
        endpoints::read_all(self)
    }

    /// Takes whole access-log lines out of the workers' rings, about `limit` bytes at most.
    #[must_use]
    pub fn drain_access_log(&self, limit: usize) -> Vec<u8> {
        self.drain(Lines::AccessLog, limit)
    }

    /// Takes whole spans, one a line, out of the workers' rings, about `limit` bytes of each at most.
    #[must_use]
    pub fn drain_spans(&self, limit: usize) -> Vec<u8> {
        self.drain(Lines::Spans, limit)
    }

    fn drain(&self, lines: Lines, limit: usize) -> Vec<u8> {
        let mut out = Vec::new();
        for slot in 0..self.layout.worker_slots {
            ring::drain(self, slot, lines, limit, &mut out);
        }
        out
    }
}

/// One worker's share: the lines it alone writes.
pub(crate) struct WorkerShare {
    pub(crate) line: WorkerLine,
    pub(crate) endpoints: EndpointLines,
    pub(crate) series: SeriesTable,
    pub(crate) ring: Ring,
    pub(crate) spans: Ring,
}

impl WorkerShare {
    /// Takes over `slot`: gauges start at zero, counters go on where they were.
    pub(crate) fn take(memory: &Rc<SharedMemory>, slot: u32) -> Self {
        Self {
            line: WorkerLine::take(memory, slot),
            endpoints: EndpointLines::take(memory, slot),
            series: SeriesTable::take(memory, slot),
            ring: Ring::take(memory, slot, Lines::AccessLog),
            spans: Ring::take(memory, slot, Lines::Spans),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_second_process_maps_what_the_first_made() {
        let made = SharedMemory::create(4).unwrap();
        let opened = SharedMemory::open(made.descriptor()).unwrap();
        assert_eq!(opened.worker_slots(), 4);
    }

    #[test]
    fn refuses_memory_of_another_layout() {
        let made = SharedMemory::create(2).unwrap();
        made.mapping
            .word32(layout::HEADER_VERSION)
            .store(LAYOUT_VERSION + 1, Ordering::Relaxed);
        let refused = SharedMemory::open(made.descriptor()).err().unwrap();
        assert!(refused.to_string().contains("layout"), "{refused}");
    }

    #[test]
    fn refuses_memory_that_is_not_ours() {
        let foreign = SharedMapping::create(8192).unwrap();
        assert!(SharedMemory::open(foreign.descriptor()).is_err());
    }

    #[test]
    fn a_worker_that_left_no_successor_is_reaped_once() {
        let memory = Rc::new(SharedMemory::create(2).unwrap());
        let share = WorkerShare::take(&memory, 1);
        share.line.state(State::Draining);
        share.line.connection_opened();
        share.endpoints.request_started(9);
        let pid = std::process::id();
        assert!(
            !memory.reap(1, pid + 1),
            "another process is the last of the slot"
        );
        assert!(memory.reap(1, pid));
        assert_eq!(memory.endpoints()[0].active, 0);
        assert_eq!(memory.workers()[1].state, State::Gone);
        assert_eq!(memory.workers()[1].connections, 0);
        assert!(!memory.reap(1, pid));
    }

    #[test]
    fn looking_at_endpoints_touches_only_slots_that_were_used() {
        let memory = Rc::new(SharedMemory::create(2).unwrap());
        assert!(memory.endpoints().is_empty());
        let share = WorkerShare::take(&memory, 0);
        share.endpoints.request_started(3);
        assert_eq!(memory.endpoints().len(), 1);
        let used = memory.mapping.word32(layout::HEADER_ENDPOINTS_USED);
        assert_eq!(used.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn a_successor_zeroes_gauges_and_keeps_counters() {
        let memory = Rc::new(SharedMemory::create(2).unwrap());
        let first = WorkerShare::take(&memory, 0);
        first.line.connection_opened();
        first.endpoints.request_started(7);
        drop(first);
        let second = WorkerShare::take(&memory, 0);
        let line = &memory.workers()[0];
        assert_eq!((line.connections, line.accepted), (0, 1));
        assert_eq!(second.endpoints.active(7), 0);
        assert_eq!(memory.endpoints()[0].requests, 1);
    }
}
