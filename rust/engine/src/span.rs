//! Spans: what a trace shows of one hop, as Zipkin v2 JSON, one object a line.
//!
//! A span is written when its exchange ends, into a ring of its own; the agent posts what is in it.
//! Names and tags are those of Envoy's tracer (`tracing/http_tracer_impl`, `tracing/common_values.h`)
//! and of Istio: the name is `service:port/*`, the service of an endpoint is `app.namespace`. Both
//! ends of a call have a span of their own (Zipkin's `shared` is not used): away from the local
//! workload and at the edge it is a CLIENT, towards it a SERVER.
//!
//! What it does not do: tunnels and CONNECT, which are no requests; deciding what is sampled
//! (`trace`); anything at all for an exchange that is not.
//!
//! Invariants:
//! 1. No input breaks out of its value, and none is longer there than [`VALUE_BYTES_MAX`].
//! 2. A ring that is full drops the span and counts it; the worker never waits.
//!
//! Tests: below; two ends of a call in `worker/tests/legs.rs`; a real Zipkin in `tests/mesh`.

use std::borrow::Cow;
use std::net::SocketAddr;

use meshfast_mesh::{Direction, Endpoint, Workload};
use meshfast_wire::h1::Name;

use crate::exchange::{Destination, Exchange};
use crate::record::{PASSTHROUGH, shown_flag, workload_of, write_text};
use crate::stream::Peer;
use crate::text;
use crate::trace::TraceContext;
use crate::worker::Worker;

/// The longest value that comes from outside, in bytes (Envoy's `max_path_tag_length`).
const VALUE_BYTES_MAX: usize = 256;

impl Worker {
    /// Writes the span of an exchange that ends now and whose trace is sampled.
    pub(crate) fn record_span(&mut self, exchange_id: usize, duration_us: u64) {
        let exchange = &self.exchanges[exchange_id];
        let Some(trace) = exchange.trace.as_ref() else {
            return;
        };
        let downstream = &self.downstreams[exchange.downstream];
        let mut line = std::mem::take(&mut self.recorder.span);
        line.clear();
        Hop::of(exchange, downstream.session.local, downstream.peer).write(
            exchange,
            trace,
            duration_us,
            &mut line,
        );
        if !self.share.spans.push(&line) {
            self.share.line.span_dropped();
        }
        self.recorder.span = line;
    }
}

/// Who is at the two ends of an exchange, and on which side we are.
struct Hop<'e> {
    is_server: bool,
    /// The local workload.
    own: &'e Workload,
    /// The workload at the other end; all empty when it is not known.
    other: Cow<'e, Workload>,
    local: Peer,
    /// Where the other end is.
    remote: Option<SocketAddr>,
    /// Who connected to us.
    caller: Peer,
}

impl<'e> Hop<'e> {
    fn of(exchange: &'e Exchange, local: Peer, caller: Peer) -> Self {
        let direction = exchange.listener().map(|listener| listener.direction);
        let is_server = direction == Some(Direction::Inbound);
        let endpoint: Option<&Endpoint> = exchange
            .cluster()
            .zip(exchange.endpoint)
            .and_then(|(cluster, index)| cluster.endpoints.get(index as usize));
        let (other, remote) = if is_server {
            let other = exchange.caller.as_deref().map(workload_of);
            (other.map(Cow::Owned), caller.socket())
        } else {
            let address = exchange.upstream_address.as_ref();
            let other = endpoint.map(|endpoint| Cow::Borrowed(&endpoint.workload));
            (other, address.and_then(|it| it.socket()))
        };
        Self {
            is_server,
            own: exchange.generation.snapshot.workload_of(exchange.listener),
            other: other.unwrap_or_default(),
            local,
            remote,
            caller,
        }
    }

    fn write(
        &self,
        exchange: &Exchange,
        trace: &TraceContext,
        duration_us: u64,
        out: &mut Vec<u8>,
    ) {
        let mut span = Span { out };
        span.raw(b"{\"traceId\":\"");
        span.raw(trace.b3_trace_id());
        span.raw(b"\",\"id\":\"");
        span.raw(&trace.span_id);
        if let Some(parent_id) = trace.parent_id() {
            span.raw(b"\",\"parentId\":\"");
            span.raw(&parent_id);
        }
        span.raw(if self.is_server {
            b"\",\"kind\":\"SERVER\",\"name\":\""
        } else {
            b"\",\"kind\":\"CLIENT\",\"name\":\""
        });
        span.text(operation(exchange).as_bytes());
        span.raw(b"\",\"timestamp\":");
        text::decimal(span.out, exchange.started_wall_us);
        span.raw(b",\"duration\":");
        // Zipkin's model knows no duration of 0.
        text::decimal(span.out, duration_us.max(1));
        span.endpoint("localEndpoint", self.own, self.local.socket());
        span.endpoint("remoteEndpoint", &self.other, self.remote);
        span.raw(b",\"tags\":{\"component\":\"proxy\"");
        self.write_request(exchange, &mut span);
        self.write_outcome(exchange, &mut span);
        self.write_identities(exchange, &mut span);
        span.raw(b"}}\n");
    }

    fn write_request(&self, exchange: &Exchange, span: &mut Span<'_>) {
        let Some(request) = exchange.request.as_deref() else {
            return;
        };
        span.key("http.url");
        span.raw(b"http://");
        span.text(within_limit(request.authority_bytes()));
        span.text(within_limit(request.path_bytes()));
        span.raw(b"\"");
        span.tag("http.method", request.method_bytes());
        span.tag("http.protocol", exchange.protocol().as_bytes());
        span.tag(
            "user_agent",
            request.header(Name::UserAgent).unwrap_or(b"-"),
        );
        span.tag("downstream_cluster", b"-");
        span.tag(
            "guid:x-request-id",
            exchange.request_id().unwrap_or_default(),
        );
    }

    fn write_outcome(&self, exchange: &Exchange, span: &mut Span<'_>) {
        let status = exchange.outcome.status;
        span.number("http.status_code", u64::from(status));
        span.tag(
            "response_flags",
            shown_flag(exchange.outcome.flag).as_bytes(),
        );
        span.number("request_size", exchange.requesting.payload_bytes);
        span.number("response_size", exchange.responding.payload_bytes);
        // As Envoy: no answer at all is an error too.
        if status == 0 || status >= 500 {
            span.tag("error", b"true");
        }
        let cluster = match exchange.destination {
            Some(Destination::Passthrough(_)) => PASSTHROUGH,
            _ => exchange.cluster().map_or("", |it| it.name.as_str()),
        };
        span.tag("upstream_cluster", cluster.as_bytes());
        span.tag("upstream_cluster.name", cluster.as_bytes());
        if let Some(address) = &exchange.upstream_address {
            let mut written = Vec::new();
            text::address(&mut written, address);
            span.tag("upstream_address", &written);
        }
    }

    fn write_identities(&self, exchange: &Exchange, span: &mut Span<'_>) {
        let mut address = Vec::new();
        match self.caller {
            Peer::Ip(caller) => text::ip(&mut address, caller.ip()),
            Peer::Local => address.extend_from_slice(b"unix"),
        }
        span.tag("peer.address", &address);
        let (source, destination) = if self.is_server {
            (&*self.other, self.own)
        } else {
            (self.own, &*self.other)
        };
        span.tag("source_principal", source.principal.as_bytes());
        span.tag("destination_principal", destination.principal.as_bytes());
        span.tag("istio.canonical_service", self.own.app.as_bytes());
        span.tag("istio.canonical_revision", self.own.revision.as_bytes());
        span.tag("istio.namespace", self.own.namespace.as_bytes());
        span.tag("node_id", self.node_id(exchange).as_bytes());
    }

    /// As Istio's node identifiers begin: kind, address, workload, namespace.
    fn node_id(&self, exchange: &Exchange) -> String {
        let kind = if exchange.is_at_edge() {
            "router"
        } else {
            "sidecar"
        };
        let address = self.local.socket().map(|it| it.ip().to_string());
        let Workload {
            name, namespace, ..
        } = self.own;
        let address = address.unwrap_or_default();
        format!("{kind}~{address}~{name}.{namespace}~{namespace}")
    }
}

/// `service:port/*` as Istio decorates its routes; outside every cluster the called host, as Envoy.
fn operation(exchange: &Exchange) -> String {
    if let Some(cluster) = exchange.cluster()
        && !cluster.service.host.is_empty()
    {
        // `direction|port|subset|host`
        let port = cluster.name.split('|').nth(1).unwrap_or_default();
        let host = &cluster.service.host;
        return format!("{host}:{port}/*");
    }
    let request = exchange.request.as_deref();
    let named = request.map(|it| (it.authority_bytes(), it.method_bytes()));
    let (authority, method) = named.unwrap_or_default();
    let name = if authority.is_empty() {
        method
    } else {
        authority
    };
    String::from_utf8_lossy(within_limit(name)).into_owned()
}

fn within_limit(value: &[u8]) -> &[u8] {
    &value[..value.len().min(VALUE_BYTES_MAX)]
}

/// A span as it is written.
struct Span<'a> {
    out: &'a mut Vec<u8>,
}

impl Span<'_> {
    fn raw(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// The inside of a string that comes from outside.
    fn text(&mut self, value: &[u8]) {
        write_text(self.out, value);
    }

    /// One end of the call: what is known of it, nothing at all when that is nothing.
    fn endpoint(&mut self, key: &str, workload: &Workload, address: Option<SocketAddr>) {
        let mut fields = Vec::new();
        if !workload.app.is_empty() {
            fields.extend_from_slice(b"\"serviceName\":\"");
            write_text(&mut fields, workload.app.as_bytes());
            if !workload.namespace.is_empty() {
                fields.push(b'.');
                write_text(&mut fields, workload.namespace.as_bytes());
            }
            fields.extend_from_slice(b"\",");
        }
        if let Some(address) = address {
            let family: &[u8] = if address.is_ipv4() {
                b"\"ipv4\":\""
            } else {
                b"\"ipv6\":\""
            };
            fields.extend_from_slice(family);
            text::ip(&mut fields, address.ip());
            fields.extend_from_slice(b"\",\"port\":");
            text::decimal(&mut fields, u64::from(address.port()));
            fields.push(b',');
        }
        if fields.pop().is_some() {
            self.raw(b",\"");
            self.raw(key.as_bytes());
            self.raw(b"\":{");
            self.raw(&fields);
            self.raw(b"}");
        }
    }

    fn key(&mut self, name: &str) {
        self.raw(b",\"");
        self.raw(name.as_bytes());
        self.raw(b"\":\"");
    }

    /// A tag, cut at its limit; left out when it is empty.
    fn tag(&mut self, name: &str, value: &[u8]) {
        if !value.is_empty() {
            self.key(name);
            self.text(within_limit(value));
            self.raw(b"\"");
        }
    }

    /// Zipkin's tags are strings, numbers too.
    fn number(&mut self, name: &str, value: u64) {
        self.key(name);
        text::decimal(self.out, value);
        self.raw(b"\"");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn workload(app: &str, namespace: &str) -> Workload {
        Workload {
            app: app.to_owned(),
            namespace: namespace.to_owned(),
            ..Workload::default()
        }
    }

    /// What is written inside of an object.
    fn written(write: impl FnOnce(&mut Span<'_>)) -> serde_json::Value {
        let mut out = b"{\"\":0".to_vec();
        write(&mut Span { out: &mut out });
        out.push(b'}');
        assert!(!out.contains(&b'\n'));
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn an_endpoint_says_what_is_known_of_it() {
        let four = "10.0.0.1:80".parse().ok();
        let six = "[::1]:81".parse().ok();
        let written = written(|span| {
            span.endpoint("all", &workload("pay\"ment", "shop"), four);
            span.endpoint("address", &workload("", "shop"), six);
            span.endpoint("name", &workload("a", ""), None);
            span.endpoint("none", &workload("", ""), None);
        });
        assert_eq!(
            written,
            serde_json::json!({
                "": 0,
                "all": {"serviceName": "pay\"ment.shop", "ipv4": "10.0.0.1", "port": 80},
                "address": {"ipv6": "::1", "port": 81},
                "name": {"serviceName": "a"},
            })
        );
    }

    #[test]
    fn a_tag_is_a_string_cut_at_its_limit_and_left_out_when_empty() {
        let written = written(|span| {
            span.tag("long", &[b'"'; VALUE_BYTES_MAX + 1]);
            span.tag("hostile", b"\",\"x\":\"\n\\\xff");
            span.tag("none", b"");
            span.number("status", 503);
        });
        assert_eq!(
            written,
            serde_json::json!({
                "": 0,
                "long": "\"".repeat(VALUE_BYTES_MAX),
                "hostile": "\",\"x\":\"\n\\\u{fffd}",
                "status": "503",
            })
        );
    }
}
