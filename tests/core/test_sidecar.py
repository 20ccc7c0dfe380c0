"""A sidecar's document from fragments: composition, and changes as transactions."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from meshfast.errors import ConfigError
from meshfast.policy import SlotAllocator
from meshfast.policy.document import decode_document, encode_document
from meshfast.policy.sidecar import (
    Applied,
    Change,
    Held,
    Refusal,
    Sidecar,
    Upstream,
    apply,
    compose,
)

A, B = "outbound|80||a.default", "outbound|81||b.default"
FACTS = Sidecar(
    service="payment",
    namespace="default",
    workload="payment-v1",
    principal="spiffe://cluster.local/ns/default/sa/payment",
    app_port=8080,
    inbound="inbound/0.0.0.0:15006",
    outbound="outbound/127.0.0.1:15001",
    labels={"version": "v1"},
)


def cluster(name: str, **changes: Any) -> bytes:
    host = name.rpartition("|")[2]
    fields = {
        "name": name,
        "service": {"host": host, "name": host.partition(".")[0], "namespace": "default"},
        "subset": "",
        "balancer": "LEAST_REQUEST",
        "connect_timeout_ms": 10_000,
        "idle_timeout_ms": 3_000,
        "endpoints": [],
        "tls": {"mode": "ISTIO_MUTUAL"},
    }
    return msgspec.json.encode({**fields, **changes})


def endpoints(*addresses: str, **changes: Any) -> bytes:
    workload = {"name": "w", "namespace": "default", "app": "a", "revision": "v1"}
    return msgspec.json.encode(
        [{"address": one, "weight": 1, "workload": workload, **changes} for one in addresses]
    )


def route(*clusters: str) -> bytes:
    return msgspec.json.encode(
        [
            {
                "name": name,
                "domains": [name.rpartition("|")[2]],
                "routes": [
                    {
                        "name": "r",
                        "matches": [],
                        "timeout_ms": None,
                        "destinations": [{"cluster": name, "weight": 1}],
                    }
                ],
            }
            for name in clusters
        ]
    )


def change(type: str, *removed: str, **bodies: bytes) -> Change:
    names = {"a": A, "b": B}
    return Change(
        type,
        {names.get(name, name): body for name, body in bodies.items()},
        frozenset(names.get(name, name) for name in removed),
    )


class Taker:
    """Applies changes one after the other, as the agent does."""

    def __init__(self, facts: Sidecar = FACTS) -> None:
        self.facts = facts
        self.held: Held = {}
        self.private: frozenset[tuple[str, str]] = frozenset()
        self.allocator = SlotAllocator()
        self.generation = 1
        self.complaint = ""  # what the snapshot compiler says about the next document

    def take(self, *changes: Change) -> Applied:
        self.generation += 1
        outcome = apply(
            self.facts,
            self.held,
            self.private,
            changes,
            generation=self.generation,
            allocator=self.allocator,
            build=self.build,
        )
        self.held, self.private = outcome.held, outcome.private
        return outcome

    def build(self, document: bytes) -> bytes:
        complaint, self.complaint = self.complaint, ""
        if complaint:
            raise ConfigError(complaint)
        return document


@pytest.fixture
def taker() -> Taker:
    taker = Taker()
    taker.take(
        change("cluster", a=cluster(A)),
        change("endpoint", a=endpoints("10.0.0.1:1")),
        change("route", outbound=route(A)),
    )
    return taker


def clusters(outcome: Applied) -> list[str]:
    return [one.name for one in outcome.document.clusters if not one.name.startswith("inbound")]


def hosts(outcome: Applied) -> list[str]:
    return [one.name for one in outcome.document.listeners[0].virtual_hosts]


# composing


def test_without_fragments_it_forwards_to_anywhere_and_serves_the_application() -> None:
    document = compose(FACTS, {}, generation=1, allocator=SlotAllocator())
    written = json.loads(encode_document(document))
    outbound, inbound = written["listeners"]
    assert (outbound["name"], outbound["forward_proxy"]) == ("outbound/127.0.0.1:15001", True)
    assert inbound["virtual_hosts"][0]["domains"] == ["*"]
    assert "tls" not in outbound
    assert inbound["tls"] == {"mode": "STRICT"}
    (served,) = written["clusters"]
    assert (served["name"], served["endpoints"][0]["address"]) == (
        "inbound|8080||",
        "127.0.0.1:8080",
    )
    assert "tls" not in served
    assert decode_document(encode_document(document)) == document


def test_the_first_document_builds_in_the_snapshot_compiler_but_for_tls() -> None:
    from meshfast import _core

    document = json.loads(
        encode_document(compose(FACTS, {}, generation=1, allocator=SlotAllocator()))
    )
    for listener in document["listeners"]:
        listener.pop("tls", None)
    assert _core.Snapshot.build(json.dumps(document).encode())


def test_the_inbound_cluster_is_named_by_the_port_that_callers_name() -> None:
    facts = msgspec.structs.replace(FACTS, service_port=80)
    (served,) = compose(facts, {}, generation=1, allocator=SlotAllocator()).clusters
    assert (served.name, served.endpoints[0].address) == ("inbound|80||", "127.0.0.1:8080")


def test_the_credential_is_asked_for_at_the_outbound_listener_only() -> None:
    facts = msgspec.structs.replace(FACTS, credential_sha256="ab")
    document = compose(facts, {}, generation=1, allocator=SlotAllocator())
    given = [
        one.get("credential_sha256") for one in json.loads(encode_document(document))["listeners"]
    ]
    assert given == ["ab", None]


@pytest.mark.parametrize(
    ("upstream", "expected"),
    [
        (Upstream(service="a", listener="outbound/127.0.0.1:5"), A),
        (Upstream(service="a.default", listener="outbound/127.0.0.1:5", port=80), A),
        (Upstream(service="a.default.svc.cluster.local", listener="outbound/127.0.0.1:5"), A),
        (
            Upstream(service="a", listener="outbound/127.0.0.1:5", port=99),
            "outbound|99||a.default",
        ),
        (Upstream(service="nobody", listener="outbound/127.0.0.1:5"), "outbound|0||nobody.default"),
    ],
)
def test_an_upstream_goes_to_its_service_or_to_a_cluster_without_endpoints(
    upstream: Upstream, expected: str
) -> None:
    taker = Taker(msgspec.structs.replace(FACTS, upstreams=(upstream,)))
    outcome = taker.take(
        change("cluster", a=cluster(A)), change("endpoint", a=endpoints("10.0.0.1:1"))
    )
    listener = outcome.document.listeners[2]
    assert listener.tcp_routes[0].destinations[0].cluster == expected
    found = {one.name: len(one.endpoints) for one in outcome.document.clusters}
    assert found[expected] == (1 if expected == A else 0)


# transactions


def test_what_is_right_is_taken(taker: Taker) -> None:
    outcome = taker.take(change("cluster", b=cluster(B)), change("route", outbound=route(A, B)))
    assert (clusters(outcome), hosts(outcome), outcome.refusals) == ([A, B], [A, B], ())


@pytest.mark.parametrize(
    ("type", "body"),
    [
        ("cluster", b"{"),
        ("cluster", b"[]"),
        ("cluster", cluster(A, colour="red")),
        ("cluster", cluster(A, balancer="BEST")),
        ("cluster", cluster(B)),
        ("endpoint", endpoints("10.0.0.1:1", colour="red")),
    ],
)
def test_a_fragment_that_is_none_keeps_the_one_before(taker: Taker, type: str, body: bytes) -> None:
    before = taker.held[type][A]
    outcome = taker.take(change(type, a=body), change("cluster", b=cluster(B)))
    assert [(one.type, one.name) for one in outcome.refusals] == [(type, A)]
    assert taker.held[type][A] == before
    assert B in clusters(outcome)


def test_a_type_of_another_version_is_refused(taker: Taker) -> None:
    outcome = taker.take(Change("secret", {"x": b"{}"}, frozenset({"y"})))
    assert outcome.refusals == (Refusal("secret", "x", "unknown type"),)


def test_a_route_to_a_missing_cluster_waits_for_it(taker: Taker) -> None:
    outcome = taker.take(change("route", outbound=route(A, B)))
    (refusal,) = outcome.refusals
    assert (refusal.type, refusal.name, refusal.waits_for) == ("route", "outbound", B)
    assert hosts(outcome) == [A]


def test_a_service_whose_port_has_no_cluster_waits_for_it(taker: Taker) -> None:
    (host,) = msgspec.json.decode(route(A))
    ports = [{"number": 8080, "cluster": A}, {"number": 9090, "cluster": B}]
    outcome = taker.take(change("route", outbound=msgspec.json.encode([{**host, "ports": ports}])))
    (refusal,) = outcome.refusals
    assert (refusal.type, refusal.name, refusal.waits_for) == ("route", "outbound", B)


def test_a_refused_cluster_refuses_the_route_that_names_it(taker: Taker) -> None:
    outcome = taker.take(change("cluster", b=b"{}"), change("route", outbound=route(B)))
    assert [(one.type, one.name) for one in outcome.refusals] == [
        ("cluster", B),
        ("route", "outbound"),
    ]
    assert hosts(outcome) == [A]


def test_what_a_kept_route_needs_stays_privately_with_its_endpoints(taker: Taker) -> None:
    taker.take(change("route", outbound=b"{}"))
    outcome = taker.take(change("cluster", "a"), change("endpoint", "a"))
    assert clusters(outcome) == [A]
    assert outcome.private == {("cluster", A), ("endpoint", A)}
    assert len(outcome.document.clusters[-1].endpoints) == 1
    outcome = taker.take(change("route", outbound=route()))
    assert (clusters(outcome), outcome.private) == ([], frozenset())


def test_an_endpoint_keeps_the_port_of_its_workload(taker: Taker) -> None:
    outcome = taker.take(change("endpoint", a=endpoints("10.0.0.1:1", port=9001)))
    [endpoint] = outcome.document.clusters[-1].endpoints
    assert endpoint.port == 9001
    outcome = taker.take(change("endpoint", a=endpoints("10.0.0.1:1")))
    [endpoint] = outcome.document.clusters[-1].endpoints
    assert endpoint.port is msgspec.UNSET


def test_a_private_cluster_that_is_given_again_is_private_no_more(taker: Taker) -> None:
    taker.take(change("cluster", "a"))
    assert taker.private == {("cluster", A)}
    outcome = taker.take(change("cluster", a=cluster(A, idle_timeout_ms=1)))
    assert outcome.private == frozenset()
    assert outcome.document.clusters[-1].idle_timeout_ms == 1


@pytest.mark.parametrize(
    ("path", "type", "name"),
    [
        ("listeners[0].virtual_hosts[0].routes[0].matches[0]: no RE2", "route", "outbound"),
        ("listeners[0]: wrong", "listener", "outbound"),
        ("clusters[1].endpoints[0].address: wrong", "endpoint", A),
        ("clusters[1].connect_timeout_ms: wrong", "cluster", A),
    ],
)
def test_what_the_compiler_refuses_is_blamed_on_its_fragment(
    taker: Taker, path: str, type: str, name: str
) -> None:
    listener = {"name": "outbound", "direction": "outbound", "protocol": "HTTP"}
    taker.complaint = path
    outcome = taker.take(
        change("cluster", a=cluster(A, idle_timeout_ms=1)),
        change("endpoint", a=endpoints("10.0.0.9:1")),
        change("listener", outbound=msgspec.json.encode({**listener, "forward_proxy": True})),
        change("route", outbound=route(A)),
    )
    assert [(one.type, one.name, one.reason) for one in outcome.refusals] == [(type, name, path)]


def test_a_complaint_about_nobody_refuses_all_that_is_new(taker: Taker) -> None:
    taker.complaint = "something else"
    outcome = taker.take(
        change("cluster", b=cluster(B)), change("endpoint", b=endpoints("1.1.1.1:1"))
    )
    assert {(one.type, one.name) for one in outcome.refusals} == {("cluster", B), ("endpoint", B)}
    assert clusters(outcome) == [A]


def test_a_complaint_about_what_is_held_is_raised(taker: Taker) -> None:
    taker.complaint = "listeners[1]: our own"
    with pytest.raises(ConfigError, match="our own"):
        taker.take()


def test_more_endpoints_than_slots_are_refused_and_the_rest_goes_on(taker: Taker) -> None:
    many = endpoints(*(f"10.{n >> 8}.{n & 255}.1:1" for n in range(5000)))
    outcome = taker.take(change("endpoint", a=many))
    (refusal,) = outcome.refusals
    assert "do not fit into" in refusal.reason
    assert len(outcome.document.clusters[-1].endpoints) == 1


def test_who_has_very_many_endpoints_keeps_nobody_else_out(taker: Taker) -> None:
    many = endpoints(*(f"10.{n >> 8}.{n & 255}.1:1" for n in range(4096)))
    outcome = taker.take(
        change("cluster", b=cluster(B)),
        change("endpoint", a=many, b=endpoints("1.1.1.1:1", "1.1.1.2:1")),
        change("route", "outbound"),
    )
    assert [(one.type, one.name) for one in outcome.refusals] == [("endpoint", A)]
    found = {one.name: len(one.endpoints) for one in outcome.document.clusters}
    assert (found[A], found[B]) == (1, 2)


def test_a_first_offer_beyond_the_slots_keeps_the_application_and_what_fits() -> None:
    fresh = Taker()
    many = endpoints(*(f"10.{n >> 8}.{n & 255}.1:1" for n in range(4096)))
    outcome = fresh.take(
        change("cluster", a=cluster(A), b=cluster(B)),
        change("endpoint", a=many, b=endpoints("1.1.1.1:1")),
    )
    assert [(one.type, one.name) for one in outcome.refusals] == [("endpoint", A)]
    assert {one.name: len(one.endpoints) for one in outcome.document.clusters} == {
        "inbound|8080||": 1,
        A: 0,
        B: 1,
    }


def test_what_was_held_is_left_alone(taker: Taker) -> None:
    held, before = taker.held, msgspec.json.encode(taker.held)
    taker.take(change("cluster", b=cluster(B)), change("route", "outbound"))
    assert msgspec.json.encode(held) == before
