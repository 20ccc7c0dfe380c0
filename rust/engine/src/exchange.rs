//! An exchange: one request and its response, with two half-streams between two sessions.
//!
//! The model of the data plane (see ARCHITECTURE.md): a *downstream session* and an *upstream
//! session* carry exchanges; an exchange decodes payload from one session's input and encodes it for
//! the other's output, never more than the sink has room for. Whatever the protocols are, a body is
//! decoded to payload and framed again, so nothing unvalidated passes. Tunnels (TCP, CONNECT,
//! upgrades) are exchanges whose halves are raw.
//!
//! Invariants:
//! 1. An exchange names its sessions and they name it; both sides are cleared together.
//! 2. `active_slot` is counted in shared memory exactly while it is `Some`.
//! 3. An exchange holds the generation it was routed by until its end.
//! 4. Nothing of a body moves before an upstream is connected, so a request that failed to connect
//!    can be tried elsewhere. What is tried again after that is in `tries.rs`.

use std::cell::Cell;
use std::rc::Rc;

use meshfast_mesh::{
    Address, Dial, Direction, Listener, Route, RoutePlace, Snapshot, WeightedCluster,
};
use meshfast_wire::Error;
use meshfast_wire::h1::{BodyDecoder, BodyEncoder, BodyEvent, Framing, Name, RequestHead};

use crate::buffer::{Blocks, Input, Output};
use crate::downstream::LEFTOVER_BYTES_MAX;
use crate::error::Mark;
use crate::head::Edits;
use crate::request::Request;
use crate::shared::TcpTotals;
use crate::stream::Peer;
use crate::trace::TraceContext;
use crate::tries::Further;

/// A snapshot in use, with the worker's own cursors for round robin.
pub(crate) struct Generation {
    pub(crate) snapshot: Snapshot,
    pub(crate) turns: Vec<Cell<u32>>,
}

impl Generation {
    pub(crate) fn new(snapshot: Snapshot) -> Rc<Self> {
        let turns = snapshot.clusters.iter().map(|_| Cell::new(0)).collect();
        Rc::new(Self { snapshot, turns })
    }

    pub(crate) fn number(&self) -> u64 {
        self.snapshot.generation
    }
}

/// Where an exchange stands, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Waiting for addresses of a host name.
    Resolving,
    /// Waiting for time to pass: before a further try, or because it was asked for.
    Waiting,
    /// Waiting for the upstream to accept.
    Connecting,
    /// The request is on its way; no final response head yet.
    AwaitingHead,
    /// The response head is out; bodies move.
    Streaming,
    /// Bytes move both ways until each side has closed.
    Tunnel,
}

/// What is carried: decides what happens once the upstream is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carries {
    /// A CONNECT request: a 200, then bytes.
    Connect,
    /// An HTTP request.
    Http,
    /// Plain TCP: bytes from the start.
    Tcp,
}

/// Where a request goes.
#[derive(Clone, Debug)]
pub(crate) enum Destination {
    /// An endpoint of a cluster; chosen per try.
    Cluster(usize),
    /// An address the caller named, outside every route (outbound ALLOW_ANY).
    Passthrough(Dial),
}

/// One direction of an exchange.
pub(crate) struct Half {
    pub(crate) decoder: BodyDecoder,
    pub(crate) encoder: BodyEncoder,
    pub(crate) ended: bool,
    /// Payload bytes moved.
    pub(crate) payload_bytes: u64,
    /// Head bytes read from the source.
    pub(crate) head_bytes: u64,
    /// Bytes of the body have been taken from the source: a second try could not have them.
    pub(crate) has_moved: bool,
}

/// What moving payload came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moved {
    /// Some payload moved and more may.
    Some,
    /// The half has just ended.
    Ended,
    /// Nothing to move, or no room at the sink.
    Nothing,
    /// The source broke the framing.
    Broken(Error),
    /// The source closed before the half was whole.
    Cut,
}

impl Half {
    pub(crate) fn new(decoder: BodyDecoder, encoder: BodyEncoder) -> Self {
        Self {
            decoder,
            encoder,
            ended: false,
            payload_bytes: 0,
            head_bytes: 0,
            has_moved: false,
        }
    }

    /// Bytes until end of file, both ways of a tunnel.
    pub(crate) fn raw() -> Self {
        Self::new(BodyDecoder::raw(), BodyEncoder::raw())
    }

    /// Moves payload until the source is empty, the sink is full or the half ends.
    pub(crate) fn pump(
        &mut self,
        source: &mut Input,
        closed: bool,
        sink: &mut Output,
        blocks: &mut Blocks,
    ) -> Moved {
        let mut moved = Moved::Nothing;
        while !self.ended && !sink.is_high() {
            let (used, event) = match self.decoder.decode(source.as_slice()) {
                Ok(step) => step,
                Err(error) => return Moved::Broken(error),
            };
            self.has_moved |= used > 0;
            let framed = match event {
                BodyEvent::Data(payload) => {
                    self.payload_bytes += payload.len() as u64;
                    self.encoder
                        .data(sink.tail_for(payload.len(), blocks), payload)
                }
                BodyEvent::Trailers(trailers) => self.encoder.end(sink.tail(), Some(&trailers)),
                BodyEvent::End => {
                    self.ended = true;
                    if self.encoder.is_ended() {
                        Ok(())
                    } else {
                        self.encoder.end(sink.tail(), None)
                    }
                }
                BodyEvent::NeedMore => {
                    source.consume(used);
                    return if closed { self.finish(sink) } else { moved };
                }
            };
            if let Err(error) = framed {
                return Moved::Broken(error);
            }
            source.consume(used);
            moved = if self.ended {
                Moved::Ended
            } else {
                Moved::Some
            };
        }
        moved
    }

    /// The source has closed and nothing of it is left.
    fn finish(&mut self, sink: &mut Output) -> Moved {
        let ended = self
            .decoder
            .finish()
            .and_then(|()| self.encoder.end(sink.tail(), None));
        match ended {
            Ok(()) => {
                self.ended = true;
                Moved::Ended
            }
            Err(_) => Moved::Cut,
        }
    }
}

/// How it came out, for log and metrics.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    /// The status sent downstream; 0 when none was.
    pub(crate) status: u16,
    pub(crate) flag: &'static str,
    pub(crate) detail: &'static str,
}

/// See the module's text.
pub(crate) struct Exchange {
    pub(crate) generation: Rc<Generation>,
    /// Index of the listener in the generation's snapshot.
    pub(crate) listener: usize,
    pub(crate) carries: Carries,
    pub(crate) stage: Stage,
    pub(crate) downstream: usize,
    pub(crate) upstream: Option<usize>,
    pub(crate) request: Option<Box<Request>>,
    pub(crate) destination: Option<Destination>,
    /// Further addresses of a name outside every cluster, the next one last.
    pub(crate) addresses: Vec<Dial>,
    /// The route, when one was found; its name is looked up only when it is written.
    pub(crate) route: Option<RoutePlace>,
    /// The endpoint of the current or last try: its index in the cluster.
    pub(crate) endpoint: Option<u32>,
    /// Who calls, by the certificate of its proxy; of inbound exchanges of the mesh.
    pub(crate) caller: Option<Rc<str>>,
    pub(crate) active_slot: Option<u32>,
    /// Slots of endpoints that failed this exchange.
    pub(crate) tried: Vec<u32>,
    pub(crate) tries: u32,
    /// Tries of these that found nobody and were followed by another endpoint at once.
    pub(crate) passed_over: u8,
    /// What further tries and waiting need.
    pub(crate) further: Option<Box<Further>>,
    pub(crate) mark: Mark,
    /// The route or the destination edits heads.
    pub(crate) is_edited: bool,
    /// Another try may follow an answer that is no error.
    pub(crate) may_discard_any: bool,
    /// A try of it went to a connection that was stale.
    pub(crate) was_stale: bool,
    /// The caller has been told to send the body (100).
    pub(crate) was_continued: bool,
    pub(crate) requesting: Half,
    pub(crate) responding: Half,
    /// The end of the response can be told from a connection that broke off.
    pub(crate) is_delimited: bool,
    pub(crate) outcome: Outcome,
    /// What of a tunnel is in the metrics already.
    pub(crate) reported: TcpTotals,
    /// Why the last try failed, in the operating system's words.
    pub(crate) transport_failure: String,
    /// The question to the resolver that is under way; 0 for none.
    pub(crate) question: u64,
    pub(crate) interim_responses: u8,
    pub(crate) trace: Option<TraceContext>,
    /// The request identifier made here, when the request had none that is taken.
    pub(crate) request_id: Option<[u8; 36]>,
    pub(crate) started_us: u64,
    pub(crate) started_wall_us: u64,
    /// When the request was sent upstream.
    pub(crate) sent_us: u64,
    /// When the response head came.
    pub(crate) answered_us: u64,
    /// The route's deadline in ms, 0 for none.
    pub(crate) deadline_ms: u64,
    /// When a caller that sent FIN counts as gone, in ms; 0 for none.
    pub(crate) abandon_ms: u64,
    /// When something moved last, in ms.
    pub(crate) progress_ms: u64,
    pub(crate) upstream_address: Option<Address>,
    /// Our own address towards the upstream.
    pub(crate) upstream_local: Option<Peer>,
}

impl Exchange {
    /// The head of the request, which every HTTP exchange has.
    pub(crate) fn head(&self) -> Option<&RequestHead> {
        self.request.as_ref().map(|request| &request.head)
    }

    /// What a person finds this exchange by: the identifier made here, else the caller's. Plain TCP has
    /// none.
    pub(crate) fn request_id(&self) -> Option<&[u8]> {
        let made = self.request_id.as_ref().map(|id| id.as_slice());
        made.or_else(|| self.request.as_ref()?.header(Name::XRequestId))
    }

    /// The listener it came by; none when the snapshot no longer has it.
    pub(crate) fn listener(&self) -> Option<&Listener> {
        self.generation.snapshot.listeners.get(self.listener)
    }

    /// Whether it came from outside the mesh, so that the caller is told upstream.
    pub(crate) fn is_at_edge(&self) -> bool {
        self.listener()
            .is_some_and(|listener| listener.direction == Direction::Gateway)
    }

    /// Notes the flag of how it ended, beside what it went through.
    pub(crate) fn flag(&mut self, flag: &'static str) {
        self.outcome.flag = self.mark.with(flag);
    }

    /// The edits of its request head: the destination's, then the route's (Envoy's order).
    pub(crate) fn request_edits(&self) -> Edits<'_> {
        self.route_edits()
            .map_or_else(Edits::default, |(route, destination)| {
                [&destination.request_headers, &route.request_headers].map(Option::as_ref)
            })
    }

    /// The same for its response head.
    pub(crate) fn response_edits(&self) -> Edits<'_> {
        self.route_edits()
            .map_or_else(Edits::default, |(route, destination)| {
                [&destination.response_headers, &route.response_headers].map(Option::as_ref)
            })
    }

    fn route_edits(&self) -> Option<(&Route, &WeightedCluster)> {
        let snapshot = &self.generation.snapshot;
        snapshot.http_route(self.listener, self.route?)
    }

    /// Whether the end of the request has come or is worth reading on for, so that the connection can
    /// carry another one after an answer that came first. A caller that waits for a 100 it does not
    /// get may leave the body out or send it: where the next request begins is not known then.
    pub(crate) fn request_end_is_near(&self) -> bool {
        let Some(head) = self.head().filter(|_| !self.requesting.ended) else {
            return true;
        };
        let is_short = match head.framing {
            Framing::Length(length) => length - self.requesting.payload_bytes <= LEFTOVER_BYTES_MAX,
            Framing::Chunked | Framing::Close | Framing::None => true,
        };
        is_short && (self.was_continued || !head.expect_continue)
    }

    /// Everything has been moved in both directions.
    pub(crate) fn is_finished(&self) -> bool {
        self.responding.ended && (self.requesting.ended || self.stage != Stage::Tunnel)
    }
}

/// How long nothing may move on an exchange (Envoy's `stream_idle_timeout`).
pub(crate) const STREAM_IDLE_MS: u64 = 300_000;

/// How often a tunnel's bytes are added to the metrics (Istio's TCP `reportingInterval`).
pub(crate) const TUNNEL_REPORT_MS: u64 = 5_000;

/// How long nothing may move on a tunnel (Istio's tcp `idleTimeout`).
pub(crate) const TUNNEL_IDLE_MS: u64 = 3_600_000;
