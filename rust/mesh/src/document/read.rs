//! From JSON to the types of the document, reporting instead of stopping.
//!
//! Every reader returns None only after it has reported why, so that a whole document is walked and
//! all its problems come together. The members of each type are one line of the table at the end.
//! Tests: `tests.rs`.

use super::node::Node;
use super::{
    Balancer, ClientMode, Cluster, ClusterTls, Condition, Destination, Direction, Document,
    Endpoint, Fault, FaultAbort, FaultDelay, Field, HeaderEdits, HostPort, Listener, ListenerTls,
    Match, NamedMatch, Protocol, Retry, Route, ServerMode, Service, StringMatch, TcpRoute, Tracing,
    VirtualHost, Workload,
};
use crate::error::Problems;

/// A type of the document.
pub(super) trait Read: Sized {
    /// Takes a value, or reports and returns None.
    fn read(node: Node, problems: &mut Problems) -> Option<Self>;
}

/// The members of one object that were not taken yet.
struct Members<'p> {
    left: Vec<(String, Node)>,
    problems: &'p mut Problems,
}

impl<'p> Members<'p> {
    /// The members of an object; reports members given twice and anything that is no object.
    fn open(node: Node, problems: &'p mut Problems) -> Option<Self> {
        let Node::Object(members) = node else {
            return mismatch("an object", &node, problems);
        };
        let mut left: Vec<(String, Node)> = Vec::with_capacity(members.len());
        for (name, value) in members {
            if left.iter().any(|(seen, _)| *seen == name) {
                problems.report_member(&name, "given twice");
            } else {
                left.push((name, value));
            }
        }
        Some(Self { left, problems })
    }

    fn required<T: Read>(&mut self, name: &str) -> Option<T> {
        let value = self.take::<T>(name);
        if value.is_none() {
            self.problems.report_member(member_name(name), "missing");
        }
        value?
    }

    fn or_default<T: Read + Default>(&mut self, name: &str) -> Option<T> {
        self.take(name).unwrap_or_else(|| Some(T::default()))
    }

    /// None: absent. Some(None): present, and reported.
    fn take<T: Read>(&mut self, name: &str) -> Option<Option<T>> {
        let name = member_name(name);
        let position = self.left.iter().position(|(left, _)| left == name)?;
        let (_, node) = self.left.swap_remove(position);
        let mark = self.problems.enter_member(name);
        let value = T::read(node, self.problems);
        self.problems.leave(mark);
        Some(value)
    }

    /// Reports what nobody took.
    fn close(mut self) {
        self.left.sort_by(|(one, _), (other, _)| one.cmp(other));
        for (name, _) in self.left {
            self.problems.report_member(&name, "unknown member");
        }
    }
}

/// The name in JSON of a Rust field: a keyword carries `r#` in Rust only.
fn member_name(field: &str) -> &str {
    field.strip_prefix("r#").unwrap_or(field)
}

fn mismatch<T>(expected: &str, found: &Node, problems: &mut Problems) -> Option<T> {
    problems.report(format!("expected {expected}, found {}", found.kind()));
    None
}

impl Read for String {
    fn read(node: Node, problems: &mut Problems) -> Option<Self> {
        match node {
            Node::Text(text) => Some(text),
            other => mismatch("a string", &other, problems),
        }
    }
}

impl Read for bool {
    fn read(node: Node, problems: &mut Problems) -> Option<Self> {
        match node {
            Node::Bool(value) => Some(value),
            other => mismatch("a boolean", &other, problems),
        }
    }
}

impl Read for u64 {
    fn read(node: Node, problems: &mut Problems) -> Option<Self> {
        match node {
            Node::Unsigned(value) => Some(value),
            other => mismatch("a whole number", &other, problems),
        }
    }
}

impl Read for u32 {
    fn read(node: Node, problems: &mut Problems) -> Option<Self> {
        let value = u64::read(node, problems)?;
        let narrow = Self::try_from(value).ok();
        if narrow.is_none() {
            problems.report(format!("{value} is above {}", Self::MAX));
        }
        narrow
    }
}

impl<T: Read> Read for Option<T> {
    fn read(node: Node, problems: &mut Problems) -> Option<Self> {
        match node {
            Node::Null => Some(None),
            other => T::read(other, problems).map(Some),
        }
    }
}

impl<T: Read> Read for Vec<T> {
    fn read(node: Node, problems: &mut Problems) -> Option<Self> {
        let Node::List(items) = node else {
            return mismatch("a list", &node, problems);
        };
        let length = items.len();
        let mut list = Self::with_capacity(length);
        for (index, item) in items.into_iter().enumerate() {
            let mark = problems.enter_item(index);
            list.extend(T::read(item, problems));
            problems.leave(mark);
        }
        (list.len() == length).then_some(list)
    }
}

impl Read for StringMatch {
    fn read(node: Node, problems: &mut Problems) -> Option<Self> {
        let mut members = Members::open(node, problems)?;
        let given = [
            members.take("exact").map(|text| text.map(Self::Exact)),
            members.take("prefix").map(|text| text.map(Self::Prefix)),
            members
                .take("present")
                .map(|value| value.map(Self::Present)),
            members.take("regex").map(|text| text.map(Self::Regex)),
        ];
        let mut given = given.into_iter().flatten();
        let only = match (given.next(), given.next()) {
            (Some(only), None) => only,
            _ => {
                members
                    .problems
                    .report("expected exactly one of exact, prefix, present, regex");
                None
            }
        };
        members.close();
        if only == Some(Self::Present(false)) {
            problems.report_member("present", "only true; absence is an inverted match");
            return None;
        }
        only
    }
}

/// Reads a string that is one of a closed list of names.
macro_rules! read_names {
    ($type:ident: $($name:literal => $variant:ident),+) => {
        impl Read for $type {
            fn read(node: Node, problems: &mut Problems) -> Option<Self> {
                let name = String::read(node, problems)?;
                match name.as_str() {
                    $($name => Some(Self::$variant),)+
                    _ => {
                        let names = [$($name),+].join(", ");
                        problems.report(format!("{name:?} is not one of {names}"));
                        None
                    }
                }
            }
        }
    };
}

/// Reads an object: the members that must be there; those with a default.
macro_rules! read_members {
    ($type:ident: $($required:ident),*; $($defaulted:ident),*) => {
        impl Read for $type {
            fn read(node: Node, problems: &mut Problems) -> Option<Self> {
                let mut members = Members::open(node, problems)?;
                $(let $required = members.required(stringify!($required));)*
                $(let $defaulted = members.or_default(stringify!($defaulted));)*
                members.close();
                Some(Self { $($required: $required?,)* $($defaulted: $defaulted?,)* })
            }
        }
    };
}

read_names!(Balancer:
    "LEAST_REQUEST" => LeastRequest, "RANDOM" => Random, "ROUND_ROBIN" => RoundRobin);
read_names!(Direction: "gateway" => Gateway, "inbound" => Inbound, "outbound" => Outbound);
read_names!(Protocol: "HTTP" => Http, "TCP" => Tcp);
read_names!(ServerMode: "STRICT" => Strict);
read_names!(ClientMode: "ISTIO_MUTUAL" => IstioMutual);
read_names!(Condition:
    "5xx" => FiveHundreds, "cancelled" => Cancelled, "connect-failure" => ConnectFailure,
    "deadline-exceeded" => DeadlineExceeded, "gateway-error" => GatewayError,
    "internal" => Internal, "refused-stream" => RefusedStream, "reset" => Reset,
    "reset-before-request" => ResetBeforeRequest, "resource-exhausted" => ResourceExhausted,
    "retriable-4xx" => RetriableFourHundreds, "unavailable" => Unavailable);

read_members!(Document:
    version, generation, workload, listeners, clusters; access_log_disabled, tracing);
read_members!(Tracing: sampling_parts_per_million;);
read_members!(Workload: name, namespace, app, revision; principal);
read_members!(Service: host, name, namespace;);
read_members!(Listener:
    name, direction, protocol;
    forward_proxy, virtual_hosts, tcp_routes, tls, credential_sha256, workload);
read_members!(ListenerTls: mode;);
read_members!(ClusterTls: mode;);
read_members!(VirtualHost: name, domains, routes; ports, external);
read_members!(HostPort: number, cluster;);
read_members!(Route: name, destinations;
    matches, timeout_ms, retry, fault, request_headers, response_headers);
read_members!(Retry: attempts, on, backoff_ms, avoid_tried; per_try_timeout_ms, statuses);
read_members!(Fault: ; delay, abort);
read_members!(FaultDelay: fixed_ms, parts_per_million;);
read_members!(FaultAbort: status, parts_per_million; grpc_status);
read_members!(HeaderEdits: ; set, add, remove);
read_members!(Field: name, value;);
read_members!(TcpRoute: name, destinations;);
read_members!(Destination: cluster, weight; request_headers, response_headers);
read_members!(Match: ;
    uri, ignore_uri_case, method, scheme, authority, headers, query_params);
read_members!(NamedMatch: name, r#match; invert);
read_members!(Cluster:
    name, service, subset, balancer, connect_timeout_ms, idle_timeout_ms, endpoints; tls);
read_members!(Endpoint: slot, address, weight, workload; port);
