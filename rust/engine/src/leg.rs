//! Legs: connections between two meshfast proxies, mutual TLS below and many streams above.
//!
//! A leg is one socket, one TLS connection and one `meshfast/1` connection (`wire::mux`). Each of its
//! streams is a session like any other, downstream at the callee's proxy and upstream at the
//! caller's: the leg puts what comes for it into the session's input and takes what waits in its
//! output, within the stream's credit. A worker keeps one leg per endpoint and opens another when
//! that one is full, leaving, or was made with an older identity.
//!
//! What it refuses: anything before the peer's identity has been checked; a leg without an identity
//! of our own. There is no fallback to plain text.
//!
//! Invariants:
//! 1. `streams` names a session, and that session names the leg and the stream; both are cleared
//!    together.
//! 2. Credit is given back for what the session's exchange has used, so a slow reader at one end
//!    stops the writer at the other and nobody else.
//! 3. When a leg fails, every session on it is told by its own `io.broken`, in the same turn.
//! 4. A leg on which no stream shall be opened any more is left: what is open finishes. An accepted one
//!    is left in two steps (`Connection::leave`), so that no call on its way is refused.
//! 5. No stream is taken from a peer whose certificate has expired; both sides leave before that.
//!
//! Tests: `worker/tests/legs.rs`, `tests/mesh`; the protocol in `rust/wire/tests/wire/mux.rs`.

use std::rc::Rc;

use meshfast_mesh::{Address, Dial};
use meshfast_wire::frame::ErrorCode;
use meshfast_wire::mux::{self, Connection, Event, PEER_STREAMS_MAX, Role};
use rustc_hash::FxHashMap;

use crate::downstream::{Downstream, HEAD_TIMEOUT_MS, Within};
use crate::error::Failure;
use crate::exchange::{Carries, Destination};
use crate::session::{Flushed, Session};
use crate::slab::Slab;
use crate::stream::{Peer, Stream};
use crate::timers::Key;
use crate::tls::Tls;
use crate::tries::Ending;
use crate::upstream::{READS_PER_TURN, Upstream};
use crate::worker::{self, Worker};

/// For a TLS handshake to be done (row T10).
const HANDSHAKE_TIMEOUT_MS: u64 = 5_000;

/// How long the dialling side keeps a leg without streams (ztunnel's `pool_unused_release_timeout`).
const IDLE_TIMEOUT_MS: u64 = 300_000;

/// The same for the accepting side. Later, because a call may be on its way from a caller's proxy that
/// has not closed yet: this side only asks it to, as in a drain.
const ACCEPTED_IDLE_TIMEOUT_MS: u64 = 2 * IDLE_TIMEOUT_MS;

/// For a peer's proxy to hear that we leave. One that is stopped does not hold us up longer.
const LEAVE_TIMEOUT_MS: u64 = 1_000;

/// A leg is left when this part of the time that the peer's certificate had left at the handshake is
/// still to come. A share, so that legs of a peer that cannot renew are made anew ever more often,
/// but not at every call.
const LEFT_BEFORE_EXPIRY: u64 = 10;

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

/// What a stream of a leg says of its caller.
#[derive(Clone, Debug)]
pub(crate) struct Inbound {
    /// The port of the workload that is called.
    pub(crate) port: u16,
    /// Who calls.
    pub(crate) caller: Rc<str>,
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

    /// From now on it is idle, or would be but for its streams.
    fn rest(&mut self, now_ms: u64) {
        self.idle_ms = now_ms
            + match self.role {
                Role::Client => IDLE_TIMEOUT_MS,
                Role::Server => ACCEPTED_IDLE_TIMEOUT_MS,
            };
    }

    /// Whether nothing hangs on it any more: no stream, nobody who waits for one, nothing unsent.
    fn is_done(&self) -> bool {
        self.streams.is_empty() && self.waiting.is_empty() && !self.session.has_unsent()
    }

    /// Whether a caller's proxy has been told that we leave and may not have heard it yet.
    fn is_being_told(&self) -> bool {
        let has_left = self.connection.as_ref().is_none_or(Connection::has_left);
        self.role == Role::Server && self.is_leaving && !has_left
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
    /// A connection came to a listener that demands mutual TLS.
    pub(crate) fn accept_leg(&mut self, listener: usize, stream: Stream) {
        let Some(identity) = &self.identity else {
            return self.rejected("tls.no_identity");
        };
        let tls = match Tls::server(identity) {
            Ok(tls) => tls,
            Err(failure) => return self.rejected(failure.0),
        };
        let mut session = Session::new(stream);
        session.tls = Some(Box::new(tls));
        let mut leg = Leg::new(session, Role::Server);
        leg.listener = listener;
        self.add_leg(leg);
    }

    fn add_leg(&mut self, mut leg: Leg) -> Option<usize> {
        let entry = self.legs.vacant_entry();
        let leg_id = entry.key();
        let token = Key::Leg(leg_id).token();
        leg.session
            .stream
            .register(self.poll.registry(), token)
            .ok()?;
        entry.insert(leg);
        let deadline_ms = self.clock.now_ms() + HANDSHAKE_TIMEOUT_MS;
        self.timers.arm(Key::Leg(leg_id), deadline_ms);
        Some(leg_id)
    }

    /// Sends an exchange to an endpoint over a leg, which is made if there is none with room.
    pub(crate) fn dial_leg(&mut self, exchange_id: usize, dial: &Dial, slot: u32, expected: &str) {
        let leg_id = match self.leg_to(dial, slot, expected) {
            Ok(leg_id) => leg_id,
            Err(why) => {
                self.exchanges[exchange_id].upstream_address = Some(dial.address.clone());
                return self.connect_failed(exchange_id, Failure::ConnectFailed, &why);
            }
        };
        let session = Session::new(Stream::Leg {
            leg: leg_id,
            stream: 0,
        });
        let upstream_id = self
            .upstreams
            .insert(Upstream::new(session, &dial.address, Some(slot)));
        self.attach(exchange_id, upstream_id);
        if self.legs[leg_id].connection.is_some() {
            return self.open_stream(leg_id, upstream_id);
        }
        self.legs[leg_id].waiting.push(upstream_id);
        let deadline_ms = self.clock.now_ms() + dial.connect_timeout_ms;
        self.timers.arm(Key::Upstream(upstream_id), deadline_ms);
    }

    fn leg_to(&mut self, dial: &Dial, slot: u32, expected: &str) -> Result<usize, String> {
        if let Some(leg_id) = self.legs_to.get(&slot).copied()
            && let Some(leg) = self.legs.get(leg_id)
        {
            let is_to = |it: &Endpoint| it.address == dial.address && *it.expected == *expected;
            if !leg.endpoint.as_ref().is_some_and(is_to) {
                // The slot, or who is called there, has changed: nobody calls by it any more.
                self.leave_dialled(leg_id);
            } else if leg.has_room() {
                return Ok(leg_id);
            }
        }
        let identity = self.identity.as_ref().ok_or("no identity yet")?;
        let tls = Tls::client(identity, expected).map_err(|failure| failure.0.to_owned())?;
        let stream = Stream::dial(dial).map_err(|error| error.to_string())?;
        stream.tune();
        let mut session = Session::new(stream);
        session.tls = Some(Box::new(tls));
        session.io.writable = false;
        let mut leg = Leg::new(session, Role::Client);
        leg.endpoint = Some(Endpoint {
            slot,
            address: dial.address.clone(),
            expected: expected.into(),
        });
        let leg_id = self
            .add_leg(leg)
            .ok_or("the event loop takes no more sockets")?;
        self.legs_to.insert(slot, leg_id);
        Ok(leg_id)
    }

    /// Opens a stream for an upstream session and sends its request.
    fn open_stream(&mut self, leg_id: usize, upstream_id: usize) {
        let upstream = &mut self.upstreams[upstream_id];
        let Some(exchange_id) = upstream.exchange else {
            return;
        };
        let exchange = &self.exchanges[exchange_id];
        let port = match exchange.destination {
            Some(Destination::Cluster(index)) => {
                let cluster = &exchange.generation.snapshot.clusters[index];
                let chosen = exchange.endpoint.expect("a leg leads to an endpoint");
                cluster.target_port(&cluster.endpoints[chosen as usize])
            }
            _ => None,
        };
        let carries = match exchange.carries {
            Carries::Http => mux::Carries::Http1,
            Carries::Connect | Carries::Tcp => mux::Carries::Tcp,
        };
        let leg = &mut self.legs[leg_id];
        let output = leg.session.output.tail();
        let opened = leg
            .connection
            .as_mut()
            .zip(port)
            .and_then(|(connection, port)| connection.open(port, carries, output));
        let Some(stream) = opened else {
            return self.connect_failed(exchange_id, Failure::ConnectFailed, "no stream to be had");
        };
        leg.streams.insert(stream, Key::Upstream(upstream_id));
        upstream.session.stream = Stream::Leg {
            leg: leg_id,
            stream,
        };
        upstream.session.local = leg.session.local;
        upstream.is_connected = true;
        self.timers.disarm(Key::Upstream(upstream_id));
        self.dirty(Key::Leg(leg_id));
        self.send_request(exchange_id);
    }

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

    /// Reads what the peer has said; the first time, after the peer has been checked.
    fn take_frames(&mut self, leg_id: usize) {
        self.dirty(Key::Leg(leg_id));
        if self.legs[leg_id].connection.is_none() && !self.establish(leg_id) {
            return;
        }
        let now_ms = self.clock.now_ms();
        if let Some(connection) = &mut self.legs[leg_id].connection {
            connection.at(now_ms);
        }
        while let Some(leg) = self.legs.get_mut(leg_id) {
            let Some(connection) = &mut leg.connection else {
                return;
            };
            let input = leg.session.input.as_slice();
            let (used, told) = match connection.receive(input, leg.session.output.tail()) {
                Ok((used, Some(Event::Data(stream, bytes)))) => {
                    let key = leg.streams.get(&stream).copied();
                    deliver(&mut self.downstreams, &mut self.upstreams, key, bytes);
                    (used, key.map(Told::Woken))
                }
                Ok((used, Some(event))) => (used, Some(Told::of(event))),
                Ok((0, None)) => return,
                Ok((used, None)) => (used, None),
                Err(error) => {
                    let code = ErrorCode::of(&error);
                    connection.go_away(code, leg.session.output.tail());
                    return self.cut_off(leg_id, error.detail());
                }
            };
            leg.session.input.consume(used);
            if let Some(told) = told {
                self.act_on(leg_id, told);
            }
        }
    }

    /// Begins `meshfast/1` once TLS has checked the peer; `false` before that.
    fn establish(&mut self, leg_id: usize) -> bool {
        let leg = &mut self.legs[leg_id];
        let Some(peer) = leg.session.tls.as_ref().and_then(|tls| tls.peer()) else {
            return false;
        };
        leg.identity = Some(Rc::from(peer.name.as_str()));
        let wall_us = self.clock.wall_us();
        leg.expires_us = peer.expires_s.saturating_mul(1_000_000);
        let left_us = leg.expires_us.saturating_sub(wall_us);
        leg.leave_us = leg.expires_us - left_us / LEFT_BEFORE_EXPIRY;
        leg.rest(self.clock.now_ms());
        leg.connection = Some(Connection::new(leg.role, leg.session.output.tail()));
        let waiting = std::mem::take(&mut leg.waiting);
        self.arm_leg(leg_id);
        // The peers' proxies that had not been heard when we began to leave learn it now.
        if self.legs[leg_id].role == Role::Server && self.takes_no_calls() {
            self.leave(leg_id);
        }
        for upstream_id in waiting {
            let waits = |it: &Upstream| it.session.stream.leg() == Some((leg_id, 0));
            if self.upstreams.get(upstream_id).is_some_and(waits) {
                self.open_stream(leg_id, upstream_id);
            }
        }
        self.legs.contains(leg_id)
    }

    /// An upstream session that waits for a handshake goes: its number will be another's.
    pub(crate) fn stop_waiting(&mut self, upstream_id: usize, stream: &Stream) {
        if let Some((leg_id, _)) = stream.leg()
            && let Some(leg) = self.legs.get_mut(leg_id)
        {
            leg.waiting.retain(|waiting| *waiting != upstream_id);
        }
    }

    fn act_on(&mut self, leg_id: usize, told: Told) {
        let leg = &mut self.legs[leg_id];
        match told {
            Told::Woken(key) => self.queue(key),
            Told::Ended(stream) => {
                if let Some(key) = leg.streams.get(&stream).copied() {
                    if let Some(session) = self.session_of(key) {
                        session.io.read_closed = true;
                    }
                    self.queue(key);
                }
            }
            // What is still open finishes; then `flush_leg` closes it.
            Told::Left(last) => self.peer_leaves(leg_id, last),
            Told::Opened(stream, port, carries) => self.take_stream(leg_id, stream, port, carries),
            Told::Reset(stream, code) => self.stream_reset(leg_id, stream, code),
            Told::Taken(stream) => {
                if let Some(Key::Upstream(id)) = leg.streams.get(&stream) {
                    self.upstreams[*id].is_taken = true;
                }
            }
            Told::Writable(0) => {
                let all: Vec<Key> = leg.streams.values().copied().collect();
                all.into_iter().for_each(|key| self.dirty(key));
            }
            Told::Writable(stream) => {
                if let Some(key) = leg.streams.get(&stream).copied() {
                    self.dirty(key);
                }
            }
            Told::Nothing => {}
        }
    }

    /// The peer takes no stream above `last`: of those that are open, it has not seen any. One that it
    /// has taken it has seen, whatever it says later.
    fn peer_leaves(&mut self, leg_id: usize, last: u32) {
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

    fn stream_reset(&mut self, leg_id: usize, stream: u32, code: ErrorCode) {
        let now_ms = self.clock.now_ms();
        let leg = &mut self.legs[leg_id];
        let Some(key) = leg.streams.remove(&stream) else {
            return;
        };
        leg.rest(now_ms);
        if let Key::Upstream(id) = key {
            let upstream = &mut self.upstreams[id];
            upstream.ending = Some(Ending::of(code, upstream.is_taken));
        }
        if let Some(session) = self.session_of(key) {
            session.io.broken = true;
        }
        self.queue(key);
    }

    /// Ends the stream of a call that has no answer.
    pub(crate) fn end_stream(&mut self, downstream_id: usize, ending: Ending) {
        let Some((leg_id, stream)) = self.downstreams[downstream_id].session.stream.leg() else {
            return;
        };
        if let Some(leg) = self.legs.get_mut(leg_id)
            && let Some(connection) = &mut leg.connection
        {
            let output = leg.session.output.tail();
            if ending == Ending::Unreached {
                connection.accept(stream, output);
            }
            connection.reset(stream, ending.code(), output);
            self.dirty(Key::Leg(leg_id));
        }
    }

    /// A caller's proxy has opened a stream: a downstream session like one that was accepted.
    fn take_stream(&mut self, leg_id: usize, stream: u32, port: u16, carries: mux::Carries) {
        let wall_us = self.clock.wall_us();
        let leg = &mut self.legs[leg_id];
        let has_expired = wall_us >= leg.expires_us;
        // Who is being told that we leave has calls on their way, which are still taken.
        let refuses = has_expired
            || self.inbound == worker::Inbound::Left
            || self.downstreams.len() >= self.connections_max;
        let caller = leg
            .identity
            .clone()
            .expect("streams come after the check of the peer");
        if refuses {
            let output = leg.session.output.tail();
            if let Some(connection) = &mut leg.connection {
                connection.reset(stream, ErrorCode::RefusedStream, output);
            }
            if has_expired {
                self.rejected("tls.certificate_expired");
            }
            return;
        }
        let mut session = Session::new(Stream::Leg {
            leg: leg_id,
            stream,
        });
        session.local = leg.session.local;
        let now_ms = self.clock.now_ms();
        let mut downstream = Downstream::new(session, leg.listener, leg.peer, now_ms);
        downstream.within = Some(Box::new(Within::Leg(Inbound { port, caller })));
        let downstream_id = self.downstreams.insert(downstream);
        self.legs[leg_id]
            .streams
            .insert(stream, Key::Downstream(downstream_id));
        self.share.line.connection_opened();
        match carries {
            mux::Carries::Http1 => {
                self.timers
                    .arm(Key::Downstream(downstream_id), now_ms + HEAD_TIMEOUT_MS);
            }
            mux::Carries::Tcp => self.begin_tcp(downstream_id),
        }
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

    /// Moves what waits in a session on a leg to the leg, as much as there is credit for.
    pub(crate) fn flush_to_leg(&mut self, key: Key, leg_id: usize, stream: u32) -> Flushed {
        let session = match key {
            Key::Downstream(id) => &mut self.downstreams[id].session,
            Key::Upstream(id) => &mut self.upstreams[id].session,
            Key::Exchange(_) | Key::Leg(_) => return Flushed::All,
        };
        if session.io.broken {
            return Flushed::Broken;
        }
        let Some(leg) = self.legs.get_mut(leg_id) else {
            return Flushed::Broken;
        };
        let Some(connection) = &mut leg.connection else {
            return Flushed::Blocked;
        };
        if leg.session.output.is_high() {
            return Flushed::Blocked;
        }
        let sent = connection.send(stream, session.output.as_slice(), leg.session.output.tail());
        session.output.consume(sent);
        let is_done = session.output.is_empty();
        if is_done && session.finish_writing && !session.io.write_closed {
            session.io.write_closed = true;
            connection.end(stream, leg.session.output.tail());
        }
        self.dirty(Key::Leg(leg_id));
        if is_done {
            Flushed::All
        } else {
            Flushed::Blocked
        }
    }

    /// Gives credit back for what a session on a leg has used since it was last asked.
    pub(crate) fn credit(&mut self, key: Key) {
        let Some(session) = self.session_of(key) else {
            return;
        };
        let Some((leg_id, stream)) = session.stream.leg() else {
            return;
        };
        let used = session.uncredited as usize - session.input.len();
        session.uncredited -= used as u32;
        if used > 0
            && let Some(leg) = self.legs.get_mut(leg_id)
            && let Some(connection) = &mut leg.connection
        {
            connection.consumed(stream, used, leg.session.output.tail());
            self.dirty(Key::Leg(leg_id));
        }
    }

    /// A session that was a stream of a leg is gone.
    pub(crate) fn leave_leg(&mut self, stream: &Stream, unused: u32) {
        let Some((leg_id, stream)) = stream.leg() else {
            return;
        };
        let now_ms = self.clock.now_ms();
        let Some(leg) = self.legs.get_mut(leg_id) else {
            return;
        };
        leg.streams.remove(&stream);
        leg.rest(now_ms);
        if let Some(connection) = &mut leg.connection {
            let output = leg.session.output.tail();
            connection.consumed(stream, unused as usize, output);
            connection.reset(stream, ErrorCode::Cancel, output);
        }
        self.dirty(Key::Leg(leg_id));
    }

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
    fn arm_leg(&mut self, leg_id: usize) {
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
    fn leave(&mut self, leg_id: usize) {
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
    fn leave_dialled(&mut self, leg_id: usize) {
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

    /// Tells the callers' proxies that no further stream is taken.
    pub(crate) fn leave_legs(&mut self) {
        let accepted = self.legs.iter().filter(|(_, leg)| leg.role == Role::Server);
        let accepted: Vec<usize> = accepted.map(|(leg_id, _)| leg_id).collect();
        for leg_id in accepted {
            self.leave(leg_id);
        }
    }

    /// Whether callers shall go elsewhere: the application ends, or this worker does.
    fn takes_no_calls(&self) -> bool {
        self.is_draining() || self.inbound != worker::Inbound::Open
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

/// An event without its bytes.
#[derive(Clone, Copy)]
enum Told {
    Ended(u32),
    Left(u32),
    Nothing,
    Opened(u32, u16, mux::Carries),
    Reset(u32, ErrorCode),
    Taken(u32),
    Woken(Key),
    Writable(u32),
}

impl Told {
    fn of(event: Event<'_>) -> Self {
        match event {
            Event::Accepted(stream) => Self::Taken(stream),
            Event::Data(..) => Self::Nothing,
            Event::Ended(stream) => Self::Ended(stream),
            Event::GoAway(last) => Self::Left(last),
            Event::Opened(stream, port, carries) => Self::Opened(stream, port, carries),
            Event::Reset(stream, code) => Self::Reset(stream, code),
            Event::Writable(stream) => Self::Writable(stream),
        }
    }
}

/// Puts bytes of a stream into its session; those of a stream that is gone are dropped.
fn deliver(
    downstreams: &mut Slab<Downstream>,
    upstreams: &mut Slab<Upstream>,
    key: Option<Key>,
    bytes: &[u8],
) {
    let session = match key {
        Some(Key::Downstream(id)) => downstreams.get_mut(id).map(|it| &mut it.session),
        Some(Key::Upstream(id)) => upstreams.get_mut(id).map(|it| &mut it.session),
        _ => None,
    };
    if let Some(session) = session {
        session.input.append(bytes);
        session.uncredited += bytes.len() as u32;
    }
}
