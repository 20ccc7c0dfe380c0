//! The snapshot document, version 1: the contract with `meshfast.policy`, as types.
//!
//! These types hold the document as written. [`Document::from_json`] reports every problem of shape
//! (a missing or unknown member, a wrong type, a member given twice) with its path; what the values
//! mean together is checked by `compile`. Members with a default in the contract may be left out.
//!
//! The same types are the payload of the blob (`blob.rs`), so changing any of them, or the order of
//! members or variants, is a new `LAYOUT_VERSION` there.
//!
//! Tests: `tests.rs`.

mod node;
mod read;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Problems};
use node::Node;
use read::Read;

/// The version of the document this build reads.
pub(crate) const VERSION: u32 = 1;

/// Everything that workers need to know of one generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Document {
    pub(crate) version: u32,
    pub(crate) generation: u64,
    pub(crate) workload: Workload,
    pub(crate) listeners: Vec<Listener>,
    pub(crate) clusters: Vec<Cluster>,
    pub(crate) access_log_disabled: bool,
    pub(crate) tracing: Option<Tracing>,
}

/// Spans are recorded; without it trace contexts are only passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tracing {
    /// Of the traces that begin here, how many are sampled; at most 1,000,000.
    pub(crate) sampling_parts_per_million: u32,
}

/// One running instance as the telemetry labels name it; an empty string is "unknown".
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    /// Name of the instance or of what it is an instance of.
    pub name: String,
    /// Namespace it lives in.
    pub namespace: String,
    /// Value of its `app` label.
    pub app: String,
    /// Value of its `version` label.
    pub revision: String,
    /// Its identity, a SPIFFE ID.
    pub principal: String,
}

/// What an operator calls the service of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Host by which it is called.
    pub host: String,
    /// Short name.
    pub name: String,
    /// Namespace it lives in.
    pub namespace: String,
}

/// How a cluster chooses among its endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Balancer {
    /// The one of two sampled endpoints with fewer active requests.
    #[serde(rename = "LEAST_REQUEST")]
    LeastRequest,
    /// Any, by weight.
    #[serde(rename = "RANDOM")]
    Random,
    /// Each in its turn, by weight.
    #[serde(rename = "ROUND_ROBIN")]
    RoundRobin,
}

/// On which side of the local workload a listener stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Direction {
    /// At the edge of the mesh, for callers outside it.
    #[serde(rename = "gateway")]
    Gateway,
    /// Towards the local workload.
    #[serde(rename = "inbound")]
    Inbound,
    /// Away from the local workload.
    #[serde(rename = "outbound")]
    Outbound,
}

/// What is spoken on a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// HTTP of any version; routed request by request.
    #[serde(rename = "HTTP")]
    Http,
    /// Bytes; routed connection by connection.
    #[serde(rename = "TCP")]
    Tcp,
}

/// What a listener demands of callers (Istio's `PeerAuthentication.mtls.mode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerMode {
    /// Mutual TLS and nothing else.
    #[serde(rename = "STRICT")]
    Strict,
}

/// How a cluster's endpoints are called (Istio's `ClientTLSSettings.mode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClientMode {
    /// Mutual TLS with the mesh's certificates; the peer must be the endpoint's principal.
    #[serde(rename = "ISTIO_MUTUAL")]
    IstioMutual,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Listener {
    pub(crate) name: String,
    pub(crate) direction: Direction,
    pub(crate) protocol: Protocol,
    pub(crate) forward_proxy: bool,
    pub(crate) virtual_hosts: Vec<VirtualHost>,
    pub(crate) tcp_routes: Vec<TcpRoute>,
    pub(crate) tls: Option<ListenerTls>,
    pub(crate) credential_sha256: Option<String>,
    /// Whom it stands for; None is the snapshot's workload.
    pub(crate) workload: Option<Workload>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ListenerTls {
    pub(crate) mode: ServerMode,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClusterTls {
    pub(crate) mode: ClientMode,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VirtualHost {
    pub(crate) name: String,
    pub(crate) domains: Vec<String>,
    pub(crate) routes: Vec<Route>,
    /// The ports of the service; none = it is called by any port.
    pub(crate) ports: Vec<HostPort>,
    /// By another port it is a host that nobody knows.
    pub(crate) external: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HostPort {
    pub(crate) number: u32,
    /// Where bytes that are not HTTP go.
    pub(crate) cluster: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Route {
    pub(crate) name: String,
    /// Any of them; none = always.
    pub(crate) matches: Vec<Match>,
    pub(crate) timeout_ms: Option<u64>,
    pub(crate) destinations: Vec<Destination>,
    /// None is the mesh's default, which is not "never".
    pub(crate) retry: Option<Retry>,
    pub(crate) fault: Option<Fault>,
    pub(crate) request_headers: Option<HeaderEdits>,
    pub(crate) response_headers: Option<HeaderEdits>,
}

/// Tries after the first; see `retry.rs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Retry {
    pub(crate) attempts: u32,
    pub(crate) per_try_timeout_ms: u64,
    pub(crate) on: Vec<Condition>,
    pub(crate) statuses: Vec<u32>,
    pub(crate) backoff_ms: u64,
    pub(crate) avoid_tried: bool,
}

/// What a further try follows (Envoy's `x-envoy-retry-on` and `x-envoy-retry-grpc-on`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum Condition {
    /// gRPC status 1 in the response head.
    #[serde(rename = "cancelled")]
    Cancelled,
    /// No connection was made.
    #[serde(rename = "connect-failure")]
    ConnectFailure,
    /// gRPC status 4 in the response head.
    #[serde(rename = "deadline-exceeded")]
    DeadlineExceeded,
    /// Any status from 500, or no answer at all.
    #[serde(rename = "5xx")]
    FiveHundreds,
    /// 502, 503, 504, or no answer at all.
    #[serde(rename = "gateway-error")]
    GatewayError,
    /// gRPC status 13 in the response head.
    #[serde(rename = "internal")]
    Internal,
    /// The peer's proxy refused the stream.
    #[serde(rename = "refused-stream")]
    RefusedStream,
    /// No answer at all.
    #[serde(rename = "reset")]
    Reset,
    /// No answer at all, and nothing of the request was sent.
    #[serde(rename = "reset-before-request")]
    ResetBeforeRequest,
    /// gRPC status 8 in the response head.
    #[serde(rename = "resource-exhausted")]
    ResourceExhausted,
    /// 409.
    #[serde(rename = "retriable-4xx")]
    RetriableFourHundreds,
    /// gRPC status 14 in the response head.
    #[serde(rename = "unavailable")]
    Unavailable,
}

/// What is done to some requests on purpose; see `fault.rs`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Fault {
    pub(crate) delay: Option<FaultDelay>,
    pub(crate) abort: Option<FaultAbort>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FaultDelay {
    pub(crate) fixed_ms: u64,
    pub(crate) parts_per_million: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FaultAbort {
    pub(crate) status: u32,
    pub(crate) grpc_status: Option<u32>,
    pub(crate) parts_per_million: u32,
}

/// Changes to the fields of a head; see `edits.rs`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeaderEdits {
    pub(crate) set: Vec<Field>,
    pub(crate) add: Vec<Field>,
    pub(crate) remove: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Field {
    pub(crate) name: String,
    pub(crate) value: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TcpRoute {
    pub(crate) name: String,
    pub(crate) destinations: Vec<Destination>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Destination {
    pub(crate) cluster: String,
    pub(crate) weight: u32,
    /// Only of routes for requests.
    pub(crate) request_headers: Option<HeaderEdits>,
    pub(crate) response_headers: Option<HeaderEdits>,
}

/// Conditions that must all hold; None asks nothing of that part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Match {
    pub(crate) uri: Option<StringMatch>,
    pub(crate) ignore_uri_case: bool,
    pub(crate) method: Option<StringMatch>,
    pub(crate) scheme: Option<StringMatch>,
    pub(crate) authority: Option<StringMatch>,
    pub(crate) headers: Vec<NamedMatch>,
    pub(crate) query_params: Vec<NamedMatch>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NamedMatch {
    pub(crate) name: String,
    pub(crate) r#match: StringMatch,
    pub(crate) invert: bool,
}

/// An object with exactly one member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StringMatch {
    Exact(String),
    Prefix(String),
    /// Always true: the contract has no `{"present": false}`, which is an inverted match.
    Present(bool),
    Regex(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cluster {
    pub(crate) name: String,
    pub(crate) service: Service,
    pub(crate) subset: String,
    pub(crate) balancer: Balancer,
    pub(crate) connect_timeout_ms: u64,
    pub(crate) idle_timeout_ms: u64,
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) tls: Option<ClusterTls>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Endpoint {
    pub(crate) slot: u32,
    pub(crate) address: String,
    pub(crate) weight: u32,
    pub(crate) workload: Workload,
    /// The workload's own port for what the cluster is; None is the port in the cluster's name.
    pub(crate) port: Option<u32>,
}

impl Document {
    /// Reads a document; all problems of shape are reported together.
    pub(crate) fn from_json(json: &[u8]) -> Result<Self, Error> {
        let node: Node = serde_json::from_slice(json).map_err(|error| Error::Json {
            line: error.line(),
            column: error.column(),
            text: without_position(&error.to_string()),
        })?;
        let mut problems = Problems::default();
        let document = Self::read(node, &mut problems);
        problems.settle(document)
    }

    /// Writes the document with every member, in the order of the contract.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings, numbers and lists can always be written")
    }
}

/// The reader's text without the position it appends, which is carried apart.
fn without_position(text: &str) -> String {
    text.rsplit_once(" at line ")
        .map_or(text, |(what, _)| what)
        .to_owned()
}
