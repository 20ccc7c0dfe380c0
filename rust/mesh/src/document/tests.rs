//! Tests of the shape of the document: what is taken, what is refused and at which path.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::Document;
use crate::error::Error;
use crate::example;

fn problems(document: &Value) -> Vec<String> {
    match Document::from_json(document.to_string().as_bytes()) {
        Err(Error::Document(problems)) => problems.iter().map(ToString::to_string).collect(),
        other => panic!("expected problems, got {other:?}"),
    }
}

#[test]
fn writes_what_it_read() {
    let document = example::document();
    let read = Document::from_json(document.to_string().as_bytes()).unwrap();
    let written: Value = serde_json::from_slice(&read.to_json()).unwrap();
    assert_eq!(written, document);
}

#[test]
fn writes_members_in_the_order_of_the_contract() {
    let document = example::document();
    let read = Document::from_json(document.to_string().as_bytes()).unwrap();
    let written = String::from_utf8(read.to_json()).unwrap();
    let expected = "{\"version\":1,\"generation\":1,\"workload\":{\"name\":\"edge\",\
                    \"namespace\":\"default\",\"app\":\"edge\",\"revision\":\"latest\",";
    assert!(written.starts_with(expected), "{written}");
    assert!(
        written.contains("{\"name\":\"x-user\",\"match\":{\"regex\":\"a.*\"},\"invert\":false}")
    );
}

#[test]
fn fills_in_the_defaults_of_the_contract() {
    let mut short = example::document();
    let mut full = short.clone();
    for (path, name) in [
        ("", "tracing"),
        ("/listeners/0", "forward_proxy"),
        ("/listeners/0", "tcp_routes"),
        ("/listeners/1", "virtual_hosts"),
        ("/listeners/0/virtual_hosts/0/routes/1", "matches"),
        ("/listeners/0/virtual_hosts/0/routes/1", "timeout_ms"),
        ("/listeners/0/virtual_hosts/0/routes/0/matches/0", "scheme"),
        (
            "/listeners/0/virtual_hosts/0/routes/0/matches/0",
            "ignore_uri_case",
        ),
        (
            "/listeners/0/virtual_hosts/0/routes/0/matches/0/headers/0",
            "invert",
        ),
        ("/clusters/0/endpoints/0/workload", "principal"),
        ("/listeners/1", "workload"),
        ("/listeners/0/virtual_hosts/0/routes/0", "fault"),
        ("/listeners/0/virtual_hosts/0/routes/0", "response_headers"),
        ("/listeners/0/virtual_hosts/0/routes/1", "retry"),
        ("/listeners/0/virtual_hosts/0/routes/1", "request_headers"),
        (
            "/listeners/0/virtual_hosts/0/routes/1/destinations/0",
            "request_headers",
        ),
        (
            "/listeners/0/virtual_hosts/0/routes/1/destinations/0",
            "response_headers",
        ),
    ] {
        short
            .pointer_mut(path)
            .unwrap()
            .as_object_mut()
            .unwrap()
            .remove(name)
            .unwrap();
    }
    let read = |json: &Value| Document::from_json(json.to_string().as_bytes()).unwrap();
    full["listeners"][0]["virtual_hosts"][0]["ports"] = json!([]);
    short["listeners"][0]["virtual_hosts"][0]
        .as_object_mut()
        .unwrap()
        .remove("ports");
    assert_eq!(read(&short), read(&full));
    full["listeners"][0]["forward_proxy"] = json!(true);
    assert_ne!(read(&short), read(&full));
}

#[test]
fn reports_every_problem_with_its_path() {
    let mut document = example::document();
    document["surprise"] = json!(1);
    document["generation"] = json!(-1);
    document["workload"].as_object_mut().unwrap().remove("app");
    document["listeners"][0]["direction"] = json!("sideways");
    document["listeners"][1]["tcp_routes"][0]["destinations"][0]["weight"] = json!("1");
    document["clusters"][0]["endpoints"][0]["weight"] = json!(4_294_967_296u64);
    document["clusters"][1]["endpoints"] = json!(null);
    let route = &mut document["listeners"][0]["virtual_hosts"][0]["routes"][0];
    route["matches"][0]["headers"][0]["match"] = json!({"exact": "a", "prefix": "b"});
    route["matches"][0]["uri"] = json!({"suffix": "/x"});
    route["timeout_ms"] = json!(1.5);
    route["retry"]["on"] = json!(["5xx", "504"]);
    route["retry"]["pertry_timeout_ms"] = json!(1);
    route["fault"] = json!({"abort": {"status": 503}, "delays": null});
    route["request_headers"] = json!({"set": [{"name": "a"}], "delete": []});
    let at = "listeners[0].virtual_hosts[0].routes[0]";
    assert_eq!(
        problems(&document),
        [
            "generation: expected a whole number, found a number outside 0..2^64".to_owned(),
            "workload.app: missing".to_owned(),
            "listeners[0].direction: \"sideways\" is not one of gateway, inbound, outbound".into(),
            format!("{at}.matches[0].uri: expected exactly one of exact, prefix, present, regex"),
            format!("{at}.matches[0].uri.suffix: unknown member"),
            format!(
                "{at}.matches[0].headers[0].match: \
                 expected exactly one of exact, prefix, present, regex"
            ),
            format!("{at}.timeout_ms: expected a whole number, found a number outside 0..2^64"),
            format!(
                "{at}.retry.on[1]: \"504\" is not one of 5xx, cancelled, connect-failure, \
                 deadline-exceeded, gateway-error, internal, refused-stream, reset, \
                 reset-before-request, resource-exhausted, retriable-4xx, unavailable"
            ),
            format!("{at}.retry.pertry_timeout_ms: unknown member"),
            format!("{at}.fault.abort.parts_per_million: missing"),
            format!("{at}.fault.delays: unknown member"),
            format!("{at}.request_headers.set[0].value: missing"),
            format!("{at}.request_headers.delete: unknown member"),
            "listeners[1].tcp_routes[0].destinations[0].weight: \
             expected a whole number, found a string"
                .to_owned(),
            "clusters[0].endpoints[0].weight: 4294967296 is above 4294967295".to_owned(),
            "clusters[1].endpoints: expected a list, found null".to_owned(),
            "surprise: unknown member".to_owned(),
        ]
    );
}

#[test]
fn refuses_a_member_given_twice() {
    let document = example::document().to_string();
    let twice = document.replacen("\"generation\":1", "\"generation\":1,\"generation\":2", 1);
    let Err(Error::Document(problems)) = Document::from_json(twice.as_bytes()) else {
        panic!("expected a problem");
    };
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].to_string(), "generation: given twice");
}

#[test]
fn refuses_present_false() {
    let mut document = example::document();
    document["listeners"][0]["virtual_hosts"][0]["routes"][0]["matches"][0]["uri"] =
        json!({"present": false});
    assert_eq!(
        problems(&document),
        [
            "listeners[0].virtual_hosts[0].routes[0].matches[0].uri.present: \
          only true; absence is an inverted match"
        ]
    );
}

#[test]
fn says_where_json_ends_being_json() {
    let error = Document::from_json(b"{\"version\":\n 1,]").unwrap_err();
    let Error::Json {
        line: 2,
        column: 4,
        text,
    } = &error
    else {
        panic!("{error:?}");
    };
    assert_eq!(error.to_string(), format!("2:4: {text}"));
    assert!(!text.contains("line"), "{text}");
}

#[test]
fn refuses_what_is_no_object_and_what_is_too_deep() {
    assert_eq!(
        problems(&json!([])),
        ["document: expected an object, found a list"]
    );
    let deep = "[".repeat(100_000);
    assert!(matches!(
        Document::from_json(deep.as_bytes()),
        Err(Error::Json { .. })
    ));
}
