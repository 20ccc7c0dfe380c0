//! Byte rings per worker slot, of access-log lines and of spans: one writer, one reader, whole lines.
//!
//! `head` counts bytes ever written, `tail` bytes ever taken; the reader alone moves `tail`. When a
//! line does not fit it is dropped and counted by the caller: a worker never waits for a reader.

use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::SharedMemory;
use super::layout::Lines;

/// A worker's ring, for writing.
pub(crate) struct Ring {
    memory: Rc<SharedMemory>,
    slot: u32,
    lines: Lines,
}

impl Ring {
    pub(super) fn take(memory: &Rc<SharedMemory>, slot: u32, lines: Lines) -> Self {
        Self {
            memory: Rc::clone(memory),
            slot,
            lines,
        }
    }

    /// Appends one line, its newline included; `false` when there is no room.
    pub(crate) fn push(&self, line: &[u8]) -> bool {
        let (memory, slot, lines) = (&self.memory, self.slot, self.lines);
        let capacity = lines.ring_bytes();
        let head = head(memory, slot, lines).load(Ordering::Relaxed);
        let tail = tail(memory, slot, lines).load(Ordering::Acquire);
        let used = head.wrapping_sub(tail) as usize;
        if used > capacity || line.len() > capacity - used {
            return false;
        }
        let bytes = memory.layout.ring_bytes(slot, lines);
        let start = head as usize % capacity;
        let first = line.len().min(capacity - start);
        memory.mapping.write(bytes + start, &line[..first]);
        memory.mapping.write(bytes, &line[first..]);
        let end = head.wrapping_add(line.len() as u64);
        self::head(memory, slot, lines).store(end, Ordering::Release);
        true
    }
}

/// Takes whole lines out of one of `slot`'s rings, about `limit` bytes at most.
pub(super) fn drain(
    memory: &SharedMemory,
    slot: u32,
    lines: Lines,
    limit: usize,
    out: &mut Vec<u8>,
) {
    let capacity = lines.ring_bytes();
    let head = head(memory, slot, lines).load(Ordering::Acquire);
    let start = tail(memory, slot, lines).load(Ordering::Relaxed);
    let waiting = (head.wrapping_sub(start) as usize).min(capacity);
    if waiting == 0 {
        return;
    }
    let bytes = memory.layout.ring_bytes(slot, lines);
    let place = start as usize % capacity;
    let first = waiting.min(capacity - place);
    let before = out.len();
    memory.mapping.read(bytes + place, first, out);
    memory.mapping.read(bytes, waiting - first, out);
    if waiting > limit {
        let fits = out[before..before + limit]
            .iter()
            .rposition(|byte| *byte == b'\n');
        let rest = out[before + limit..].iter().position(|byte| *byte == b'\n');
        let keep = fits.map_or_else(|| rest.map_or(waiting, |at| limit + at + 1), |at| at + 1);
        out.truncate(before + keep);
    }
    let taken = (out.len() - before) as u64;
    tail(memory, slot, lines).store(start.wrapping_add(taken), Ordering::Release);
}

fn head(memory: &SharedMemory, slot: u32, lines: Lines) -> &AtomicU64 {
    memory.mapping.word64(memory.layout.ring(slot, lines))
}

/// On a cache line of its own: the reader writes it, the writer writes `head`.
fn tail(memory: &SharedMemory, slot: u32, lines: Lines) -> &AtomicU64 {
    memory.mapping.word64(memory.layout.ring(slot, lines) + 64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ring() -> (Rc<SharedMemory>, Ring) {
        let memory = Rc::new(SharedMemory::create(2).unwrap());
        let ring = Ring::take(&memory, 1, Lines::AccessLog);
        (memory, ring)
    }

    #[test]
    fn lines_come_out_whole_and_in_order_over_many_wraps() {
        let (memory, ring) = ring();
        let mut expected = Vec::new();
        let mut seen = Vec::new();
        for number in 0..20_000 {
            let line = format!("line {number} {}\n", "x".repeat(number % 200));
            assert!(ring.push(line.as_bytes()));
            expected.extend_from_slice(line.as_bytes());
            if number % 50 == 0 {
                seen.extend(memory.drain_access_log(usize::MAX));
            }
        }
        seen.extend(memory.drain_access_log(usize::MAX));
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_full_ring_refuses_and_loses_nothing_it_took() {
        let (memory, ring) = ring();
        let line = [b'a'; 1023]
            .iter()
            .chain(b"\n")
            .copied()
            .collect::<Vec<_>>();
        let mut taken = 0;
        while ring.push(&line) {
            taken += 1;
        }
        let capacity = Lines::AccessLog.ring_bytes();
        assert_eq!(taken, capacity / 1024);
        assert_eq!(memory.drain_access_log(usize::MAX).len(), capacity);
        assert!(ring.push(&line));
    }

    #[test]
    fn spans_have_a_ring_of_their_own() {
        let (memory, access_log) = ring();
        let spans = Ring::take(&memory, 1, Lines::Spans);
        let line = [vec![b's'; 8191], b"\n".to_vec()].concat();
        let mut taken = 0;
        while spans.push(&line) {
            taken += 1;
        }
        assert_eq!(taken, Lines::Spans.ring_bytes() / 8192);
        assert!(access_log.push(b"a request\n"), "full of spans only");
        assert_eq!(memory.drain_access_log(usize::MAX), b"a request\n");
        let drained = memory.drain_spans(usize::MAX);
        assert!(drained.len() == taken * 8192 && drained.chunks(8192).all(|it| it == line));
    }

    #[test]
    fn a_limit_never_cuts_a_line() {
        let (memory, ring) = ring();
        ring.push(b"first\n");
        ring.push(b"second\n");
        assert_eq!(memory.drain_access_log(8), b"first\n");
        assert_eq!(memory.drain_access_log(3), b"second\n");
        assert!(memory.drain_access_log(100).is_empty());
    }
}
