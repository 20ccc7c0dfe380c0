"""Names, labels and values of every family; what a dead worker leaves behind."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from meshfast.telemetry.families import AgentFacts, Family, HistogramValue, collect
from meshfast.telemetry.processes import Processes
from tests.agent.fakes import recorded

NAMES = {
    "istio_requests_total": "counter",
    "istio_request_duration_milliseconds": "histogram",
    "istio_request_bytes": "histogram",
    "istio_response_bytes": "histogram",
    "istio_tcp_sent_bytes_total": "counter",
    "istio_tcp_received_bytes_total": "counter",
    "istio_tcp_connections_opened_total": "counter",
    "istio_tcp_connections_closed_total": "counter",
    "meshfast_worker_connections": "gauge",
    "meshfast_worker_exchanges": "gauge",
    "meshfast_worker_generation": "gauge",
    "meshfast_worker_loop_turn_max_seconds": "gauge",
    "meshfast_worker_loop_turns_total": "counter",
    "meshfast_worker_accepted_total": "counter",
    "meshfast_worker_handed_over_total": "counter",
    "meshfast_rejected_total": "counter",
    "meshfast_access_log_dropped_total": "counter",
    "meshfast_series_overflow_total": "counter",
    "meshfast_spans_dropped_total": "counter",
    "meshfast_spans_posted_total": "counter",
    "meshfast_upstream_active_requests": "gauge",
    "meshfast_build_info": "gauge",
    "meshfast_config_generation": "gauge",
    "meshfast_config_last_reload_success": "gauge",
    "meshfast_config_reloads_total": "counter",
    "meshfast_dns_lookups_total": "counter",
    "process_pss_bytes": "gauge",
    "process_cpu_seconds_total": "counter",
    "process_start_time_seconds": "gauge",
}


class Scrape:
    def __init__(self, directory: Path, **changes: Any) -> None:
        path = directory / "state.json"
        path.write_text(json.dumps(recorded.state(**changes)))
        self.facts = AgentFacts("1.2.3", 4)
        self.source = recorded.RecordedSource(path)
        self.processes = Processes(os.getppid(), os.getpid())

    def families(self) -> dict[str, Family]:
        families = {}
        for family in collect(self.source, self.facts, self.processes):
            family.samples = list(family.samples)
            families[family.name] = family
        return families

    def values(self, name: str) -> list[Any]:
        return [value for _, value in self.families()[name].samples]


def test_the_families_and_their_kinds(tmp_path: Path) -> None:
    families = Scrape(tmp_path).families()
    assert {name: family.kind for name, family in families.items()} == NAMES


def test_the_families_are_there_before_any_traffic(tmp_path: Path) -> None:
    nothing: dict[str, Any] = {
        key: [] for key in ("workers", "http", "tcp", "rejected", "endpoints")
    }
    assert list(Scrape(tmp_path, **nothing).families()) == list(NAMES)


def test_http_series_carry_istios_labels_and_four_metrics(tmp_path: Path) -> None:
    families = Scrape(tmp_path).families()
    ((labels, requests),) = families["istio_requests_total"].samples
    completed = {
        "source_cluster": "unknown",
        "destination_cluster": "unknown",
        "source_canonical_revision": "latest",  # and source_version stays unknown
    }
    assert (labels, requests) == (recorded.HTTP_LABELS | completed, 7)
    ((_, duration),) = families["istio_request_duration_milliseconds"].samples
    assert isinstance(duration, HistogramValue)
    assert (duration.buckets[0], duration.buckets[4], duration.buckets[19]) == (1, 5, 1)
    assert duration.sum == 4_000_123.5
    ((_, received),) = families["istio_request_bytes"].samples
    ((_, sent),) = families["istio_response_bytes"].samples
    assert isinstance(received, HistogramValue)
    assert isinstance(sent, HistogramValue)
    assert (received.sum, sent.sum) == (900.0, 4200.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("sent_bytes", 1000), ("received_bytes", 2000), ("connections_opened", 4),
     ("connections_closed", 3)],
)  # fmt: skip
def test_tcp_series_have_four_counters(tmp_path: Path, name: str, value: int) -> None:
    assert Scrape(tmp_path).values(f"istio_tcp_{name}_total") == [value]


def test_the_canonical_revision_is_latest_only_of_a_workload_that_is_known(tmp_path: Path) -> None:
    series = recorded.http_series(
        destination_canonical_service="unknown", destination_canonical_revision="unknown"
    )
    families = Scrape(tmp_path, http=[series]).families()
    for family in ("istio_requests_total", "istio_request_bytes"):
        ((labels, _),) = families[family].samples
        assert labels["destination_canonical_revision"] == "unknown"
        assert labels["source_canonical_revision"] == "latest"


def test_tcp_series_carry_the_labels_of_http_but_those_of_a_response(tmp_path: Path) -> None:
    families = Scrape(tmp_path).families()
    ((http, _),) = families["istio_requests_total"].samples
    ((tcp, _),) = families["istio_tcp_connections_opened_total"].samples
    assert http.keys() - tcp.keys() == {"response_code", "grpc_response_status"}
    assert tcp.keys() <= http.keys()


def test_a_slot_without_a_worker_keeps_its_counters_and_has_no_gauges(tmp_path: Path) -> None:
    families = Scrape(tmp_path).families()
    accepted = families["meshfast_worker_accepted_total"].samples
    assert list(accepted) == [({"worker": "0"}, 40), ({"worker": "1"}, 11)]
    assert list(families["meshfast_worker_connections"].samples) == [({"worker": "0"}, 3)]


def test_the_longest_loop_turn_is_in_seconds(tmp_path: Path) -> None:
    assert Scrape(tmp_path).values("meshfast_worker_loop_turn_max_seconds") == [0.0025]


def test_dropped_lines_are_those_of_workers_and_of_the_agent(tmp_path: Path) -> None:
    workers = [
        recorded.worker(access_log_dropped=5, series_overflow=1, spans_dropped=3),
        recorded.worker(slot=1, state="gone", access_log_dropped=6, series_overflow=2),
    ]
    scrape = Scrape(tmp_path, workers=workers)
    scrape.facts.access_log_dropped = 100
    scrape.facts.spans_dropped = 10
    assert scrape.values("meshfast_access_log_dropped_total") == [111]
    assert scrape.values("meshfast_series_overflow_total") == [3]
    assert scrape.values("meshfast_spans_dropped_total") == [13]


def test_active_requests_are_told_for_every_endpoint_of_the_snapshot(tmp_path: Path) -> None:
    scrape = Scrape(tmp_path, endpoints=[{"slot": 3, "active": 6}, {"slot": 9, "active": 1}])
    scrape.facts.endpoints = {3: ("a", "127.0.0.1:1"), 4: ("b", "127.0.0.1:2")}
    assert list(scrape.families()["meshfast_upstream_active_requests"].samples) == [
        ({"cluster": "a", "endpoint": "127.0.0.1:1"}, 6),
        ({"cluster": "b", "endpoint": "127.0.0.1:2"}, 0),
    ]


def test_refused_inputs_are_counted_by_reason(tmp_path: Path) -> None:
    ((labels, count),) = Scrape(tmp_path).families()["meshfast_rejected_total"].samples
    assert (labels, count) == ({"reason": "http1.content_length_duplicate"}, 2)
