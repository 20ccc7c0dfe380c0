//! The immutable, complete view a worker serves from.
//!
//! Names are resolved to indices, domains sorted for lookup, addresses parsed, regular expressions
//! compiled; all of it once, when the snapshot is made. A snapshot says the same as its document:
//! [`Snapshot::to_document`] gives it back (addresses and defaults in their one spelling).
//!
//! Tests: `tests.rs`; round trips in `tests/properties.rs`.

#[cfg(test)]
mod tests;

use crate::address::Address;
use crate::balance::Weights;
use crate::document::{
    self, Balancer, ClientMode, Direction, Document, Protocol, ServerMode, Service, Workload,
};
use crate::domains::Domains;
use crate::edits::{Field, HeaderEdits};
use crate::error::Error;
use crate::fault::Fault;
use crate::matching::{Match, NamedMatch, Patterns, StringMatch};
use crate::retry::Retry;
use crate::route::{Destinations, Route, TcpRoute};
use crate::{blob, compile};

/// Everything that workers need to know of one generation.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Number of this snapshot; higher is newer.
    pub generation: u64,
    /// Whom this proxy stands for.
    pub workload: Workload,
    /// The bound addresses.
    pub listeners: Vec<Listener>,
    /// The upstreams; routes name them by index.
    pub clusters: Vec<Cluster>,
    /// Nobody reads the access log, so no line is written.
    pub access_log_disabled: bool,
    /// Spans are recorded, and of the traces that begin here this many parts per million are sampled.
    pub sampling_ppm: Option<u32>,
    /// Every regular expression of the routes, for the next snapshot to take over.
    pub(crate) patterns: Patterns,
}

/// One bound address and what is spoken there.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Its name; unique in the snapshot.
    pub name: String,
    /// On which side of the workload it stands.
    pub direction: Direction,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Whether absolute-form and CONNECT may go where they say when no virtual host matches.
    pub forward_proxy: bool,
    /// Routes for some domains; a domain occurs once per listener.
    pub virtual_hosts: Vec<VirtualHost>,
    /// Routes for connections; the first takes all.
    pub tcp_routes: Vec<TcpRoute>,
    /// What it demands of callers; none = plain.
    pub tls: Option<ServerMode>,
    /// SHA-256 of the credential that callers of a forward proxy must show.
    pub credential_sha256: Option<[u8; 32]>,
    /// Whom it stands for, when that is not the snapshot's workload.
    pub workload: Option<Workload>,
    /// Indices of `virtual_hosts` by domain.
    pub(crate) domains: Domains,
}

/// The routes for some domains.
#[derive(Clone, Debug)]
pub struct VirtualHost {
    /// Name, for logs.
    pub name: String,
    /// As the document writes them.
    pub domains: Vec<String>,
    /// The first that matches is taken.
    pub routes: Vec<Route>,
    /// The ports of the service, the first one for callers that name none; empty where any port will
    /// do.
    pub ports: Vec<HostPort>,
    /// It is no service of the mesh: a port that it does not have is asked for outside.
    pub is_external: bool,
}

/// A port of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Its number.
    pub number: u16,
    /// Index of the cluster for bytes that are not HTTP.
    pub cluster: usize,
}

/// A named upstream.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Its name; unique in the snapshot.
    pub name: String,
    /// What an operator calls it.
    pub service: Service,
    /// Name of the subset; empty = all of the service.
    pub subset: String,
    /// How an endpoint is chosen.
    pub balancer: Balancer,
    /// Bound on a connect; above 0.
    pub connect_timeout_ms: u64,
    /// How long an unused connection is kept.
    pub idle_timeout_ms: u64,
    /// The addresses; may be none.
    pub endpoints: Vec<Endpoint>,
    /// How its endpoints are called; none = plain.
    pub tls: Option<ClientMode>,
    /// What choosing by weight needs, precomputed from `endpoints`.
    pub(crate) weights: Weights,
}

/// One address of a cluster.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Index of its line in shared memory; unique in the snapshot.
    pub slot: u32,
    /// Where to connect.
    pub address: Address,
    /// Its part of the traffic; above 0.
    pub weight: u32,
    /// Who answers there.
    pub workload: Workload,
    /// The workload's own port; none = the service's.
    pub port: Option<u16>,
}

impl Snapshot {
    /// Reads, checks and compiles a snapshot document.
    ///
    /// # Errors
    /// When it is not JSON; else every problem there is, each with its path.
    pub fn from_document(json: &[u8]) -> Result<Self, Error> {
        compile::compile(Document::from_json(json)?, None)
    }

    /// The document of this snapshot, as JSON with every member.
    #[must_use]
    pub fn to_document(&self) -> Vec<u8> {
        self.document().to_json()
    }

    /// The blob in which this snapshot travels to the workers.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        blob::encode(&self.document())
    }

    /// Reads a blob that [`Snapshot::encode`] wrote.
    ///
    /// # Errors
    /// When it is truncated, damaged, of another layout, or holds what no document may hold.
    pub fn decode(blob: &[u8]) -> Result<Self, Error> {
        compile::compile(blob::decode(blob).map_err(Error::Blob)?, None)
    }

    /// Reads the blob of the snapshot that follows this one.
    ///
    /// The same as [`Snapshot::decode`], but a regular expression that this snapshot has is not
    /// compiled again: they are most of the cost (some 50 µs each), and most stay.
    ///
    /// # Errors
    /// As [`Snapshot::decode`].
    pub fn decode_next(&self, blob: &[u8]) -> Result<Self, Error> {
        compile::compile(
            blob::decode(blob).map_err(Error::Blob)?,
            Some(&self.patterns),
        )
    }

    /// The index of a listener.
    #[must_use]
    pub fn listener(&self, name: &str) -> Option<usize> {
        self.listeners
            .iter()
            .position(|listener| listener.name == name)
    }

    /// Whom a listener stands for; of one that is not there, whom the proxy does.
    #[must_use]
    pub fn workload_of(&self, listener: usize) -> &Workload {
        let own = self.listeners.get(listener);
        own.and_then(|listener| listener.workload.as_ref())
            .unwrap_or(&self.workload)
    }

    /// The index of a cluster.
    #[must_use]
    pub fn cluster(&self, name: &str) -> Option<usize> {
        self.clusters
            .iter()
            .position(|cluster| cluster.name == name)
    }

    fn document(&self) -> Document {
        Document {
            version: document::VERSION,
            generation: self.generation,
            workload: self.workload.clone(),
            access_log_disabled: self.access_log_disabled,
            tracing: self.sampling_ppm.map(|ppm| document::Tracing {
                sampling_parts_per_million: ppm,
            }),
            listeners: self
                .listeners
                .iter()
                .map(|one| self.listener_document(one))
                .collect(),
            clusters: self.clusters.iter().map(Cluster::to_document).collect(),
        }
    }

    fn listener_document(&self, listener: &Listener) -> document::Listener {
        let virtual_host = |host: &VirtualHost| document::VirtualHost {
            name: host.name.clone(),
            domains: host.domains.clone(),
            routes: host
                .routes
                .iter()
                .map(|route| self.route_document(route))
                .collect(),
            ports: host
                .ports
                .iter()
                .map(|port| document::HostPort {
                    number: u32::from(port.number),
                    cluster: self.clusters[port.cluster].name.clone(),
                })
                .collect(),
            external: host.is_external,
        };
        let tcp_route = |route: &TcpRoute| document::TcpRoute {
            name: route.name.clone(),
            destinations: self.destination_documents(&route.destinations),
        };
        document::Listener {
            name: listener.name.clone(),
            direction: listener.direction,
            protocol: listener.protocol,
            forward_proxy: listener.forward_proxy,
            virtual_hosts: listener.virtual_hosts.iter().map(virtual_host).collect(),
            tcp_routes: listener.tcp_routes.iter().map(tcp_route).collect(),
            tls: listener.tls.map(|mode| document::ListenerTls { mode }),
            credential_sha256: listener
                .credential_sha256
                .map(|digest| hexadecimal(&digest)),
            workload: listener.workload.clone(),
        }
    }

    fn route_document(&self, route: &Route) -> document::Route {
        document::Route {
            name: route.name.clone(),
            matches: route.matches.iter().map(Match::to_document).collect(),
            timeout_ms: route.timeout_ms,
            destinations: self.destination_documents(&route.destinations),
            retry: route.retry.as_ref().map(Retry::to_document),
            fault: route.fault.as_ref().map(Fault::to_document),
            request_headers: edits_document(&route.request_headers),
            response_headers: edits_document(&route.response_headers),
        }
    }

    fn destination_documents(&self, destinations: &Destinations) -> Vec<document::Destination> {
        destinations
            .clusters()
            .iter()
            .map(|destination| document::Destination {
                cluster: self.clusters[destination.cluster].name.clone(),
                weight: destination.weight,
                request_headers: edits_document(&destination.request_headers),
                response_headers: edits_document(&destination.response_headers),
            })
            .collect()
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn edits_document(edits: &Option<HeaderEdits>) -> Option<document::HeaderEdits> {
    edits.as_ref().map(HeaderEdits::to_document)
}

impl HeaderEdits {
    fn to_document(&self) -> document::HeaderEdits {
        let fields = |fields: &[Field]| {
            let each = fields.iter().map(|field| document::Field {
                name: field.name.clone(),
                value: field.value.clone(),
            });
            each.collect()
        };
        document::HeaderEdits {
            set: fields(&self.set),
            add: fields(&self.add),
            remove: self.remove.clone(),
        }
    }
}

impl Retry {
    fn to_document(&self) -> document::Retry {
        document::Retry {
            attempts: self.attempts,
            per_try_timeout_ms: self.per_try_timeout_ms,
            on: self.on.clone(),
            statuses: self.statuses.iter().map(|it| u32::from(*it)).collect(),
            backoff_ms: self.backoff_ms,
            avoid_tried: self.avoid_tried,
        }
    }
}

impl Fault {
    fn to_document(&self) -> document::Fault {
        document::Fault {
            delay: self.delay.map(|delay| document::FaultDelay {
                fixed_ms: delay.fixed_ms,
                parts_per_million: delay.share.0,
            }),
            abort: self.abort.map(|abort| document::FaultAbort {
                status: u32::from(abort.status),
                grpc_status: abort.grpc_status,
                parts_per_million: abort.share.0,
            }),
        }
    }
}

impl Match {
    fn to_document(&self) -> document::Match {
        let part = |part: &Option<StringMatch>| part.as_ref().map(StringMatch::to_document);
        document::Match {
            uri: part(&self.uri),
            ignore_uri_case: self.ignore_uri_case,
            method: part(&self.method),
            scheme: part(&self.scheme),
            authority: part(&self.authority),
            headers: self.headers.iter().map(NamedMatch::to_document).collect(),
            query_params: self
                .query_params
                .iter()
                .map(NamedMatch::to_document)
                .collect(),
        }
    }
}

impl NamedMatch {
    fn to_document(&self) -> document::NamedMatch {
        document::NamedMatch {
            name: self.name.clone(),
            r#match: self.value.to_document(),
            invert: self.invert,
        }
    }
}

impl Cluster {
    /// The port that is asked for behind the mesh's inbound port of an endpoint: the workload's own,
    /// or where nothing is said of one the service's, as with `targetPort` in Kubernetes. That is the
    /// second part of the cluster's name (`outbound|8080||payment.default`).
    #[must_use]
    pub fn target_port(&self, endpoint: &Endpoint) -> Option<u16> {
        endpoint
            .port
            .or_else(|| self.name.split('|').nth(1)?.parse().ok())
    }

    fn to_document(&self) -> document::Cluster {
        let endpoint = |endpoint: &Endpoint| document::Endpoint {
            slot: endpoint.slot,
            address: endpoint.address.to_string(),
            weight: endpoint.weight,
            workload: endpoint.workload.clone(),
            port: endpoint.port.map(u32::from),
        };
        document::Cluster {
            name: self.name.clone(),
            service: self.service.clone(),
            subset: self.subset.clone(),
            balancer: self.balancer,
            connect_timeout_ms: self.connect_timeout_ms,
            idle_timeout_ms: self.idle_timeout_ms,
            tls: self.tls.map(|mode| document::ClusterTls { mode }),
            endpoints: self.endpoints.iter().map(endpoint).collect(),
        }
    }
}
