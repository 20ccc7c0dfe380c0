"""The two formats, against the parsers and the writer of prometheus-client; content negotiation."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client import exposition as text_writer
from prometheus_client.openmetrics import exposition as openmetrics_writer
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families as parse_text

from meshfast.telemetry.collector import SidecarCollector
from meshfast.telemetry.exposition import OPENMETRICS, TEXT, negotiate, write
from meshfast.telemetry.families import GAUGE, AgentFacts, Family, collect
from meshfast.telemetry.processes import Processes
from tests.agent.fakes import recorded

# What Prometheus 3 sends without protobuf.
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)

# The library has no types here.
parse_openmetrics: Any = openmetrics_parser.text_string_to_metric_families

AWKWARD = 'a"b\\nc\nd,e=\u00fc{}\\'


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("*/*", TEXT),
        ("", TEXT),
        ("text/html", TEXT),
        (PROMETHEUS, OPENMETRICS),
        ("application/openmetrics-text", OPENMETRICS),
        ("APPLICATION/OpenMetrics-Text; Version=1.0.0", OPENMETRICS),
        ("application/openmetrics-text; version=2.0.0", TEXT),
        ("application/openmetrics-text;q=0.2, text/plain;q=0.7", TEXT),
        ("application/openmetrics-text;q=0", TEXT),
        ("application/openmetrics-text;q=much, text/plain;q=0.1", TEXT),
    ],
)
def test_the_format_is_what_the_scraper_prefers(accept: str, content_type: str) -> None:
    assert negotiate(accept) == content_type


@pytest.fixture
def arguments(tmp_path: Path) -> tuple[Any, ...]:
    path = tmp_path / "state.json"
    http = [recorded.http_series(), recorded.http_series(response_flags="UF", source_app=AWKWARD)]
    path.write_text(json.dumps(recorded.state(http=http)))
    facts = AgentFacts("1.2.3", 4)
    facts.endpoints = {0: ("outbound|9000||payment.default", "127.0.0.1:9001")}
    processes = Processes(os.getppid(), os.getpid())
    return recorded.RecordedSource(path), facts, processes


def samples(families: Any) -> list[tuple[Any, ...]]:
    return sorted(
        (family.type, sample.name, sorted(sample.labels.items()), sample.value)
        for family in families
        for sample in family.samples
    )


def ours(arguments: tuple[Any, ...], content_type: str) -> str:
    return b"".join(write(collect(*arguments), content_type)).decode()


def theirs(arguments: tuple[Any, ...], writer: Any) -> str:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SidecarCollector(*arguments))
    text: bytes = writer.generate_latest(registry)
    return text.decode()


def test_text_holds_the_samples_that_prometheus_client_writes(arguments: tuple[Any, ...]) -> None:
    got = samples(parse_text(ours(arguments, TEXT)))
    assert got == samples(parse_text(theirs(arguments, text_writer)))
    assert any(("source_app", AWKWARD) in labels for _, _, labels, _ in got)


def test_openmetrics_holds_the_samples_that_prometheus_client_writes(
    arguments: tuple[Any, ...],
) -> None:
    # This parser also checks order, suffixes, bucket bounds, counts and the closing line.
    got = samples(parse_openmetrics(ours(arguments, OPENMETRICS)))
    assert got == samples(parse_openmetrics(theirs(arguments, openmetrics_writer)))


def test_a_cut_openmetrics_answer_is_refused_by_the_parser(arguments: tuple[Any, ...]) -> None:
    whole = ours(arguments, OPENMETRICS)
    with pytest.raises(ValueError, match="EOF"):
        list(parse_openmetrics(whole[: whole.rindex("# EOF")]))


def test_buckets_are_istios_in_both_formats(arguments: tuple[Any, ...]) -> None:
    istio = [0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000,
             600000, 1800000, 3600000, math.inf]  # fmt: skip
    for parse, content_type in ((parse_text, TEXT), (parse_openmetrics, OPENMETRICS)):
        families = {family.name: family for family in parse(ours(arguments, content_type))}
        for name in (
            "istio_request_duration_milliseconds",
            "istio_request_bytes",
            "istio_response_bytes",
        ):
            bounds = [
                float(sample.labels["le"])
                for sample in families[name].samples
                if sample.name.endswith("_bucket") and sample.labels["response_flags"] == "-"
            ]
            assert bounds == istio


def test_a_series_keeps_its_identity_when_the_format_changes(arguments: tuple[Any, ...]) -> None:
    def lines(content_type: str) -> set[str]:
        text = ours(arguments, content_type)
        return {line for line in text.splitlines() if not line.startswith("#")}

    assert lines(TEXT) == lines(OPENMETRICS)


def test_pieces_are_made_one_at_a_time() -> None:
    made = []

    def endless() -> Any:
        for number in range(1_000_000):
            made.append(number)
            yield {"n": str(number)}, number

    pieces = write([Family("gauge", GAUGE, "A gauge.", endless())], TEXT)
    assert next(pieces) == b"# HELP gauge A gauge.\n# TYPE gauge gauge\n"
    assert next(pieces) == b'gauge{n="0"} 0\n'
    assert made == [0]
