"""The families of a sidecar as a collector of prometheus-client, for those who have a registry.

    registry.register(SidecarCollector(memory, facts, processes))

The agent does not use it: see `meshfast.telemetry` for what the library costs. The names, labels,
buckets and values are those of the agent's own writer, because both walk the same families.

Does not do: registering itself anywhere, describing families before the first scrape.

Tests: tests/agent/test_exposition.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from meshfast.telemetry.exposition import BOUNDS
from meshfast.telemetry.families import AgentFacts, Family, HistogramValue, collect
from meshfast.telemetry.processes import Processes
from meshfast.telemetry.source import Source

__all__ = ["SidecarCollector"]

_KINDS = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}


class SidecarCollector(Collector):
    """Reads one sidecar's shared memory at every scrape."""

    def __init__(self, source: Source, facts: AgentFacts, processes: Processes) -> None:
        """Keep what `families.collect` needs."""
        self._source = source
        self._facts = facts
        self._processes = processes

    def collect(self) -> Iterator[Metric]:
        """Give the families of this moment."""
        for family in collect(self._source, self._facts, self._processes):
            yield _metric(family)


def _metric(family: Family) -> Metric:
    metric: Metric = _KINDS[family.kind](family.name, family.help)
    for labels, value in family.samples:
        if isinstance(value, HistogramValue):
            _add_histogram(metric, family.name, labels, value)
        else:
            metric.add_sample(family.name, labels, value)
    return metric


def _add_histogram(
    metric: Metric, name: str, labels: dict[str, str], value: HistogramValue
) -> None:
    count = 0
    for bound, samples in zip(BOUNDS, value.buckets, strict=True):
        count += samples
        metric.add_sample(f"{name}_bucket", {**labels, "le": bound}, count)
    metric.add_sample(f"{name}_count", labels, count)
    metric.add_sample(f"{name}_sum", labels, value.sum)
