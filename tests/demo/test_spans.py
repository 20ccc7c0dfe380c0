"""The collector takes spans and gives traces back; a trace joins services only as one tree."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from meshfast.cli.demo.load import CHAIN
from meshfast.cli.demo.spans import TRACES_MAX, Collector, joined, read_trace


def span(id: str, service: str, parent: str = "", trace: str = "1f") -> dict[str, Any]:
    return {
        "traceId": trace,
        "id": id,
        **({"parentId": parent} if parent else {}),
        "timestamp": 1_000_000 + int(id),
        "duration": 9_000 - 1_000 * int(id),
        "localEndpoint": {"serviceName": f"{service}.default"},
    }


WHOLE = [
    span("3", "inventory", "2"),
    span("1", "order"),
    span("2", "payment-service", "1"),
]


@pytest.fixture
def collector() -> Iterator[Collector]:
    one = Collector()
    yield one
    one.close()


def post(collector: Collector, body: bytes) -> int:
    request = urllib.request.Request(f"http://{collector.address}/api/v2/spans", body)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_trace_that_was_posted_in_parts_is_read_back_joined(collector: Collector) -> None:
    assert post(collector, json.dumps(WHOLE[:1]).encode()) == 202
    assert read_trace(collector.address, CHAIN, 0.0) is None
    assert post(collector, json.dumps(WHOLE[1:]).encode()) == 202
    trace = read_trace(collector.address, CHAIN, 0.0)
    assert trace is not None
    assert (trace.id, trace.services, trace.spans) == ("1f", CHAIN, 3)
    assert (trace.began_s, trace.duration_ms) == (1.000001, 8.0)


def test_a_trace_without_one_of_the_services_is_not_taken(collector: Collector) -> None:
    post(collector, json.dumps(WHOLE[1:]).encode())
    assert read_trace(collector.address, CHAIN, 0.0) is None


def test_a_trace_of_an_earlier_demo_is_not_taken(collector: Collector) -> None:
    post(collector, json.dumps(WHOLE).encode())
    assert read_trace(collector.address, CHAIN, 1.1) is None
    assert read_trace(collector.address, CHAIN, 1.0) is not None


@pytest.mark.parametrize("body", [b"no JSON", b'[{"id": "1"}]', b"[7]", b"7"])
def test_what_are_no_spans_is_refused(collector: Collector, body: bytes) -> None:
    assert post(collector, body) == 400


def test_only_the_newest_traces_are_kept(collector: Collector) -> None:
    many = [span("1", "order", trace=f"{number:x}") for number in range(TRACES_MAX + 5)]
    post(collector, json.dumps(many).encode())
    assert list(collector._traces) == [f"{number:x}" for number in range(5, TRACES_MAX + 5)]


@pytest.mark.parametrize(
    "spans",
    [
        [WHOLE[0], span("1", "order"), span("2", "payment-service")],
        [WHOLE[0], span("1", "order"), span("2", "payment-service", "7")],
        [WHOLE[0], span("1", "order"), span("2", "payment-service", "1", trace="2f")],
        [],
    ],
    ids=["two roots", "a missing parent", "two traces", "nothing"],
)
def test_spans_that_are_not_one_tree_are_no_trace(spans: list[dict[str, Any]]) -> None:
    assert joined(WHOLE) is not None
    assert joined(spans) is None
