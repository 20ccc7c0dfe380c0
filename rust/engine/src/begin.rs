//! The life of an exchange apart from its bytes: begin, route, resolve, finish, fail.
//!
//! A request passes these steps in this order: what HTTP answers itself, the route and its faults,
//! the destination, the dial. Every end goes through [`Worker::finish`] or [`Worker::fail_with`],
//! which write one access record and give everything back.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest;
use meshfast_mesh::Destination as arrival;
use meshfast_mesh::{
    Arrival, Choice, Dial, Direction, Form, ListenerFacts, NoRoute, Refusal, RequestFacts, Snapshot,
};
use meshfast_wire::h1::{BodyDecoder, BodyEncoder, Framing, Method, Name, TargetForm};

use crate::downstream::Downstream;
use crate::error::{Failure, Mark};
use crate::exchange::{
    Carries, Destination, Exchange, Half, Outcome, STREAM_IDLE_MS, Stage, TUNNEL_IDLE_MS,
    TUNNEL_REPORT_MS,
};
use crate::leg::Inbound;
use crate::request::Request;
use crate::shared::TcpTotals;
use crate::timers::Key;
use crate::trace::{self, TraceContext};
use crate::tunnel::Inside;
use crate::worker::Worker;

/// For destinations outside every cluster: Istio's `connectTimeout`.
const PASSTHROUGH_CONNECT_TIMEOUT_MS: u64 = 10_000;

/// RFC 7617 2.
const BASIC: &[u8] = b"Basic ";

/// Hops in `x-forwarded-for` beyond which a request counts as looping.
const FORWARDED_MAX: usize = 32;

/// How long a host name may take to resolve (Istio's `connectTimeout` is for the connect alone).
const RESOLVE_TIMEOUT_MS: u64 = 5_000;

impl Worker {
    /// Opens an exchange on a downstream session that has none.
    pub(crate) fn open_exchange(
        &mut self,
        downstream_id: usize,
        carries: Carries,
        request: Option<Box<Request>>,
        started_us: u64,
    ) -> usize {
        let listener = &self.listeners[self.downstreams[downstream_id].listener];
        // A request on a listener that was removed long ago finds no route in the newest snapshot.
        let (generation, index) = listener.place().map_or_else(
            || (Rc::clone(&self.generation), usize::MAX),
            |(generation, index)| (Rc::clone(generation), index),
        );
        let now_us = self.clock.now_us();
        let inbound = self.downstreams[downstream_id].inbound();
        let caller = inbound.map(|inbound| Rc::clone(&inbound.caller));
        let exchange = Exchange {
            generation,
            listener: index,
            carries,
            stage: Stage::Connecting,
            downstream: downstream_id,
            upstream: None,
            request,
            destination: None,
            addresses: Vec::new(),
            route: None,
            endpoint: None,
            caller,
            active_slot: None,
            tried: Vec::new(),
            tries: 0,
            passed_over: 0,
            further: None,
            mark: Mark::None,
            is_edited: false,
            may_discard_any: false,
            was_stale: false,
            was_continued: false,
            requesting: Half::raw(),
            responding: Half::raw(),
            is_delimited: true,
            outcome: Outcome {
                status: 0,
                flag: "",
                detail: "",
            },
            reported: TcpTotals::default(),
            transport_failure: String::new(),
            question: 0,
            interim_responses: 0,
            trace: None,
            request_id: None,
            started_us,
            started_wall_us: self.clock.wall_us() - (now_us - started_us),
            sent_us: 0,
            answered_us: 0,
            deadline_ms: 0,
            abandon_ms: 0,
            progress_ms: self.clock.now_ms(),
            upstream_address: None,
            upstream_local: None,
        };
        let exchange_id = self.exchanges.insert(exchange);
        self.downstreams[downstream_id].exchange = Some(exchange_id);
        // From here on the exchange has deadlines, and the session none.
        self.timers.disarm(Key::Downstream(downstream_id));
        self.share.line.exchange_opened();
        exchange_id
    }

    /// A whole request head has come.
    pub(crate) fn begin(&mut self, downstream_id: usize, request: Box<Request>, started_us: u64) {
        let head = &request.head;
        let (method, framing, head_bytes) = (head.method_kind, head.framing, head.len as u64);
        let final_status = head.final_status();
        let carries = if method == Method::Connect {
            Carries::Connect
        } else {
            Carries::Http
        };
        let sampling_ppm = self.generation.snapshot.sampling_ppm;
        let trace = TraceContext::of(head, &request.bytes, &mut self.random, sampling_ppm);
        let has_id = trace::given_request_id(head, &request.bytes).is_some();
        let exchange_id = self.open_exchange(downstream_id, carries, Some(request), started_us);
        let request_id = (!has_id).then(|| trace::request_id(&mut self.random));
        let exchange = &mut self.exchanges[exchange_id];
        let decoder = BodyDecoder::new(framing, &self.limits);
        exchange.requesting = Half::new(decoder, BodyEncoder::new(framing));
        exchange.requesting.ended = matches!(framing, Framing::None | Framing::Length(0));
        exchange.requesting.head_bytes = head_bytes;
        exchange.trace = Some(trace);
        exchange.request_id = request_id;
        match final_status {
            Some(status) => self.answer(exchange_id, status, "", "direct_response"),
            None => self.route(exchange_id),
        }
    }

    /// Plain TCP: the connection itself is the exchange.
    pub(crate) fn begin_tcp(&mut self, downstream_id: usize) {
        let now_us = self.clock.now_us();
        let exchange_id = self.open_exchange(downstream_id, Carries::Tcp, None, now_us);
        let exchange = &mut self.exchanges[exchange_id];
        exchange.is_delimited = false;
        if let Some(inbound) = self.downstreams[downstream_id].inbound().cloned() {
            return self.go_inbound(exchange_id, &inbound);
        }
        if self.downstreams[downstream_id].tunnel().is_some() {
            return match self.begin_opaque(exchange_id) {
                Ok(destination) => {
                    self.exchanges[exchange_id].destination = Some(destination);
                    self.start(exchange_id, 0);
                }
                Err(_) => self.fail(exchange_id, Failure::NoRoute),
            };
        }
        let generation = Rc::clone(&exchange.generation);
        match generation
            .snapshot
            .route_tcp(exchange.listener, &mut self.random)
        {
            Ok(choice) => {
                exchange.route = Some(choice.place);
                exchange.destination = Some(Destination::Cluster(choice.cluster));
                self.start(exchange_id, choice.timeout_ms);
            }
            Err(_) => self.fail(exchange_id, Failure::NoRoute),
        }
    }

    /// Where the caller wanted to go, and by which route it gets there.
    fn route(&mut self, exchange_id: usize) {
        let exchange = &mut self.exchanges[exchange_id];
        if let Some(inbound) = self.downstreams[exchange.downstream].inbound().cloned() {
            return self.go_inbound(exchange_id, &inbound);
        }
        let generation = Rc::clone(&exchange.generation);
        let request = exchange
            .request
            .as_deref()
            .expect("an HTTP exchange has a request");
        let downstream = &self.downstreams[exchange.downstream];
        let Some(facts) = listener_facts(exchange, downstream) else {
            return self.fail(exchange_id, Failure::NoRoute);
        };
        let tunnel = downstream.tunnel();
        // What comes inside a CONNECT has shown it there.
        if tunnel.is_none() && !shows_credential(exchange, request) {
            self.rejected("proxy_credential_missing_or_wrong");
            return self.answer(exchange_id, 407, "UAEX", "proxy_authentication_required");
        }
        let arrival = match Arrival::of_request(&facts, &request_facts(request)) {
            Ok(arrival) => arrival,
            Err(Refusal::ConnectOff) => {
                return self.answer(exchange_id, 405, "", "connect_not_enabled");
            }
            Err(Refusal::ConnectPort | Refusal::Authority(_)) => {
                self.rejected("authority_invalid");
                return self.answer(exchange_id, 400, "DPE", "authority_invalid");
            }
        };
        if request.head.form == TargetForm::Absolute && request_facts(request).secure {
            // The caller asked for TLS, which this hop does not originate; plain text is no answer.
            self.rejected("https_target_not_supported");
            return self.answer(exchange_id, 501, "DPE", "https_target_not_supported");
        }
        if is_looping(request, facts.direction) {
            return self.fail(exchange_id, Failure::RequestLoop);
        }
        let (listener, snapshot) = (exchange.listener, &generation.snapshot);
        let choice = match (exchange.carries, tunnel) {
            (Carries::Connect, _) => {
                match snapshot.route_opaque(listener, request.authority_bytes()) {
                    Ok(_) => return self.grant_tunnel(exchange_id),
                    Err(why) => Err(why),
                }
            }
            (_, Some(tunnel)) => {
                let inside = Inside { request, tunnel };
                snapshot.route(listener, &inside, &mut self.random)
            }
            (_, None) => snapshot.route(listener, request, &mut self.random),
        };
        match (choice, arrival.destination) {
            (Ok(choice), _) => {
                exchange.route = Some(choice.place);
                exchange.destination = Some(Destination::Cluster(choice.cluster));
                if choice.is_plain {
                    self.start(exchange_id, choice.timeout_ms);
                } else {
                    self.start_handled(exchange_id, &generation.snapshot, choice);
                }
            }
            // A host of ours that does not serve this is not asked outside the mesh instead.
            (Err(NoRoute::NoVirtualHost), Some(arrival::Host { host, port }))
                if facts.forward_proxy =>
            {
                let host = host.to_owned();
                self.pass_through(exchange_id, &host, port);
            }
            _ => self.fail(exchange_id, Failure::NoRoute),
        }
    }

    /// Goes the way of a route that does more to its requests than sending them on.
    fn start_handled(&mut self, exchange_id: usize, snapshot: &Snapshot, choice: Choice<'_>) {
        let exchange = &mut self.exchanges[exchange_id];
        let (route, destination) = snapshot
            .http_route(exchange.listener, choice.place)
            .expect("a request is routed by a route for requests");
        exchange.is_edited = route.request_headers.is_some()
            || route.response_headers.is_some()
            || destination.request_headers.is_some()
            || destination.response_headers.is_some();
        if let Some(fault) = &route.fault {
            let drawn = fault.draw(&mut self.random);
            self.arm_exchange(exchange_id);
            return self.suffer(exchange_id, drawn);
        }
        exchange.may_discard_any = route.retry().reads_low_statuses();
        let per_try_ms = route.retry().per_try_timeout_ms;
        if per_try_ms != 0 {
            exchange.further().per_try_ms = per_try_ms;
        }
        self.start(exchange_id, choice.timeout_ms);
    }

    /// A call from the mesh names the port of the workload it is for.
    fn go_inbound(&mut self, exchange_id: usize, inbound: &Inbound) {
        let exchange = &mut self.exchanges[exchange_id];
        let name = format!("inbound|{}||", inbound.port);
        match exchange.generation.snapshot.cluster(&name) {
            Some(cluster) => {
                exchange.destination = Some(Destination::Cluster(cluster));
                self.start(exchange_id, 0);
            }
            None => self.fail(exchange_id, Failure::NoRoute),
        }
    }

    /// The caller named a destination that no route knows, on a listener that goes anywhere.
    fn pass_through(&mut self, exchange_id: usize, host: &str, port: u16) {
        match host.parse() {
            Ok(ip) => self.pass_through_to(exchange_id, passthrough_dial(ip, port)),
            Err(_) => self.resolve(exchange_id, host, port),
        }
    }

    fn resolve(&mut self, exchange_id: usize, host: &str, port: u16) {
        self.exchanges[exchange_id].stage = Stage::Resolving;
        self.questions += 1;
        let id = self.questions;
        if !self.ask_resolver(id, host) {
            return self.fail(exchange_id, Failure::NameNotResolved);
        }
        self.exchanges[exchange_id].question = id;
        self.resolving.insert(id, (exchange_id, port));
        self.exchanges[exchange_id].deadline_ms = self.clock.now_ms() + RESOLVE_TIMEOUT_MS;
        self.arm_exchange(exchange_id);
    }

    /// The resolver has answered a question of this worker.
    pub(crate) fn resolved(&mut self, id: u64, addresses: &[String], error: Option<String>) {
        // An exchange that ends takes its question with it, so whoever is found here has asked.
        let Some((exchange_id, port)) = self.resolving.remove(&id) else {
            return;
        };
        let exchange = &mut self.exchanges[exchange_id];
        debug_assert!(exchange.question == id && exchange.stage == Stage::Resolving);
        exchange.question = 0;
        let found = addresses.iter().filter_map(|text| text.parse().ok());
        exchange.addresses = found.rev().map(|ip| passthrough_dial(ip, port)).collect();
        match exchange.addresses.pop() {
            Some(dial) => self.pass_through_to(exchange_id, dial),
            None => {
                exchange.transport_failure = error.unwrap_or_default();
                self.fail(exchange_id, Failure::NameNotResolved);
            }
        }
    }

    fn pass_through_to(&mut self, exchange_id: usize, dial: Dial) {
        self.exchanges[exchange_id].destination = Some(Destination::Passthrough(dial));
        self.start(exchange_id, 0);
    }

    /// The destination is known: clocks start, the first try is made.
    fn start(&mut self, exchange_id: usize, timeout_ms: u64) {
        let now_ms = self.clock.now_ms();
        self.exchanges[exchange_id].deadline_ms = match timeout_ms {
            0 => 0,
            timeout_ms => now_ms.saturating_add(timeout_ms),
        };
        self.arm_exchange(exchange_id);
        self.dial(exchange_id);
    }

    /// An exchange's deadline has passed: the route's, the idle time, or the resolver's.
    pub(crate) fn exchange_timer(&mut self, exchange_id: usize) {
        let now_ms = self.clock.now_ms();
        if self.exchanges[exchange_id].stage == Stage::Tunnel {
            self.record_tunnel(exchange_id);
        }
        let exchange = &self.exchanges[exchange_id];
        let has_passed = |at_ms: u64| at_ms != 0 && at_ms <= now_ms;
        if exchange.stage < Stage::Streaming && has_passed(exchange.abandon_ms) {
            self.downstream_gone(exchange.downstream);
        } else if has_passed(exchange.deadline_ms) {
            let is_resolving = exchange.stage == Stage::Resolving;
            let failure = if is_resolving {
                Failure::NameNotResolved
            } else {
                Failure::RouteTimeout
            };
            self.fail(exchange_id, failure);
        } else if has_passed(exchange.next_try_ms()) {
            if exchange.stage == Stage::Waiting {
                self.waited(exchange_id);
            } else {
                self.try_timed_out(exchange_id);
            }
        } else if has_passed(exchange.idle_ms()) {
            self.fail(exchange_id, Failure::StreamIdle);
        } else {
            self.arm_exchange(exchange_id);
        }
    }

    /// Sets when to look at an exchange next. Nothing else arms the timer of an exchange.
    pub(crate) fn arm_exchange(&mut self, exchange_id: usize) {
        let at_ms = self.exchanges[exchange_id].next_look_ms(self.clock.now_ms());
        self.timers.arm(Key::Exchange(exchange_id), at_ms);
    }

    /// Ends the exchange when both directions are done.
    pub(crate) fn finish_if_complete(&mut self, exchange_id: usize) {
        if self.exchanges[exchange_id].is_finished() {
            self.finish(exchange_id);
        }
    }

    /// Ends an exchange whose response is out.
    pub(crate) fn finish(&mut self, exchange_id: usize) {
        let exchange = &self.exchanges[exchange_id];
        let downstream_id = exchange.downstream;
        let is_clean = exchange.requesting.ended && exchange.stage == Stage::Streaming;
        let downstream = &mut self.downstreams[downstream_id];
        if exchange.stage == Stage::Tunnel {
            downstream.keep_alive = false;
        } else if !exchange.requesting.ended && downstream.keep_alive {
            downstream.throw_away(exchange.requesting.decoder.clone());
        }
        self.record(exchange_id);
        self.detach(exchange_id, is_clean);
        self.remove_exchange(exchange_id);
        self.after_exchange(downstream_id);
    }

    /// Ends an exchange that went wrong.
    pub(crate) fn fail(&mut self, exchange_id: usize, failure: Failure) {
        self.fail_with(exchange_id, failure, None);
    }

    /// Ends an exchange that went wrong, with a detail more exact than the failure's own. Before the
    /// response head the caller gets an answer; after it, an end that does not look complete.
    pub(crate) fn fail_with(
        &mut self,
        exchange_id: usize,
        failure: Failure,
        detail: Option<&'static str>,
    ) {
        let verdict = failure.verdict();
        let detail = detail.unwrap_or(verdict.detail);
        self.detach(exchange_id, false);
        let exchange = &mut self.exchanges[exchange_id];
        if exchange.outcome.status == 0 && exchange.carries != Carries::Tcp {
            return self.answer(exchange_id, verdict.status, verdict.flag, detail);
        }
        exchange.flag(verdict.flag);
        exchange.outcome.detail = detail;
        let downstream_id = exchange.downstream;
        let is_delimited = exchange.is_delimited;
        self.record(exchange_id);
        if !is_delimited {
            return self.cut(exchange_id);
        }
        // What is missing shows by itself: the last chunk, or bytes of the promised length.
        self.remove_exchange(exchange_id);
        self.close_downstream(downstream_id);
    }
}

/// Whether the caller of a forward proxy shows the credential that its listener asks for, so that no
/// other user of the host borrows the workload's identity. Compared by hash, in constant time.
fn shows_credential(exchange: &Exchange, request: &Request) -> bool {
    let Some(expected) = exchange.listener().and_then(|it| it.credential_sha256) else {
        return true;
    };
    let Some(given) = request.header(Name::ProxyAuthorization) else {
        return false;
    };
    let Some((scheme, credential)) = given.split_at_checked(BASIC.len()) else {
        return false;
    };
    let digest = digest::digest(&digest::SHA256, credential);
    scheme.eq_ignore_ascii_case(BASIC)
        && verify_slices_are_equal(digest.as_ref(), &expected).is_ok()
}

fn passthrough_dial(ip: IpAddr, port: u16) -> Dial {
    Dial::address(SocketAddr::new(ip, port), PASSTHROUGH_CONNECT_TIMEOUT_MS)
}

fn listener_facts(exchange: &Exchange, downstream: &Downstream) -> Option<ListenerFacts> {
    let listener = exchange.listener()?;
    Some(ListenerFacts {
        direction: listener.direction,
        forward_proxy: listener.forward_proxy && downstream.tunnel().is_none(),
        original: None,
        local: downstream.session.local.socket(),
        peer: downstream.peer.socket(),
    })
}

/// At the edge every proxy adds the caller to `x-forwarded-for`; no chain of real proxies is this long,
/// so the request goes round.
fn is_looping(request: &Request, direction: Direction) -> bool {
    let lines = request
        .head
        .headers
        .iter()
        .filter(|header| header.kind == Name::XForwardedFor);
    let hops: usize = lines
        .map(|header| {
            1 + header
                .value
                .of(&request.bytes)
                .iter()
                .filter(|it| **it == b',')
                .count()
        })
        .sum();
    direction == Direction::Gateway && hops > FORWARDED_MAX
}

fn request_facts(request: &Request) -> RequestFacts<'_> {
    let form = match request.head.form {
        TargetForm::Absolute => Form::Absolute,
        TargetForm::Authority => Form::Connect,
        TargetForm::Asterisk | TargetForm::Origin => Form::Origin,
    };
    let secure = request
        .head
        .scheme
        .of(&request.bytes)
        .eq_ignore_ascii_case(b"https");
    RequestFacts {
        form,
        authority: request.authority_bytes(),
        secure,
    }
}

impl Exchange {
    /// When to look at this exchange next: the earliest of its deadlines, and for a tunnel the next
    /// report.
    fn next_look_ms(&self, now_ms: u64) -> u64 {
        let abandon_ms = if self.stage < Stage::Streaming {
            self.abandon_ms
        } else {
            0
        };
        let report_ms = if self.stage == Stage::Tunnel {
            now_ms + TUNNEL_REPORT_MS
        } else {
            0
        };
        [self.deadline_ms, abandon_ms, report_ms, self.next_try_ms()]
            .into_iter()
            .filter(|at_ms| *at_ms != 0)
            .fold(self.idle_ms(), u64::min)
    }

    /// When the exchange has been idle for too long.
    fn idle_ms(&self) -> u64 {
        let is_tunnel = self.stage == Stage::Tunnel;
        self.progress_ms
            + if is_tunnel {
                TUNNEL_IDLE_MS
            } else {
                STREAM_IDLE_MS
            }
    }
}
