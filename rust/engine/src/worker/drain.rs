//! Draining: a worker that stops, an application that stops, a listener that is gone.
//!
//! Accepting goes on while callers have not heard of it, what is under way is finished, what is
//! idle is closed, and at the deadline the rest is cut.
//!
//! What it does not do: wait beyond its deadline for anybody.
//!
//! Invariants:
//! 1. A listening socket is closed only after what waits in it has been taken, and out of the epoll
//!    set first, because the open file lives on in other processes.
//! 2. A second drain may shorten the first, never lengthen it.
//! 3. Who is cut off can tell: its connection is reset, or ends short of what was promised.
//!
//! Tests: `worker/tests/edges.rs`, `worker/tests/legs.rs`, `tests/dataplane/test_edges.py`,
//! `tests/dataplane/test_lifecycle.py`.

use super::Worker;
use crate::control::Report;
use crate::error::Failure;
use crate::shared::State;
use crate::upstream::Upstream;

/// While draining, a connection that has been idle this long is closed; one that was used a moment
/// ago may have its next request on the way, and gets `connection: close` with the answer instead.
const DRAIN_IDLE_MS: u64 = 5_000;

/// How often a draining worker looks whether it has finished, at least.
pub(super) const DRAIN_POLL_MS: u64 = 50;

/// When the listening sockets are to be closed: callers that have not yet heard of it connect for a
/// while. Accepting ends when none has come for this long,
const QUIET_MS: u64 = 200;

/// and at the latest after this long.
pub(super) const ACCEPTING_MAX_MS: u64 = 5_000;

/// The same when the supervisor is dead: whoever starts in its place waits for the addresses.
pub(super) const ORPHAN_ACCEPTING_MS: u64 = 500;

/// A drain under way. All times in ms.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drain {
    until_ms: u64,
    /// Accepting goes on until then; 0 when it is over.
    accepting_until_ms: u64,
    last_accept_ms: u64,
}

/// Calls for the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inbound {
    /// Are taken.
    Open,
    /// Those under way are finished.
    Leaving,
    /// The last one has ended, and the supervisor knows.
    Left,
}

impl Worker {
    pub(crate) fn is_draining(&self) -> bool {
        self.drain.is_some()
    }

    /// Whether connections are accepted now: always but in the later part of a drain.
    pub(crate) fn is_accepting(&self) -> bool {
        self.accept_paused_until_ms == 0
            && self.drain.is_none_or(|drain| drain.accepting_until_ms != 0)
    }

    pub(crate) fn accepted_now(&mut self) {
        if let Some(drain) = &mut self.drain {
            drain.last_accept_ms = self.clock.now_ms();
        }
    }

    /// Finishes within `deadline_ms`. Accepting goes on for `accepting_ms` at most; 0 when others
    /// accept from the same sockets.
    pub(super) fn drain(&mut self, deadline_ms: u64, accepting_ms: u64) {
        let now_ms = self.clock.now_ms();
        let accepting_ms = accepting_ms.min(deadline_ms / 2);
        let wanted = Drain {
            until_ms: now_ms + deadline_ms,
            accepting_until_ms: if accepting_ms == 0 {
                0
            } else {
                now_ms + accepting_ms
            },
            last_accept_ms: now_ms,
        };
        // A second drain may shorten the first, never lengthen it.
        let drain = self.drain.get_or_insert(wanted);
        drain.until_ms = drain.until_ms.min(wanted.until_ms);
        drain.accepting_until_ms = drain.accepting_until_ms.min(wanted.accepting_until_ms);
        if self.share.line.state_is(State::Serving) {
            self.leave_legs();
        }
        self.share.line.state(State::Draining);
        self.reregister();
        self.take_handed_over();
    }

    /// Whether a draining worker has finished; closes what need not or must not be waited for.
    pub(super) fn drained(&mut self) -> bool {
        let now_ms = self.clock.now_ms();
        let Some(drain) = self.drain else {
            return false;
        };
        if now_ms >= drain.until_ms {
            self.cut_everything();
            return true;
        }
        if drain.accepting_until_ms != 0 {
            let is_quiet = now_ms - drain.last_accept_ms >= QUIET_MS;
            if !is_quiet && now_ms < drain.accepting_until_ms {
                return false;
            }
            self.close_listeners();
        }
        let patience_ms = DRAIN_IDLE_MS.min((drain.until_ms - now_ms) / 2);
        let idle: Vec<usize> = self
            .downstreams
            .iter()
            .filter(|(_, it)| it.is_idle() && now_ms - it.idle_since_ms > patience_ms)
            .map(|(id, _)| id)
            .collect();
        for id in idle {
            self.close_downstream(id);
        }
        self.close_done_legs();
        self.work();
        let is_idle = |it: &Upstream| it.exchange.is_none() && it.session.output.is_empty();
        self.downstreams.is_empty()
            && !self.is_called()
            && self.upstreams.iter().all(|(_, it)| is_idle(it))
    }

    /// Takes what has connected so far and closes this worker's ends of the listening sockets.
    fn close_listeners(&mut self) {
        for index in 0..self.listeners.len() {
            self.accept_all(index);
        }
        if let Some(drain) = &mut self.drain {
            drain.accepting_until_ms = 0;
        }
        self.reregister();
        for listener in &mut self.listeners {
            listener.close();
        }
    }

    /// The time is over: whoever is still being answered must not take what it got for the whole.
    fn cut_everything(&mut self) {
        let under_way: Vec<usize> = self.exchanges.iter().map(|(id, _)| id).collect();
        for exchange_id in under_way {
            if self.exchanges.contains(exchange_id) {
                self.fail(exchange_id, Failure::Drained);
            }
        }
        self.work();
        // Answered, but not read yet: the kernel would end the part it has with a FIN.
        let unsent = self
            .downstreams
            .iter()
            .filter(|(_, it)| !it.session.output.is_empty());
        let unsent: Vec<usize> = unsent.map(|(id, _)| id).collect();
        for downstream_id in unsent {
            self.abort_downstream(downstream_id);
        }
    }

    /// The application is about to end: callers go to other instances from now on. It may still call
    /// others, and a job's last call is as good as its first.
    pub(super) fn drain_inbound(&mut self) {
        for index in 0..self.listeners.len() {
            if self.listeners[index].is_inbound() {
                self.accept_all(index);
                self.listeners[index].leave_inbound();
            }
        }
        self.reregister();
        for listener in self.listeners.iter_mut().filter(|it| it.is_inbound()) {
            listener.close();
        }
        self.inbound = Inbound::Leaving;
        self.leave_legs();
    }

    /// Tells the supervisor once that the last call for the application has ended.
    pub(super) fn finish_inbound(&mut self) {
        let has_call = |worker: &Self| {
            worker
                .downstreams
                .iter()
                .any(|(_, it)| it.inbound().is_some())
                || worker.is_called()
        };
        if self.inbound == Inbound::Leaving && !has_call(self) {
            self.inbound = Inbound::Left;
            self.report(&Report::InboundDrained);
        }
    }

    /// What the new snapshot does not listen on any more is closed, after taking what waits there: it
    /// was connected while the old configuration was in force.
    pub(super) fn close_removed_listeners(&mut self) {
        for index in 0..self.listeners.len() {
            if self.listeners[index].is_removed() {
                self.accept_all(index);
            }
        }
        // Out of the epoll set first: the open file lives on in other processes.
        self.reregister();
        for listener in self
            .listeners
            .iter_mut()
            .filter(|listener| listener.is_removed())
        {
            listener.close();
        }
    }
}
