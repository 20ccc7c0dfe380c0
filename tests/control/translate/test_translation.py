"""What a sidecar is sent: every service by all its names, with rules, the same bytes every time."""

import json
from typing import Any

import pytest
from msgspec import UNSET
from msgspec.structs import replace

from meshfast import _core
from meshfast.control.translate import Translation
from meshfast.discovery import TYPES, Port
from meshfast.policy import SlotAllocator
from meshfast.policy.document import encode_document
from meshfast.policy.sidecar import Sidecar, compose
from tests.control.translate.made import (
    clusters,
    endpoint,
    entry,
    resources,
    routes,
    rule,
    to,
    translated,
    versions,
    workload,
)

PAYMENT = "outbound|8080||payment.default"


def test_an_empty_mesh_is_a_listener_without_hosts() -> None:
    view = translated()
    assert list(view) == list(TYPES)
    assert view["cluster"] == view["endpoint"] == {}
    assert view["route"] == {"outbound": []}
    listener = view["listener"]["outbound"]
    assert (listener["direction"], listener["forward_proxy"]) == ("outbound", True)


def test_a_service_is_a_cluster_with_mutual_tls_and_its_endpoints_apart() -> None:
    view = translated("", workload(at=1, healthy=True))
    cluster = view["cluster"][PAYMENT]
    assert cluster["tls"] == {"mode": "ISTIO_MUTUAL"}
    assert cluster["endpoints"] == []
    assert cluster["service"] == {
        "host": "payment.default",
        "name": "payment",
        "namespace": "default",
    }
    assert [one["address"] for one in view["endpoint"][PAYMENT]] == ["10.0.0.1:15006"]
    assert "slot" not in view["endpoint"][PAYMENT][0]


def test_a_service_has_its_host_before_any_of_its_workloads_is_healthy() -> None:
    view = translated("", workload(at=1, healthy=False))
    assert clusters(routes(view, "payment")[0]) == [PAYMENT]
    assert PAYMENT in view["cluster"]
    assert [one["healthy"] for one in view["endpoint"][PAYMENT]] == [False]


@pytest.mark.parametrize(
    ("namespace", "short"), [("default", ["payment"]), ("shop", [])], ids=["own", "other"]
)
def test_a_service_has_its_short_name_in_its_own_namespace(
    namespace: str, short: list[str]
) -> None:
    [host] = translated("", workload(at=1), namespace=namespace)["route"]["outbound"]
    assert host["domains"] == [
        *short,
        "payment.default",
        "payment.default.svc",
        "payment.default.svc.cluster.local",
    ]
    [route] = host["routes"]
    assert (route["matches"], clusters(route)) == ([], [PAYMENT])


def test_two_services_of_one_name_are_told_apart_by_namespace() -> None:
    view = translated("", workload(at=1), workload(namespace="shop", at=2), namespace="shop")
    assert clusters(routes(view, "payment")[0]) == ["outbound|8080||payment.shop"]
    assert clusters(routes(view, "payment.default")[0]) == [PAYMENT]


def test_a_service_with_several_ports_is_routed_by_the_port_in_the_authority() -> None:
    view = translated("", workload("payment", Port(8080, "http"), Port(9090, "admin")))
    admin, first = routes(view, "payment")
    assert admin["matches"][0]["authority"] == {"regex": ".*:9090"}
    assert clusters(admin) == ["outbound|9090||payment.default"]
    assert (first["matches"], clusters(first)) == ([], [PAYMENT])


def test_a_service_is_called_by_the_ports_that_its_workloads_gave_it_and_no_other() -> None:
    rules = rule(f"[{{route: [{to('payment')}]}}]", hosts="shop.example.com")
    view = translated(
        rules,
        workload("payment", Port(8080, "http"), Port(9090, "admin"), at=1),
        workload("payment", Port(8081, "http"), Port(9091, "admin"), at=2),
    )
    ports = {one["name"]: one["ports"] for one in view["route"]["outbound"]}
    admin = "outbound|9090||payment.default"
    assert ports["default/payment"] == [
        {"number": 8080, "cluster": PAYMENT},
        {"number": 8081, "cluster": PAYMENT},
        {"number": 9090, "cluster": admin},
        {"number": 9091, "cluster": admin},
    ]
    assert ports["default/rule"] == [], "no service of the mesh: any port will do"
    on_admin, first = routes(view, "payment")
    assert on_admin["matches"][0]["authority"] == {"regex": ".*:(9090|9091)"}
    assert clusters(first) == [PAYMENT]


def test_an_entry_has_its_ports_and_is_passed_through_by_all_others() -> None:
    ports = "[{number: 80, name: web, protocol: HTTP}, {number: 443, name: tls, protocol: TCP}]"
    view = translated(entry("api.example.com", ports=ports))
    [host] = view["route"]["outbound"]
    assert host["external"] is True
    assert host["ports"] == [
        {"number": 80, "cluster": "outbound|80||api.example.com"},
        {"number": 443, "cluster": "outbound|443||api.example.com"},
    ]


def test_a_rule_replaces_the_default_route() -> None:
    text = rule(f"[{{match: [{{uri: {{prefix: /a}}}}], timeout: 2s, route: [{to('payment')}]}}]")
    view = translated(text, workload(at=1))
    [route] = routes(view, "payment")
    assert route["matches"][0]["uri"] == {"prefix": "/a"}
    assert (route["timeout_ms"], clusters(route)) == (2000, [PAYMENT])


def test_weights_are_kept_and_hosts_resolve_in_the_namespace_of_the_rule() -> None:
    text = rule(f"[{{route: [{to('payment', 0, 90)}, {to('payment.shop', 0, 10)}]}}]")
    view = translated(text, workload(at=1), workload(namespace="shop", at=2))
    [route] = routes(view, "payment")
    assert route["destinations"] == [
        {"cluster": PAYMENT, "weight": 90},
        {"cluster": "outbound|8080||payment.shop", "weight": 10},
    ]


def test_a_destination_that_nobody_serves_has_a_cluster_without_endpoints() -> None:
    text = rule(f"[{{route: [{to('payment', 0, 90)}, {to('nobody', 7000, 10)}]}}]")
    view = translated(text, workload(at=1))
    missing = "outbound|7000||nobody.default"
    assert clusters(routes(view, "payment")[0]) == [PAYMENT, missing]
    assert view["endpoint"][missing] == []
    assert missing in view["cluster"]
    assert not [one for one in view["route"]["outbound"] if "nobody" in one["domains"]]


def test_a_port_that_no_workload_has_keeps_its_share_and_serves_nobody() -> None:
    text = rule(f"[{{route: [{to('payment', 9, 50)}, {to('payment', 8080, 50)}]}}]")
    view = translated(text, workload(at=1))
    wrong = "outbound|9||payment.default"
    assert clusters(routes(view, "payment")[0]) == [wrong, PAYMENT]
    assert view["endpoint"][wrong] == []
    assert len(view["endpoint"][PAYMENT]) == 1


def test_a_rule_for_a_host_that_nobody_serves_is_served() -> None:
    text = rule(f"[{{route: [{to('payment')}]}}]", hosts="shop.example.com")
    view = translated(text, workload(at=1))
    assert clusters(routes(view, "shop.example.com")[0]) == [PAYMENT]
    assert clusters(routes(view, "payment")[0]) == [PAYMENT]


def test_without_a_port_the_called_port_of_a_service_is_meant() -> None:
    text = rule(f"[{{route: [{to('payment')}]}}]")
    view = translated(text, workload("payment", Port(8080, "http"), Port(9090, "admin")))
    admin, first = routes(view, "payment")
    assert admin["matches"][0]["authority"] == {"regex": ".*:9090"}
    assert clusters(admin) == ["outbound|9090||payment.default"]
    assert clusters(first) == [PAYMENT]


def test_a_condition_on_a_port_holds_on_that_port_only() -> None:
    text = rule(f"[{{match: [{{port: 9090}}], route: [{to('payment', 9090)}]}}]")
    view = translated(text, workload("payment", Port(8080, "http"), Port(9090, "admin")))
    [admin] = routes(view, "payment")
    assert admin["matches"][0]["authority"] == {"regex": ".*:9090"}


def test_a_condition_on_the_authority_is_taken_as_written() -> None:
    text = rule(
        f"[{{match: [{{authority: {{exact: 'payment:9090'}}}}], route: [{to('payment')}]}}]"
    )
    view = translated(text, workload("payment", Port(8080, "http"), Port(9090, "admin")))
    found = {one["matches"][0]["authority"]["exact"] for one in routes(view, "payment")}
    assert found == {"payment:9090"}


def canary(v1: int = 90, v2: int = 10) -> str:
    return versions("v1", "v2") + rule(
        f"[{{route: [{to('payment', 0, v1, 'v1')}, {to('payment', 0, v2, 'v2')}]}}]"
    )


def addresses(view: dict[str, Any], cluster: str) -> list[str]:
    return [one["address"].partition(":")[0] for one in view["endpoint"][cluster]]


def test_a_subset_that_a_rule_names_is_a_cluster_of_the_workloads_with_its_labels() -> None:
    workloads = [
        workload(at=1, labels={"version": "v1"}),
        workload("payment", Port(8081), at=2, labels={"version": "v2", "zone": "a"}),
        workload(at=3),
    ]
    view = translated(canary(), *workloads)
    [route] = routes(view, "payment")
    assert [(one["cluster"], one["weight"]) for one in route["destinations"]] == [
        ("outbound|8080|v1|payment.default", 90),
        ("outbound|8080|v2|payment.default", 10),
    ]
    assert addresses(view, "outbound|8080|v1|payment.default") == ["10.0.0.1"]
    assert addresses(view, "outbound|8080|v2|payment.default") == ["10.0.0.2"]
    assert addresses(view, PAYMENT) == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]
    cluster = view["cluster"]["outbound|8080|v2|payment.default"]
    assert (cluster["subset"], cluster["tls"]) == ("v2", {"mode": "ISTIO_MUTUAL"})


def test_a_subset_that_no_rule_names_takes_no_slots() -> None:
    view = translated(versions("v1", "v2"), workload(at=1, labels={"version": "v1"}))
    assert list(view["cluster"]) == [PAYMENT]


def test_the_label_app_is_the_service_unless_a_workload_says_otherwise() -> None:
    text = canary().replace("{version: v1}", "{app: payment}").replace("version: v2", "app: other")
    view = translated(text, workload(at=1), workload(at=2, labels={"app": "other"}))
    assert addresses(view, "outbound|8080|v1|payment.default") == ["10.0.0.1"]
    assert addresses(view, "outbound|8080|v2|payment.default") == ["10.0.0.2"]


def test_a_rule_of_the_destination_chooses_how_endpoints_are_chosen() -> None:
    policy = "trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}"
    text = canary().replace("]}\n", f"], {policy}}}\n", 1)
    text = text.replace(
        "{version: v2}", f"{{version: v2}}, {policy.replace('ROUND_ROBIN', 'RANDOM')}"
    )
    view = translated(text, workload(at=1))
    assert {name: one["balancer"] for name, one in view["cluster"].items()} == {
        PAYMENT: "ROUND_ROBIN",
        "outbound|8080|v1|payment.default": "ROUND_ROBIN",
        "outbound|8080|v2|payment.default": "RANDOM",
    }


def test_subsets_of_what_nobody_serves_have_clusters_without_endpoints() -> None:
    view = translated(canary())
    assert sorted(view["cluster"]) == [
        "outbound|80|v1|payment.default",
        "outbound|80|v2|payment.default",
        "outbound|80||payment.default",
    ]
    assert all(endpoints == [] for endpoints in view["endpoint"].values())


def test_workload_entries_are_endpoints_of_the_service_entry_that_selects_them() -> None:
    text = (
        entry(rest="resolution: STATIC, workloadSelector: {labels: {app: api}}")
        + endpoint("one", address="10.8.0.1")
        + endpoint("two", address="10.8.0.2", version="v2")
        + endpoint("three", address="10.8.0.3", app="other")
        + versions("v2", host="api.example.com")
        + rule(f"[{{route: [{to('api.example.com', subset='v2')}]}}]", hosts="api.example.com")
    )
    view = translated(text)
    assert addresses(view, "outbound|80||api.example.com") == ["10.8.0.1", "10.8.0.2"]
    assert addresses(view, "outbound|80|v2|api.example.com") == ["10.8.0.2"]
    assert "tls" not in view["cluster"]["outbound|80|v2|api.example.com"]


def test_retries_faults_and_headers_go_with_the_routes_of_every_port() -> None:
    text = rule(
        "[{retries: {attempts: 1, retryOn: reset}, headers: {request: {set: {x-a: b}}}, "
        f"route: [{to('payment')}]}}]"
    )
    found = routes(
        translated(text, workload("payment", Port(1, "a"), Port(2, "b"), at=1)), "payment"
    )
    assert len(found) == 2
    for route in found:
        assert route["retry"]["on"] == ["reset"]
        assert route["request_headers"]["set"] == [{"name": "x-a", "value": "b"}]


def test_rules_for_gateways_are_none_of_a_sidecar_s() -> None:
    text = rule(f"[{{route: [{to('nobody')}]}}]").replace("{hosts:", "{gateways: [edge], hosts:")
    assert clusters(routes(translated(text, workload(at=1)), "payment")[0]) == [PAYMENT]
    both = text.replace("[edge]", "[edge, mesh]")
    assert clusters(routes(translated(both, workload(at=1)), "payment")[0]) != [PAYMENT]


def test_the_first_rule_by_name_has_a_host() -> None:
    text = rule(f"[{{route: [{to('b')}]}}]", name="b") + rule(f"[{{route: [{to('a')}]}}]", name="a")
    assert clusters(routes(translated(text), "payment")[0]) == ["outbound|80||a.default"]


def test_an_external_service_is_called_without_tls() -> None:
    view = translated(entry())
    name = "outbound|80||api.example.com"
    assert view["cluster"][name].get("tls") is None
    assert [one["address"] for one in view["endpoint"][name]] == ["10.9.9.9:80"]
    assert clusters(routes(view, "api.example.com")[0]) == [name]


def test_names_of_external_services_are_resolved_by_who_translates() -> None:
    text = entry(rest="resolution: DNS")
    name = "outbound|80||api.example.com"
    found = translated(text, api_example_com=["192.0.2.7", "192.0.2.8"])["endpoint"][name]
    assert [one["address"] for one in found] == ["192.0.2.7:80", "192.0.2.8:80"]
    assert translated(text)["endpoint"][name] == []


def test_a_registered_service_has_its_host_before_a_service_entry() -> None:
    text = entry("payment", ports="[{number: 8080, name: http, protocol: HTTP}]")
    view = translated(text, workload(at=1))
    assert view["cluster"][PAYMENT]["tls"] == {"mode": "ISTIO_MUTUAL"}
    assert [one["address"] for one in view["endpoint"][PAYMENT]] == ["10.0.0.1:15006"]


def test_wildcards_are_domains_as_they_are() -> None:
    text = rule(f"[{{route: [{to('payment')}]}}]", hosts="'*.example.com'")
    assert clusters(routes(translated(text, workload(at=1)), "*.example.com")[0]) == [PAYMENT]


MANY = [workload(f"s{at % 5}", Port(8080, "http"), Port(9090, "admin"), at=at) for at in range(20)]
RULES = rule(f"[{{match: [{{uri: {{regex: '/a.*'}}}}], route: [{to('s1')}]}}]", hosts="s0")


@pytest.mark.parametrize("namespace", ["default", "shop"])
def test_what_is_sent_builds_into_a_snapshot(namespace: str) -> None:
    translation = Translation(resources(RULES + entry()), MANY, lambda host: [])
    sidecar = Sidecar(
        service="order",
        namespace=namespace,
        workload="order-1",
        principal=f"spiffe://cluster.local/ns/{namespace}/sa/order",
        app_port=8080,
        inbound="inbound/127.0.0.1:15006",
        outbound="outbound/127.0.0.1:15001",
    )
    document = compose(
        sidecar, translation.bodies(namespace), generation=1, allocator=SlotAllocator()
    )
    assert sum(len(cluster.endpoints) for cluster in document.clusters) == 42
    # Domains, routes and references are judged here; who verifies whom is not.
    plain = replace(
        document,
        listeners=tuple(replace(one, tls=UNSET) for one in document.listeners),
        clusters=tuple(replace(one, tls=UNSET) for one in document.clusters),
    )
    assert _core.Snapshot.build(encode_document(plain))


def test_the_same_state_gives_the_same_bytes_in_any_order_of_resources() -> None:
    text = RULES + entry() + rule(f"[{{route: [{to('s2')}]}}]", name="other", hosts="s3")
    loaded = resources(text)
    first = Translation(loaded, MANY, lambda host: []).bodies("default")
    second = Translation(loaded[::-1], MANY, lambda host: []).bodies("default")
    assert first == second


def test_a_namespace_is_encoded_once_and_shares_the_rest() -> None:
    translation = Translation([], MANY, lambda host: [])
    default, shop = translation.bodies("default"), translation.bodies("shop")
    assert translation.bodies("default") is default
    assert default["cluster"] is shop["cluster"]
    assert default["endpoint"] is shop["endpoint"]
    assert json.loads(default["route"]["outbound"]) != json.loads(shop["route"]["outbound"])
