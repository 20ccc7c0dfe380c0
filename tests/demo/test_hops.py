"""Hops out of metrics: joined from what both ends say, with Prometheus's percentiles."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from meshfast.cli.demo.hops import Hop, hops_of, scrape

CHAIN = ("order", "payment-service")
SA = "spiffe://cluster.local/ns/default/sa/"


def labels(reporter: str, source: str, destination: str, **more: str) -> dict[str, str]:
    return {
        "reporter": reporter,
        "source_app": source,
        "source_principal": SA + source,
        "destination_app": destination,
        "destination_version": "v1",
        "destination_principal": SA + destination,
        "response_code": "200",
        "connection_security_policy": "unknown" if reporter == "source" else "mutual_tls",
        **more,
    }


def hops(*requests: tuple[dict[str, str], float]) -> list[Hop]:
    empty: list[tuple[dict[str, str], float]] = []
    return hops_of(
        {"istio_requests_total": [*requests], "istio_request_duration_milliseconds_bucket": empty},
        CHAIN,
    )


def test_a_hop_is_told_by_both_ends_and_hops_stand_in_the_order_of_the_calls() -> None:
    payment = (labels("source", "order", "payment-service"), 8.0)
    first, second = hops(
        payment,
        (labels("source", "load", "order"), 10.0),
        (labels("destination", "load", "order"), 10.0),
        (labels("destination", "order", "payment-service"), 8.0),
    )
    assert (first.key, second.key) == (("load", "order", "v1"), ("order", CHAIN[1], "v1"))
    assert (first.source_principal, first.destination_principal) == (SA + "load", SA + "order")
    assert (first.requests, first.errors, first.is_mutual_tls) == (10, 0, True)
    assert (second.requests, second.is_mutual_tls) == (8, True)


def test_versions_are_hops_of_their_own() -> None:
    found = hops(
        (labels("source", "order", CHAIN[1], destination_version="v2"), 1.0),
        (labels("source", "order", CHAIN[1]), 9.0),
    )
    assert [(hop.version, hop.requests) for hop in found] == [("v1", 9), ("v2", 1)]


@pytest.mark.parametrize(
    "arrived",
    [
        [],
        [labels("destination", "load", "order", connection_security_policy="none")],
        [
            labels("destination", "load", "order"),
            labels("destination", "load", "order", connection_security_policy="none"),
        ],
        [labels("destination", "load", "order", source_principal="unknown")],
    ],
    ids=["unseen", "plaintext", "some plaintext", "nameless"],
)
def test_a_hop_that_the_callee_did_not_see_under_mutual_tls_is_none(
    arrived: list[dict[str, str]],
) -> None:
    [hop] = hops((labels("source", "load", "order"), 5.0), *((one, 5.0) for one in arrived))
    assert not hop.is_mutual_tls


def test_a_hop_whose_answers_came_by_another_way_is_not_mutual_tls() -> None:
    failed = labels("source", "load", "order", response_code="503")
    asked = [(labels("source", "load", "order"), 5.0), (failed, 1.0)]
    [hop] = hops(*asked, (labels("destination", "load", "order"), 4.0))
    assert not hop.is_mutual_tls
    [hop] = hops(*asked, (labels("destination", "load", "order"), 5.0))
    assert hop.is_mutual_tls


def test_a_status_from_500_on_is_an_error_of_the_hop() -> None:
    [hop] = hops(
        (labels("source", "load", "order", response_code="404"), 2.0),
        (labels("source", "load", "order", response_code="503"), 3.0),
    )
    assert (hop.requests, hop.errors) == (5, 3)


def test_percentiles_are_those_of_prometheus() -> None:
    hop = Hop("a", "b", "v1", buckets={1.0: 50.0, 5.0: 90.0, 10.0: 98.0, float("inf"): 100.0})
    assert hop.percentile_ms(25) == 0.5
    assert hop.percentile_ms(70) == 3.0
    assert hop.percentile_ms(94) == 7.5
    assert hop.percentile_ms(99) == 10.0  # beyond the last bound: that bound
    assert Hop("a", "b", "v1").percentile_ms(99) == 0.0


METRICS = """\
# TYPE istio_requests_total counter
istio_requests_total{reporter="source",source_app="load"} 5
# TYPE istio_request_duration_milliseconds histogram
istio_request_duration_milliseconds_bucket{reporter="source",le="0.5"} 4
istio_request_duration_milliseconds_bucket{reporter="source",le="+Inf"} 5
istio_request_duration_milliseconds_sum{reporter="source"} 3.5
# TYPE istio_request_bytes histogram
istio_request_bytes_bucket{reporter="source",le="+Inf"} 5
"""


@pytest.fixture
def exporter() -> Iterator[str]:
    """The address of something with metrics."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(METRICS.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_the_metrics_of_all_sidecars_are_read_together(exporter: str) -> None:
    found = scrape([exporter, exporter])
    requests = found["istio_requests_total"]
    assert requests == [({"reporter": "source", "source_app": "load"}, 5.0)] * 2
    buckets = found["istio_request_duration_milliseconds_bucket"]
    assert [(labels["le"], count) for labels, count in buckets[:2]] == [("0.5", 4.0), ("+Inf", 5.0)]
    assert len(buckets) == 4
