//! Streams of a leg and the sessions they are: opened, taken, fed, drained into the leg, ended.
//!
//! The leg puts what comes for a stream into its session's input and takes what waits in its
//! output, within the stream's credit.
//!
//! What it refuses: streams of a peer whose certificate has expired, of callers of an application
//! that has ended, and those beyond the worker's connections.
//!
//! Invariants:
//! 1. Credit is given back for what the session's exchange has used, so a slow reader at one end
//!    stops the writer at the other and nobody else.
//! 2. No stream is taken from a peer whose certificate has expired; both sides leave before that.
//! 3. How a stream ended is noted in its upstream session before the session is driven: what may be
//!    sent again hangs on it.
//!
//! Tests: `worker/tests/legs.rs`, `worker/tests/repeats.rs`, `tests/mesh/test_repeats.py`.

use std::rc::Rc;

use meshfast_wire::frame::ErrorCode;
use meshfast_wire::mux::{self, Event};

use crate::downstream::{Downstream, HEAD_TIMEOUT_MS, Within};
use crate::error::Failure;
use crate::exchange::{Carries, Destination};
use crate::session::{Flushed, Session};
use crate::slab::Slab;
use crate::stream::Stream;
use crate::timers::Key;
use crate::tries::Ending;
use crate::upstream::Upstream;
use crate::worker::{self, Worker};

/// What a stream of a leg says of its caller.
#[derive(Clone, Debug)]
pub(crate) struct Inbound {
    /// The port of the workload that is called.
    pub(crate) port: u16,
    /// Who calls.
    pub(crate) caller: Rc<str>,
}

impl Worker {
    /// Opens a stream for an upstream session and sends its request.
    pub(super) fn open_stream(&mut self, leg_id: usize, upstream_id: usize) {
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

    /// Reads what the peer has said; the first time, after the peer has been checked.
    pub(super) fn take_frames(&mut self, leg_id: usize) {
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

    pub(super) fn stream_reset(&mut self, leg_id: usize, stream: u32, code: ErrorCode) {
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
