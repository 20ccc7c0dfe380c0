"""meshfast.policy.names: hosts, services, clusters and addresses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshfast.policy import names
from meshfast.policy.document import Service, Workload


@pytest.mark.parametrize(
    ("host", "namespace", "key"),
    [
        ("payment", "shop", "payment.shop"),
        ("Payment.", "shop", "payment.shop"),
        ("payment.default", "shop", "payment.default"),
        ("payment.default.svc", "shop", "payment.default"),
        ("payment.default.svc.cluster.local", "shop", "payment.default"),
        ("api.example.com", "shop", "api.example.com"),
    ],
)
def test_spellings_of_a_service_have_one_key(host: str, namespace: str, key: str) -> None:
    assert names.service_key(host, namespace) == key


@pytest.mark.parametrize(
    ("host", "namespace", "service"),
    [
        ("payment", "shop", Service(host="payment.shop", name="payment", namespace="shop")),
        ("a.b.svc", "shop", Service(host="a.b.svc", name="a", namespace="b")),
        ("example.com", "shop", Service(host="example.com", name="example.com", namespace="shop")),
        ("x.y.shop", "shop", Service(host="x.y.shop", name="x.y.shop", namespace="shop")),
    ],
)
def test_a_service_in_the_mesh_has_a_short_name(
    host: str, namespace: str, service: Service
) -> None:
    assert names.service(host, namespace) == service


def test_clusters_have_the_names_of_istio() -> None:
    assert names.cluster_name(9000, "payment.default") == "outbound|9000||payment.default"
    assert names.cluster_name(80, "a.b", "v1") == "outbound|80|v1|a.b"


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        ("*", "*", "*"),
        ("*", "a.test", "a.test"),
        ("*.test", "a.test", "a.test"),
        ("*.test", "*.a.test", "*.a.test"),
        ("*.A.test", "b.a.TEST.", "b.a.test"),
        ("*.test", "test", None),
        ("*.test", "atest", None),
        ("a.test", "b.test", None),
        ("*.a.test", "*.b.test", None),
    ],
)
def test_two_patterns_meet_in_the_narrower_one(one: str, other: str, both: str | None) -> None:
    assert names.intersection(one, other) == both
    assert names.intersection(other, one) == both


PATTERNS = st.builds(
    lambda wild, labels: ".".join(["*"] * wild + labels) or "*",
    st.booleans(),
    st.lists(st.sampled_from("ab"), max_size=3),
)


@given(PATTERNS, PATTERNS, st.lists(st.sampled_from("ab"), min_size=1, max_size=4).map(".".join))
def test_an_intersection_stands_for_the_names_that_both_stand_for(
    one: str, other: str, host: str
) -> None:
    both = names.intersection(one, other)
    in_both = names.covers(one, host) and names.covers(other, host)
    assert (both is not None and names.covers(both, host)) == in_both


@pytest.mark.parametrize(
    ("labels", "workload"),
    [
        ({}, Workload(name="w", namespace="n", app="w", revision="")),
        (
            {"app": "a", "version": "v1"},
            Workload(name="w", namespace="n", app="a", revision="v1"),
        ),
        (
            {"service.istio.io/canonical-name": "c", "app": "a"},
            Workload(name="w", namespace="n", app="c", revision=""),
        ),
    ],
)
def test_a_workload_is_named_by_its_labels(labels: dict[str, str], workload: Workload) -> None:
    assert names.workload(labels, "n", "w") == workload


@pytest.mark.parametrize(
    ("ip", "address"), [("10.0.0.1", "10.0.0.1:80"), ("2001:DB8::0:1", "[2001:db8::1]:80")]
)
def test_addresses_have_one_spelling(ip: str, address: str) -> None:
    assert names.socket_address(ip, 80) == address
