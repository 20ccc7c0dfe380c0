//! What comes inside a CONNECT to a service of the mesh, or to a port that a ServiceEntry declares.
//!
//! A CONNECT that names a service is granted at once, since where it leads is known. The first bytes
//! inside say how they travel: HTTP/1 is read request by request, each routed and balanced like any
//! other; everything else, TLS and HTTP/2 among it, is one TCP connection to the port's cluster. Both
//! go the way of the service's clusters, mutual TLS for those of the mesh; nothing here dials by itself.
//!
//! What it refuses: a further CONNECT inside; a destination other than the one that CONNECT named,
//! whatever `Host` or target a request inside writes. A CONNECT to any other host never comes here: it
//! is passed through (`begin.rs`).
//!
//! Tests: `worker/tests/tunnels.rs`, `tests/mesh/test_tunnels.py`, `tests/mesh/test_entries.py`.

use meshfast_mesh::NoRoute;
use meshfast_wire::sniff::{Protocol, sniff};

use crate::downstream::Within;
use crate::error::Failure;
use crate::exchange::{Carries, Destination};
use crate::request::Request;
use crate::timers::Key;
use crate::worker::Worker;

/// For the first bytes inside to come. A caller that says nothing for so long waits for the other side
/// to speak first, as with SMTP or MySQL (Istio's former `protocolDetectionTimeout` was 5 s, which every
/// such connection waits).
const SNIFF_TIMEOUT_MS: u64 = 1_000;

/// The answer to a CONNECT that is granted (RFC 9110 9.3.6: no length, no body).
pub(crate) const ESTABLISHED: &[u8] = b"HTTP/1.1 200 Connection established\r\n\r\n";

/// A downstream session whose CONNECT was granted.
pub(crate) struct Tunnel {
    /// As CONNECT wrote it.
    authority: Box<[u8]>,
    /// What it carries has been said, or it has ended.
    is_known: bool,
}

impl Tunnel {
    /// Nothing is known yet of what it carries.
    pub(crate) fn is_unknown(&self) -> bool {
        !self.is_known
    }
}

/// A request inside a tunnel, as routes see it: where it goes was said by CONNECT.
pub(crate) struct Inside<'a> {
    pub(crate) request: &'a Request,
    pub(crate) tunnel: &'a Tunnel,
}

impl meshfast_mesh::Request for Inside<'_> {
    fn method(&self) -> &[u8] {
        self.request.method()
    }

    fn path(&self) -> &[u8] {
        self.request.path()
    }

    fn authority(&self) -> &[u8] {
        &self.tunnel.authority
    }

    fn scheme(&self) -> &[u8] {
        self.request.scheme()
    }

    fn header_values(&self, name: &str, each: &mut dyn FnMut(&[u8]) -> bool) {
        self.request.header_values(name, each);
    }
}

impl Worker {
    /// Grants the CONNECT of an exchange, which is over with that: what comes inside has exchanges of
    /// its own, and each its record. If nothing comes, `end_unused_tunnel` writes one.
    pub(crate) fn grant_tunnel(&mut self, exchange_id: usize) {
        let exchange = &self.exchanges[exchange_id];
        let downstream_id = exchange.downstream;
        let request = exchange.request.as_ref();
        let authority = request.map_or_else(Vec::new, |it| it.authority_bytes().to_vec());
        self.remove_exchange(exchange_id);
        let now_ms = self.clock.now_ms();
        let downstream = &mut self.downstreams[downstream_id];
        downstream
            .session
            .output
            .tail()
            .extend_from_slice(ESTABLISHED);
        downstream.idle_since_ms = now_ms;
        downstream.within = Some(Box::new(Within::Tunnel(Tunnel {
            authority: authority.into(),
            is_known: false,
        })));
        self.timers
            .arm(Key::Downstream(downstream_id), now_ms + SNIFF_TIMEOUT_MS);
        self.dirty(Key::Downstream(downstream_id));
        self.queue(Key::Downstream(downstream_id));
    }

    /// Looks at the first bytes inside a tunnel; `true` when they have said what it carries.
    pub(crate) fn look_inside(&mut self, downstream_id: usize) -> bool {
        let downstream = &mut self.downstreams[downstream_id];
        let session = &downstream.session;
        match (
            sniff(session.input.as_slice()),
            downstream.within.as_deref_mut(),
        ) {
            (Some(Protocol::Http1), Some(Within::Tunnel(tunnel))) => {
                tunnel.is_known = true;
                self.timers.disarm(Key::Downstream(downstream_id));
            }
            (Some(_), _) => self.begin_tcp(downstream_id),
            (None, _) if !session.io.read_closed => return false,
            // It ended before it said anything, or in the middle of a word.
            (None, _) if session.input.is_empty() => self.close_downstream(downstream_id),
            (None, _) => self.begin_tcp(downstream_id),
        }
        true
    }

    /// A tunnel carries one TCP connection.
    pub(crate) fn begin_opaque(&mut self, exchange_id: usize) -> Result<Destination, NoRoute> {
        let downstream_id = self.exchanges[exchange_id].downstream;
        let within = self.downstreams[downstream_id].within.as_deref_mut();
        if let Some(Within::Tunnel(tunnel)) = within {
            tunnel.is_known = true;
        }
        self.opaque_destination(exchange_id)
    }

    /// A session ends. If a CONNECT was granted and nothing came inside, this is the record of it: a TCP
    /// connection to the service without a byte.
    pub(crate) fn end_unused_tunnel(&mut self, downstream_id: usize) {
        let downstream = &self.downstreams[downstream_id];
        let is_unused = downstream.tunnel().is_some_and(Tunnel::is_unknown);
        if !is_unused || downstream.exchange.is_some() {
            return;
        }
        let io = downstream.session.io;
        let granted_us = downstream.idle_since_ms * 1_000;
        let exchange_id = self.open_exchange(downstream_id, Carries::Tcp, None, granted_us);
        let destination = self.begin_opaque(exchange_id).ok();
        let exchange = &mut self.exchanges[exchange_id];
        exchange.destination = destination;
        if io.read_closed || io.broken {
            let verdict = Failure::DownstreamGone.verdict();
            exchange.flag(verdict.flag);
            exchange.outcome.detail = verdict.detail;
        }
        self.record(exchange_id);
        self.remove_exchange(exchange_id);
    }

    /// Where the bytes of a tunnel go that are not HTTP.
    fn opaque_destination(&self, exchange_id: usize) -> Result<Destination, NoRoute> {
        let exchange = &self.exchanges[exchange_id];
        let tunnel = self.downstreams[exchange.downstream].tunnel();
        let authority = tunnel.map_or(&[][..], |it| &it.authority);
        let snapshot = &exchange.generation.snapshot;
        let cluster = snapshot.route_opaque(exchange.listener, authority)?;
        Ok(Destination::Cluster(cluster))
    }
}
