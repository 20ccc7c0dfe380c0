//! The way to another worker's inbox, and whether that one is awake.
//!
//! What it does not do: choose the worker that gets a connection (`listener` does).
//!
//! Tests: a stopped worker in `tests/dataplane/test_hostile.py`.

use std::cell::Cell;

use crate::control::Channel;

/// Another worker's inbox.
pub(crate) struct Outbox {
    pub(crate) slot: u32,
    pub(crate) channel: Channel,
    pub(crate) watch: Watch,
}

/// Tells a worker that is stopped or stuck: connections wait for it and its loop does not turn. It gets
/// no more of them until it does.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    seen_turns: Cell<u64>,
    seen_ms: Cell<u64>,
}

/// A loop that serves turns within this time when something waits for it.
const STUCK_MS: u64 = 50;

impl Watch {
    /// `waiting` connections are on their way to a worker whose loop has turned `turns` times.
    pub(crate) fn is_awake(&self, (waiting, turns): (i64, u64), now_ms: u64) -> bool {
        if waiting <= 0 || turns != self.seen_turns.get() {
            self.seen_turns.set(turns);
            self.seen_ms.set(now_ms);
        }
        now_ms - self.seen_ms.get() < STUCK_MS
    }
}
