//! One line per worker slot: what the process is, what it holds, how long its turns are.

use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::SharedMemory;

/// What a worker is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The slot was never used, or its worker has left.
    Gone,
    /// Loading its snapshot; does not accept yet.
    Booting,
    /// Accepting.
    Serving,
    /// Finishing what it has; accepts nothing.
    Draining,
}

const STATES: [State; 4] = [State::Gone, State::Booting, State::Serving, State::Draining];

impl State {
    /// The name operators see.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Booting => "booting",
            Self::Serving => "serving",
            Self::Draining => "draining",
        }
    }
}

/// A worker's line, as read at one moment.
#[derive(Clone, Debug)]
pub struct WorkerTotals {
    /// The worker slot.
    pub slot: u32,
    /// The process, 0 when the slot was never used.
    pub pid: u32,
    /// What the process does.
    pub state: State,
    /// The newest generation this worker serves from.
    pub generation: u64,
    /// The oldest generation an exchange of this worker still holds.
    pub oldest_generation: u64,
    /// Downstream connections open now.
    pub connections: u64,
    /// Exchanges in flight now.
    pub exchanges: u64,
    /// Connections accepted, ever.
    pub accepted: u64,
    /// Accepted connections handed to a less loaded worker, ever.
    pub handed_over: u64,
    /// Loop turns, ever.
    pub loop_turns: u64,
    /// The longest loop turn, in microseconds.
    pub loop_turn_max_us: u64,
    /// Access-log lines dropped because the ring was full, ever.
    pub access_log_dropped: u64,
    /// Samples counted in an overflow series, ever.
    pub series_overflow: u64,
    /// Spans dropped because the ring was full, ever.
    pub spans_dropped: u64,
}

/// The words of a line, in order.
#[derive(Clone, Copy)]
#[repr(usize)]
enum Word {
    Pid,
    State,
    Generation,
    OldestGeneration,
    Connections,
    Exchanges,
    Accepted,
    HandedOver,
    LoopTurns,
    LoopTurnMax,
    AccessLogDropped,
    SeriesOverflow,
    /// Connections in the worker's inbox: the one word of a line that others write too, by atomic
    /// addition. It outlives the worker, as the inbox does. Read as signed: a receiver may be faster
    /// than the sender's count.
    InboxWaiting,
    SpansDropped,
}

/// A worker's own line, for writing.
pub(crate) struct WorkerLine {
    memory: Rc<SharedMemory>,
    slot: u32,
}

impl WorkerLine {
    pub(super) fn take(memory: &Rc<SharedMemory>, slot: u32) -> Self {
        let line = Self {
            memory: Rc::clone(memory),
            slot,
        };
        line.word(Word::Connections).store(0, Relaxed);
        line.word(Word::Exchanges).store(0, Relaxed);
        line.word(Word::Pid)
            .store(u64::from(std::process::id()), Relaxed);
        line.state(State::Booting);
        line
    }

    pub(crate) fn state(&self, state: State) {
        self.word(Word::State).store(state as u64, Relaxed);
    }

    pub(crate) fn state_is(&self, state: State) -> bool {
        self.word(Word::State).load(Relaxed) == state as u64
    }

    pub(crate) fn generations(&self, newest: u64, oldest: u64) {
        self.word(Word::Generation).store(newest, Relaxed);
        self.word(Word::OldestGeneration).store(oldest, Relaxed);
    }

    pub(crate) fn connection_opened(&self) {
        self.add(Word::Connections, 1);
        self.add(Word::Accepted, 1);
    }

    pub(crate) fn connection_closed(&self) {
        self.subtract(Word::Connections, 1);
    }

    pub(crate) fn exchange_opened(&self) {
        self.add(Word::Exchanges, 1);
    }

    pub(crate) fn exchange_closed(&self) {
        self.subtract(Word::Exchanges, 1);
    }

    pub(crate) fn turn(&self, microseconds: u64) {
        self.add(Word::LoopTurns, 1);
        if self.word(Word::LoopTurnMax).load(Relaxed) < microseconds {
            self.word(Word::LoopTurnMax).store(microseconds, Relaxed);
        }
    }

    pub(crate) fn access_log_dropped(&self) {
        self.add(Word::AccessLogDropped, 1);
    }

    pub(crate) fn series_overflowed(&self) {
        self.add(Word::SeriesOverflow, 1);
    }

    pub(crate) fn span_dropped(&self) {
        self.add(Word::SpansDropped, 1);
    }

    /// Connections of another worker, those on their way to it included, or `None` when it does not
    /// accept or serves from another generation, which may have other listeners.
    pub(crate) fn load_of(&self, slot: u32, generation: u64) -> Option<u64> {
        let state = word(&self.memory, slot, Word::State).load(Relaxed);
        let serves = word(&self.memory, slot, Word::Generation).load(Relaxed);
        if state != State::Serving as u64 || serves != generation {
            return None;
        }
        let waiting = word(&self.memory, slot, Word::InboxWaiting).load(Relaxed);
        let connections = word(&self.memory, slot, Word::Connections).load(Relaxed);
        Some(connections.saturating_add_signed(waiting as i64))
    }

    /// Of another worker: connections that wait in its inbox, and turns of its loop.
    pub(crate) fn progress_of(&self, slot: u32) -> (i64, u64) {
        let value = |which| word(&self.memory, slot, which).load(Relaxed);
        (value(Word::InboxWaiting) as i64, value(Word::LoopTurns))
    }

    /// A connection has left for another worker's inbox.
    pub(crate) fn handed_over_to(&self, slot: u32) {
        self.add(Word::HandedOver, 1);
        word(&self.memory, slot, Word::InboxWaiting).fetch_add(1, Relaxed);
    }

    /// A connection has been taken from this worker's inbox.
    pub(crate) fn taken_from_inbox(&self) {
        self.word(Word::InboxWaiting).fetch_sub(1, Relaxed);
    }

    /// One writer per line: a plain load and store, no locked instruction.
    fn add(&self, which: Word, amount: u64) {
        let word = self.word(which);
        word.store(word.load(Relaxed).wrapping_add(amount), Relaxed);
    }

    fn subtract(&self, which: Word, amount: u64) {
        let word = self.word(which);
        word.store(word.load(Relaxed).saturating_sub(amount), Relaxed);
    }

    fn word(&self, which: Word) -> &AtomicU64 {
        word(&self.memory, self.slot, which)
    }
}

/// Resets the line of a process that is gone and left no successor: its gauges count for nothing. The
/// process is named, so that a successor's line is left alone.
pub(super) fn reap(memory: &SharedMemory, slot: u32, pid: u32) -> bool {
    let word = |which| word(memory, slot, which);
    let named = u64::from(pid);
    let state = word(Word::State).load(Relaxed);
    if word(Word::Pid).load(Relaxed) != named || state == State::Gone as u64 {
        return false;
    }
    word(Word::State).store(State::Gone as u64, Relaxed);
    word(Word::Connections).store(0, Relaxed);
    word(Word::Exchanges).store(0, Relaxed);
    true
}

pub(super) fn read(memory: &SharedMemory, slot: u32) -> WorkerTotals {
    let value = |which| word(memory, slot, which).load(Relaxed);
    WorkerTotals {
        slot,
        pid: value(Word::Pid) as u32,
        state: *STATES
            .get(value(Word::State) as usize)
            .unwrap_or(&State::Gone),
        generation: value(Word::Generation),
        oldest_generation: value(Word::OldestGeneration),
        connections: value(Word::Connections),
        exchanges: value(Word::Exchanges),
        accepted: value(Word::Accepted),
        handed_over: value(Word::HandedOver),
        loop_turns: value(Word::LoopTurns),
        loop_turn_max_us: value(Word::LoopTurnMax),
        access_log_dropped: value(Word::AccessLogDropped),
        series_overflow: value(Word::SeriesOverflow),
        spans_dropped: value(Word::SpansDropped),
    }
}

fn word(memory: &SharedMemory, slot: u32, which: Word) -> &AtomicU64 {
    memory
        .mapping
        .word64(memory.layout.worker(slot) + which as usize * 8)
}
