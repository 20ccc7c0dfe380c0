//! Legs: connections between two meshfast proxies, mutual TLS below and many streams above.
//!
//! A leg is one socket, one TLS connection and one `meshfast/1` connection (`wire::mux`). Each of
//! its streams is a session like any other, downstream at the callee's proxy and upstream at the
//! caller's. Here is what a leg is, when it is driven and flushed, and how it fails; `handshake`
//! makes one, `streams` moves what its sessions say, `leaving` ends it in peace.
//!
//! What it refuses: anything before the peer's identity has been checked; a leg without an identity
//! of our own. There is no fallback to plain text.
//!
//! Invariants:
//! 1. `streams` names a session, and that session names the leg and the stream; both are cleared
//!    together.
//! 2. When a leg fails, every session on it is told by its own `io.broken`, in the same turn.
//! 3. What waits to be sent is bounded; who does not read is cut off.
//!
//! Tests: `worker/tests/legs.rs`, `tests/mesh`; the protocol in `rust/wire/tests/wire/mux.rs`.

mod handshake;
mod leaving;
mod streams;

use std::rc::Rc;

use meshfast_mesh::Address;
use meshfast_wire::mux::{Connection, PEER_STREAMS_MAX, Role};
use rustc_hash::FxHashMap;

use crate::error::Failure;
use crate::session::{Flushed, Session};
use crate::stream::Peer;
use crate::timers::Key;
use crate::upstream::READS_PER_TURN;
use crate::worker::Worker;

pub(crate) use streams::Inbound;

/// What may wait to be sent on a leg. Streams stop far below it; only answers to control frames of a
/// peer that does not read get there (CVE-2019-9512, CVE-2019-9515).
const OUTPUT_BYTES_MAX: usize = 1 << 20;

/// A connection to another meshfast proxy.
pub(crate) struct Leg {
    pub(crate) session: Session,
    /// Once the peer has been checked.
    connection: Option<Connection>,
    role: Role,
    is_connected: bool,
    peer: Peer,
    /// Who the peer is.
    identity: Option<Rc<str>>,
    /// Of a leg we dialled.
    endpoint: Option<Endpoint>,
    /// Of a leg we accepted: the listener.
    listener: usize,
    /// Takes no further stream of ours: the peer leaves, one of the certificates is an old one. Of a
    /// leg we accepted: the peer has been told that we leave.
    is_leaving: bool,
    /// When it will have been without streams for too long, unless it has one then.
    idle_ms: u64,
    /// When a peer that we leave counts as told.
    told_ms: u64,
    /// Time of day when the peer's certificate expires, and when the leg is left before that.
    expires_us: u64,
    leave_us: u64,
    /// Upstream sessions that wait for the handshake.
    waiting: Vec<usize>,
    streams: FxHashMap<u32, Key>,
}

/// Whom a leg was dialled for. The same address may be another service's a moment later.
#[derive(Debug)]
struct Endpoint {
    slot: u32,
    address: Address,
    /// Who must answer there; the handshake has checked it, or will.
    expected: Box<str>,
}

impl Leg {
    fn new(session: Session, role: Role) -> Self {
        let peer = session.stream.peer();
        Self {
            session,
            connection: None,
            role,
            is_connected: role == Role::Server,
            peer,
            identity: None,
            endpoint: None,
            listener: 0,
            is_leaving: false,
            idle_ms: 0,
            told_ms: u64::MAX,
            expires_us: u64::MAX,
            leave_us: u64::MAX,
            waiting: Vec::new(),
            streams: FxHashMap::default(),
        }
    }

    /// Who the peer is; `None` until it has been checked.
    #[cfg(test)]
    pub(crate) fn peer(&self) -> Option<&str> {
        self.identity.as_deref()
    }

    /// Whether another stream may be opened, now or after the handshake.
    pub(crate) fn has_room(&self) -> bool {
        !self.is_leaving
            && !self.session.io.broken
            && self
                .connection
                .as_ref()
                .map_or(self.waiting.len() < PEER_STREAMS_MAX, Connection::may_open)
    }
}

impl Worker {
    /// Events have come for a leg.
    pub(crate) fn drive_leg(&mut self, leg_id: usize) {
        let leg = &mut self.legs[leg_id];
        if !leg.is_connected {
            if !leg.session.io.writable {
                return;
            }
            if let Err(error) = leg.session.stream.connected() {
                return self.leg_failed(leg_id, &error.to_string());
            }
            leg.is_connected = true;
            self.dirty(Key::Leg(leg_id));
        }
        for _ in 0..READS_PER_TURN {
            let input_max = self.limits.buffer_bytes_max();
            let Some(leg) = self.legs.get_mut(leg_id) else {
                return;
            };
            let came = leg.session.read(&mut self.blocks, input_max);
            self.take_frames(leg_id);
            let Some(leg) = self.legs.get(leg_id) else {
                return;
            };
            if leg.session.output.len() > OUTPUT_BYTES_MAX {
                return self.cut_off(leg_id, "mux.output_flood");
            }
            let io = leg.session.io;
            if io.broken || io.read_closed {
                let failure = leg.session.tls.as_ref().and_then(|tls| tls.failure());
                if let Some(failure) = failure {
                    self.rejected(failure.0);
                }
                let why = failure.map_or("connection closed by the peer's proxy", |it| it.0);
                return self.leg_failed(leg_id, why);
            }
            if !came {
                return;
            }
        }
        self.queue(Key::Leg(leg_id));
    }

    /// Sends what waits on a leg, and what was held back by it.
    pub(crate) fn flush_leg(&mut self, leg_id: usize) {
        let Some(leg) = self.legs.get_mut(leg_id) else {
            return;
        };
        leg.session.dirty = false;
        if !leg.is_connected {
            return;
        }
        let was_high = leg.session.output.is_high();
        match leg.session.flush(&mut self.blocks) {
            Flushed::Broken => self.leg_failed(leg_id, "connection reset"),
            Flushed::All if leg.role == Role::Client && leg.is_leaving && leg.is_done() => {
                self.leg_failed(leg_id, "left");
            }
            Flushed::All | Flushed::Blocked => {
                if was_high && !leg.session.output.is_high() {
                    let all: Vec<Key> = leg.streams.values().copied().collect();
                    all.into_iter().for_each(|key| self.dirty(key));
                }
            }
        }
    }

    /// Ends a leg whose peer broke a rule: counted, and said in the log.
    fn cut_off(&mut self, leg_id: usize, reason: &'static str) {
        self.rejected(reason);
        let leg = self.leg_ended(leg_id, reason);
        if leg.role == Role::Server {
            self.record_leg(&leg.session, reason);
        }
    }

    /// Ends a leg; every session on it learns of it.
    pub(crate) fn leg_failed(&mut self, leg_id: usize, why: &str) {
        self.leg_ended(leg_id, why);
    }

    fn leg_ended(&mut self, leg_id: usize, why: &str) -> Leg {
        let mut leg = self.legs.remove(leg_id);
        leg.session.flush(&mut self.blocks);
        self.timers.disarm(Key::Leg(leg_id));
        if let Some(Endpoint { slot, .. }) = &leg.endpoint
            && self.legs_to.get(slot) == Some(&leg_id)
        {
            self.legs_to.remove(slot);
        }
        for upstream_id in std::mem::take(&mut leg.waiting) {
            let exchange = self.upstreams.get(upstream_id).and_then(|it| it.exchange);
            if let Some(exchange_id) = exchange {
                self.connect_failed(exchange_id, Failure::ConnectFailed, why);
            }
        }
        for key in std::mem::take(&mut leg.streams).into_values() {
            if let Some(session) = self.session_of(key) {
                session.io.broken = true;
            }
            self.queue(key);
        }
        leg
    }
}
