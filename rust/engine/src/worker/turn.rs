//! A turn of the loop, in this order:
//! 1. wait for events and note what they say in the sessions; nothing is acted on yet, so no
//!    session can be replaced by another while events of the old one are still being read;
//! 2. drive the queued sessions: read, decode, decide, append to outputs;
//! 3. flush every dirty session once; a flush that makes room queues the other side, so 2 and 3
//!    repeat until both lists are empty or the turn is long enough;
//! 4. fire the deadlines that have passed.
//!
//! What it does not do: know what a session is for. It calls `drive_*`, `flush_*` and `*_timer` of
//! the session's kind.
//!
//! Invariants:
//! 1. The clock is read once per turn.
//! 2. `queued` and `dirty` keep a session from being listed twice, and a key whose session is gone
//!    does nothing.
//! 3. A panic in one step ends the connections of that exchange; the loop goes on.
//!
//! Tests: `worker/tests.rs`.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use mio::Events;

use super::drain::DRAIN_POLL_MS;
use super::place::Place;
use super::{Inbound, Worker};
use crate::session::Session;
use crate::timers::Key;

/// Rounds of driving and flushing in one turn before events are looked at again.
const ROUNDS_PER_TURN: usize = 16;

impl Worker {
    /// Sleeps until something happens and does one turn; `true` when the worker has drained.
    pub(super) fn step(&mut self, events: &mut Events, sleep_max_ms: u64) -> io::Result<bool> {
        match self.poll.poll(events, Some(self.sleep(sleep_max_ms))) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(false),
            other => other?,
        }
        self.clock.tick();
        self.turn(events);
        self.share.line.turn(self.clock.since_tick_us());
        self.finish_inbound();
        #[cfg(test)]
        super::tests::check(self);
        Ok(self.is_draining() && self.drained())
    }

    fn sleep(&self, max_ms: u64) -> Duration {
        if !self.to_drive.is_empty() || !self.to_flush.is_empty() {
            return Duration::ZERO;
        }
        let now_ms = self.clock.now_ms();
        let mut sleep_ms = self.timers.next_in(now_ms).unwrap_or(max_ms).min(max_ms);
        if self.is_draining() || self.inbound == Inbound::Leaving {
            sleep_ms = sleep_ms.min(DRAIN_POLL_MS);
        }
        if self.accept_paused_until_ms != 0 {
            sleep_ms = sleep_ms.min(self.accept_paused_until_ms.saturating_sub(now_ms) + 1);
        }
        Duration::from_millis(sleep_ms)
    }

    fn turn(&mut self, events: &Events) {
        let mut told = Vec::new();
        for event in events {
            match Place::of(event.token()) {
                Place::Session(key) => self.note(key, event),
                place => told.push(place),
            }
        }
        for place in told {
            self.guarded_place(place);
        }
        self.work();
        while let Some(key) = self.timers.pop(self.clock.now_ms()) {
            self.guarded(key, Self::fire);
        }
        self.work();
        self.resume_accepting();
        self.retire_generations();
    }

    fn note(&mut self, key: Key, event: &mio::event::Event) {
        if let Some(session) = self.session_of(key) {
            let was_writable = session.io.writable;
            session.io.note(event);
            if session.io.writable && !was_writable {
                self.dirty(key);
            }
            self.queue(key);
        }
    }

    /// Does what a channel or a listener asks for. A panic in it is counted and loses one message or
    /// one connection.
    fn guarded_place(&mut self, place: Place) {
        let done = catch_unwind(AssertUnwindSafe(|| match place {
            Place::Control => self.take_orders(),
            Place::Inbox => self.take_handed_over(),
            Place::Listener(index) => self.accept(index),
            Place::Resolver => self.take_answers(),
            Place::Session(_) => {}
        }));
        if done.is_err() {
            self.rejected("panic");
        }
    }

    pub(super) fn work(&mut self) {
        for _ in 0..ROUNDS_PER_TURN {
            for _ in 0..self.to_drive.len() {
                let Some(key) = self.to_drive.pop_front() else {
                    break;
                };
                self.guarded(key, Self::drive);
            }
            let mut flushing = std::mem::take(&mut self.to_flush);
            for key in flushing.drain(..) {
                self.guarded(key, Self::flush);
            }
            if self.to_flush.is_empty() {
                self.to_flush = flushing;
            }
            if self.to_drive.is_empty() && self.to_flush.is_empty() {
                return;
            }
        }
    }

    pub(super) fn drive(&mut self, key: Key) {
        #[cfg(test)]
        if self.panic_in == Some(key) {
            self.panic_in = None;
            panic!("asked for by a test");
        }
        match key {
            Key::Downstream(id) => {
                if let Some(downstream) = self.downstreams.get_mut(id) {
                    downstream.session.queued = false;
                    self.drive_downstream(id);
                }
                if let Some(downstream) = self.downstreams.get_mut(id) {
                    downstream.session.input.settle(&mut self.blocks);
                    self.credit(key);
                }
            }
            Key::Upstream(id) => {
                if let Some(upstream) = self.upstreams.get_mut(id) {
                    upstream.session.queued = false;
                    self.drive_upstream(id);
                }
                if let Some(upstream) = self.upstreams.get_mut(id) {
                    upstream.session.input.settle(&mut self.blocks);
                    self.credit(key);
                }
            }
            Key::Leg(id) => {
                if let Some(leg) = self.legs.get_mut(id) {
                    leg.session.queued = false;
                    self.drive_leg(id);
                }
            }
            Key::Exchange(_) => {}
        }
    }

    fn flush(&mut self, key: Key) {
        match key {
            Key::Downstream(id) => self.flush_downstream(id),
            Key::Upstream(id) => self.flush_upstream(id),
            Key::Leg(id) => self.flush_leg(id),
            Key::Exchange(_) => {}
        }
    }

    fn fire(&mut self, key: Key) {
        match key {
            Key::Downstream(id) if self.downstreams.contains(id) => self.downstream_timer(id),
            Key::Exchange(id) if self.exchanges.contains(id) => self.exchange_timer(id),
            Key::Leg(id) if self.legs.contains(id) => self.leg_timer(id),
            Key::Upstream(id) if self.upstreams.contains(id) => self.upstream_timer(id),
            _ => {}
        }
    }

    /// At the connection limit too: whoever connects next has an idle connection closed for it.
    fn resume_accepting(&mut self) {
        let until_ms = self.accept_paused_until_ms;
        if until_ms != 0 && until_ms <= self.clock.now_ms() {
            self.accept_paused_until_ms = 0;
            self.reregister();
        }
    }

    /// Does one step of one session. A panic in it is a bug of ours: it ends the connections of that
    /// exchange, is counted, and everything else goes on.
    fn guarded(&mut self, key: Key, step: fn(&mut Self, Key)) {
        let stepped = catch_unwind(AssertUnwindSafe(|| step(self, key)));
        if stepped.is_err() {
            self.rejected("panic");
            self.abandon(key);
        }
    }

    /// Gives back everything that hangs on a session, believing nothing of its state.
    fn abandon(&mut self, key: Key) {
        let exchange_id = match key {
            Key::Downstream(id) => self.downstreams.get(id).and_then(|it| it.exchange),
            Key::Upstream(id) => self.upstreams.get(id).and_then(|it| it.exchange),
            Key::Exchange(id) => Some(id),
            Key::Leg(_) => None,
        };
        if let Key::Leg(id) = key
            && self.legs.contains(id)
        {
            return self.leg_failed(id, "panic");
        }
        let named = exchange_id.and_then(|id| self.exchanges.get(id));
        let (mut downstream_id, mut upstream_id) =
            named.map_or((None, None), |it| (Some(it.downstream), it.upstream));
        match key {
            Key::Downstream(id) => downstream_id = Some(id),
            Key::Upstream(id) => upstream_id = Some(id),
            Key::Exchange(_) | Key::Leg(_) => {}
        }
        if let Some(exchange_id) = exchange_id.filter(|id| self.exchanges.contains(*id)) {
            if let Some(slot) = self.exchanges[exchange_id].active_slot {
                self.share.endpoints.request_finished(slot);
            }
            self.remove_exchange(exchange_id);
        }
        if let Some(id) = upstream_id.filter(|id| self.upstreams.contains(*id)) {
            self.upstreams[id].exchange = None;
            self.drop_upstream(id);
        }
        if let Some(id) = downstream_id.filter(|id| self.downstreams.contains(*id)) {
            self.abort_downstream(id);
        }
    }

    /// The session behind a key; an exchange has none of its own.
    pub(crate) fn session_of(&mut self, key: Key) -> Option<&mut Session> {
        match key {
            Key::Downstream(id) => self.downstreams.get_mut(id).map(|it| &mut it.session),
            Key::Exchange(_) => None,
            Key::Leg(id) => self.legs.get_mut(id).map(|it| &mut it.session),
            Key::Upstream(id) => self.upstreams.get_mut(id).map(|it| &mut it.session),
        }
    }

    /// Has a session driven in this turn.
    pub(crate) fn queue(&mut self, key: Key) {
        if let Some(session) = self.session_of(key).filter(|session| !session.queued) {
            session.queued = true;
            self.to_drive.push_back(key);
        }
    }

    /// Has a session flushed at the end of this turn.
    pub(crate) fn dirty(&mut self, key: Key) {
        if let Some(session) = self.session_of(key).filter(|session| !session.dirty) {
            session.dirty = true;
            self.to_flush.push(key);
        }
    }
}
