//! What is written when an exchange ends: one access-log line and one sample per metric.
//!
//! Lines are formatted here, in the worker; the agent only moves bytes. Keys are those of Istio's
//! JSON access log, all of them in every line, plus `trace_id`. Series are looked up once per kind of outcome and remembered
//! until the snapshot changes.

use std::io::Write as _;
use std::rc::Rc;

use meshfast_mesh::{Address, Cluster, Direction, Endpoint, Workload};
use meshfast_wire::h1::{Name, Version};
use rustc_hash::FxHashMap;

use crate::date;
use crate::exchange::{Carries, Destination, Exchange};
use crate::head;
use crate::shared::{HttpSample, Kind, Series, TcpTotals};
use crate::stream::Peer;
use crate::text;
use crate::worker::Worker;

/// Memory of the recorder: the line buffer and the series seen so far. No caller chooses a key, so
/// they need no keyed hash (SipHash was 900 instructions a request).
#[derive(Default)]
pub(crate) struct Recorder {
    line: Vec<u8>,
    series: FxHashMap<SeriesKey, Series>,
    rejections: FxHashMap<&'static str, Series>,
}

/// Everything the labels of a series depend on, within one generation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct SeriesKey {
    generation: u64,
    listener: usize,
    cluster: Option<usize>,
    endpoint: Option<u32>,
    status: u16,
    flag: &'static str,
    carries: u8,
    is_old: bool,
    caller: Option<Rc<str>>,
}

impl Recorder {
    /// The numbers of series stay valid, but what a key means may have changed.
    pub(crate) fn forget_generation(&mut self) {
        self.series.clear();
    }
}

impl Worker {
    /// Writes the access record of an exchange that ends now.
    pub(crate) fn record(&mut self, exchange_id: usize) {
        let exchange = &self.exchanges[exchange_id];
        let duration_us = self.clock.now_us() - exchange.started_us;
        if exchange.carries == Carries::Http {
            let sample = HttpSample {
                duration_us,
                request_bytes: exchange.requesting.head_bytes + exchange.requesting.payload_bytes,
                response_bytes: exchange.responding.head_bytes + exchange.responding.payload_bytes,
            };
            let series = self.series_of(exchange_id);
            self.share.series.add_http(series, sample);
        } else {
            self.report_tunnel(exchange_id, 1);
        }
        if self.exchanges[exchange_id]
            .generation
            .snapshot
            .access_log_disabled
        {
            return;
        }
        let mut line = std::mem::take(&mut self.recorder.line);
        line.clear();
        self.write_line(exchange_id, duration_us, &mut line);
        if !self.share.ring.push(&line) {
            self.share.line.access_log_dropped();
        }
        self.recorder.line = line;
    }

    /// Adds what a tunnel has carried since the last time to the metrics.
    pub(crate) fn record_tunnel(&mut self, exchange_id: usize) {
        if self.exchanges[exchange_id].carries != Carries::Http {
            self.report_tunnel(exchange_id, 0);
        }
    }

    fn report_tunnel(&mut self, exchange_id: usize, closed: u64) {
        let series = self.series_of(exchange_id);
        let exchange = &mut self.exchanges[exchange_id];
        let before = exchange.reported;
        exchange.reported = TcpTotals {
            opened: 1,
            closed,
            sent_bytes: exchange.responding.payload_bytes,
            received_bytes: exchange.requesting.payload_bytes,
        };
        let now = exchange.reported;
        let since = TcpTotals {
            opened: now.opened - before.opened,
            closed: now.closed - before.closed,
            sent_bytes: now.sent_bytes - before.sent_bytes,
            received_bytes: now.received_bytes - before.received_bytes,
        };
        self.share.series.add_tcp(series, since);
    }

    /// Counts an input that was refused, by its stable reason.
    pub(crate) fn rejected(&mut self, reason: &'static str) {
        let series = match self.recorder.rejections.get(reason) {
            Some(series) => *series,
            None => {
                let (series, fits) = self.share.series.intern(Kind::Rejected, &[reason]);
                if !fits {
                    self.share.line.series_overflowed();
                }
                self.recorder.rejections.insert(reason, series);
                series
            }
        };
        self.share.series.add_rejected(series);
    }

    fn series_of(&mut self, exchange_id: usize) -> Series {
        let exchange = &self.exchanges[exchange_id];
        let key = SeriesKey {
            generation: exchange.generation.number(),
            listener: exchange.listener,
            cluster: exchange.cluster_index(),
            endpoint: exchange.endpoint,
            status: exchange.outcome.status,
            flag: exchange.outcome.flag,
            carries: exchange.carries as u8,
            is_old: exchange.is_old(),
            caller: exchange.caller.clone(),
        };
        if let Some(series) = self.recorder.series.get(&key) {
            return *series;
        }
        let kind = if exchange.carries == Carries::Http {
            Kind::Http
        } else {
            Kind::Tcp
        };
        let values = labels(exchange, kind);
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        let (series, fits) = self.share.series.intern(kind, &values);
        if !fits {
            self.share.line.series_overflowed();
        }
        self.recorder.series.insert(key, series);
        series
    }

    fn write_line(&self, exchange_id: usize, duration_us: u64, line: &mut Vec<u8>) {
        let exchange = &self.exchanges[exchange_id];
        let downstream = &self.downstreams[exchange.downstream];
        let request = exchange.request.as_deref();
        let header = |name| request.and_then(|it| it.header(name));
        let mut out = Json { out: line };
        out.time(first_key!("start_time"), exchange.started_wall_us);
        out.optional(key!("method"), request.map(|it| it.method_bytes()));
        out.optional(key!("path"), request.map(|it| it.path_bytes()));
        out.text(key!("protocol"), exchange.protocol());
        out.number(key!("response_code"), u64::from(exchange.outcome.status));
        out.text(key!("response_flags"), shown_flag(exchange.outcome.flag));
        out.flag(key!("response_code_details"), exchange.outcome.detail);
        // Nothing ends a connection for a policy yet.
        out.flag(key!("connection_termination_details"), "");
        out.flag(
            key!("upstream_transport_failure_reason"),
            &exchange.transport_failure,
        );
        out.number(key!("bytes_received"), exchange.requesting.payload_bytes);
        out.number(key!("bytes_sent"), exchange.responding.payload_bytes);
        out.number(key!("duration"), duration_us / 1_000);
        let has_answer = exchange.answered_us != 0 && exchange.carries == Carries::Http;
        let service_us = exchange.answered_us.saturating_sub(exchange.sent_us);
        out.some_number(
            key!("upstream_service_time"),
            has_answer.then_some(service_us / 1_000),
        );
        out.forwarded_for(exchange, downstream.peer);
        out.optional(key!("user_agent"), header(Name::UserAgent));
        out.optional(key!("request_id"), exchange.request_id());
        let trace_id = exchange.trace.as_ref().map(|it| it.trace_id.as_slice());
        out.optional(key!("trace_id"), trace_id);
        out.optional(key!("authority"), request.map(|it| it.authority_bytes()));
        out.address(key!("upstream_host"), exchange.upstream_address.as_ref());
        let cluster = exchange
            .cluster()
            .map_or("", |cluster| cluster.name.as_str());
        let cluster = match exchange.destination {
            Some(Destination::Passthrough(_)) => PASSTHROUGH,
            _ => cluster,
        };
        out.flag(key!("upstream_cluster"), cluster);
        out.peer(key!("upstream_local_address"), exchange.upstream_local);
        let session = &downstream.session;
        out.peer(key!("downstream_local_address"), Some(session.local));
        out.peer(key!("downstream_remote_address"), Some(downstream.peer));
        // Without TLS nobody names a server.
        out.flag(key!("requested_server_name"), "");
        out.flag(key!("route_name"), exchange.route_name());
        out.end();
    }
}

/// Envoy writes a dash where there is none, in logs and labels.
fn shown_flag(flag: &str) -> &str {
    if flag.is_empty() { "-" } else { flag }
}

/// Istio's name for destinations outside every route.
const PASSTHROUGH: &str = "PassthroughCluster";

impl Exchange {
    fn cluster_index(&self) -> Option<usize> {
        match self.destination {
            Some(Destination::Cluster(index)) => Some(index),
            _ => None,
        }
    }

    fn cluster(&self) -> Option<&Cluster> {
        self.cluster_index()
            .map(|index| &self.generation.snapshot.clusters[index])
    }

    /// The route's name, empty where there is none.
    fn route_name(&self) -> &str {
        match (self.route, &self.destination) {
            (Some(place), _) => self.generation.snapshot.route_name(self.listener, place),
            (None, Some(Destination::Passthrough(_))) => "allow_any",
            (None, _) => "",
        }
    }

    fn is_old(&self) -> bool {
        self.head()
            .is_some_and(|head| head.version == Version::Http10)
    }

    fn protocol(&self) -> &'static str {
        match (self.carries, self.is_old()) {
            (Carries::Tcp, _) => "TCP",
            (_, true) => "HTTP/1.0",
            (_, false) => "HTTP/1.1",
        }
    }
}

/// What a SPIFFE ID tells of a workload: `spiffe://domain/ns/namespace/sa/account`.
fn workload_of(principal: &str) -> Workload {
    let mut parts = principal.splitn(7, '/').skip(3);
    let (namespace, account) = match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some("ns"), Some(namespace), Some("sa"), Some(account)) => (namespace, account),
        _ => ("", ""),
    };
    Workload {
        name: account.to_owned(),
        namespace: namespace.to_owned(),
        app: account.to_owned(),
        principal: principal.to_owned(),
        ..Workload::default()
    }
}

/// The label values of an exchange, in the order of [`Kind::labels`].
fn labels(exchange: &Exchange, kind: Kind) -> Vec<String> {
    let snapshot = &exchange.generation.snapshot;
    let direction = exchange.listener().map(|listener| listener.direction);
    let is_inbound = direction == Some(Direction::Inbound);
    let endpoint: Option<&Endpoint> = exchange
        .cluster()
        .zip(exchange.endpoint)
        .and_then(|(cluster, index)| cluster.endpoints.get(index as usize));
    let unknown = Workload::default();
    let caller = exchange
        .caller
        .as_deref()
        .map_or_else(Workload::default, workload_of);
    let own = snapshot.workload_of(exchange.listener);
    let (source, destination) = if is_inbound {
        (&caller, own)
    } else {
        (
            own,
            endpoint.map_or(&unknown, |endpoint| &endpoint.workload),
        )
    };
    let service = exchange.cluster().map(|cluster| &cluster.service);
    let passthrough = matches!(exchange.destination, Some(Destination::Passthrough(_)));
    let service_name = if passthrough {
        PASSTHROUGH
    } else {
        service.map_or("", |it| &it.name)
    };
    let value = |name: &str| -> String {
        let text = match name {
            "reporter" => {
                if is_inbound {
                    "destination"
                } else {
                    "source"
                }
            }
            "source_workload" => &source.name,
            "source_workload_namespace" => &source.namespace,
            "source_principal" => &source.principal,
            "source_app" | "source_canonical_service" => &source.app,
            "source_version" | "source_canonical_revision" => &source.revision,
            "destination_workload" => &destination.name,
            "destination_workload_namespace" => &destination.namespace,
            "destination_principal" => &destination.principal,
            "destination_app" | "destination_canonical_service" => &destination.app,
            "destination_version" | "destination_canonical_revision" => &destination.revision,
            "destination_service" => service.map_or("", |it| &it.host),
            "destination_service_name" => service_name,
            "destination_service_namespace" => service.map_or("", |it| &it.namespace),
            "request_protocol" => {
                if kind == Kind::Tcp {
                    "tcp"
                } else {
                    "http"
                }
            }
            // Statuses above 599 are invalid (RFC 9110 15): one label for all of them.
            "response_code" if exchange.outcome.status > 599 => "invalid",
            "response_code" => return exchange.outcome.status.to_string(),
            "response_flags" => shown_flag(exchange.outcome.flag),
            "grpc_response_status" => return String::new(),
            "connection_security_policy" => match (is_inbound, &exchange.caller) {
                (true, Some(_)) => "mutual_tls",
                (true, None) => "none",
                (false, _) => "unknown",
            },
            _ => "",
        };
        if text.is_empty() {
            "unknown".to_owned()
        } else {
            text.to_owned()
        }
    };
    kind.labels().into_iter().map(value).collect()
}

/// A key with all that stands around it, put together by the compiler: four appends less a field.
macro_rules! key {
    ($name:literal) => {
        concat!(",\"", $name, "\":").as_bytes()
    };
}

/// The key that opens the object.
macro_rules! first_key {
    ($name:literal) => {
        concat!("{\"", $name, "\":").as_bytes()
    };
}

use {first_key, key};

/// One JSON object on one line, escaped so that no input can break out of its value (row R7).
struct Json<'a> {
    out: &'a mut Vec<u8>,
}

impl Json<'_> {
    fn end(self) {
        self.out.extend_from_slice(b"}\n");
    }

    fn number(&mut self, key: &[u8], value: u64) {
        self.out.extend_from_slice(key);
        text::decimal(self.out, value);
    }

    fn some_number(&mut self, key: &[u8], value: Option<u64>) {
        match value {
            Some(value) => self.number(key, value),
            None => self.flag(key, ""),
        }
    }

    /// `x-forwarded-for` as it leaves upstream, or would have left.
    fn forwarded_for(&mut self, exchange: &Exchange, peer: Peer) {
        let key = key!("x_forwarded_for");
        let Some(request) = exchange.request.as_deref().filter(|it| it.head.len > 0) else {
            return self.flag(key, "");
        };
        let is_edge = exchange.is_at_edge();
        let is_there = is_edge || request.header(Name::XForwardedFor).is_some();
        self.own(key, is_there.then_some(request), |out, request| {
            let peer = is_edge.then_some(peer);
            head::forwarded_for(&request.head, &request.bytes, peer, write_text, out);
        });
    }

    fn text(&mut self, key: &[u8], value: &str) {
        self.optional(key, Some(value.as_bytes()));
    }

    fn peer(&mut self, key: &[u8], value: Option<Peer>) {
        self.own(key, value, text::peer);
    }

    fn address(&mut self, key: &[u8], value: Option<&Address>) {
        match value {
            // A path may hold anything.
            Some(Address::Unix(_)) => {
                let text = value.map(ToString::to_string);
                self.optional(key, text.as_deref().map(str::as_bytes));
            }
            _ => self.own(key, value, text::address),
        }
    }

    /// A value that nothing can break out of.
    fn own<T>(&mut self, key: &[u8], value: Option<T>, write: impl FnOnce(&mut Vec<u8>, T)) {
        self.out.extend_from_slice(key);
        let Some(value) = value else {
            return self.out.extend_from_slice(b"null");
        };
        self.out.push(b'"');
        write(self.out, value);
        self.out.push(b'"');
    }

    /// An empty value is null.
    fn flag(&mut self, key: &[u8], value: &str) {
        self.optional(key, (!value.is_empty()).then_some(value.as_bytes()));
    }

    fn optional(&mut self, key: &[u8], value: Option<&[u8]>) {
        self.own(key, value, write_text);
    }

    /// RFC 3339 in UTC with milliseconds.
    fn time(&mut self, key: &[u8], wall_us: u64) {
        self.own(key, Some(wall_us), date::rfc_3339);
    }
}

/// Appends the inside of a string. Nearly every value is plain; that costs one look at it instead of 30
/// instructions a byte.
#[inline]
fn write_text(out: &mut Vec<u8>, bytes: &[u8]) {
    if is_plain(bytes) {
        out.extend_from_slice(bytes);
    } else {
        escape(bytes, out);
    }
}

/// Whether JSON and a terminal take every byte as it is. Without a branch, so that the compiler
/// looks at 16 bytes at once.
fn is_plain(bytes: &[u8]) -> bool {
    let is_special = |byte: u8| !(b' '..0x7f).contains(&byte) | (byte == b'"') | (byte == b'\\');
    !bytes
        .iter()
        .fold(false, |special, byte| special | is_special(*byte))
}

/// Whether a character steers a terminal or reorders what a person sees of a line: controls (C1 too,
/// which begin escape sequences), line separators, marks of direction.
fn steers(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{2069}'
                | '\u{feff}'
        )
}

/// The plain way, right for every value: bytes that are no UTF-8 are replaced, quotes, backslashes
/// and what steers escaped.
fn escape(bytes: &[u8], out: &mut Vec<u8>) {
    for character in String::from_utf8_lossy(bytes).chars() {
        match character {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            character if steers(character) => {
                // Writing to a vector does not fail.
                let _ = write!(out, "\\u{:04x}", character as u32);
            }
            character => {
                out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn escapes_what_would_break_out_of_a_line() {
        let mut line = Vec::new();
        let mut json = Json { out: &mut line };
        json.optional(first_key!("path"), Some(b"/\"\\\n\x1b[31m\xff"));
        let steering = "\u{9b}31m\u{2028}\u{202e}";
        json.optional(key!("agent"), Some(steering.as_bytes()));
        json.optional(key!("none"), None);
        let path: Address = "unix:/a\"b".parse().unwrap();
        json.address(key!("address"), Some(&path));
        json.end();
        assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1);
        let value: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(value["path"], "/\"\\\n\u{1b}[31m\u{fffd}");
        assert_eq!(value["agent"], steering);
        let text = String::from_utf8(line.clone()).unwrap();
        assert!(
            !text
                .chars()
                .any(|character| character != '\n' && steers(character)),
            "{text}"
        );
        assert!(value["none"].is_null());
        assert_eq!(value["address"], "unix:/a\"b");
    }

    #[test]
    fn what_is_plain_is_what_escaping_leaves_as_it_is() {
        for byte in 0..=255u8 {
            for around in [0, 1, 15, 16, 17, 40] {
                let mut value = vec![b'a'; around];
                value.push(byte);
                value.resize(2 * around + 1, b'z');
                let mut escaped = Vec::new();
                escape(&value, &mut escaped);
                assert_eq!(
                    is_plain(&value),
                    escaped == value,
                    "{byte:#x} among {around}"
                );
            }
        }
    }
}
