//! A byte queue of one direction of one connection: appended at the end, taken from the front.
//!
//! An empty buffer holds no memory, so that an idle connection costs none. Invariant:
//! `start <= bytes.len()`, and `bytes` is empty whenever everything was taken.

/// How much may wait in one direction before the reader of the other side is stopped, in bytes.
pub(crate) const HIGH_WATERMARK: usize = 64 * 1024;

/// Room asked for when the first bytes arrive.
const FIRST_CAPACITY: usize = 4 * 1024;

/// See the module's text.
#[derive(Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn is_high(&self) -> bool {
        self.len() >= HIGH_WATERMARK
    }

    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        self.tail().extend_from_slice(bytes);
    }

    /// The vector to append to. Only its end may be changed.
    pub(crate) fn tail(&mut self) -> &mut Vec<u8> {
        if self.bytes.capacity() == 0 {
            self.bytes.reserve(FIRST_CAPACITY);
        } else if self.start > HIGH_WATERMARK {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        &mut self.bytes
    }

    pub(crate) fn consume(&mut self, count: usize) {
        self.start += count;
        debug_assert!(
            self.start <= self.bytes.len(),
            "no more is taken than there is"
        );
        if self.start >= self.bytes.len() {
            self.clear();
        }
    }

    pub(crate) fn clear(&mut self) {
        self.start = 0;
        if self.bytes.capacity() > FIRST_CAPACITY {
            self.bytes = Vec::new();
        } else {
            self.bytes.clear();
        }
    }

    /// Gives the memory back; for a connection that goes idle.
    pub(crate) fn release(&mut self) {
        if self.is_empty() {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_bytes_back_in_order_while_it_grows() {
        let mut buffer = Buffer::default();
        let mut next = 0u8;
        let mut expected = 0u8;
        for round in 0..2_000usize {
            for _ in 0..round % 300 {
                buffer.extend(&[next]);
                next = next.wrapping_add(1);
            }
            let take = buffer.len().min(round % 290);
            for byte in &buffer.as_slice()[..take] {
                assert_eq!(*byte, expected);
                expected = expected.wrapping_add(1);
            }
            buffer.consume(take);
        }
    }

    #[test]
    fn holds_no_memory_when_idle() {
        let mut buffer = Buffer::default();
        buffer.extend(&[1; 100]);
        buffer.consume(100);
        buffer.release();
        assert_eq!(buffer.bytes.capacity(), 0);
    }
}
