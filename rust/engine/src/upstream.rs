//! Upstream sessions: dialling, the idle pool, sending a request, reading its response.
//!
//! The pool is per worker and endpoint slot, last in first out. An idle connection that says anything
//! or closes leaves the pool at once; when one closes at a request, those that have been idle for longer
//! go with it. A method that is not safe gets a pooled connection only when it
//! was used a moment ago, because a server may close an idle one just as the request leaves, and such
//! a request must not be sent twice (RFC 9110 9.2.2).

use std::collections::HashMap;
use std::io;

use meshfast_mesh::{Address, Dial, Direction, Loads, Outcome};
use meshfast_wire::h1::{BodyDecoder, BodyEncoder, Framing, Method, Parsed, ResponseHead, Version};
use rustc_hash::FxHashMap;

use crate::buffer::{HIGH_WATERMARK, SEND_AT_ONCE};
use crate::error::Failure;
use crate::exchange::{Carries, Destination, Half, Moved, STREAM_IDLE_MS, Stage};
use crate::head;
use crate::listener::{Listener, is_out_of_descriptors};
use crate::session::{Flushed, Session};
use crate::shared::EndpointLines;
use crate::stream::Stream;
use crate::timers::Key;
use crate::tries::Ending;
use crate::tunnel::ESTABLISHED;
use crate::worker::Worker;

/// Interim (1xx) responses passed on per exchange; more is an attack (CVE-2024-53271).
const INTERIM_RESPONSES_MAX: u8 = 10;

/// Idle connections closed when descriptors run out.
const EVICTED_AT_ONCE: usize = 16;

/// How long an idle connection may have been idle to still carry a method that is not safe.
const JUST_USED_MS: u64 = 200;

/// For destinations outside every cluster: Linkerd's pool idle time.
const IDLE_TIMEOUT_MS: u64 = 3_000;

/// A connection to an upstream.
pub(crate) struct Upstream {
    pub(crate) session: Session,
    pub(crate) address: Address,
    /// The endpoint's slot; none for a passthrough destination.
    slot: Option<u32>,
    pub(crate) exchange: Option<usize>,
    pub(crate) is_connected: bool,
    /// The peer's proxy took its stream.
    pub(crate) is_taken: bool,
    /// How the peer's proxy ended its stream.
    pub(crate) ending: Option<Ending>,
    pub(crate) head: ResponseHead,
    /// It has finished a response.
    has_served: bool,
    /// Bytes of the current response have come.
    is_answering: bool,
    /// Nothing of the current request has been given to the kernel, or to a leg.
    is_unsent: bool,
    /// Its exchange is over; it only sends what it has and then closes.
    is_closing: bool,
    pub(crate) idle_since_ms: u64,
    idle_timeout_ms: u64,
}

/// Idle connections.
#[derive(Default)]
pub(crate) struct Pool {
    by_slot: Vec<Vec<usize>>,
    passthrough: HashMap<Address, Vec<usize>>,
}

impl Pool {
    fn idle(&mut self, slot: Option<u32>, address: &Address) -> &mut Vec<usize> {
        match slot {
            Some(slot) => {
                let slot = slot as usize;
                if self.by_slot.len() <= slot {
                    self.by_slot.resize_with(slot + 1, Vec::new);
                }
                &mut self.by_slot[slot]
            }
            None => self.passthrough.entry(address.clone()).or_default(),
        }
    }

    /// Takes the connection used last.
    fn pop(&mut self, slot: Option<u32>, address: &Address) -> Option<usize> {
        match slot {
            Some(slot) => self.by_slot.get_mut(slot as usize)?.pop(),
            None => self.passthrough.get_mut(address)?.pop(),
        }
    }

    /// Some idle connections, the longest idle of each place first.
    fn all(&self, count: usize) -> Vec<usize> {
        let places = self.passthrough.values().chain(&self.by_slot);
        places.flatten().copied().take(count).collect()
    }

    fn forget(&mut self, upstream: usize, slot: Option<u32>, address: &Address) {
        let idle = self.idle(slot, address);
        if let Some(place) = idle.iter().position(|id| *id == upstream) {
            idle.remove(place);
        }
        if slot.is_none() && idle.is_empty() {
            self.passthrough.remove(address);
        }
    }
}

/// Endpoints whose last connect failed, and until when, in ms, others are preferred to them. One that
/// refuses has nothing active, so it would win every comparison.
#[derive(Default)]
pub(crate) struct Refusals {
    until_ms: FxHashMap<u32, u64>,
}

/// How long an endpoint that refused is the second choice.
const REFUSAL_MS: u64 = 2_000;

/// The balancer's view: active requests in shared memory, and whom to avoid while others are there.
struct SharedLoads<'a> {
    lines: &'a EndpointLines,
    refusals: &'a Refusals,
    now_ms: u64,
}

impl Loads for SharedLoads<'_> {
    fn active(&self, slot: u32) -> u32 {
        self.lines.active(slot)
    }

    fn available(&self, slot: u32) -> bool {
        let until_ms = self.refusals.until_ms.get(&slot);
        until_ms.is_none_or(|until_ms| *until_ms <= self.now_ms)
    }
}

impl Worker {
    /// Chooses an endpoint for the exchange and sends the request there, over an idle connection or
    /// a new one.
    pub(crate) fn dial(&mut self, exchange_id: usize) {
        let Some((dial, slot, principal)) = self.choose(exchange_id) else {
            return self.fail(exchange_id, Failure::NoHealthyUpstream);
        };
        if self.comes_back(&dial, principal.is_some()) {
            return self.fail(exchange_id, Failure::RequestLoop);
        }
        let exchange = &mut self.exchanges[exchange_id];
        exchange.tries += 1;
        exchange.stage = Stage::Connecting;
        if let Some(slot) = slot {
            self.share.endpoints.request_started(slot);
            self.exchanges[exchange_id].active_slot = Some(slot);
        }
        if let (Some(slot), Some(principal)) = (slot, &principal) {
            return self.dial_leg(exchange_id, &dial, slot, principal);
        }
        match self.take_idle(exchange_id, slot, &dial.address) {
            Some(upstream_id) => {
                self.attach(exchange_id, upstream_id);
                self.send_request(exchange_id);
            }
            None => self.connect(exchange_id, &dial, slot),
        }
    }

    /// Whether a dial would lead to one of our own listeners, to be sent out again (row R5). The
    /// application may call its own service: by mutual TLS, to where calls for the application come in
    /// and whence they go nowhere else.
    fn comes_back(&self, dial: &Dial, is_by_leg: bool) -> bool {
        let leads_out = |it: &&Listener| !(is_by_leg && it.is_inbound());
        self.listeners
            .iter()
            .filter(leads_out)
            .any(|listener| listener.is_reached_by(dial))
    }

    /// Where to, the endpoint's slot, and who must answer there when it is called by mutual TLS.
    fn choose(&mut self, exchange_id: usize) -> Option<(Dial, Option<u32>, Option<String>)> {
        let exchange = &mut self.exchanges[exchange_id];
        match exchange.destination.as_ref()? {
            Destination::Passthrough(dial) => Some((dial.clone(), None, None)),
            Destination::Cluster(index) => {
                let cluster = &exchange.generation.snapshot.clusters[*index];
                let cursor = &exchange.generation.turns[*index];
                let mut turn = cursor.get();
                let now_ms = self.clock.now_ms();
                let lines = &self.share.endpoints;
                let loads = SharedLoads {
                    lines,
                    refusals: &self.refusals,
                    now_ms,
                };
                let tried = &exchange.tried;
                let chosen = cluster
                    .pick(&loads, &mut self.random, tried, &mut turn)
                    .or_else(|| {
                        let refusals = &Refusals::default();
                        let anyone = SharedLoads {
                            lines,
                            refusals,
                            now_ms,
                        };
                        let random = &mut self.random;
                        cluster
                            .pick(&anyone, random, tried, &mut turn)
                            // All of them failed this exchange: any is better than none.
                            .or_else(|| cluster.pick(&loads, random, &[], &mut turn))
                            .or_else(|| cluster.pick(&anyone, random, &[], &mut turn))
                    });
                cursor.set(turn);
                let chosen = chosen?;
                let endpoint = &cluster.endpoints[chosen];
                let principal = cluster.tls.map(|_| endpoint.workload.principal.clone());
                let answer = (
                    Dial::endpoint(cluster, endpoint),
                    Some(endpoint.slot),
                    principal,
                );
                exchange.endpoint = Some(chosen as u32);
                Some(answer)
            }
        }
    }

    /// Takes the connection used last, if it may carry this request.
    fn take_idle(
        &mut self,
        exchange_id: usize,
        slot: Option<u32>,
        address: &Address,
    ) -> Option<usize> {
        let exchange = &self.exchanges[exchange_id];
        // A second try follows a stale connection or a dead endpoint: it gets a fresh one.
        if exchange.carries != Carries::Http || exchange.tries > 1 {
            return None;
        }
        let is_safe = exchange
            .head()
            .is_some_and(|head| head.method_kind.is_safe());
        let now_ms = self.clock.now_ms();
        while let Some(upstream_id) = self.pool.pop(slot, address) {
            let upstream = &self.upstreams[upstream_id];
            if upstream.address != *address {
                // The slot has a new owner; connections to the old one end here.
                self.drop_upstream(upstream_id);
                continue;
            }
            if !may_carry(is_safe, now_ms - upstream.idle_since_ms) {
                self.pool.idle(slot, address).push(upstream_id);
                return None;
            }
            return Some(upstream_id);
        }
        None
    }

    fn connect(&mut self, exchange_id: usize, dial: &Dial, slot: Option<u32>) {
        let mut opened = self.open_upstream(dial, slot);
        if opened.as_ref().is_err_and(is_out_of_descriptors) && self.evict_idle() {
            opened = self.open_upstream(dial, slot);
        }
        match opened {
            Ok(upstream_id) if self.is_own(upstream_id) => {
                self.drop_upstream(upstream_id);
                self.fail(exchange_id, Failure::RequestLoop);
            }
            Ok(upstream_id) => {
                self.attach(exchange_id, upstream_id);
                let deadline_ms = self.clock.now_ms() + dial.connect_timeout_ms;
                self.timers.arm(Key::Upstream(upstream_id), deadline_ms);
            }
            Err(error) => {
                self.exchanges[exchange_id].upstream_address = Some(dial.address.clone());
                self.connect_failed(exchange_id, Failure::ConnectFailed, &error.to_string());
            }
        }
    }

    /// Whether a connect goes to this host's own address and a port that we listen on for all of them.
    /// Connecting to oneself, the kernel takes the same address for the near end.
    fn is_own(&self, upstream_id: usize) -> bool {
        let session = &self.upstreams[upstream_id].session;
        let (Some(to), Some(near)) = (
            self.upstreams[upstream_id].address.socket(),
            session.local.socket(),
        ) else {
            return false;
        };
        to.ip() == near.ip()
            && self
                .listeners
                .iter()
                .any(|listener| listener.is_on_all(to.port()))
    }

    /// Closes idle connections to make room for one that is wanted; `false` when there are none.
    fn evict_idle(&mut self) -> bool {
        let idle = self.pool.all(EVICTED_AT_ONCE);
        for upstream_id in &idle {
            self.drop_upstream(*upstream_id);
        }
        !idle.is_empty()
    }

    fn open_upstream(&mut self, dial: &Dial, slot: Option<u32>) -> io::Result<usize> {
        let mut stream = Stream::dial(dial)?;
        stream.tune();
        let entry = self.upstreams.vacant_entry();
        let upstream_id = entry.key();
        stream.register(self.poll.registry(), Key::Upstream(upstream_id).token())?;
        let mut session = Session::new(stream);
        session.io.writable = false;
        entry.insert(Upstream::new(session, &dial.address, slot));
        Ok(upstream_id)
    }

    pub(crate) fn attach(&mut self, exchange_id: usize, upstream_id: usize) {
        let upstream = &mut self.upstreams[upstream_id];
        upstream.exchange = Some(exchange_id);
        upstream.is_answering = false;
        let exchange = &mut self.exchanges[exchange_id];
        exchange.upstream = Some(upstream_id);
        exchange.upstream_address = Some(upstream.address.clone());
        self.timers.disarm(Key::Upstream(upstream_id));
    }

    /// Events have come for an upstream session.
    pub(crate) fn drive_upstream(&mut self, upstream_id: usize) {
        let upstream = &self.upstreams[upstream_id];
        // A stream of a leg is connected when the leg says so.
        let is_stream = upstream.session.stream.leg().is_some();
        if !upstream.is_connected && (is_stream || !self.finish_connect(upstream_id)) {
            return;
        }
        for _ in 0..READS_PER_TURN {
            let Some(upstream) = self.upstreams.get_mut(upstream_id) else {
                return;
            };
            let input_max = self.limits.buffer_bytes_max();
            let came = upstream.session.read(&mut self.blocks, input_max);
            let Some(exchange_id) = upstream.exchange else {
                return self.idle_upstream_spoke(upstream_id);
            };
            let moved = self.pump_response(exchange_id);
            if !came && !moved {
                return;
            }
        }
        self.queue(Key::Upstream(upstream_id));
    }

    /// An idle connection may only close; whatever it says, it is of no use any more (row A26).
    fn idle_upstream_spoke(&mut self, upstream_id: usize) {
        let upstream = &mut self.upstreams[upstream_id];
        if upstream.is_closing && !upstream.session.io.broken {
            return upstream.session.input.clear();
        }
        let session = &upstream.session;
        if !session.input.is_empty() || session.io.read_closed || session.io.broken {
            self.drop_upstream(upstream_id);
        }
    }

    /// Whether the connect has ended well; a failure is dealt with here.
    fn finish_connect(&mut self, upstream_id: usize) -> bool {
        let upstream = &mut self.upstreams[upstream_id];
        if !upstream.session.io.writable && !upstream.session.io.broken {
            return false;
        }
        let outcome = upstream.session.stream.connected();
        let exchange_id = upstream.exchange;
        match (outcome, exchange_id) {
            (Ok(()), Some(exchange_id)) => {
                upstream.is_connected = true;
                upstream.session.io.broken = false;
                self.timers.disarm(Key::Upstream(upstream_id));
                self.send_request(exchange_id);
                self.upstreams.contains(upstream_id)
            }
            (Err(error), Some(exchange_id)) => {
                self.connect_failed(exchange_id, Failure::ConnectFailed, &error.to_string());
                false
            }
            (_, None) => {
                self.drop_upstream(upstream_id);
                false
            }
        }
    }

    /// The time for a connect has passed.
    pub(crate) fn upstream_timer(&mut self, upstream_id: usize) {
        let upstream = &self.upstreams[upstream_id];
        match upstream.exchange {
            Some(exchange_id) => {
                self.connect_failed(exchange_id, Failure::ConnectTimeout, "connect timeout");
            }
            None => self.drop_upstream(upstream_id),
        }
    }

    pub(crate) fn connect_failed(&mut self, exchange_id: usize, failure: Failure, why: &str) {
        let exchange = &mut self.exchanges[exchange_id];
        exchange.transport_failure = why.to_owned();
        if let Some(slot) = exchange.active_slot {
            self.share.endpoints.connect_failed(slot);
            let until_ms = self.clock.now_ms() + REFUSAL_MS;
            self.refusals.until_ms.insert(slot, until_ms);
        }
        self.try_failed(exchange_id, failure, Outcome::ConnectFailed);
    }

    /// The upstream is connected: the request head goes out, or the tunnel opens.
    pub(crate) fn send_request(&mut self, exchange_id: usize) {
        let now_us = self.clock.now_us();
        let exchange = &mut self.exchanges[exchange_id];
        let upstream_id = exchange
            .upstream
            .expect("a request is sent on an attached upstream");
        let upstream = &mut self.upstreams[upstream_id];
        exchange.sent_us = now_us;
        exchange.upstream_local = Some(upstream.session.local);
        // What an earlier endpoint failed with is not how this went.
        exchange.transport_failure.clear();
        match exchange.carries {
            Carries::Http => {
                let direction = exchange
                    .listener()
                    .map_or(Direction::Outbound, |it| it.direction);
                let peer = self.downstreams[exchange.downstream].peer;
                let called = self.identity.as_ref().map_or("", |identity| &identity.name);
                let output = upstream.session.output.tail();
                let start = output.len();
                head::write_request(exchange, direction, peer, called, output);
                if exchange.is_edited {
                    head::edit(exchange.request_edits(), start, output);
                }
                upstream.head.reset();
                upstream.is_unsent = true;
                exchange.stage = Stage::AwaitingHead;
                let (ended, has_further) = (exchange.requesting.ended, exchange.further.is_some());
                upstream.session.finish_writing = ended && upstream.session.stream.leg().is_some();
                self.dirty(Key::Upstream(upstream_id));
                if has_further {
                    self.send_kept_body(exchange_id, upstream_id);
                }
                if has_further && ended {
                    self.time_try(exchange_id);
                }
                self.pump_request(exchange_id);
            }
            Carries::Connect => {
                let downstream = exchange.downstream;
                let output = self.downstreams[downstream].session.output.tail();
                output.extend_from_slice(ESTABLISHED);
                exchange.outcome.status = 200;
                exchange.outcome.detail = "via_upstream";
                exchange.answered_us = now_us;
                self.open_tunnel(exchange_id);
                self.dirty(Key::Downstream(downstream));
            }
            Carries::Tcp => self.open_tunnel(exchange_id),
        }
    }

    /// From here on both halves are raw bytes.
    fn open_tunnel(&mut self, exchange_id: usize) {
        let exchange = &mut self.exchanges[exchange_id];
        exchange.stage = Stage::Tunnel;
        exchange.is_delimited = false;
        exchange.requesting = Half {
            head_bytes: exchange.requesting.head_bytes,
            ..Half::raw()
        };
        exchange.responding = Half {
            head_bytes: exchange.responding.head_bytes,
            ..Half::raw()
        };
        // A route's timeout is for the answer (Envoy's route `timeout`), which has come.
        exchange.deadline_ms = 0;
        let (downstream_id, upstream_id) = (exchange.downstream, exchange.upstream);
        self.record_tunnel(exchange_id);
        self.arm_exchange(exchange_id);
        self.queue(Key::Downstream(downstream_id));
        if let Some(upstream_id) = upstream_id {
            self.queue(Key::Upstream(upstream_id));
        }
    }

    /// Moves what the upstream has sent towards the downstream; `true` when anything moved.
    pub(crate) fn pump_response(&mut self, exchange_id: usize) -> bool {
        let mut moved = false;
        while let Some(exchange) = self.exchanges.get(exchange_id) {
            if exchange.stage != Stage::AwaitingHead {
                return self.pump_response_body(exchange_id) || moved;
            }
            if !self.take_response_head(exchange_id) {
                return moved;
            }
            moved = true;
        }
        moved
    }

    fn pump_response_body(&mut self, exchange_id: usize) -> bool {
        let exchange = &mut self.exchanges[exchange_id];
        let Some(upstream_id) = exchange.upstream else {
            return false;
        };
        if !matches!(exchange.stage, Stage::Streaming | Stage::Tunnel) || exchange.responding.ended
        {
            return false;
        }
        let upstream = &mut self.upstreams[upstream_id];
        let downstream_id = exchange.downstream;
        let downstream = &mut self.downstreams[downstream_id];
        let io = upstream.session.io;
        let source = &mut upstream.session.input;
        let sink = &mut downstream.session.output;
        let moved =
            exchange
                .responding
                .pump(source, io.read_closed && !io.broken, sink, &mut self.blocks);
        let is_large = sink.len() >= SEND_AT_ONCE;
        if moved != Moved::Nothing {
            exchange.progress_ms = self.clock.now_ms();
        }
        let is_broken = io.broken && source.is_empty();
        self.dirty(Key::Downstream(downstream_id));
        match moved {
            Moved::Broken(error) => self.response_refused(exchange_id, error.detail()),
            Moved::Cut => self.response_cut(exchange_id),
            Moved::Nothing if is_broken => self.response_cut(exchange_id),
            Moved::Ended => {
                if self.exchanges[exchange_id].stage == Stage::Tunnel {
                    self.downstreams[downstream_id].session.finish_writing = true;
                }
                self.finish_if_complete(exchange_id);
            }
            Moved::Nothing => return false,
            Moved::Some => {}
        }
        if is_large {
            self.flush_downstream(downstream_id);
        }
        true
    }

    /// Reads one response head, interim or final; `false` when it is not whole yet.
    fn take_response_head(&mut self, exchange_id: usize) -> bool {
        let exchange = &mut self.exchanges[exchange_id];
        let Some(upstream_id) = exchange.upstream else {
            return false;
        };
        let upstream = &mut self.upstreams[upstream_id];
        let method = exchange
            .head()
            .map_or(Method::Other, |head| head.method_kind);
        let bytes = upstream.session.input.as_slice();
        upstream.is_answering |= !bytes.is_empty();
        let parsed = if bytes.is_empty() {
            Ok(Parsed::Incomplete)
        } else {
            upstream.head.parse(bytes, &self.limits, method)
        };
        match parsed {
            Ok(Parsed::Complete) => {
                self.response_head_came(exchange_id, upstream_id);
                true
            }
            Ok(Parsed::Incomplete) => {
                let io = upstream.session.io;
                if io.read_closed || io.broken {
                    self.upstream_left(exchange_id, upstream_id);
                    return true;
                }
                false
            }
            Err(error) => {
                self.response_refused(exchange_id, error.detail());
                true
            }
        }
    }

    /// The upstream closed before a whole response head.
    fn upstream_left(&mut self, exchange_id: usize, upstream_id: usize) {
        let upstream = &self.upstreams[upstream_id];
        // What has begun to answer has seen the request, whatever is said of it.
        let ending = upstream.ending.filter(|_| !upstream.is_answering);
        let (failure, outcome) = match ending {
            Some(Ending::Unreached) => {
                let why = "the application takes no connection";
                return self.connect_failed(exchange_id, Failure::ConnectFailed, why);
            }
            Some(Ending::Refused) => (Failure::StreamRefused, Outcome::Refused),
            Some(Ending::Broken | Ending::Stale) | None => {
                let was_reused = upstream.has_served || ending == Some(Ending::Stale);
                let is_stale = was_reused && !upstream.is_answering;
                let is_first = !self.exchanges[exchange_id].was_stale;
                let outcome = Outcome::Reset {
                    is_sent: !upstream.is_unsent,
                    is_stale: is_stale && is_first,
                };
                if is_stale {
                    self.drop_idle_beside(upstream_id);
                }
                (Failure::UpstreamReset, outcome)
            }
        };
        self.exchanges[exchange_id].transport_failure = "connection closed by upstream".to_owned();
        self.try_failed(exchange_id, failure, outcome);
    }

    /// Closes the idle connections to where this one went: the pool gives the last used first, so they
    /// are older than one that was too old.
    fn drop_idle_beside(&mut self, upstream_id: usize) {
        let upstream = &self.upstreams[upstream_id];
        let (slot, address) = (upstream.slot, upstream.address.clone());
        while let Some(idle) = self.pool.pop(slot, &address) {
            self.drop_upstream(idle);
        }
    }

    fn response_head_came(&mut self, exchange_id: usize, upstream_id: usize) {
        let status = self.upstreams[upstream_id].head.status;
        let exchange = &mut self.exchanges[exchange_id];
        exchange.progress_ms = self.clock.now_ms();
        exchange.responding.head_bytes += self.upstreams[upstream_id].head.len as u64;
        match status {
            101 => self.switch_protocols(exchange_id, upstream_id),
            100..=199 => self.pass_interim(exchange_id, upstream_id),
            _ if self.answer_is_discarded(exchange_id, upstream_id) => {}
            _ => self.pass_final(exchange_id, upstream_id),
        }
    }

    fn pass_interim(&mut self, exchange_id: usize, upstream_id: usize) {
        let exchange = &mut self.exchanges[exchange_id];
        exchange.interim_responses += 1;
        if exchange.interim_responses > INTERIM_RESPONSES_MAX {
            return self.response_refused(exchange_id, "upstream_interim_response_flood");
        }
        let upstream = &mut self.upstreams[upstream_id];
        let downstream = &mut self.downstreams[exchange.downstream];
        let is_continue = upstream.head.status == 100;
        // The body has been asked for once; the next try has it from here.
        if !(is_continue && exchange.was_continued) {
            head::write_interim(
                exchange,
                &upstream.head,
                upstream.session.input.as_slice(),
                downstream.session.output.tail(),
            );
        }
        exchange.was_continued |= is_continue;
        upstream.session.input.consume(upstream.head.len);
        upstream.head.reset();
        let downstream_id = exchange.downstream;
        self.dirty(Key::Downstream(downstream_id));
    }

    /// 101 is right only in answer to an upgrade, and ends HTTP on both connections.
    fn switch_protocols(&mut self, exchange_id: usize, upstream_id: usize) {
        let exchange = &mut self.exchanges[exchange_id];
        let asked = exchange.head().is_some_and(|head| head.upgrade.is_some());
        if !asked || !exchange.requesting.ended {
            return self.response_refused(exchange_id, "upstream_upgrade_not_asked_for");
        }
        let downstream_id = exchange.downstream;
        self.write_final_head(exchange_id, upstream_id, Framing::None, true);
        self.open_tunnel(exchange_id);
        self.dirty(Key::Downstream(downstream_id));
    }

    fn pass_final(&mut self, exchange_id: usize, upstream_id: usize) {
        let exchange = &self.exchanges[exchange_id];
        let is_http11 = exchange
            .head()
            .is_none_or(|head| head.version == Version::Http11);
        let framing = match self.upstreams[upstream_id].head.framing {
            Framing::Close | Framing::Chunked if is_http11 => Framing::Chunked,
            Framing::Close | Framing::Chunked => Framing::Close,
            framing => framing,
        };
        let keep_alive = self.keeps_downstream(exchange_id)
            && framing != Framing::Close
            && self.exchanges[exchange_id].request_end_is_near();
        self.write_final_head(exchange_id, upstream_id, framing, keep_alive);
        let exchange = &mut self.exchanges[exchange_id];
        let upstream = &self.upstreams[upstream_id];
        let is_bodyless = matches!(upstream.head.framing, Framing::None | Framing::Length(0));
        if upstream.session.input.is_empty() && !is_bodyless {
            // An origin that writes head and body apart, with Nagle's algorithm on, sends the body when
            // the head is acknowledged, which the kernel does up to 40 ms late on a pooled connection.
            upstream.session.stream.acknowledge();
        }
        let decoder = BodyDecoder::new(upstream.head.framing, &self.limits);
        let half = Half::new(decoder, BodyEncoder::new(framing));
        exchange.responding = Half {
            head_bytes: exchange.responding.head_bytes,
            ..half
        };
        exchange.stage = Stage::Streaming;
        exchange.is_delimited = framing != Framing::Close;
        let downstream_id = exchange.downstream;
        self.downstreams[downstream_id].keep_alive = keep_alive;
        self.dirty(Key::Downstream(downstream_id));
    }

    fn write_final_head(
        &mut self,
        exchange_id: usize,
        upstream_id: usize,
        framing: Framing,
        keep_alive: bool,
    ) {
        let exchange = &mut self.exchanges[exchange_id];
        let upstream = &mut self.upstreams[upstream_id];
        let downstream = &mut self.downstreams[exchange.downstream];
        let bytes = upstream.session.input.as_slice();
        let output = downstream.session.output.tail();
        let start = output.len();
        head::write_response(exchange, &upstream.head, bytes, framing, keep_alive, output);
        if exchange.is_edited {
            head::edit(exchange.response_edits(), start, output);
        }
        exchange.outcome.status = upstream.head.status;
        exchange.outcome.detail = "via_upstream";
        exchange.answered_us = self.clock.now_us();
        let length = upstream.head.len;
        upstream.session.input.consume(length);
        if exchange.further.is_some() {
            self.tries_are_over(exchange_id);
        }
    }

    /// The upstream's answer is not HTTP as we accept it.
    fn response_refused(&mut self, exchange_id: usize, detail: &'static str) {
        self.rejected(detail);
        self.detach(exchange_id, false);
        self.fail_with(exchange_id, Failure::UpstreamProtocol, Some(detail));
    }

    /// The response broke off after its head was passed on: it must not look complete.
    fn response_cut(&mut self, exchange_id: usize) {
        self.detach(exchange_id, false);
        self.fail(exchange_id, Failure::UpstreamTerminated);
    }

    /// Parts the exchange from its upstream session; the session lives on only if `reuse` says so
    /// and nothing speaks against it.
    pub(crate) fn detach(&mut self, exchange_id: usize, reuse: bool) {
        let exchange = &mut self.exchanges[exchange_id];
        if let Some(slot) = exchange.active_slot.take() {
            self.share.endpoints.request_finished(slot);
        }
        let Some(upstream_id) = exchange.upstream.take() else {
            return;
        };
        let idle_timeout_ms = match exchange.destination {
            Some(Destination::Cluster(index)) => {
                exchange.generation.snapshot.clusters[index].idle_timeout_ms
            }
            _ => IDLE_TIMEOUT_MS,
        };
        let upstream = &mut self.upstreams[upstream_id];
        upstream.exchange = None;
        if reuse && upstream.is_reusable() {
            self.keep_upstream(upstream_id, idle_timeout_ms);
        } else if exchange.is_finished() && exchange.stage == Stage::Tunnel {
            // The last bytes of a tunnel may still be on their way.
            upstream.is_closing = true;
            let deadline_ms = self.clock.now_ms() + STREAM_IDLE_MS;
            self.timers.arm(Key::Upstream(upstream_id), deadline_ms);
            self.dirty(Key::Upstream(upstream_id));
        } else {
            self.drop_upstream(upstream_id);
        }
    }

    /// Sends what waits, and lets the other side go on where it was held back.
    pub(crate) fn flush_upstream(&mut self, upstream_id: usize) {
        let Some(upstream) = self.upstreams.get_mut(upstream_id) else {
            return;
        };
        upstream.session.dirty = false;
        if !upstream.is_connected {
            return;
        }
        let waiting = upstream.session.output.len();
        let flushed = match upstream.session.stream.leg() {
            Some((leg, stream)) => self.flush_to_leg(Key::Upstream(upstream_id), leg, stream),
            None => upstream.session.flush(&mut self.blocks),
        };
        let Some(upstream) = self.upstreams.get_mut(upstream_id) else {
            return;
        };
        let was_high = waiting >= HIGH_WATERMARK;
        upstream.is_unsent &= upstream.session.output.len() == waiting;
        match flushed {
            Flushed::All if upstream.is_closing => self.drop_upstream(upstream_id),
            Flushed::All | Flushed::Blocked => {
                if was_high
                    && !upstream.session.output.is_high()
                    && let Some(exchange_id) = upstream.exchange
                {
                    let downstream_id = self.exchanges[exchange_id].downstream;
                    self.queue(Key::Downstream(downstream_id));
                }
            }
            // It may have answered before it closed: reading tells, and ends the exchange.
            Flushed::Broken => {
                upstream.session.output.clear();
                upstream.session.io.readable = true;
                self.queue(Key::Upstream(upstream_id));
            }
        }
    }

    fn keep_upstream(&mut self, upstream_id: usize, idle_timeout_ms: u64) {
        let now_ms = self.clock.now_ms();
        let upstream = &mut self.upstreams[upstream_id];
        upstream.has_served = true;
        upstream.idle_since_ms = now_ms;
        // What the upstream says of its own patience, less a second for the way (RFC 9110, Keep-Alive).
        let said_ms = upstream
            .head
            .keep_alive_timeout_s
            .map(|s| u64::from(s) * 1_000);
        let learned_ms = said_ms.map_or(idle_timeout_ms, |said| said.saturating_sub(1_000));
        upstream.idle_timeout_ms = idle_timeout_ms.min(learned_ms);
        let deadline_ms = now_ms + upstream.idle_timeout_ms;
        self.timers.arm(Key::Upstream(upstream_id), deadline_ms);
        let upstream = &self.upstreams[upstream_id];
        self.pool
            .idle(upstream.slot, &upstream.address)
            .push(upstream_id);
    }

    /// Closes an upstream session that no exchange uses.
    pub(crate) fn drop_upstream(&mut self, upstream_id: usize) {
        let upstream = &mut self.upstreams[upstream_id];
        debug_assert!(
            upstream.exchange.is_none(),
            "an exchange parts from its upstream first"
        );
        let (slot, address) = (upstream.slot, upstream.address.clone());
        self.pool.forget(upstream_id, slot, &address);
        self.timers.disarm(Key::Upstream(upstream_id));
        let upstream = self.upstreams.remove(upstream_id);
        self.stop_waiting(upstream_id, &upstream.session.stream);
        self.leave_leg(&upstream.session.stream, upstream.session.uncredited);
    }
}

/// Whether a connection that has been idle for so long may carry a request: a server may close it just
/// as the request leaves, and only a safe one can be sent again without harm.
fn may_carry(is_safe: bool, idle_ms: u64) -> bool {
    is_safe || idle_ms <= JUST_USED_MS
}

/// Reads of a block that one session may do before others have their turn.
pub(crate) const READS_PER_TURN: usize = 4;

impl Upstream {
    /// Of a session whose connect has begun.
    pub(crate) fn new(session: Session, address: &Address, slot: Option<u32>) -> Self {
        Self {
            session,
            address: address.clone(),
            slot,
            exchange: None,
            is_connected: false,
            is_taken: false,
            ending: None,
            head: ResponseHead::new(),
            has_served: false,
            is_answering: false,
            is_unsent: true,
            is_closing: false,
            idle_since_ms: 0,
            idle_timeout_ms: IDLE_TIMEOUT_MS,
        }
    }

    fn is_reusable(&self) -> bool {
        let io = &self.session.io;
        self.head.keep_alive
            && self.head.framing != Framing::Close
            && self.session.input.is_empty()
            && self.session.output.is_empty()
            && !(io.read_closed || io.write_closed || io.broken || io.hangup)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_that_is_not_safe_takes_only_a_connection_used_200_ms_ago_at_most() {
        for idle_ms in [0, 199, 200] {
            assert!(may_carry(false, idle_ms) && may_carry(true, idle_ms));
        }
        for idle_ms in [201, 1_000, 60_000] {
            assert!(!may_carry(false, idle_ms) && may_carry(true, idle_ms));
        }
    }
}
