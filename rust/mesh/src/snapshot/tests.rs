//! Tests of what a document must mean, and of the way through the blob.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::Snapshot;
use crate::address::Address;
use crate::error::{BlobError, Error};
use crate::example::{self, Get};
use crate::random::Random;

fn problems(document: &Value) -> Vec<String> {
    match Snapshot::from_document(document.to_string().as_bytes()) {
        Err(Error::Document(problems)) => problems.iter().map(ToString::to_string).collect(),
        other => panic!("expected problems, got {other:?}"),
    }
}

fn document_of(snapshot: &Snapshot) -> Value {
    serde_json::from_slice(&snapshot.to_document()).unwrap()
}

#[test]
fn gives_its_document_back_also_after_the_blob() {
    let document = example::document();
    let snapshot = example::snapshot(&document);
    assert_eq!(document_of(&snapshot), document);
    let blob = snapshot.encode();
    let decoded = Snapshot::decode(&blob).unwrap();
    assert_eq!(document_of(&decoded), document);
    assert_eq!(decoded.encode(), blob);
}

#[test]
fn takes_a_share_of_traces_up_to_all_of_them() {
    let sampling = |ppm: u32| {
        let mut document = example::document();
        document["tracing"] = json!({"sampling_parts_per_million": ppm});
        document
    };
    let all = example::snapshot(&sampling(1_000_000));
    assert_eq!(all.sampling_ppm, Some(1_000_000));
    assert_eq!(document_of(&all), sampling(1_000_000));
    assert_eq!(
        problems(&sampling(1_000_001)),
        ["tracing.sampling_parts_per_million: a share is at most 1000000 parts"]
    );
    assert_eq!(example::snapshot(&example::document()).sampling_ppm, None);
}

#[test]
fn resolves_names_to_indices() {
    let snapshot = example::snapshot(&example::document());
    assert_eq!(snapshot.listener("gateway/0.0.0.0:5432"), Some(1));
    assert_eq!(snapshot.listener("gateway/0.0.0.0:1"), None);
    assert_eq!(snapshot.cluster("b"), Some(1));
    assert_eq!(snapshot.cluster("c"), None);
    let destinations = &snapshot.listeners[0].virtual_hosts[0].routes[0].destinations;
    let indices: Vec<_> = destinations
        .clusters()
        .iter()
        .map(|one| one.cluster)
        .collect();
    assert_eq!(indices, [0, 1]);
    let endpoint = &snapshot.clusters[1].endpoints[0];
    assert_eq!(
        endpoint.address,
        Address::Tcp("127.0.0.1:9002".parse().unwrap())
    );
}

#[test]
fn reports_every_contradiction_with_its_path() {
    let mut document = example::document();
    document["version"] = json!(2);
    let hosts = &mut document["listeners"][0]["virtual_hosts"];
    let again = hosts[0].clone();
    hosts.as_array_mut().unwrap().push(again);
    hosts[1]["domains"] = json!(["SHOP.example.com.", "a:80", "new.example.com"]);
    let route = &mut hosts[0]["routes"][0];
    route["destinations"][1]["cluster"] = json!("nowhere");
    route["matches"][0]["uri"] = json!({"regex": "("});
    route["matches"][0]["headers"][0] = json!({"name": "X-User", "match": {"regex": "["}});
    route["matches"][0]["query_params"][0]["name"] = json!("");
    hosts[0]["routes"][1]["destinations"] = json!([{"cluster": "a", "weight": 0}]);
    hosts[0]["ports"] = json!([{"number": 65536, "cluster": "nowhere"}]);
    document["listeners"][1]["name"] = json!("gateway/0.0.0.0:8080");
    document["listeners"][1]["forward_proxy"] = json!(true);
    document["clusters"][1]["connect_timeout_ms"] = json!(0);
    document["clusters"][1]["endpoints"][0]["address"] = json!("payment:9001");
    document["clusters"][1]["endpoints"][0]["slot"] = json!(4096);
    document["clusters"][0]["endpoints"][0]["weight"] = json!(0);
    document["clusters"][0]["endpoints"][0]["port"] = json!(0);
    let found = problems(&document);
    let host = "listeners[0].virtual_hosts";
    let expected = [
        "version: 2 is not 1".to_owned(),
        "clusters[0].endpoints[0].weight: the weight of an endpoint is above 0".to_owned(),
        "clusters[0].endpoints[0].port: a port is a number from 1 to 65535".to_owned(),
        "clusters[1].connect_timeout_ms: a connect takes more than 0 ms".to_owned(),
        "clusters[1].endpoints[0].slot: a slot is below 4096".to_owned(),
        "clusters[1].endpoints[0].address: expected ip:port, [ip6]:port or unix:/path".to_owned(),
        format!("{host}[0].routes[0].matches[0].uri.regex: not a regular expression: "),
        format!("{host}[0].routes[0].matches[0].headers[0].name: a header name is a lower-case"),
        format!("{host}[0].routes[0].matches[0].headers[0].match.regex: not a regular expression"),
        format!("{host}[0].routes[0].matches[0].query_params[0].name: a query parameter has a"),
        format!("{host}[0].routes[0].destinations[1].cluster: no cluster is called \"nowhere\""),
        format!("{host}[0].routes[1].destinations: the weights have a sum above 0"),
        format!("{host}[0].ports[0].number: a port is a number from 1 to 65535"),
        format!("{host}[0].ports[0].cluster: no cluster is called \"nowhere\""),
        format!("{host}[1].domains[0]: \"SHOP.example.com.\" occurs a second time"),
        format!("{host}[1].domains[1]: \"a:80\": a domain has no port"),
        format!("{host}[1].routes[0].destinations[1]"),
        "listeners[1].name: another listener has this name".to_owned(),
        "listeners[1].forward_proxy: only for protocol HTTP".to_owned(),
    ];
    // The copied virtual host is whole: its destinations are both there.
    let expected: Vec<_> = expected
        .iter()
        .filter(|text| !text.contains("[1].routes[0]"))
        .collect();
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(
            found.starts_with(expected.as_str()),
            "{found} is not {expected}"
        );
    }
}

#[test]
fn reports_every_problem_of_tries_faults_and_edits_with_its_path() {
    let mut document = example::document();
    let route = &mut document["listeners"][0]["virtual_hosts"][0]["routes"][0];
    route["retry"] = json!({"attempts": 101, "on": ["5xx", "reset", "5xx"],
        "statuses": [503, 99, 600, 65536], "backoff_ms": 0, "avoid_tried": true});
    route["fault"] = json!({"delay": {"fixed_ms": 0, "parts_per_million": 1_000_001},
        "abort": {"status": 199, "grpc_status": 17, "parts_per_million": 1_000_001}});
    route["request_headers"] = json!({
        "set": [{"name": "x-a", "value": "1"}, {"name": "X-A", "value": " 2"}],
        "add": [{"name": "Host", "value": "a\r\nb: c"}, {"name": "x-ok", "value": "1"}],
        "remove": ["x-ok", "content-length", ":path"]});
    route["destinations"][1]["response_headers"] =
        json!({"set": [], "add": [{"name": "x meshfast", "value": ""}], "remove": []});
    let tcp = &mut document["listeners"][1]["tcp_routes"][0]["destinations"][0];
    tcp["request_headers"] = json!({"set": [], "add": [], "remove": ["x-a"]});
    let at = "listeners[0].virtual_hosts[0].routes[0]";
    let own = "this header belongs to the proxy and is not edited";
    let expected = [
        format!(
            "{at}.destinations[1].response_headers.add[0].name: \
             \"x meshfast\": a header name is a token (RFC 9110 5.6.2)"
        ),
        format!("{at}.retry.attempts: 101 is above 100"),
        format!("{at}.retry.backoff_ms: a back-off is above 0 ms"),
        format!("{at}.retry.on[2]: given twice"),
        format!("{at}.retry.statuses[1]: a status is 100 to 599"),
        format!("{at}.retry.statuses[2]: a status is 100 to 599"),
        format!("{at}.retry.statuses[3]: a status is 100 to 599"),
        format!("{at}.fault.delay.fixed_ms: a delay is above 0 ms"),
        format!("{at}.fault.delay.parts_per_million: 1000001 is above 1000000"),
        format!("{at}.fault.abort.parts_per_million: 1000001 is above 1000000"),
        format!("{at}.fault.abort.grpc_status: a gRPC status is 0 to 16"),
        format!("{at}.fault.abort.status: a status is 200 to 599"),
        format!("{at}.request_headers.set[1].name: set twice"),
        format!(
            "{at}.request_headers.set[1].value: \
             a field value has no control characters and no white space around it"
        ),
        format!("{at}.request_headers.add[0].name: \"Host\": {own}"),
        format!(
            "{at}.request_headers.add[0].value: \
             a field value has no control characters and no white space around it"
        ),
        format!("{at}.request_headers.remove[1]: \"content-length\": {own}"),
        format!("{at}.request_headers.remove[2]: \":path\": pseudo headers are not edited"),
        "listeners[1].tcp_routes[0].destinations[0].request_headers: only for protocol HTTP"
            .to_owned(),
    ];
    assert_eq!(problems(&document), expected);
}

#[test]
fn a_listener_stands_for_its_own_workload_or_for_the_proxys() {
    let mut document = example::document();
    document["listeners"][0]["workload"]["name"] = json!("other");
    let snapshot = example::snapshot(&document);
    assert_eq!(snapshot.workload_of(0).name, "other");
    assert_eq!(snapshot.workload_of(1).name, "edge");
    assert_eq!(snapshot.workload_of(usize::MAX).name, "edge");
}

#[test]
fn edits_without_an_edit_are_none() {
    let mut document = example::document();
    let route = "/listeners/0/virtual_hosts/0/routes/0/request_headers";
    *document.pointer_mut(route).unwrap() = json!({"set": [], "add": [], "remove": []});
    let snapshot = example::snapshot(&document);
    *document.pointer_mut(route).unwrap() = json!(null);
    assert_eq!(document_of(&snapshot), document);
}

#[test]
fn refuses_names_addresses_and_slots_given_twice() {
    let mut document = example::document();
    document["clusters"][1]["name"] = json!("a");
    document["listeners"] = json!([]);
    let endpoints = &mut document["clusters"][0]["endpoints"];
    let again = endpoints[0].clone();
    endpoints.as_array_mut().unwrap().push(again);
    assert_eq!(
        problems(&document),
        [
            "clusters[0].endpoints[1].slot: another endpoint has this slot",
            "clusters[0].endpoints[1].address: another endpoint has this address",
            "clusters[1].name: another cluster has this name",
        ]
    );
}

#[test]
fn keeps_routes_with_the_kind_of_listener_that_uses_them() {
    let mut document = example::document();
    let listeners = document["listeners"].as_array_mut().unwrap();
    let hosts = listeners[0]["virtual_hosts"].take();
    let routes = listeners[1]["tcp_routes"].take();
    listeners[0]["virtual_hosts"] = json!([]);
    listeners[0]["tcp_routes"] = routes;
    listeners[1]["virtual_hosts"] = hosts;
    listeners[1]["tcp_routes"] = json!([]);
    assert_eq!(
        problems(&document),
        [
            "listeners[0].tcp_routes: only for protocol TCP",
            "listeners[1].virtual_hosts: only for protocol HTTP",
        ]
    );
}

#[test]
fn refuses_weights_beyond_32_bits_and_a_host_without_domains() {
    let mut document = example::document();
    document["listeners"][0]["virtual_hosts"][0]["domains"] = json!([]);
    let endpoints = &mut document["clusters"][0]["endpoints"];
    let mut other = endpoints[0].clone();
    other["slot"] = json!(9);
    other["address"] = json!("unix:/run/app.sock");
    other["weight"] = json!(u32::MAX);
    endpoints.as_array_mut().unwrap().push(other);
    assert_eq!(
        problems(&document),
        [
            "clusters[0].endpoints: \
             the weights of a cluster's endpoints have a sum of at most 4294967295",
            "listeners[0].virtual_hosts[0].domains: a virtual host has at least one domain",
        ]
    );
    document["clusters"][0]["endpoints"][1]["weight"] = json!(u32::MAX - 1);
    document["listeners"][0]["virtual_hosts"][0]["domains"] = json!(["*"]);
    let snapshot = example::snapshot(&document);
    assert_eq!(document_of(&snapshot), document);
}

#[test]
fn an_unknown_cluster_is_one_problem_not_also_one_of_weights() {
    let mut document = example::document();
    document["listeners"][1]["tcp_routes"][0]["destinations"] = json!([
        {"cluster": "a", "weight": 0}, {"cluster": "nowhere", "weight": 1}]);
    assert_eq!(
        problems(&document),
        ["listeners[1].tcp_routes[0].destinations[1].cluster: no cluster is called \"nowhere\""]
    );
}

#[test]
fn refuses_an_endpoint_on_port_0() {
    let mut document = example::document();
    document["clusters"][0]["endpoints"][0]["address"] = json!("[::1]:0");
    let found = problems(&document);
    assert_eq!(
        found,
        ["clusters[0].endpoints[0].address: no one listens on port 0"]
    );
}

#[test]
fn an_endpoint_is_asked_for_its_own_port_or_else_for_the_services() {
    let mut document = example::document();
    let name = "outbound|8080||payment.default";
    document["listeners"] = json!([]);
    let mut target = |port: Value, name: &str| {
        document["clusters"][0]["name"] = json!(name);
        document["clusters"][0]["endpoints"][0]["port"] = port;
        let snapshot = example::snapshot(&document);
        let cluster = &snapshot.clusters[0];
        cluster.target_port(&cluster.endpoints[0])
    };
    assert_eq!(target(json!(9001), name), Some(9001));
    assert_eq!(target(json!(null), name), Some(8080));
    assert_eq!(target(json!(9001), "another"), Some(9001));
    assert_eq!(target(json!(null), "another"), None);
}

#[test]
fn a_cluster_may_have_no_endpoints() {
    let snapshot = example::cluster("LEAST_REQUEST", &[]);
    assert!(snapshot.clusters[0].endpoints.is_empty());
}

#[test]
fn writes_addresses_in_their_one_spelling() {
    let mut document = example::document();
    document["clusters"][0]["endpoints"][0]["address"] = json!("[0:0:0:0:0:0:0:1]:80");
    let written = document_of(&example::snapshot(&document));
    assert_eq!(
        written["clusters"][0]["endpoints"][0]["address"],
        json!("[::1]:80")
    );
}

#[test]
fn refuses_a_damaged_blob() {
    let mut blob = example::snapshot(&example::document()).encode();
    let last = blob.len() - 1;
    blob[last] ^= 1;
    assert_eq!(
        Snapshot::decode(&blob).unwrap_err(),
        Error::Blob(BlobError::Checksum)
    );
    assert_eq!(
        Snapshot::decode(&blob[..10]).unwrap_err().to_string(),
        "snapshot blob: shorter than its header"
    );
}

#[test]
fn the_next_snapshot_says_the_same_as_one_of_its_own() {
    let mut document = example::document();
    let first = example::snapshot(&document);
    document["generation"] = json!(2);
    let route = &mut document["listeners"][0]["virtual_hosts"][0]["routes"][0];
    route["matches"][0]["uri"] = json!({"regex": "/v[0-9]"});
    let blob = example::snapshot(&document).encode();
    let next = first.decode_next(&blob).unwrap();
    assert_eq!(document_of(&next), document);
    let mut request = Get::new("a.example.com", "/v1").with("x-user", "ann");
    let choose = |request: &Get| next.route(0, request, &mut Random::new(1)).unwrap().route;
    assert_eq!(choose(&request), "default/web/0");
    request.headers[0].1 = "bob";
    assert_eq!(choose(&request), "default/web/1");
    assert_eq!(
        first.decode_next(&blob[1..]).unwrap_err(),
        Error::Blob(BlobError::Magic)
    );
}

#[test]
fn a_whole_blob_with_an_invalid_document_is_refused_as_the_document_is() {
    let mut document =
        crate::document::Document::from_json(example::document().to_string().as_bytes()).unwrap();
    document.clusters.clear();
    let error = Snapshot::decode(&crate::blob::encode(&document)).unwrap_err();
    assert!(
        error.to_string().contains("no cluster is called \"a\""),
        "{error}"
    );
}
