//! Where everything lies in the shared memory: layout version 2.
//!
//! ```text
//! header      4 KiB   magic u64 · layout u32 · worker slots u32
//! workers     256 B   per worker slot: gauges and counters of the process
//! endpoints   64 B    per endpoint slot and worker slot: active, requests, connect failures,
//!                         retrying
//! series      per worker slot: index (16 B an entry) · label arena · value blocks (512 B each)
//! rings       per worker slot, of access-log lines and of spans: head u64 · tail u64 · bytes
//! ```
//! A layout is changed by raising [`LAYOUT_VERSION`]; processes of two layouts never share memory.

use std::io;

/// "MFSHM" and the byte order mark of whoever wrote it: a foreign byte order does not match.
pub(super) const MAGIC: u64 = 0x4d46_5348_4d00_0001;

/// Raised by every change of this file.
pub const LAYOUT_VERSION: u32 = 2;

pub(super) const HEADER_MAGIC: usize = 0;
pub(super) const HEADER_VERSION: usize = 8;
pub(super) const HEADER_WORKER_SLOTS: usize = 12;
/// One above the highest endpoint slot that was ever used: nobody looks further, because reading a
/// page of a mapping that was never written makes it.
pub(super) const HEADER_ENDPOINTS_USED: usize = 16;
pub(super) const HEADER_BYTES: usize = 4096;

/// The most workers a sidecar may have, twice over for the overlap of a restart.
const WORKER_SLOTS_MAX: u32 = 1024;

/// How many endpoints a sidecar can balance over at once.
pub const ENDPOINT_SLOTS: u32 = 4096;

/// Series per worker; further label sets are counted in the overflow series of their kind.
pub(super) const SERIES_MAX: u32 = 2048;

/// Bytes for the labels of one worker's series (about 380 B a series in practice).
pub(super) const LABEL_ARENA_BYTES: usize = 1024 * 1024;

/// One worker's access-log ring; a power of two. At 600 B a line this is 870 lines.
const ACCESS_LOG_RING_BYTES: usize = 512 * 1024;

/// One worker's span ring; a power of two. At 900 B a span this is 290 spans.
const SPAN_RING_BYTES: usize = 256 * 1024;

/// What is in a ring.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lines {
    AccessLog,
    Spans,
}

impl Lines {
    /// Room for lines; a power of two.
    pub(super) fn ring_bytes(self) -> usize {
        match self {
            Self::AccessLog => ACCESS_LOG_RING_BYTES,
            Self::Spans => SPAN_RING_BYTES,
        }
    }
}

/// Upper bounds of Istio's and Envoy's default histogram buckets (proto: stats.proto), in ms for
/// durations and in bytes for sizes. The last bucket, +Inf, has no bound.
pub const BUCKETS_MS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// Buckets of a histogram, +Inf included.
pub const BUCKET_COUNT: usize = BUCKETS_MS.len() + 1;

pub(super) const WORKER_LINE_BYTES: usize = 256;
pub(super) const ENDPOINT_LINE_BYTES: usize = 64;
pub(super) const SERIES_ENTRY_BYTES: usize = 16;

/// One counter and three histograms of 20 buckets and a sum: 64 words.
pub(super) const SERIES_VALUE_BYTES: usize = 8 * (1 + 3 * (BUCKET_COUNT + 1));

const RING_HEADER_BYTES: usize = 128;

/// The offsets that follow from the number of worker slots.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) worker_slots: u32,
}

impl Layout {
    pub(super) fn new(worker_slots: u32) -> io::Result<Self> {
        if worker_slots == 0 || worker_slots > WORKER_SLOTS_MAX {
            let why = format!("worker slots must be 1 to {WORKER_SLOTS_MAX}, not {worker_slots}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        Ok(Self { worker_slots })
    }

    pub(super) fn worker(&self, slot: u32) -> usize {
        debug_assert!(slot < self.worker_slots);
        HEADER_BYTES + slot as usize * WORKER_LINE_BYTES
    }

    pub(super) fn endpoint(&self, endpoint: u32, slot: u32) -> usize {
        debug_assert!(slot < self.worker_slots && endpoint < ENDPOINT_SLOTS);
        let line = endpoint as usize * self.worker_slots as usize + slot as usize;
        self.endpoints_start() + line * ENDPOINT_LINE_BYTES
    }

    pub(super) fn series_entry(&self, slot: u32, index: u32) -> usize {
        self.worker_area(slot) + index as usize * SERIES_ENTRY_BYTES
    }

    pub(super) fn label_arena(&self, slot: u32) -> usize {
        self.worker_area(slot) + SERIES_MAX as usize * SERIES_ENTRY_BYTES
    }

    pub(super) fn series_values(&self, slot: u32, index: u32) -> usize {
        self.label_arena(slot) + LABEL_ARENA_BYTES + index as usize * SERIES_VALUE_BYTES
    }

    pub(super) fn ring(&self, slot: u32, lines: Lines) -> usize {
        let first = self.series_values(slot, SERIES_MAX);
        match lines {
            Lines::AccessLog => first,
            Lines::Spans => first + RING_HEADER_BYTES + ACCESS_LOG_RING_BYTES,
        }
    }

    pub(super) fn ring_bytes(&self, slot: u32, lines: Lines) -> usize {
        self.ring(slot, lines) + RING_HEADER_BYTES
    }

    pub(super) fn length(&self) -> usize {
        self.worker_area(self.worker_slots)
    }

    fn endpoints_start(&self) -> usize {
        page(HEADER_BYTES + self.worker_slots as usize * WORKER_LINE_BYTES)
    }

    fn worker_area(&self, slot: u32) -> usize {
        let lines = ENDPOINT_SLOTS as usize * self.worker_slots as usize;
        let start = page(self.endpoints_start() + lines * ENDPOINT_LINE_BYTES);
        start + slot as usize * Self::worker_area_bytes()
    }

    fn worker_area_bytes() -> usize {
        page(
            SERIES_MAX as usize * (SERIES_ENTRY_BYTES + SERIES_VALUE_BYTES)
                + LABEL_ARENA_BYTES
                + RING_HEADER_BYTES
                + ACCESS_LOG_RING_BYTES
                + RING_HEADER_BYTES
                + SPAN_RING_BYTES,
        )
    }
}

fn page(bytes: usize) -> usize {
    bytes.next_multiple_of(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_do_not_overlap() {
        let layout = Layout { worker_slots: 3 };
        let mut edges = vec![HEADER_BYTES, layout.worker(0)];
        edges.push(layout.worker(2) + WORKER_LINE_BYTES);
        edges.push(layout.endpoint(0, 0));
        edges.push(layout.endpoint(ENDPOINT_SLOTS - 1, 2) + ENDPOINT_LINE_BYTES);
        for slot in 0..3 {
            edges.push(layout.series_entry(slot, 0));
            edges.push(layout.label_arena(slot));
            edges.push(layout.series_values(slot, 0));
            for lines in [Lines::AccessLog, Lines::Spans] {
                assert!(lines.ring_bytes().is_power_of_two());
                edges.push(layout.ring(slot, lines));
                edges.push(layout.ring_bytes(slot, lines) + lines.ring_bytes());
            }
        }
        edges.push(layout.length());
        assert!(edges.is_sorted(), "{edges:?}");
    }

    #[test]
    fn lines_and_words_are_aligned() {
        let layout = Layout { worker_slots: 5 };
        assert_eq!(SERIES_VALUE_BYTES, 512);
        assert!(layout.endpoint(1, 1).is_multiple_of(ENDPOINT_LINE_BYTES));
        assert!(layout.series_values(4, 7).is_multiple_of(64));
        for lines in [Lines::AccessLog, Lines::Spans] {
            assert!(layout.ring(4, lines).is_multiple_of(64));
        }
    }
}
