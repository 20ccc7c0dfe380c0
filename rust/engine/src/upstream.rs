//! Upstream sessions: what one is, when it is driven and flushed, how an exchange comes to it and
//! parts from it.
//!
//! What lies between is below: `endpoint` chooses where an exchange goes, `connect` gets it there,
//! `response` reads the answer, `pool` keeps the connection for the next exchange.
//!
//! What it does not do: decide whether something is tried again (`tries`), read requests
//! (`downstream`), carry more than one exchange at a time: each stream of a leg is a session of its
//! own (`leg`).
//!
//! Invariants:
//! 1. A session and its exchange name each other from `attach` to `detach`.
//! 2. Only a session without an exchange is dropped.
//! 3. A session's own deadline is that of its connect, of being idle, or of closing; while it
//!    serves, the exchange has the deadlines.
//!
//! Tests: `worker/tests.rs`, `worker/tests/edges.rs`, `tests/dataplane/test_http1.py`,
//! `tests/dataplane/test_edges.py`.

mod connect;
mod endpoint;
mod pool;
mod response;

use meshfast_mesh::Address;
use meshfast_wire::h1::{Framing, ResponseHead};

use crate::buffer::HIGH_WATERMARK;
use crate::error::Failure;
use crate::exchange::{Destination, STREAM_IDLE_MS, Stage};
use crate::session::{Flushed, Session};
use crate::timers::Key;
use crate::tries::Ending;
use crate::worker::Worker;

pub(crate) use endpoint::Refusals;
pub(crate) use pool::Pool;

/// Reads of a block that one session may do before others have their turn.
pub(crate) const READS_PER_TURN: usize = 4;

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

impl Worker {
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

    pub(crate) fn attach(&mut self, exchange_id: usize, upstream_id: usize) {
        let upstream = &mut self.upstreams[upstream_id];
        upstream.exchange = Some(exchange_id);
        upstream.is_answering = false;
        let exchange = &mut self.exchanges[exchange_id];
        exchange.upstream = Some(upstream_id);
        exchange.upstream_address = Some(upstream.address.clone());
        self.timers.disarm(Key::Upstream(upstream_id));
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
