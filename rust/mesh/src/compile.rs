//! From a document to a snapshot: what the values mean together is checked while names become
//! indices. All problems are reported together, each with its path; a snapshot comes out only when
//! there is none.
//!
//! Runs on every build and on every decode, so a worker never serves what was not checked by its
//! own code. Tests: `snapshot/tests.rs`.

mod handling;

use std::collections::{HashMap, HashSet};

use crate::address::Address;
use crate::balance::Weights;
use crate::document::{self, Document, Protocol};
use crate::domains::{Domain, Domains};
use crate::edits;
use crate::error::{Error, Problems};
use crate::matching::{Match, NamedMatch, Patterns, StringMatch};
use crate::retry::Retry;
use crate::route::{Destinations, Route, TcpRoute, WeightedCluster};
use crate::snapshot::{Cluster, Endpoint, HostPort, Listener, Snapshot, VirtualHost};

/// Lines for endpoints in shared memory.
const ENDPOINT_SLOTS: u32 = 4096;

/// The whole of a share in parts per million.
const PARTS_MAX: u32 = 1_000_000;

/// Checks and compiles a document; patterns that `earlier` has are taken from there.
pub(crate) fn compile(document: Document, earlier: Option<&Patterns>) -> Result<Snapshot, Error> {
    let mut compiler = Compiler {
        earlier,
        ..Compiler::default()
    };
    if document.version != document::VERSION {
        let text = format!("{} is not {}", document.version, document::VERSION);
        compiler.problems.report_member("version", text);
    }
    for (index, cluster) in document.clusters.iter().enumerate() {
        compiler
            .clusters
            .entry(cluster.name.clone())
            .or_insert(index);
    }
    let clusters = compiler.each("clusters", document.clusters, Compiler::cluster);
    let mut names = HashSet::new();
    let listeners = compiler.each("listeners", document.listeners, |compiler, _, listener| {
        if !names.insert(listener.name.clone()) {
            compiler
                .problems
                .report_member("name", "another listener has this name");
        }
        compiler.listener(listener)
    });
    let sampling_ppm = document.tracing.map(|it| it.sampling_parts_per_million);
    if sampling_ppm.is_some_and(|ppm| ppm > PARTS_MAX) {
        let mark = compiler.problems.enter_member("tracing");
        let text = format!("a share is at most {PARTS_MAX} parts");
        compiler
            .problems
            .report_member("sampling_parts_per_million", text);
        compiler.problems.leave(mark);
    }
    compiler.problems.settle(Some(Snapshot {
        generation: document.generation,
        workload: document.workload,
        access_log_disabled: document.access_log_disabled,
        sampling_ppm,
        listeners,
        clusters,
        patterns: compiler.patterns,
    }))
}

#[derive(Default)]
struct Compiler<'e> {
    problems: Problems,
    patterns: Patterns,
    earlier: Option<&'e Patterns>,
    /// Index of each cluster by name; of clusters with one name, the first.
    clusters: HashMap<String, usize>,
    /// Endpoint slots that were seen.
    slots: HashSet<u32>,
}

impl Compiler<'_> {
    /// Compiles every item of a list, with the path at the item. An item without a result has
    /// been reported, so that a shortened list never reaches a snapshot.
    fn each<T, U>(
        &mut self,
        member: &str,
        items: Vec<T>,
        mut one: impl FnMut(&mut Self, usize, T) -> Option<U>,
    ) -> Vec<U> {
        let list = self.problems.enter_member(member);
        let mut made = Vec::with_capacity(items.len());
        for (index, item) in items.into_iter().enumerate() {
            let mark = self.problems.enter_item(index);
            made.extend(one(self, index, item));
            self.problems.leave(mark);
        }
        self.problems.leave(list);
        made
    }

    fn cluster(&mut self, index: usize, cluster: document::Cluster) -> Option<Cluster> {
        if self.clusters.get(&cluster.name) != Some(&index) {
            self.problems
                .report_member("name", "another cluster has this name");
        }
        if cluster.connect_timeout_ms == 0 {
            self.problems
                .report_member("connect_timeout_ms", "a connect takes more than 0 ms");
        }
        let mut addresses = HashSet::new();
        let endpoints = self.each("endpoints", cluster.endpoints, |compiler, _, endpoint| {
            let endpoint = compiler.endpoint(endpoint)?;
            if !addresses.insert(endpoint.address.clone()) {
                compiler
                    .problems
                    .report_member("address", "another endpoint has this address");
            }
            Some(endpoint)
        });
        let weights = Weights::new(&endpoints);
        if weights.is_none() {
            let text = "the weights of a cluster's endpoints have a sum of at most 4294967295";
            self.problems.report_member("endpoints", text);
        }
        let tls = cluster.tls.map(|tls| tls.mode);
        Some(Cluster {
            name: cluster.name,
            service: cluster.service,
            subset: cluster.subset,
            balancer: cluster.balancer,
            connect_timeout_ms: cluster.connect_timeout_ms,
            idle_timeout_ms: cluster.idle_timeout_ms,
            endpoints,
            tls,
            weights: weights?,
        })
    }

    fn endpoint(&mut self, endpoint: document::Endpoint) -> Option<Endpoint> {
        if endpoint.slot >= ENDPOINT_SLOTS {
            self.problems.report_member("slot", "a slot is below 4096");
        } else if !self.slots.insert(endpoint.slot) {
            self.problems
                .report_member("slot", "another endpoint has this slot");
        }
        if endpoint.weight == 0 {
            self.problems
                .report_member("weight", "the weight of an endpoint is above 0");
        }
        let address = match endpoint.address.parse::<Address>() {
            Ok(Address::Tcp(address)) if address.port() == 0 => Err("no one listens on port 0"),
            parsed => parsed,
        };
        let address = address
            .map_err(|text| self.problems.report_member("address", text))
            .ok()?;
        let port = match endpoint.port {
            Some(number) => Some(self.port_number("port", number)?),
            None => None,
        };
        (endpoint.weight > 0).then_some(Endpoint {
            slot: endpoint.slot,
            address,
            weight: endpoint.weight,
            workload: endpoint.workload,
            port,
        })
    }

    fn listener(&mut self, listener: document::Listener) -> Option<Listener> {
        let is_tcp = listener.protocol == Protocol::Tcp;
        for (is_given, member, of) in [
            (
                is_tcp && !listener.virtual_hosts.is_empty(),
                "virtual_hosts",
                "HTTP",
            ),
            (is_tcp && listener.forward_proxy, "forward_proxy", "HTTP"),
            (
                !is_tcp && !listener.tcp_routes.is_empty(),
                "tcp_routes",
                "TCP",
            ),
        ] {
            if is_given {
                self.problems
                    .report_member(member, format!("only for protocol {of}"));
            }
        }
        let mut domains = HashMap::new();
        let virtual_hosts = self.each(
            "virtual_hosts",
            listener.virtual_hosts,
            |this, index, host| {
                this.domains(&host.domains, index, &mut domains);
                this.virtual_host(host)
            },
        );
        let tcp_routes = self.each("tcp_routes", listener.tcp_routes, |this, _, route| {
            this.no_edits(&route.destinations);
            let destinations = this.destinations(route.destinations)?;
            Some(TcpRoute {
                name: route.name,
                destinations,
            })
        });
        Some(Listener {
            name: listener.name,
            direction: listener.direction,
            protocol: listener.protocol,
            forward_proxy: listener.forward_proxy,
            virtual_hosts,
            tcp_routes,
            tls: listener.tls.map(|tls| tls.mode),
            credential_sha256: listener.credential_sha256.map(|text| self.digest(&text)),
            workload: listener.workload,
            domains: Domains::new(domains),
        })
    }

    /// A SHA-256 in hexadecimal; zeroes, which nothing hashes to, where it is none.
    fn digest(&mut self, text: &str) -> [u8; 32] {
        let mut digest = [0; 32];
        let is_hex = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_hex {
            for (place, byte) in digest.iter_mut().enumerate() {
                let digits = &text[2 * place..2 * place + 2];
                *byte = u8::from_str_radix(digits, 16).expect("two hexadecimal digits");
            }
        } else {
            self.problems
                .report_member("credential_sha256", "64 hexadecimal digits");
        }
        digest
    }

    /// Adds the domains of a virtual host to those of its listener.
    fn domains(&mut self, texts: &[String], host: usize, all: &mut HashMap<Domain, u32>) {
        let list = self.problems.enter_member("domains");
        if texts.is_empty() {
            self.problems
                .report("a virtual host has at least one domain");
        }
        let host = u32::try_from(host).expect("a document in memory has fewer than 2^32 hosts");
        for (index, text) in texts.iter().enumerate() {
            let mark = self.problems.enter_item(index);
            match Domain::parse(text) {
                Ok(domain) => {
                    if all.insert(domain, host).is_some() {
                        let text = format!("{text:?} occurs a second time in this listener");
                        self.problems.report(text);
                    }
                }
                Err(error) => self.problems.report(format!("{text:?}: {error}")),
            }
            self.problems.leave(mark);
        }
        self.problems.leave(list);
    }

    fn virtual_host(&mut self, host: document::VirtualHost) -> Option<VirtualHost> {
        let routes = self.each("routes", host.routes, |this, _, route| {
            let matches = this.each("matches", route.matches, Self::condition);
            let destinations = this.destinations(route.destinations);
            let retry = route.retry.map(|retry| this.retry(retry));
            let fault = route.fault.map(|fault| this.fault(fault));
            let request_headers = this.edits("request_headers", route.request_headers);
            let response_headers = this.edits("response_headers", route.response_headers);
            let is_usual =
                |retry: &Retry| retry.per_try_timeout_ms == 0 && !retry.reads_low_statuses();
            let is_plain = fault.is_none()
                && request_headers.is_none()
                && response_headers.is_none()
                && retry.as_ref().is_none_or(is_usual);
            Some(Route {
                is_plain,
                name: route.name,
                matches,
                timeout_ms: route.timeout_ms,
                destinations: destinations?,
                retry,
                fault,
                request_headers,
                response_headers,
            })
        });
        let ports = self.each("ports", host.ports, |this, _, port| this.host_port(&port));
        Some(VirtualHost {
            name: host.name,
            domains: host.domains,
            routes,
            ports,
            is_external: host.external,
        })
    }

    fn host_port(&mut self, port: &document::HostPort) -> Option<HostPort> {
        let number = self.port_number("number", port.number);
        let cluster = self.known_cluster(&port.cluster);
        Some(HostPort {
            number: number?,
            cluster: cluster?,
        })
    }

    /// A port that is written in a member.
    fn port_number(&mut self, member: &'static str, number: u32) -> Option<u16> {
        let found = u16::try_from(number).ok().filter(|it| *it > 0);
        if found.is_none() {
            let text = "a port is a number from 1 to 65535";
            self.problems.report_member(member, text);
        }
        found
    }

    /// The index of a cluster that is named here.
    fn known_cluster(&mut self, name: &str) -> Option<usize> {
        let found = self.clusters.get(name).copied();
        if found.is_none() {
            let text = format!("no cluster is called {name:?}");
            self.problems.report_member("cluster", text);
        }
        found
    }

    fn destinations(&mut self, destinations: Vec<document::Destination>) -> Option<Destinations> {
        let count = destinations.len();
        let clusters = self.each("destinations", destinations, |this, _, destination| {
            let request_headers = this.edits("request_headers", destination.request_headers);
            let response_headers = this.edits("response_headers", destination.response_headers);
            Some(WeightedCluster {
                cluster: this.known_cluster(&destination.cluster)?,
                weight: destination.weight,
                is_plain: request_headers.is_none() && response_headers.is_none(),
                request_headers,
                response_headers,
            })
        });
        if clusters.len() < count {
            return None;
        }
        let destinations = Destinations::new(clusters);
        if destinations.is_none() {
            self.problems
                .report_member("destinations", "the weights have a sum above 0");
        }
        destinations
    }

    /// Connections have no fields.
    fn no_edits(&mut self, destinations: &[document::Destination]) {
        let list = self.problems.enter_member("destinations");
        for (index, destination) in destinations.iter().enumerate() {
            let mark = self.problems.enter_item(index);
            for (member, edits) in [
                ("request_headers", &destination.request_headers),
                ("response_headers", &destination.response_headers),
            ] {
                if edits.is_some() {
                    self.problems
                        .report_member(member, "only for protocol HTTP");
                }
            }
            self.problems.leave(mark);
        }
        self.problems.leave(list);
    }

    fn condition(&mut self, _: usize, condition: document::Match) -> Option<Match> {
        Some(Match {
            uri: self.part("uri", condition.uri),
            ignore_uri_case: condition.ignore_uri_case,
            method: self.part("method", condition.method),
            scheme: self.part("scheme", condition.scheme),
            authority: self.part("authority", condition.authority),
            headers: self.each("headers", condition.headers, |this, _, header| {
                if !is_header_name(&header.name) {
                    let text = "a header name is a lower-case token (RFC 9110 5.6.2)";
                    this.problems.report_member("name", text);
                }
                this.named(header)
            }),
            query_params: self.each("query_params", condition.query_params, |this, _, one| {
                if one.name.is_empty() {
                    this.problems
                        .report_member("name", "a query parameter has a name");
                }
                this.named(one)
            }),
        })
    }

    fn named(&mut self, one: document::NamedMatch) -> Option<NamedMatch> {
        let value = self.part("match", Some(one.r#match))?;
        Some(NamedMatch {
            name: one.name,
            value,
            invert: one.invert,
        })
    }

    /// Compiles the condition in a member; None when nothing is asked, or it was reported.
    fn part(&mut self, member: &str, part: Option<document::StringMatch>) -> Option<StringMatch> {
        Some(match part? {
            document::StringMatch::Exact(text) => StringMatch::Exact(text),
            document::StringMatch::Prefix(text) => StringMatch::Prefix(text),
            document::StringMatch::Present(_) => StringMatch::Present,
            document::StringMatch::Regex(text) => match self.patterns.compile(text, self.earlier) {
                Ok(pattern) => StringMatch::Regex(pattern),
                Err(error) => {
                    let mark = self.problems.enter_member(member);
                    self.problems.report_member("regex", error);
                    self.problems.leave(mark);
                    return None;
                }
            },
        })
    }
}

/// Whether a name is a token without upper-case letters: requests carry any case, documents one.
fn is_header_name(name: &str) -> bool {
    let is_lower = |byte: u8| edits::is_token_byte(byte) && !byte.is_ascii_uppercase();
    !name.is_empty() && name.bytes().all(is_lower)
}
