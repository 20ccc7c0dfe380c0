//! Tries after the first, and waiting: what follows a try that has an outcome, when the next one is
//! made, and the body it is made with.
//!
//! The decision is `meshfast_mesh::Retry::decide`, which never sends a request a second time that may
//! have been read and is not idempotent. What it needs to know is gathered here: whether the body can
//! be sent again, and what of the cluster's requests is in a further try already, over all workers.
//!
//! A body is kept as it was framed, and only while a further try may need it: of an idempotent
//! request, and of any that goes over a leg, where the peer's proxy may refuse a stream after some of
//! its body was sent. One that is longer than [`KEPT_BYTES_MAX`], comes when the worker keeps
//! [`KEPT_BYTES_OF_WORKER_MAX`] already, or has not ended when the try fails, is not sent again.
//!
//! A call from the mesh is handed to the application once. What came of it the caller's proxy learns by
//! how its stream ends ([`Ending`]), and decides.
//!
//! Waiting (`Stage::Waiting`) is also how a fault's delay is made. An exchange that waits has no
//! upstream; the route's deadline and the caller's leaving end it as at any other time.
//!
//! Tests: `worker/tests/tries.rs`, over legs `worker/tests/repeats.rs`; through a whole proxy in tests/dataplane/test_retries.py and
//! test_faults.py, and through two sidecars in tests/mesh/test_repeats.py.

use meshfast_mesh::{Abort, Cluster, Decision, Drawn, InFlight, Outcome, Retry, Try};
use meshfast_wire::frame::ErrorCode;
use meshfast_wire::h1::{Framing, Name};

use crate::error::{Failure, Mark};
use crate::exchange::{Carries, Destination, Exchange, Stage};
use crate::shared::EndpointLines;
use crate::timers::Key;
use crate::worker::Worker;

/// The longest body that is kept (Linkerd's bound for retries).
const KEPT_BYTES_MAX: usize = 64 * 1024;

/// What all exchanges of a worker keep together: 256 of the longest. Beyond it a request goes without.
/// To keep a body costs the caller's proxy 1 % of a request's time at 1 KiB and 3 % at 64 KiB.
pub(crate) const KEPT_BYTES_OF_WORKER_MAX: usize = 16 << 20;

/// Endpoints that are passed over because they cannot be connected to: nothing was sent, so looking on
/// costs time only.
const PASSED_OVER_MAX: u8 = 16;

/// What most exchanges never need.
#[derive(Default)]
pub(crate) struct Further {
    /// The body as it was framed, as far as it has moved; none when it is not kept.
    body: Option<Vec<u8>>,
    /// When the waiting is over, in ms.
    pub(crate) wait_until_ms: u64,
    /// Bound on each try, in ms; 0 for none.
    pub(crate) per_try_ms: u64,
    /// When the time for the current try is over, in ms; 0 for none.
    pub(crate) try_until_ms: u64,
    /// Slot in whose line this exchange counts as being in a further try.
    counted: Option<u32>,
    /// The answer after the waiting.
    abort: Option<Abort>,
}

/// How the stream of a call ends that has no answer, by what is known of it at the application
/// (docs/meshfast-1.md, "Refused means").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The application may have read it, and closed.
    Broken,
    /// None of it was handed to the application.
    Refused,
    /// The application may have read it; it closed a connection that had served before, without a word.
    Stale,
    /// The application takes no connection.
    Unreached,
}

impl Ending {
    pub(crate) fn code(self) -> ErrorCode {
        match self {
            Self::Broken => ErrorCode::InternalError,
            Self::Refused | Self::Unreached => ErrorCode::RefusedStream,
            Self::Stale => ErrorCode::ConnectError,
        }
    }

    /// What a code that ended a stream says; `is_taken` is whether the stream had been taken before.
    pub(crate) fn of(code: ErrorCode, is_taken: bool) -> Self {
        match (code, is_taken) {
            (ErrorCode::ConnectError, _) => Self::Stale,
            (ErrorCode::RefusedStream, false) => Self::Refused,
            (ErrorCode::RefusedStream, true) => Self::Unreached,
            _ => Self::Broken,
        }
    }
}

impl Worker {
    /// A try has failed: another one follows, or the failure is the exchange's.
    pub(crate) fn try_failed(&mut self, exchange_id: usize, failure: Failure, outcome: Outcome) {
        if outcome == Outcome::ConnectFailed
            && self.exchanges[exchange_id].is_replayable()
            && self.has_next_place(exchange_id)
        {
            if let Some(further) = &mut self.exchanges[exchange_id].further {
                further.try_until_ms = 0;
            }
            self.detach(exchange_id, false);
            return self.dial(exchange_id);
        }
        match self.decide(exchange_id, outcome) {
            Decision::Again { after_ms } => self.try_again(exchange_id, outcome, after_ms),
            decision => {
                let exchange = &mut self.exchanges[exchange_id];
                exchange.mark(decision);
                let ending = exchange.ending(outcome);
                self.detach(exchange_id, false);
                match ending {
                    Some(ending) => self.hand_back(exchange_id, failure, ending),
                    None => self.fail(exchange_id, failure),
                }
            }
        }
    }

    /// Gives a call back to the caller's proxy: it is answered there, or tried again.
    fn hand_back(&mut self, exchange_id: usize, failure: Failure, ending: Ending) {
        let verdict = failure.verdict();
        let exchange = &mut self.exchanges[exchange_id];
        // What the caller will get from its own proxy if nothing better follows.
        exchange.outcome.status = verdict.status;
        exchange.flag(verdict.flag);
        exchange.outcome.detail = verdict.detail;
        let downstream_id = exchange.downstream;
        self.record(exchange_id);
        self.end_stream(downstream_id, ending);
        self.cut(exchange_id);
    }

    /// A final response head has come: `true` when another try follows, of which the caller gets the
    /// answer instead.
    pub(crate) fn answer_is_discarded(&mut self, exchange_id: usize, upstream_id: usize) -> bool {
        let exchange = &self.exchanges[exchange_id];
        let upstream = &self.upstreams[upstream_id];
        let status = upstream.head.status;
        // Nearly every answer leaves here.
        if status < 400 && !exchange.may_discard_any && !exchange.may_read_grpc_status() {
            return false;
        }
        let bytes = upstream.session.input.as_slice();
        let mut headers = upstream.head.headers.iter();
        let grpc_status = headers
            .find(|header| header.kind == Name::GrpcStatus)
            .and_then(|header| {
                std::str::from_utf8(header.value.of(bytes))
                    .ok()?
                    .parse()
                    .ok()
            });
        let outcome = Outcome::Status {
            status,
            grpc_status,
        };
        match self.decide(exchange_id, outcome) {
            Decision::Again { after_ms } => {
                self.try_again(exchange_id, outcome, after_ms);
                true
            }
            decision => {
                let exchange = &mut self.exchanges[exchange_id];
                exchange.mark(decision);
                exchange.flag("");
                false
            }
        }
    }

    fn decide(&mut self, exchange_id: usize, outcome: Outcome) -> Decision {
        let exchange = &self.exchanges[exchange_id];
        if exchange.carries != Carries::Http {
            return Decision::No;
        }
        let one = Try {
            outcome,
            number: exchange.tries - u32::from(exchange.passed_over),
            is_idempotent: exchange.is_idempotent(),
            is_replayable: exchange.is_replayable(),
        };
        let endpoints = &self.share.endpoints;
        let in_flight = || match exchange.destination {
            Some(Destination::Cluster(index)) => {
                let cluster = &exchange.generation.snapshot.clusters[index];
                let mut in_flight = in_flight(cluster, endpoints);
                // The try that has just ended makes room for its successor.
                let own = u32::from(exchange.is_counted());
                in_flight.retrying = in_flight.retrying.saturating_sub(own);
                in_flight
            }
            // Addresses outside every cluster are not counted.
            _ => InFlight {
                active: 0,
                retrying: 0,
            },
        };
        exchange.retry().decide(one, in_flight, &mut self.random)
    }

    fn try_again(&mut self, exchange_id: usize, outcome: Outcome, after_ms: u64) {
        let exchange = &mut self.exchanges[exchange_id];
        let slot = exchange.active_slot;
        // A connection that went stale says nothing against its endpoint.
        let is_stale = matches!(outcome, Outcome::Reset { is_stale: true, .. });
        if !is_stale && exchange.retry().avoid_tried {
            exchange.tried.extend(slot);
        }
        exchange.responding.head_bytes = 0;
        exchange.was_stale |= is_stale;
        // Nobody has seen it, so it is none of the tries that were asked for.
        let is_free = is_stale && outcome.is_unseen();
        exchange.passed_over = exchange.passed_over.saturating_add(u8::from(is_free));
        if let Some(further) = &mut exchange.further {
            further.try_until_ms = 0;
        }
        self.stop_counting(exchange_id);
        if let Some(slot) = slot {
            self.exchanges[exchange_id].further().counted = Some(slot);
            self.share.endpoints.retry_started(slot);
        }
        self.detach(exchange_id, false);
        if after_ms == 0 {
            self.dial(exchange_id);
        } else {
            self.wait(exchange_id, after_ms);
        }
    }

    /// The response is on its way to the caller: no other try follows.
    pub(crate) fn tries_are_over(&mut self, exchange_id: usize) {
        self.exchanges[exchange_id].further().try_until_ms = 0;
        self.forget_body(exchange_id);
        self.stop_counting(exchange_id);
    }

    /// No further try needs the body.
    pub(crate) fn forget_body(&mut self, exchange_id: usize) {
        let further = self.exchanges[exchange_id].further.as_mut();
        let body = further.and_then(|further| further.body.take());
        self.kept_bytes -= body.map_or(0, |body| body.len());
    }

    /// An exchange is not in a further try any more.
    pub(crate) fn stop_counting(&mut self, exchange_id: usize) {
        let further = self.exchanges[exchange_id].further.as_mut();
        if let Some(slot) = further.and_then(|further| further.counted.take()) {
            self.share.endpoints.retry_finished(slot);
        }
    }

    /// A place to look at instead of one that cannot be connected to: another endpoint, or the next
    /// address of a name outside every cluster.
    fn has_next_place(&mut self, exchange_id: usize) -> bool {
        let exchange = &mut self.exchanges[exchange_id];
        let is_there = match exchange.destination {
            Some(Destination::Cluster(index))
                if exchange.carries != Carries::Http || exchange.retry().passes_over() =>
            {
                exchange.tried.extend(exchange.active_slot);
                let endpoints = &exchange.generation.snapshot.clusters[index].endpoints;
                let mut others = endpoints.iter();
                exchange.passed_over < PASSED_OVER_MAX
                    && others.any(|endpoint| !exchange.tried.contains(&endpoint.slot))
            }
            Some(Destination::Passthrough(_)) => {
                let next = exchange.addresses.pop().map(Destination::Passthrough);
                let is_there = next.is_some();
                exchange.destination = next.or(exchange.destination.take());
                is_there
            }
            _ => false,
        };
        exchange.passed_over = exchange.passed_over.saturating_add(u8::from(is_there));
        is_there
    }

    /// Does to a request what was drawn for it.
    pub(crate) fn suffer(&mut self, exchange_id: usize, drawn: Drawn) {
        let exchange = &mut self.exchanges[exchange_id];
        if drawn.delay_ms > 0 {
            exchange.mark = Mark::Delayed;
            exchange.flag("");
            exchange.further().abort = drawn.abort;
            return self.wait(exchange_id, drawn.delay_ms);
        }
        self.go_on(exchange_id, drawn.abort);
    }

    fn wait(&mut self, exchange_id: usize, wait_ms: u64) {
        let until_ms = self.clock.now_ms().saturating_add(wait_ms);
        let exchange = &mut self.exchanges[exchange_id];
        exchange.stage = Stage::Waiting;
        exchange.further().wait_until_ms = until_ms;
        self.arm_exchange(exchange_id);
    }

    /// The waiting is over.
    pub(crate) fn waited(&mut self, exchange_id: usize) {
        let now_ms = self.clock.now_ms();
        let exchange = &mut self.exchanges[exchange_id];
        exchange.progress_ms = now_ms;
        exchange.stage = Stage::Connecting;
        let abort = exchange.further().abort.take();
        self.arm_exchange(exchange_id);
        self.go_on(exchange_id, abort);
    }

    fn go_on(&mut self, exchange_id: usize, abort: Option<Abort>) {
        let Some(abort) = abort else {
            return self.dial(exchange_id);
        };
        let exchange = &self.exchanges[exchange_id];
        // Envoy's: a caller that speaks gRPC reads the status there, under a 200.
        let (status, grpc_status) = if exchange.speaks_grpc() {
            (200, Some(abort.grpc_status()))
        } else {
            (abort.status, None)
        };
        self.answer_as(exchange_id, status, grpc_status, "FI", "fault_filter_abort");
    }

    /// The time of a try begins: the endpoint is connected and the caller has sent everything, as in
    /// Envoy. Until then a try is bounded by the connect timeout and by the caller's own pace.
    pub(crate) fn time_try(&mut self, exchange_id: usize) {
        let now_ms = self.clock.now_ms();
        if let Some(further) = &mut self.exchanges[exchange_id].further
            && further.per_try_ms != 0
        {
            further.try_until_ms = now_ms.saturating_add(further.per_try_ms);
            self.arm_exchange(exchange_id);
        }
    }

    /// The time of a try is over.
    pub(crate) fn try_timed_out(&mut self, exchange_id: usize) {
        if let Some(further) = &mut self.exchanges[exchange_id].further {
            further.try_until_ms = 0;
        }
        self.try_failed(exchange_id, Failure::TryTimeout, Outcome::TryTimeout);
        if self.exchanges.contains(exchange_id) {
            self.arm_exchange(exchange_id);
        }
    }

    /// Sends the body again that an earlier try took from the caller.
    pub(crate) fn send_kept_body(&mut self, exchange_id: usize, upstream_id: usize) {
        let exchange = &self.exchanges[exchange_id];
        let further = exchange.further.as_ref();
        if let Some(body) = further.and_then(|further| further.body.as_ref()) {
            let output = &mut self.upstreams[upstream_id].session.output;
            output.tail().extend_from_slice(body);
            self.dirty(Key::Upstream(upstream_id));
        }
    }
}

/// What is in flight to a cluster, over all workers.
fn in_flight(cluster: &Cluster, endpoints: &EndpointLines) -> InFlight {
    let sum = |of: &dyn Fn(u32) -> u32| {
        let each = cluster.endpoints.iter().map(|endpoint| of(endpoint.slot));
        each.fold(0, u32::saturating_add)
    };
    InFlight {
        active: sum(&|slot| endpoints.active(slot)),
        retrying: sum(&|slot| endpoints.retrying(slot)),
    }
}

impl Exchange {
    /// What most exchanges do not need, from now on.
    pub(crate) fn further(&mut self) -> &mut Further {
        self.further.get_or_insert_default()
    }

    /// Whether and when it is tried again.
    fn retry(&self) -> &Retry {
        let snapshot = &self.generation.snapshot;
        let route = self
            .route
            .and_then(|place| snapshot.http_route(self.listener, place));
        match route {
            Some((route, _)) => route.retry(),
            None if self.caller.is_some() => Retry::never(),
            None => Retry::outside(),
        }
    }

    /// How the stream of a call from the mesh ends when a try of it has come to this; none when it is
    /// answered.
    fn ending(&self, outcome: Outcome) -> Option<Ending> {
        if self.caller.is_none() || self.carries != Carries::Http {
            return None;
        }
        match outcome {
            Outcome::ConnectFailed => Some(Ending::Unreached),
            Outcome::Reset { is_sent: false, .. } => Some(Ending::Refused),
            Outcome::Reset { is_stale: true, .. } => Some(Ending::Stale),
            Outcome::Reset { .. } => Some(Ending::Broken),
            Outcome::Refused | Outcome::Status { .. } | Outcome::TryTimeout => None,
        }
    }

    /// It counts as being in a further try.
    fn is_counted(&self) -> bool {
        let further = self.further.as_deref();
        further.is_some_and(|further| further.counted.is_some())
    }

    fn is_idempotent(&self) -> bool {
        self.head()
            .is_some_and(|head| head.method_kind.is_idempotent())
    }

    /// All of the body is here to be sent again: none of it has been taken from the caller, or all of
    /// it is kept.
    fn is_replayable(&self) -> bool {
        let is_kept = |further: &Further| further.body.is_some();
        !self.requesting.has_moved
            || (self.requesting.ended && self.further.as_deref().is_some_and(is_kept))
    }

    /// Remembers why no other try follows.
    fn mark(&mut self, decision: Decision) {
        self.mark = match decision {
            Decision::OverBudget => Mark::OverBudget,
            Decision::UsedUp => Mark::UsedUp,
            Decision::Again { .. } | Decision::No => self.mark,
        };
    }

    /// Keeps a piece of the body for a further try. The first piece decides whether any is kept.
    /// `kept` is what all exchanges of the worker keep.
    pub(crate) fn keep(&mut self, piece: &[u8], is_first: bool, is_on_leg: bool, kept: &mut usize) {
        if self.stage != Stage::AwaitingHead {
            return;
        }
        if is_first && self.may_need_body(is_on_leg) {
            self.further().body = Some(Vec::new());
        }
        let Some(further) = &mut self.further else {
            return;
        };
        let Some(mut body) = further.body.take() else {
            return;
        };
        if body.len() + piece.len() <= KEPT_BYTES_MAX
            && *kept + piece.len() <= KEPT_BYTES_OF_WORKER_MAX
        {
            *kept += piece.len();
            body.extend_from_slice(piece);
            further.body = Some(body);
        } else {
            *kept -= body.len();
        }
    }

    fn may_need_body(&self, is_on_leg: bool) -> bool {
        let is_short = self.head().is_some_and(|head| match head.framing {
            Framing::Length(length) => length <= KEPT_BYTES_MAX as u64,
            Framing::Chunked | Framing::Close | Framing::None => true,
        });
        is_short && (is_on_leg || self.is_idempotent()) && self.retry().attempts > 0
    }

    /// When to look at this exchange for the sake of a try or of waiting, in ms; 0 for never.
    pub(crate) fn next_try_ms(&self) -> u64 {
        match (&self.further, self.stage) {
            (None, _) => 0,
            (Some(further), Stage::Waiting) => further.wait_until_ms,
            (Some(further), _) => further.try_until_ms,
        }
    }

    /// Another try may follow an answer for its gRPC status. A request that is not idempotent was seen by
    /// whoever answered, and is sent once.
    fn may_read_grpc_status(&self) -> bool {
        self.is_idempotent() && self.retry().reads_grpc_statuses() && self.speaks_grpc()
    }

    /// gRPC is told by its content type (gRPC over HTTP/2, "Requests").
    fn speaks_grpc(&self) -> bool {
        const GRPC: &[u8] = b"application/grpc";
        let request = self.request.as_ref();
        let content_type = request.and_then(|request| request.header(Name::ContentType));
        content_type.is_some_and(|value| {
            let rest = value
                .get(..GRPC.len())
                .map(|start| (start, &value[GRPC.len()..]));
            rest.is_some_and(|(start, rest)| {
                start.eq_ignore_ascii_case(GRPC)
                    && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
            })
        })
    }
}
