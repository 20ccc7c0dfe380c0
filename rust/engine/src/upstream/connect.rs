//! From a chosen endpoint to a request on its way: over an idle connection, a stream of a leg or a
//! new connection.
//!
//! What it refuses: to dial one of our own listeners, known by its address or by the near end that
//! the kernel took.
//!
//! Invariants:
//! 1. An endpoint's active requests count the exchange from `dial` to `detach`, however the connect
//!    ends.
//! 2. A failed connect is remembered against its endpoint before anything is tried again.
//!
//! Tests: `worker/tests/tries.rs`, `tests/dataplane/test_edges.py`; loops in `worker/tests/legs.rs`
//! and `tests/dataplane/test_hostile.py`.

use std::io;

use meshfast_mesh::{Dial, Direction, Outcome};

use super::Upstream;
use super::endpoint::REFUSAL_MS;
use crate::error::Failure;
use crate::exchange::{Carries, Half, Stage};
use crate::head;
use crate::listener::{Listener, is_out_of_descriptors};
use crate::session::Session;
use crate::stream::Stream;
use crate::timers::Key;
use crate::tunnel::ESTABLISHED;
use crate::worker::Worker;

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

    /// Whether the connect has ended well; a failure is dealt with here.
    pub(super) fn finish_connect(&mut self, upstream_id: usize) -> bool {
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
    pub(super) fn open_tunnel(&mut self, exchange_id: usize) {
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
}
