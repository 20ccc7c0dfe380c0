//! The two byte queues of a connection: what was received and not yet used, what waits to be sent.
//!
//! Both are appended at the end and taken from the front, and neither holds memory while it is empty
//! between turns: an idle connection costs no buffer. Bytes are received straight into a block that
//! the worker lends ([`Blocks`]) and used there; only what is left over at the end of a turn, the
//! start of a head or a body that its sink has no room for, is copied into memory of its own.
//!
//! Invariants: `start <= end <= bytes.len()` of an [`Input`]; `start <= bytes.len()` of an
//! [`Output`].

/// How much may wait in one direction before the reader of the other side is stopped, in bytes.
pub(crate) const HIGH_WATERMARK: usize = 64 * 1024;

/// Bytes asked for by one `recv`, at most: a body of 64 KiB and its head come and go in one piece.
pub(crate) const BLOCK_BYTES: usize = 68 * 1024;

/// A `recv` is worth its call with this much room; with less, bytes move to a block first.
const ROOM_MIN: usize = BLOCK_BYTES / 4;

/// Blocks kept of each kind. One or two are lent at a time; others come back from sessions that could
/// not pass on at once what they received.
const BLOCKS_MAX: usize = 8;

/// An output of this length is worth a `send` of its own, while its bytes are still in the cache: so
/// a turn needs one large block, not one per session.
pub(crate) const SEND_AT_ONCE: usize = 32 * 1024;

/// Payload of this length goes into a large block of the worker's: the C library gives memory of that
/// size back to the kernel, and takes it from there again, with every request (`brk`, and 16 pages to
/// clear).
const LARGE_PAYLOAD: usize = 4 * 1024;

/// A head, and a block of payload with its framing.
const LARGE_BYTES: usize = BLOCK_BYTES + 4 * 1024;

/// Room asked for when the first bytes are written: a head and a small body. The C library hands out
/// 1,032 bytes and less from a list of its own (tcache): 40 instructions, where 4 KiB cost 400.
const FIRST_CAPACITY: usize = 1_024;

/// The blocks of a worker that no session holds now.
#[derive(Default)]
pub(crate) struct Blocks {
    /// For inputs: [`BLOCK_BYTES`] long.
    free: Vec<Vec<u8>>,
    /// For outputs: empty, with room for [`LARGE_BYTES`] and more.
    large: Vec<Vec<u8>>,
}

impl Blocks {
    fn take(&mut self) -> Vec<u8> {
        self.free.pop().unwrap_or_else(|| vec![0; BLOCK_BYTES])
    }

    /// Keeps `bytes` if they are a block.
    fn give(&mut self, bytes: Vec<u8>) {
        if bytes.len() == BLOCK_BYTES && self.free.len() < BLOCKS_MAX {
            self.free.push(bytes);
        }
    }

    fn take_large(&mut self) -> Vec<u8> {
        self.large
            .pop()
            .unwrap_or_else(|| Vec::with_capacity(LARGE_BYTES))
    }

    /// Keeps the memory of `bytes` if it is that of a large block.
    fn give_large(&mut self, mut bytes: Vec<u8>) {
        let is_large = (LARGE_BYTES..=4 * LARGE_BYTES).contains(&bytes.capacity());
        if is_large && self.large.len() < BLOCKS_MAX {
            bytes.clear();
            self.large.push(bytes);
        }
    }
}

/// What was received and not yet used.
#[derive(Default)]
pub(crate) struct Input {
    /// A block while bytes come in, else as long as what it holds.
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Input {
    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    pub(crate) fn len(&self) -> usize {
        self.end - self.start
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Where the next bytes go; never empty. [`Input::received`] says how many came.
    pub(crate) fn room(&mut self, blocks: &mut Blocks) -> &mut [u8] {
        let held = self.len();
        if held == 0 {
            (self.start, self.end) = (0, 0);
        }
        if self.bytes.len() - self.end < ROOM_MIN {
            let mut block = if held + ROOM_MIN <= BLOCK_BYTES {
                blocks.take()
            } else {
                vec![0; held + BLOCK_BYTES]
            };
            block[..held].copy_from_slice(self.as_slice());
            blocks.give(std::mem::replace(&mut self.bytes, block));
            (self.start, self.end) = (0, held);
        }
        &mut self.bytes[self.end..]
    }

    /// `count` bytes were written at the start of the room.
    pub(crate) fn received(&mut self, count: usize) {
        self.end += count;
        debug_assert!(self.end <= self.bytes.len(), "no more comes than fits");
    }

    /// Adds bytes that did not come from a socket: opened records, a stream of a leg.
    pub(crate) fn append(&mut self, bytes: &[u8]) {
        self.bytes.truncate(self.end);
        self.bytes.drain(..self.start);
        self.bytes.extend_from_slice(bytes);
        (self.start, self.end) = (0, self.bytes.len());
    }

    pub(crate) fn consume(&mut self, count: usize) {
        self.start += count;
        debug_assert!(self.start <= self.end, "no more is taken than there is");
    }

    pub(crate) fn clear(&mut self) {
        self.start = self.end;
    }

    /// Gives a block back at the end of a turn; what is left in it moves to memory of its own, unless
    /// that would save less than half.
    pub(crate) fn settle(&mut self, blocks: &mut Blocks) {
        let held = self.len();
        if held >= self.bytes.len().div_ceil(2) && held > 0 {
            return;
        }
        let own = self.as_slice().to_vec();
        blocks.give(std::mem::replace(&mut self.bytes, own));
        (self.start, self.end) = (0, held);
    }
}

/// What waits to be sent.
#[derive(Default)]
pub(crate) struct Output {
    bytes: Vec<u8>,
    start: usize,
}

impl Output {
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

    /// The vector to append to. Only its end may be changed.
    pub(crate) fn tail(&mut self) -> &mut Vec<u8> {
        if self.bytes.capacity() == 0 {
            self.bytes = Vec::with_capacity(FIRST_CAPACITY);
        } else if self.start > HIGH_WATERMARK {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        &mut self.bytes
    }

    /// The vector to append payload of this length to.
    pub(crate) fn tail_for(&mut self, payload: usize, blocks: &mut Blocks) -> &mut Vec<u8> {
        let room = self.bytes.capacity() - self.bytes.len();
        if payload >= LARGE_PAYLOAD && room < payload && self.bytes.capacity() < LARGE_BYTES {
            let mut large = blocks.take_large();
            large.extend_from_slice(self.as_slice());
            (self.bytes, self.start) = (large, 0);
        }
        self.tail()
    }

    pub(crate) fn consume(&mut self, count: usize) {
        self.start += count;
        debug_assert!(
            self.start <= self.bytes.len(),
            "no more is taken than there is"
        );
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Gives the memory back when everything is sent.
    pub(crate) fn settle(&mut self, blocks: &mut Blocks) {
        if self.is_empty() {
            blocks.give_large(std::mem::take(&mut self.bytes));
            self.start = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that tell where they belong.
    fn pattern(from: usize, count: usize) -> impl Iterator<Item = u8> {
        (from..from + count).map(|place| (place % 251) as u8)
    }

    fn receive(input: &mut Input, blocks: &mut Blocks, from: usize, count: usize) -> usize {
        let room = input.room(blocks);
        let count = count.min(room.len());
        for (to, byte) in room.iter_mut().zip(pattern(from, count)) {
            *to = byte;
        }
        input.received(count);
        count
    }

    #[test]
    fn an_input_gives_bytes_back_in_order_however_turns_end() {
        let mut input = Input::default();
        let mut blocks = Blocks::default();
        let (mut received, mut used) = (0, 0);
        for round in 0..3_000usize {
            received += receive(&mut input, &mut blocks, received, round * 37 % 90_000);
            let take = input.len().min(round * 53 % 90_000);
            assert!(
                input.as_slice()[..take]
                    .iter()
                    .copied()
                    .eq(pattern(used, take))
            );
            input.consume(take);
            used += take;
            if round % 3 == 0 {
                input.settle(&mut blocks);
            }
            if input.len() > 4 * BLOCK_BYTES {
                used += input.len();
                input.clear();
            }
        }
        assert!(used > 10 * BLOCK_BYTES);
    }

    #[test]
    fn an_input_that_is_used_up_gives_its_block_back() {
        let mut input = Input::default();
        let mut blocks = Blocks::default();
        for _ in 0..3 {
            receive(&mut input, &mut blocks, 0, 500);
            input.consume(500);
            input.settle(&mut blocks);
            assert_eq!(input.bytes.capacity(), 0);
            assert_eq!(blocks.free.len(), 1);
        }
    }

    #[test]
    fn an_input_keeps_no_more_than_what_is_left() {
        let mut input = Input::default();
        let mut blocks = Blocks::default();
        receive(&mut input, &mut blocks, 0, 500);
        input.consume(400);
        input.settle(&mut blocks);
        assert_eq!((input.bytes.capacity(), blocks.free.len()), (100, 1));
        assert!(input.as_slice().iter().copied().eq(pattern(400, 100)));
    }

    #[test]
    fn an_output_gives_bytes_back_in_order_and_holds_no_memory_when_sent() {
        let mut output = Output::default();
        let mut blocks = Blocks::default();
        let (mut written, mut sent) = (0, 0);
        for round in 0..2_000 {
            let more = if round % 100 == 0 { 9_000 } else { round % 300 };
            output
                .tail_for(more, &mut blocks)
                .extend(pattern(written, more));
            written += more;
            let take = output.len().min(round % 290);
            assert!(
                output.as_slice()[..take]
                    .iter()
                    .copied()
                    .eq(pattern(sent, take))
            );
            output.consume(take);
            sent += take;
            if round % 3 == 0 {
                output.settle(&mut blocks);
            }
        }
        output.consume(output.len());
        output.settle(&mut blocks);
        assert_eq!(output.bytes.capacity(), 0);
    }

    #[test]
    fn a_large_output_takes_one_block_and_gives_it_back() {
        let mut output = Output::default();
        let mut blocks = Blocks::default();
        for _ in 0..3 {
            output.tail().extend(pattern(0, 200));
            let tail = output.tail_for(BLOCK_BYTES, &mut blocks);
            let before = tail.capacity();
            tail.extend(pattern(200, BLOCK_BYTES));
            assert_eq!(tail.capacity(), before, "it does not grow");
            let all = output.as_slice().iter().copied();
            assert!(all.eq(pattern(0, 200 + BLOCK_BYTES)));
            output.consume(output.len());
            output.settle(&mut blocks);
            assert_eq!((output.bytes.capacity(), blocks.large.len()), (0, 1));
        }
    }
}
