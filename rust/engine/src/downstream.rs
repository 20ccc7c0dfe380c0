//! Downstream sessions: reading requests, beginning exchanges, answering, closing.
//!
//! One exchange at a time per HTTP/1 session; pipelined requests wait in the input. A session that
//! must close sends what it has, then FIN, and reads on for a moment, so that the peer gets the last
//! response instead of a reset (RFC 9112 9.6).
//!
//! Invariants:
//! 1. No exchange outlives its downstream: who drops a session ends the exchange that it has.
//! 2. A session has a deadline only while it has no exchange (`open_exchange`).
//!
//! Tests: `worker/tests.rs` checks both after every turn of every test; `worker/tests/strangers.rs`.

use meshfast_wire::Error;
use meshfast_wire::h1::{BodyDecoder, BodyEvent, Method, Parsed, Version};

use crate::buffer::{HIGH_WATERMARK, SEND_AT_ONCE};
use crate::error::Failure;
use crate::exchange::{Carries, Exchange, Moved, STREAM_IDLE_MS, Stage};
use crate::head::LocalReply;
use crate::leg::Inbound;
use crate::request::Request;
use crate::session::{Flushed, Session};
use crate::stream::Peer;
use crate::timers::Key;
use crate::trace;
use crate::tunnel::Tunnel;
use crate::upstream::READS_PER_TURN;
use crate::worker::Worker;

/// For a request head to come whole, and for the first byte on a new connection (rows R3, R4).
pub(crate) const HEAD_TIMEOUT_MS: u64 = 10_000;

/// Between requests of a connection (Envoy's HTTP idle timeout).
const IDLE_TIMEOUT_MS: u64 = 3_600_000;

/// How long the answer to a half-closed caller may take.
const HALF_CLOSE_MS: u64 = 5_000;

/// How long a closing session reads on.
const LINGER_MS: u64 = 1_000;

/// A connection from a caller.
pub(crate) struct Downstream {
    pub(crate) session: Session,
    /// Index in the worker's listeners.
    pub(crate) listener: usize,
    pub(crate) peer: Peer,
    pub(crate) exchange: Option<usize>,
    /// The connection may carry another request after this exchange.
    pub(crate) keep_alive: bool,
    /// Everything is answered; the session only sends what it has and then closes.
    pub(crate) is_closing: bool,
    /// The rest of a request body that nobody wants any more, because the answer came first.
    leftover: Option<Box<Leftover>>,
    /// What it is inside of; none for a connection of a caller's own.
    pub(crate) within: Option<Box<Within>>,
    /// A head that is not whole yet.
    partial: Option<Box<Request>>,
    /// When the first byte of the head came; 0 between requests.
    head_started_us: u64,
    /// Since when the session has waited for a request, in ms.
    pub(crate) idle_since_ms: u64,
}

/// What a session can be inside of.
pub(crate) enum Within {
    Leg(Inbound),
    Tunnel(Tunnel),
}

/// A body that is read and thrown away, so that the next request can be found behind it.
struct Leftover {
    decoder: BodyDecoder,
    bytes_left: u64,
}

/// How much of an unwanted body is read (row A23); beyond that the connection closes.
pub(crate) const LEFTOVER_BYTES_MAX: u64 = 64 * 1024;

impl Downstream {
    pub(crate) fn new(session: Session, listener: usize, peer: Peer, now_ms: u64) -> Self {
        Self {
            session,
            listener,
            peer,
            exchange: None,
            keep_alive: false,
            is_closing: false,
            leftover: None,
            within: None,
            partial: None,
            head_started_us: 0,
            idle_since_ms: now_ms,
        }
    }

    /// Neither a request nor a part of one is here.
    pub(crate) fn is_idle(&self) -> bool {
        self.exchange.is_none()
            && !self.is_closing
            && self.leftover.is_none()
            && self.session.input.is_empty()
    }

    /// Of a stream of a leg: which port is called, and by whom.
    pub(crate) fn inbound(&self) -> Option<&Inbound> {
        match self.within.as_deref() {
            Some(Within::Leg(inbound)) => Some(inbound),
            _ => None,
        }
    }

    /// Of a connection whose CONNECT was granted.
    pub(crate) fn tunnel(&self) -> Option<&Tunnel> {
        match self.within.as_deref() {
            Some(Within::Tunnel(tunnel)) => Some(tunnel),
            _ => None,
        }
    }

    /// A granted CONNECT of which nothing has said yet what it carries.
    fn is_unknown_inside(&self) -> bool {
        self.tunnel().is_some_and(Tunnel::is_unknown)
    }

    /// Has the rest of a body thrown away before the next request is read.
    pub(crate) fn throw_away(&mut self, decoder: BodyDecoder) {
        self.leftover = Some(Box::new(Leftover {
            decoder,
            bytes_left: LEFTOVER_BYTES_MAX,
        }));
    }
}

impl Worker {
    /// Events have come for a downstream session.
    pub(crate) fn drive_downstream(&mut self, downstream_id: usize) {
        for _ in 0..READS_PER_TURN {
            let Some(downstream) = self.downstreams.get_mut(downstream_id) else {
                return;
            };
            let input_max = match downstream.exchange {
                None => self.limits.buffer_bytes_max(),
                Some(_) => HIGH_WATERMARK,
            };
            let came = downstream.session.read(&mut self.blocks, input_max);
            if downstream.session.io.broken {
                return self.downstream_gone(downstream_id);
            }
            let moved = match (downstream.is_closing, downstream.exchange) {
                (true, _) => self.discard_input(downstream_id),
                (false, Some(exchange_id)) => self.pump_request(exchange_id),
                (false, None) if downstream.leftover.is_some() => self.take_leftover(downstream_id),
                (false, None) if downstream.is_unknown_inside() => self.look_inside(downstream_id),
                (false, None) => self.take_request(downstream_id),
            };
            if !came && !moved {
                return self.note_half_close(downstream_id);
            }
        }
        self.queue(Key::Downstream(downstream_id));
    }

    /// A FIN behind a whole request: the caller may have closed only its sending side and wait for the
    /// answer, or be gone. It gets the benefit of the doubt for a moment. Once the answer has begun,
    /// writing it tells whether anybody is there.
    fn note_half_close(&mut self, downstream_id: usize) {
        let Some(downstream) = self.downstreams.get(downstream_id) else {
            return;
        };
        let Some(exchange_id) = downstream.exchange else {
            return;
        };
        // A stream of a leg ends with its request; that says nothing of the caller.
        let is_stream = downstream.session.stream.leg().is_some();
        if is_stream || !downstream.session.io.read_closed {
            return;
        }
        let exchange = &mut self.exchanges[exchange_id];
        if exchange.stage < Stage::Streaming && exchange.abandon_ms == 0 {
            exchange.abandon_ms = self.clock.now_ms() + HALF_CLOSE_MS;
            self.arm_exchange(exchange_id);
        }
    }

    /// A closing session throws away what still comes, until FIN.
    fn discard_input(&mut self, downstream_id: usize) -> bool {
        let session = &mut self.downstreams[downstream_id].session;
        session.input.clear();
        if session.io.read_closed && session.output.is_empty() {
            self.drop_downstream(downstream_id);
        }
        false
    }

    /// Throws the rest of an unwanted body away; `true` when anything moved.
    fn take_leftover(&mut self, downstream_id: usize) -> bool {
        let downstream = &mut self.downstreams[downstream_id];
        let Some(leftover) = &mut downstream.leftover else {
            return false;
        };
        let input = &mut downstream.session.input;
        let Ok((used, event)) = leftover.decoder.decode(input.as_slice()) else {
            self.close_downstream(downstream_id);
            return false;
        };
        let is_over = match event {
            BodyEvent::End => true,
            BodyEvent::NeedMore if downstream.session.io.read_closed => {
                self.close_downstream(downstream_id);
                return false;
            }
            BodyEvent::Data(_) | BodyEvent::NeedMore | BodyEvent::Trailers(_) => false,
        };
        input.consume(used);
        let Some(bytes_left) = leftover.bytes_left.checked_sub(used as u64) else {
            self.close_downstream(downstream_id);
            return false;
        };
        leftover.bytes_left = bytes_left;
        if is_over {
            downstream.leftover = None;
            let deadline_ms = self.clock.now_ms() + IDLE_TIMEOUT_MS;
            self.timers.arm(Key::Downstream(downstream_id), deadline_ms);
        }
        used > 0 || is_over
    }

    /// Reads one request head and begins its exchange; `true` when it did.
    fn take_request(&mut self, downstream_id: usize) -> bool {
        let downstream = &mut self.downstreams[downstream_id];
        if downstream.session.input.is_empty() {
            if downstream.session.io.read_closed {
                self.close_downstream(downstream_id);
            }
            return false;
        }
        let is_first = downstream.head_started_us == 0;
        if is_first {
            downstream.head_started_us = self.clock.now_us();
        }
        let mut request = downstream
            .partial
            .take()
            .unwrap_or_else(|| self.spare_requests.pop().unwrap_or_else(Request::new));
        let input = &mut downstream.session.input;
        match request.head.parse(input.as_slice(), &self.limits) {
            Ok(Parsed::Complete) => {
                let length = request.head.len;
                request.bytes.clear();
                request.bytes.extend_from_slice(&input.as_slice()[..length]);
                input.consume(length);
                let started_us = std::mem::take(&mut downstream.head_started_us);
                self.begin(downstream_id, request, started_us);
                true
            }
            Ok(Parsed::Incomplete) => {
                let is_cut = downstream.session.io.read_closed;
                downstream.partial = Some(request);
                // Most heads come whole, and need no deadline.
                if is_first {
                    let deadline_ms = self.clock.now_ms() + HEAD_TIMEOUT_MS;
                    self.timers.arm(Key::Downstream(downstream_id), deadline_ms);
                }
                if is_cut {
                    self.close_downstream(downstream_id);
                }
                false
            }
            Err(error) => {
                let length = input.len();
                input.consume(length);
                let answer = (error.status(), "DPE");
                self.refuse(downstream_id, request, answer, error.detail());
                false
            }
        }
    }

    /// Answers a request that cannot be read, and closes: where the next one begins is unknown.
    fn refuse(
        &mut self,
        downstream_id: usize,
        mut request: Box<Request>,
        (status, flag): (u16, &'static str),
        detail: &'static str,
    ) {
        request.head.reset();
        request.bytes.clear();
        let started_us = std::mem::take(&mut self.downstreams[downstream_id].head_started_us);
        let exchange_id =
            self.open_exchange(downstream_id, Carries::Http, Some(request), started_us);
        self.exchanges[exchange_id].request_id = Some(trace::request_id(&mut self.random));
        self.rejected(detail);
        self.answer(exchange_id, status, flag, detail);
    }

    /// Answers an exchange locally and ends it.
    pub(crate) fn answer(
        &mut self,
        exchange_id: usize,
        status: u16,
        flag: &'static str,
        detail: &'static str,
    ) {
        self.answer_as(exchange_id, status, None, flag, detail);
    }

    /// Answers an exchange locally, with a gRPC status for a caller that reads one, and ends it. The
    /// connection lives on only when the whole request was read.
    pub(crate) fn answer_as(
        &mut self,
        exchange_id: usize,
        status: u16,
        grpc_status: Option<u32>,
        flag: &'static str,
        detail: &'static str,
    ) {
        let exchange = &mut self.exchanges[exchange_id];
        let downstream_id = exchange.downstream;
        let (version, is_head, is_readable) = match exchange.head() {
            Some(head) if head.len > 0 => (head.version, head.method_kind == Method::Head, true),
            _ => (Version::Http11, false, false),
        };
        exchange.outcome.status = status;
        exchange.flag(flag);
        exchange.outcome.detail = detail;
        let flags = exchange.outcome.flag;
        let whole = is_readable && exchange.requesting.ended;
        let keep_alive = whole && self.keeps_downstream(exchange_id);
        let body = reply_body(status, flags, detail);
        let reply = LocalReply {
            version,
            status,
            keep_alive,
            is_head,
            request_id: self.exchanges[exchange_id]
                .request_id()
                .expect("an HTTP exchange has an identifier"),
            wall_us: self.clock.wall_us(),
            grpc: grpc_status.map(|status| (status, detail)),
            body: &body,
        };
        let downstream = &mut self.downstreams[downstream_id];
        let before = downstream.session.output.len();
        reply.write(downstream.session.output.tail());
        downstream.keep_alive = keep_alive;
        let written = downstream.session.output.len() - before;
        let exchange = &mut self.exchanges[exchange_id];
        let body_bytes = if is_head { 0 } else { body.len() };
        exchange.responding.head_bytes += (written - body_bytes) as u64;
        exchange.responding.payload_bytes += body_bytes as u64;
        exchange.responding.ended = true;
        self.dirty(Key::Downstream(downstream_id));
        self.finish(exchange_id);
    }

    /// Whether this exchange's connection may carry another request, as far as the request says.
    pub(crate) fn keeps_downstream(&mut self, exchange_id: usize) -> bool {
        let exchange = &self.exchanges[exchange_id];
        let Some(head) = exchange.head() else {
            return false;
        };
        let session = &self.downstreams[exchange.downstream].session;
        exchange.carries == Carries::Http
            && head.keep_alive
            && !self.is_draining()
            && !self.listeners[self.downstreams[exchange.downstream].listener].is_removed()
            && !session.io.read_closed
            && (head.upgrade.is_none() || self.is_nothing_behind(exchange_id))
    }

    /// Bytes behind an upgrade that was not granted may be of the other protocol (row U1): they are not
    /// read as a request. What the kernel holds already counts too.
    fn is_nothing_behind(&mut self, exchange_id: usize) -> bool {
        let exchange = &self.exchanges[exchange_id];
        let downstream_id = exchange.downstream;
        let has_ended = exchange.requesting.ended;
        let session = &mut self.downstreams[downstream_id].session;
        session.io.readable = true;
        session.read(&mut self.blocks, HIGH_WATERMARK);
        // It may not be driven again for long, and an idle connection holds no block.
        session.input.settle(&mut self.blocks);
        let io = session.io;
        has_ended && session.input.is_empty() && !io.read_closed && !io.broken
    }

    /// Moves what the downstream has sent towards the upstream; `true` when anything moved.
    pub(crate) fn pump_request(&mut self, exchange_id: usize) -> bool {
        let Some(exchange) = self.exchanges.get_mut(exchange_id) else {
            return false;
        };
        let Some(upstream_id) = exchange.upstream else {
            return self.is_caller_gone(exchange_id);
        };
        if exchange.requesting.ended || exchange.stage < Stage::AwaitingHead {
            return false;
        }
        let downstream = &mut self.downstreams[exchange.downstream];
        let upstream = &mut self.upstreams[upstream_id];
        let closed = downstream.session.io.read_closed;
        let is_on_leg = upstream.session.stream.leg().is_some();
        let source = &mut downstream.session.input;
        let sink = &mut upstream.session.output;
        let (waiting, is_first) = (sink.len(), !exchange.requesting.has_moved);
        let moved = exchange
            .requesting
            .pump(source, closed, sink, &mut self.blocks);
        let piece = &sink.as_slice()[waiting..];
        exchange.keep(piece, is_first, is_on_leg, &mut self.kept_bytes);
        let is_large = sink.len() >= SEND_AT_ONCE;
        if moved != Moved::Nothing {
            exchange.progress_ms = self.clock.now_ms();
        }
        match moved {
            Moved::Nothing => return false,
            Moved::Some => {}
            Moved::Ended => {
                if exchange.stage == Stage::Tunnel || is_on_leg {
                    upstream.session.finish_writing = true;
                }
                let is_timed = exchange.stage == Stage::AwaitingHead && exchange.further.is_some();
                self.dirty(Key::Upstream(upstream_id));
                if is_timed {
                    self.time_try(exchange_id);
                }
                self.finish_if_complete(exchange_id);
                return true;
            }
            Moved::Broken(error) => {
                self.request_broken(exchange_id, closed, error);
                return false;
            }
            Moved::Cut => {
                let downstream_id = exchange.downstream;
                self.downstream_gone(downstream_id);
                return false;
            }
        }
        self.dirty(Key::Upstream(upstream_id));
        if is_large {
            self.flush_upstream(upstream_id);
        }
        true
    }

    /// While there is no upstream yet, a caller that has left ends the exchange.
    fn is_caller_gone(&mut self, exchange_id: usize) -> bool {
        let exchange = &self.exchanges[exchange_id];
        let session = &self.downstreams[exchange.downstream].session;
        if session.io.read_closed && !exchange.requesting.ended && session.input.is_empty() {
            self.downstream_gone(exchange.downstream);
        }
        false
    }

    /// The request broke off or broke the framing after its head was passed on: the upstream must
    /// not take it for complete.
    fn request_broken(&mut self, exchange_id: usize, closed: bool, error: Error) {
        let exchange = &self.exchanges[exchange_id];
        if closed {
            return self.downstream_gone(exchange.downstream);
        }
        self.rejected(error.detail());
        self.detach(exchange_id, false);
        if self.exchanges[exchange_id].outcome.status == 0 {
            self.answer(exchange_id, error.status(), "DPE", error.detail());
        } else {
            self.fail_with(
                exchange_id,
                Failure::UpstreamTerminated,
                Some(error.detail()),
            );
        }
    }

    /// The caller has gone in the middle of whatever it was doing.
    pub(crate) fn downstream_gone(&mut self, downstream_id: usize) {
        if let Some(exchange_id) = self.downstreams[downstream_id].exchange {
            let verdict = Failure::DownstreamGone.verdict();
            self.detach(exchange_id, false);
            let exchange = &mut self.exchanges[exchange_id];
            exchange.flag(verdict.flag);
            exchange.outcome.detail = verdict.detail;
            self.record(exchange_id);
            return self.cut(exchange_id);
        }
        self.drop_downstream(downstream_id);
    }

    /// Ends an exchange and its connection before everything was said. Whoever still reads must not
    /// take what it got for the whole, so the connection is reset.
    pub(crate) fn cut(&mut self, exchange_id: usize) {
        let downstream_id = self.exchanges[exchange_id].downstream;
        self.remove_exchange(exchange_id);
        self.abort_downstream(downstream_id);
    }

    /// The exchange of this session is over.
    pub(crate) fn after_exchange(&mut self, downstream_id: usize) {
        let now_ms = self.clock.now_ms();
        let downstream = &mut self.downstreams[downstream_id];
        downstream.exchange = None;
        if !downstream.keep_alive {
            return self.close_downstream(downstream_id);
        }
        downstream.idle_since_ms = now_ms;
        if downstream.leftover.is_some() {
            self.timers
                .arm(Key::Downstream(downstream_id), now_ms + HEAD_TIMEOUT_MS);
            self.queue(Key::Downstream(downstream_id));
        } else if downstream.session.input.is_empty() {
            self.timers
                .arm(Key::Downstream(downstream_id), now_ms + IDLE_TIMEOUT_MS);
        } else {
            self.queue(Key::Downstream(downstream_id));
        }
    }

    /// Sends what is queued, then FIN, and reads on until the peer closes or the time is over.
    pub(crate) fn close_downstream(&mut self, downstream_id: usize) {
        self.end_unused_tunnel(downstream_id);
        let downstream = &mut self.downstreams[downstream_id];
        debug_assert!(
            downstream.exchange.is_none(),
            "an exchange ends before its downstream is closed"
        );
        // A slow reader may take its time for what it was sent.
        let patience_ms = if downstream.session.output.is_empty() {
            LINGER_MS
        } else {
            STREAM_IDLE_MS
        };
        let deadline_ms = self.clock.now_ms() + patience_ms;
        downstream.is_closing = true;
        downstream.session.finish_writing = true;
        self.timers.arm(Key::Downstream(downstream_id), deadline_ms);
        self.dirty(Key::Downstream(downstream_id));
    }

    /// Closes at once, with a reset where the peer could take what it got for a whole message.
    pub(crate) fn abort_downstream(&mut self, downstream_id: usize) {
        self.downstreams[downstream_id]
            .session
            .stream
            .abort_on_close();
        self.drop_downstream(downstream_id);
    }

    /// A downstream deadline has passed: first byte, head, idle or linger.
    pub(crate) fn downstream_timer(&mut self, downstream_id: usize) {
        let downstream = &mut self.downstreams[downstream_id];
        if downstream.exchange.is_some() {
            return;
        }
        if !downstream.is_closing && downstream.is_unknown_inside() {
            // The other side speaks first.
            return self.begin_tcp(downstream_id);
        }
        if downstream.is_closing {
            if downstream.session.output.is_empty() {
                return self.drop_downstream(downstream_id);
            }
            return self.abort_downstream(downstream_id);
        }
        match downstream.partial.take() {
            Some(request) => {
                let verdict = Failure::RequestHeadTimeout.verdict();
                let answer = (verdict.status, verdict.flag);
                self.refuse(downstream_id, request, answer, verdict.detail);
            }
            None => self.close_downstream(downstream_id),
        }
    }

    /// Sends what waits, and lets the other side go on where it was held back.
    pub(crate) fn flush_downstream(&mut self, downstream_id: usize) {
        let Some(downstream) = self.downstreams.get_mut(downstream_id) else {
            return;
        };
        downstream.session.dirty = false;
        let was_high = downstream.session.output.is_high();
        let exchange = downstream.exchange;
        let flushed = match downstream.session.stream.leg() {
            Some((leg, stream)) => self.flush_to_leg(Key::Downstream(downstream_id), leg, stream),
            None => downstream.session.flush(&mut self.blocks),
        };
        match flushed {
            Flushed::Broken => self.downstream_gone(downstream_id),
            Flushed::Blocked | Flushed::All => {
                let session = &self.downstreams[downstream_id].session;
                if was_high
                    && !session.output.is_high()
                    && let Some(exchange_id) = exchange
                    && let Some(upstream_id) = self.exchanges[exchange_id].upstream
                {
                    self.queue(Key::Upstream(upstream_id));
                }
                if self.downstreams[downstream_id].is_closing && flushed == Flushed::All {
                    let deadline_ms = self.clock.now_ms() + LINGER_MS;
                    self.timers.arm(Key::Downstream(downstream_id), deadline_ms);
                    self.discard_input(downstream_id);
                }
            }
        }
    }

    /// Lets go of a session, and ends its exchange if there is one.
    pub(crate) fn drop_downstream(&mut self, downstream_id: usize) {
        let exchange_id = self.downstreams[downstream_id].exchange;
        // After a panic it may name one that is gone.
        if exchange_id.is_some_and(|id| self.exchanges.contains(id)) {
            return self.downstream_gone(downstream_id);
        }
        self.end_unused_tunnel(downstream_id);
        self.timers.disarm(Key::Downstream(downstream_id));
        let downstream = self.downstreams.remove(downstream_id);
        self.leave_leg(&downstream.session.stream, downstream.session.uncredited);
        if let Some(request) = downstream.partial {
            self.recycle(request);
        }
        self.share.line.connection_closed();
    }

    /// Keeps a request's buffers for the next one.
    pub(crate) fn recycle(&mut self, mut request: Box<Request>) {
        if self.spare_requests.len() < SPARE_REQUESTS_MAX && request.bytes.capacity() <= 8 * 1024 {
            request.head.reset();
            self.spare_requests.push(request);
        }
    }

    pub(crate) fn remove_exchange(&mut self, exchange_id: usize) {
        if self.exchanges[exchange_id].further.is_some() {
            self.stop_counting(exchange_id);
            self.forget_body(exchange_id);
        }
        self.timers.disarm(Key::Exchange(exchange_id));
        let exchange: Exchange = self.exchanges.remove(exchange_id);
        self.resolving.remove(&exchange.question);
        if let Some(downstream) = self.downstreams.get_mut(exchange.downstream) {
            downstream.exchange = None;
        }
        if let Some(request) = exchange.request {
            self.recycle(request);
        }
        self.share.line.exchange_closed();
    }
}

/// Requests kept for reuse.
const SPARE_REQUESTS_MAX: usize = 64;

/// What a person sees: what happened, the flag to look for, and where to look.
fn reply_body(status: u16, flag: &str, detail: &str) -> String {
    if status == 200 {
        return String::new();
    }
    let flag = if flag.is_empty() { "-" } else { flag };
    format!("meshfast: {detail} (flags {flag}); see the proxy's access log by x-request-id\n")
}
