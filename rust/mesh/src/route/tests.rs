//! Tests of the way from a request to a cluster.
#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};

use super::{Choice, NoRoute, RoutePlace};
use crate::example::{self, Get, tally};
use crate::random::Random;

/// A document with one listener whose virtual hosts are given.
fn with_hosts(virtual_hosts: Value) -> Value {
    let mut document = example::document();
    document["listeners"][0]["virtual_hosts"] = virtual_hosts;
    document
}

fn route(name: &str, matches: Value, cluster: &str) -> Value {
    json!({"name": name, "matches": matches, "timeout_ms": null,
           "destinations": [{"cluster": cluster, "weight": 1}]})
}

#[test]
fn takes_the_first_route_that_matches() {
    let any_of = json!([{"uri": {"prefix": "/api"}, "method": {"exact": "GET"}},
                        {"headers": [{"name": "x-user", "match": {"exact": "ann"}}]}]);
    let snapshot = example::snapshot(&with_hosts(json!([{
        "name": "web", "domains": ["*"],
        "routes": [route("api", any_of, "a"), route("rest", json!([]), "b"),
                   route("never", json!([]), "a")],
    }])));
    let chosen = |request: Get| {
        snapshot
            .route(0, &request, &mut Random::new(1))
            .unwrap()
            .route
    };
    assert_eq!(chosen(Get::new("h", "/api/1")), "api");
    assert_eq!(chosen(Get::new("h", "/").with("x-user", "ann")), "api");
    assert_eq!(
        chosen(Get {
            method: "POST",
            ..Get::new("h", "/api/1")
        }),
        "rest"
    );
    assert_eq!(chosen(Get::new("h", "/")), "rest");
}

#[test]
fn stays_in_the_virtual_host_of_the_domain() {
    let snapshot = example::snapshot(&with_hosts(json!([
        {"name": "any", "domains": ["*"], "routes": [route("any", json!([]), "a")]},
        {"name": "shop", "domains": ["shop.example.com"],
         "routes": [route("api", json!([{"uri": {"prefix": "/api"}}]), "b")]},
    ])));
    let mut random = Random::new(1);
    let found = snapshot.route(0, &Get::new("shop.example.com:8080", "/api"), &mut random);
    assert_eq!(
        found,
        Ok(Choice {
            route: "api",
            place: RoutePlace::Http {
                virtual_host: 1,
                route: 0,
                destination: 0,
            },
            timeout_ms: 0,
            cluster: 1,
            is_plain: true,
        })
    );
    let missed = snapshot.route(0, &Get::new("shop.example.com", "/"), &mut random);
    assert_eq!(missed, Err(NoRoute::NoMatch));
    assert_eq!(
        snapshot
            .route(0, &Get::new("x", "/"), &mut random)
            .unwrap()
            .route,
        "any"
    );
}

#[test]
fn a_service_is_called_by_its_own_ports_only() {
    let on = |port: &str| json!([{"authority": {"regex": format!(".*:{port}")}}]);
    let snapshot = example::snapshot(&with_hosts(json!([
        {"name": "any", "domains": ["*"], "routes": [route("any", json!([]), "a")]},
        {"name": "pay", "domains": ["pay"],
         "routes": [route("second", on("9000"), "b"), route("first", json!([]), "a")],
         "ports": [{"number": 8080, "cluster": "a"}, {"number": 9000, "cluster": "b"}]},
        {"name": "web", "domains": ["web"], "routes": [route("web", json!([]), "a")],
         "ports": [{"number": 8080, "cluster": "a"}, {"number": 80, "cluster": "b"}]},
        {"name": "api", "domains": ["api"], "routes": [route("api", json!([]), "a")],
         "ports": [{"number": 8080, "cluster": "a"}, {"number": 443, "cluster": "b"}],
         "external": true},
    ])));
    let written = serde_json::from_slice(&snapshot.to_document()).unwrap();
    assert_eq!(
        example::snapshot(&written).to_document(),
        snapshot.to_document()
    );
    let mut random = Random::new(1);
    for (authority, expected, cluster) in [
        ("pay", Ok("first"), Ok(0)),
        ("pay:", Ok("first"), Ok(0)),
        ("pay:80", Ok("first"), Ok(0)),
        ("PAY.:8080", Ok("first"), Ok(0)),
        ("pay:9000", Ok("second"), Ok(1)),
        ("pay:9", Err(NoRoute::NoPort), Err(NoRoute::NoPort)),
        ("pay:443", Err(NoRoute::NoPort), Err(NoRoute::NoPort)),
        ("pay:90000", Err(NoRoute::NoPort), Err(NoRoute::NoPort)),
        ("web", Ok("web"), Ok(1)),
        ("web:80", Ok("web"), Ok(1)),
        ("web:8080", Ok("web"), Ok(0)),
        ("api:8080", Ok("api"), Ok(0)),
        ("api:443", Ok("api"), Ok(1)),
        (
            "api",
            Err(NoRoute::NoVirtualHost),
            Err(NoRoute::NoVirtualHost),
        ),
        (
            "api:9",
            Err(NoRoute::NoVirtualHost),
            Err(NoRoute::NoVirtualHost),
        ),
        (
            "api:90000",
            Err(NoRoute::NoVirtualHost),
            Err(NoRoute::NoVirtualHost),
        ),
        ("other:9", Ok("any"), Err(NoRoute::NoVirtualHost)),
    ] {
        let choice = snapshot.route(0, &Get::new(authority, "/"), &mut random);
        assert_eq!(choice.map(|it| it.route), expected, "{authority}");
        let opaque = snapshot.route_opaque(0, authority.as_bytes());
        assert_eq!(opaque, cluster, "{authority}");
    }
    assert_eq!(snapshot.route_opaque(9, b"pay"), Err(NoRoute::NoListener));
}

#[test]
fn says_why_there_is_no_route() {
    let mut document = with_hosts(json!([
        {"name": "shop", "domains": ["shop"], "routes": []}]));
    document["listeners"][1]["tcp_routes"] = json!([]);
    let snapshot = example::snapshot(&document);
    let mut random = Random::new(1);
    let request = Get::new("shop", "/");
    assert_eq!(
        snapshot.route(0, &request, &mut random),
        Err(NoRoute::NoMatch)
    );
    assert_eq!(
        snapshot.route(0, &Get::new("other", "/"), &mut random),
        Err(NoRoute::NoVirtualHost)
    );
    assert_eq!(
        snapshot.route(2, &request, &mut random),
        Err(NoRoute::NoListener)
    );
    assert_eq!(
        snapshot.route(1, &request, &mut random),
        Err(NoRoute::NoVirtualHost)
    );
    assert_eq!(snapshot.route_tcp(1, &mut random), Err(NoRoute::NoMatch));
    assert_eq!(snapshot.route_tcp(0, &mut random), Err(NoRoute::NoMatch));
    assert_eq!(snapshot.route_tcp(2, &mut random), Err(NoRoute::NoListener));
}

#[test]
fn connections_take_the_first_tcp_route() {
    let snapshot = example::snapshot(&example::document());
    let choice = snapshot.route_tcp(1, &mut Random::new(1));
    assert_eq!(
        choice,
        Ok(Choice {
            route: "default/db/tcp/0",
            place: RoutePlace::Tcp(0),
            timeout_ms: 0,
            cluster: 1,
            is_plain: true,
        })
    );
}

#[test]
fn the_place_of_a_route_gives_its_name_back() {
    let snapshot = example::snapshot(&with_hosts(json!([
        {"name": "any", "domains": ["*"], "routes": [
            route("a", json!([{"uri": {"exact": "/a"}}]), "a"), route("rest", json!([]), "b")]},
        {"name": "shop", "domains": ["shop"], "routes": [route("shop", json!([]), "b")]},
    ])));
    let mut random = Random::new(1);
    for request in [
        Get::new("h", "/a"),
        Get::new("h", "/"),
        Get::new("shop", "/"),
    ] {
        let choice = snapshot.route(0, &request, &mut random).unwrap();
        assert_eq!(snapshot.route_name(0, choice.place), choice.route);
    }
    let document = example::document();
    let snapshot = example::snapshot(&document);
    let choice = snapshot.route_tcp(1, &mut random).unwrap();
    assert_eq!(snapshot.route_name(1, choice.place), choice.route);
}

#[test]
fn carries_the_timeout_of_the_route() {
    let snapshot = example::snapshot(&example::document());
    let request = Get::new("a.example.com", "/x").with("x-user", "ann");
    let choice = snapshot.route(0, &request, &mut Random::new(1)).unwrap();
    assert_eq!((choice.route, choice.timeout_ms), ("default/web/0", 1500));
}

#[test]
fn weight_zero_takes_nothing_wherever_it_stands() {
    let mut destinations = Vec::new();
    for (cluster, weight) in [("a", 0), ("b", 1), ("a", 0), ("b", 2), ("a", 0)] {
        destinations.push(json!({"cluster": cluster, "weight": weight}));
    }
    let mut document = example::document();
    document["listeners"][1]["tcp_routes"][0]["destinations"] = json!(destinations);
    let snapshot = example::snapshot(&document);
    let mut random = Random::new(1);
    let clusters = tally((0..1000).map(|_| snapshot.route_tcp(1, &mut random).unwrap().cluster));
    assert_eq!(clusters, [(1, 1000)].into());
}

#[test]
fn a_single_destination_draws_no_number() {
    let snapshot = example::snapshot(&example::document());
    let mut random = Random::new(1);
    snapshot.route_tcp(1, &mut random).unwrap();
    assert_eq!(random.next_u64(), Random::new(1).next_u64());
}

#[test]
fn the_largest_weights_do_not_overflow() {
    let mut document = example::document();
    document["listeners"][1]["tcp_routes"][0]["destinations"] = json!([
        {"cluster": "a", "weight": u32::MAX}, {"cluster": "b", "weight": u32::MAX}]);
    let snapshot = example::snapshot(&document);
    let mut random = Random::new(1);
    let clusters = tally((0..1000).map(|_| snapshot.route_tcp(1, &mut random).unwrap().cluster));
    // Five standard deviations of Binomial(1000, 1/2): 5 * sqrt(250) = 79.
    assert!(clusters[&0].abs_diff(500) < 79, "{clusters:?}");
}
