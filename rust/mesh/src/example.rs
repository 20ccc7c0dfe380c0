//! Documents and requests for the unit tests of this crate.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::matching::Request;
use crate::snapshot::Snapshot;

/// The contract's own example: an HTTP listener with conditions, a TCP one, two clusters.
pub(crate) fn document() -> Value {
    let workload = json!({"name": "edge", "namespace": "default", "app": "edge",
                          "revision": "latest", "principal": ""});
    let service = json!({"host": "payment.default", "name": "payment", "namespace": "default"});
    let cluster = |name: &str, slot: u32| {
        json!({
            "name": name, "service": service, "subset": "v1", "balancer": "LEAST_REQUEST",
            "connect_timeout_ms": 10000, "tls": null, "idle_timeout_ms": 3000,
            "endpoints": [{"slot": slot, "address": format!("127.0.0.1:{}", 9001 + slot),
                           "weight": 1, "workload": workload, "port": 8081 + slot}],
        })
    };
    let condition = json!({
        "uri": {"exact": "/x"}, "ignore_uri_case": false, "method": {"exact": "GET"},
        "scheme": null, "authority": {"prefix": "a"},
        "headers": [{"name": "x-user", "match": {"regex": "a.*"}, "invert": false}],
        "query_params": [{"name": "q", "match": {"present": true}, "invert": true}],
    });
    let edits = json!({
        "set": [{"name": "X-A", "value": "1"}], "add": [{"name": "x-b", "value": ""}],
        "remove": ["x-c"],
    });
    let retry = json!({
        "attempts": 3, "per_try_timeout_ms": 700, "on": ["5xx", "retriable-4xx"],
        "statuses": [429], "backoff_ms": 10, "avoid_tried": false,
    });
    let fault = json!({
        "delay": {"fixed_ms": 5000, "parts_per_million": 100_000},
        "abort": {"status": 503, "grpc_status": 14, "parts_per_million": 1_000_000},
    });
    let destination = |cluster: &str| {
        json!({"cluster": cluster, "weight": 1,
               "request_headers": null, "response_headers": null})
    };
    json!({
        "version": 1, "generation": 1, "access_log_disabled": false, "tracing": null, "workload": workload,
        "listeners": [
            {"name": "gateway/0.0.0.0:8080", "direction": "gateway", "protocol": "HTTP",
             "forward_proxy": false,
             "virtual_hosts": [
                 {"name": "default/web", "domains": ["shop.example.com", "*.example.com", "*"],
                  "routes": [
                      {"name": "default/web/0", "matches": [condition], "timeout_ms": 1500,
                       "destinations": [
                           {"cluster": "a", "weight": 90,
                            "request_headers": edits, "response_headers": null},
                           {"cluster": "b", "weight": 10,
                            "request_headers": null, "response_headers": edits}],
                       "retry": retry, "fault": null,
                       "request_headers": edits, "response_headers": null},
                      {"name": "default/web/1", "matches": [], "timeout_ms": null,
                       "destinations": [destination("b")],
                       "retry": null, "fault": fault,
                       "request_headers": null, "response_headers": edits}],
                  "ports": [{"number": 8080, "cluster": "a"}], "external": false}],
             "tls": null, "credential_sha256": null, "workload": workload, "tcp_routes": []},
            {"name": "gateway/0.0.0.0:5432", "direction": "gateway", "protocol": "TCP",
             "forward_proxy": false, "virtual_hosts": [],
             "tls": null, "credential_sha256": null, "workload": null,
             "tcp_routes": [{"name": "default/db/tcp/0", "destinations": [destination("b")]}]}],
        "clusters": [cluster("a", 0), cluster("b", 1)],
    })
}

/// The snapshot of a document that is right.
pub(crate) fn snapshot(document: &Value) -> Snapshot {
    Snapshot::from_document(document.to_string().as_bytes()).unwrap()
}

/// A snapshot with one cluster; endpoint `i` has slot `i` and the weight `weights[i]`.
pub(crate) fn cluster(balancer: &str, weights: &[u32]) -> Snapshot {
    let mut document = document();
    document["listeners"] = json!([]);
    let mut cluster = document["clusters"][0].clone();
    cluster["balancer"] = json!(balancer);
    let endpoint = cluster["endpoints"][0].clone();
    let endpoints = weights.iter().enumerate().map(|(slot, weight)| {
        let mut endpoint = endpoint.clone();
        endpoint["slot"] = json!(slot);
        endpoint["address"] = json!(format!("127.0.0.1:{}", 9001 + slot));
        endpoint["weight"] = json!(weight);
        endpoint
    });
    cluster["endpoints"] = endpoints.collect();
    document["clusters"] = json!([cluster]);
    snapshot(&document)
}

/// A request whose parts are given as text.
#[derive(Clone)]
pub(crate) struct Get {
    pub(crate) method: &'static str,
    pub(crate) path: String,
    pub(crate) authority: String,
    pub(crate) headers: Vec<(&'static str, &'static str)>,
}

impl Get {
    pub(crate) fn new(authority: &str, path: &str) -> Self {
        Self {
            method: "GET",
            path: path.to_owned(),
            authority: authority.to_owned(),
            headers: Vec::new(),
        }
    }

    pub(crate) fn with(mut self, name: &'static str, value: &'static str) -> Self {
        self.headers.push((name, value));
        self
    }
}

impl Request for Get {
    fn method(&self) -> &[u8] {
        self.method.as_bytes()
    }

    fn path(&self) -> &[u8] {
        self.path.as_bytes()
    }

    fn authority(&self) -> &[u8] {
        self.authority.as_bytes()
    }

    fn scheme(&self) -> &[u8] {
        b"http"
    }

    fn header_values(&self, name: &str, each: &mut dyn FnMut(&[u8]) -> bool) {
        for (_, value) in self
            .headers
            .iter()
            .filter(|(one, _)| one.eq_ignore_ascii_case(name))
        {
            if each(value.as_bytes()) {
                return;
            }
        }
    }
}

/// How often each of some things was chosen.
pub(crate) fn tally<T: std::hash::Hash + Eq>(things: impl Iterator<Item = T>) -> HashMap<T, u32> {
    let mut counts = HashMap::new();
    for thing in things {
        *counts.entry(thing).or_default() += 1;
    }
    counts
}
