//! Ending a leg in peace: without streams for too long, before a certificate expires, with a newer
//! identity, in a drain, or because the peer leaves.
//!
//! What it does not do: end a stream that is open. A leg on which no stream shall be opened any
//! more is left, and what is open finishes.
//!
//! Invariants:
//! 1. An accepted leg is left in two steps (`Connection::leave`), so that no call on its way is
//!    refused; a peer that does not hear it holds nobody up for longer than a second.
//! 2. The dialling side closes an idle leg; the accepting side only asks it to.
//! 3. A leg always has a deadline, which is at first that of its handshake.
//!
//! Tests: `worker/tests/legs.rs`, `tests/mesh`.

use meshfast_wire::frame::ErrorCode;
use meshfast_wire::mux::{Connection, Role};

use super::Leg;
use crate::timers::Key;
use crate::worker::{self, Worker};

/// How long the dialling side keeps a leg without streams (ztunnel's `pool_unused_release_timeout`).
const IDLE_TIMEOUT_MS: u64 = 300_000;

/// The same for the accepting side. Later, because a call may be on its way from a caller's proxy that
/// has not closed yet: this side only asks it to, as in a drain.
const ACCEPTED_IDLE_TIMEOUT_MS: u64 = 2 * IDLE_TIMEOUT_MS;

/// For a peer's proxy to hear that we leave. One that is stopped does not hold us up longer.
const LEAVE_TIMEOUT_MS: u64 = 1_000;

impl Leg {
    /// From now on it is idle, or would be but for its streams.
    pub(super) fn rest(&mut self, now_ms: u64) {
        self.idle_ms = now_ms
            + match self.role {
                Role::Client => IDLE_TIMEOUT_MS,
                Role::Server => ACCEPTED_IDLE_TIMEOUT_MS,
            };
    }

    /// Whether nothing hangs on it any more: no stream, nobody who waits for one, nothing unsent.
    pub(super) fn is_done(&self) -> bool {
        self.streams.is_empty() && self.waiting.is_empty() && !self.session.has_unsent()
    }

    /// Whether a caller's proxy has been told that we leave and may not have heard it yet.
    fn is_being_told(&self) -> bool {
        let has_left = self.connection.as_ref().is_none_or(Connection::has_left);
        self.role == Role::Server && self.is_leaving && !has_left
    }

    /// Tells the peer that nothing after what has been read is taken.
    #[cfg(test)]
    pub(crate) fn go_away(&mut self) {
        let connection = self.connection.as_mut().expect("the peer has been checked");
        connection.go_away(ErrorCode::NoError, self.session.output.tail());
    }

    /// Whether the peer leaves, or we do.
    #[cfg(test)]
    pub(crate) fn is_leaving(&self) -> bool {
        self.is_leaving
    }
}

impl Worker {
    /// A leg's time is over: for the handshake, without streams, of the peer's certificate, or for
    /// hearing that we leave.
    pub(crate) fn leg_timer(&mut self, leg_id: usize) {
        let (now_ms, wall_us) = (self.clock.now_ms(), self.clock.wall_us());
        let leg = &mut self.legs[leg_id];
        let is_idle = now_ms >= leg.idle_ms && leg.streams.is_empty();
        if now_ms >= leg.idle_ms {
            leg.rest(now_ms);
        }
        let Some(connection) = &mut leg.connection else {
            self.rejected("tls.handshake_timeout");
            return self.leg_failed(leg_id, "tls.handshake_timeout");
        };
        let has_left = connection.has_left();
        let is_told = now_ms >= leg.told_ms || wall_us >= leg.expires_us;
        if is_idle && (leg.role == Role::Client || has_left) {
            return self.leg_failed(leg_id, "idle");
        }
        if leg.role == Role::Server && is_told && !has_left {
            leg.is_leaving = true;
            connection.go_away(ErrorCode::NoError, leg.session.output.tail());
            self.dirty(Key::Leg(leg_id));
        } else if is_idle || wall_us >= leg.leave_us {
            self.leave(leg_id);
        }
        self.arm_leg(leg_id);
    }

    /// Sets a leg's next deadline. Never further off than the time it may be idle, so that a step of the
    /// time of day is noticed.
    pub(super) fn arm_leg(&mut self, leg_id: usize) {
        let leg = &self.legs[leg_id];
        let (now_ms, wall_us) = (self.clock.now_ms(), self.clock.wall_us());
        let at =
            |of_day_us: u64| now_ms.saturating_add(of_day_us.saturating_sub(wall_us) / 1_000 + 1);
        let mut deadline_ms = leg.idle_ms;
        if leg.is_being_told() {
            deadline_ms = deadline_ms.min(leg.told_ms).min(at(leg.expires_us));
        } else if !leg.is_leaving {
            deadline_ms = deadline_ms.min(at(leg.leave_us));
        }
        self.timers
            .arm(Key::Leg(leg_id), deadline_ms.max(now_ms + 1));
    }

    /// Takes no further streams on a leg; those that are open go on. A caller's proxy is told.
    pub(super) fn leave(&mut self, leg_id: usize) {
        let told_ms = self.clock.now_ms() + LEAVE_TIMEOUT_MS;
        let leg = &mut self.legs[leg_id];
        if leg.is_leaving {
            return;
        }
        if leg.role == Role::Server {
            // Before the check of the peer there is nobody to tell; `establish` does it then.
            let Some(connection) = &mut leg.connection else {
                return;
            };
            connection.leave(leg.session.output.tail());
            leg.told_ms = told_ms;
        }
        leg.is_leaving = true;
        self.arm_leg(leg_id);
        self.dirty(Key::Leg(leg_id));
    }

    /// The peer takes no stream above `last`: of those that are open, it has not seen any. One that it
    /// has taken it has seen, whatever it says later.
    pub(super) fn peer_leaves(&mut self, leg_id: usize, last: u32) {
        let leg = &mut self.legs[leg_id];
        leg.is_leaving = true;
        if leg.role == Role::Client {
            let all = leg.streams.iter().map(|(stream, key)| (*stream, *key));
            let above: Vec<(u32, Key)> = all.filter(|(stream, _)| *stream > last).collect();
            for (stream, key) in above {
                let is_taken = matches!(key, Key::Upstream(id) if self.upstreams[id].is_taken);
                let code = if is_taken {
                    ErrorCode::InternalError
                } else {
                    ErrorCode::RefusedStream
                };
                self.stream_reset(leg_id, stream, code);
            }
        }
    }

    /// Tells the callers' proxies that no further stream is taken.
    pub(crate) fn leave_legs(&mut self) {
        let accepted = self.legs.iter().filter(|(_, leg)| leg.role == Role::Server);
        let accepted: Vec<usize> = accepted.map(|(leg_id, _)| leg_id).collect();
        for leg_id in accepted {
            self.leave(leg_id);
        }
    }

    /// A newer identity is here: legs that we dialled with the older one take no further streams.
    pub(crate) fn leave_older_legs(&mut self) {
        self.legs_to.clear();
        let dialled = self.legs.iter().filter(|(_, leg)| leg.role == Role::Client);
        let dialled: Vec<usize> = dialled.map(|(leg_id, _)| leg_id).collect();
        for leg_id in dialled {
            self.leave_dialled(leg_id);
        }
    }

    /// Leaves a leg that we dialled.
    pub(super) fn leave_dialled(&mut self, leg_id: usize) {
        // In a handshake it has no deadline but that one; who waits for it still goes over it.
        if self.legs[leg_id].connection.is_some() {
            self.leave(leg_id);
        } else {
            self.legs[leg_id].is_leaving = true;
        }
    }

    /// In a drain: closes the legs that have nothing more to carry.
    pub(crate) fn close_done_legs(&mut self) {
        let all = self.legs.iter();
        let done = all.filter(|(_, leg)| leg.is_done() && !leg.is_being_told());
        let done: Vec<usize> = done.map(|(leg_id, _)| leg_id).collect();
        for leg_id in done {
            self.leg_failed(leg_id, "left");
        }
    }

    /// Whether a caller's proxy still has a stream here, may open one, or has not got all bytes yet.
    pub(crate) fn is_called(&self) -> bool {
        let has_call =
            |leg: &Leg| !leg.streams.is_empty() || leg.is_being_told() || leg.session.has_unsent();
        let mut accepted = self.legs.iter().map(|(_, leg)| leg);
        accepted.any(|leg| leg.role == Role::Server && has_call(leg))
    }

    /// Whether callers shall go elsewhere: the application ends, or this worker does.
    pub(super) fn takes_no_calls(&self) -> bool {
        self.is_draining() || self.inbound != worker::Inbound::Open
    }
}
