"""From shared memory to metric families: Istio's names, labels and buckets, and our own.

A family is plain data, made lazily, one at a time: whoever writes it out decides the format. All
families of one scrape come from one reading of the shared memory.

Does not do: formats (exposition), HTTP, keeping anything between scrapes.

Invariants:
1. Every counter's name ends in `_total`, and no counter goes backwards while the shared memory
   lives: counters belong to worker slots, not to processes.
2. A histogram has Istio's 20 buckets, in milliseconds or bytes (Envoy metrics/v3/stats.proto).
3. The names and labels of a family do not depend on traffic.

Tests: tests/agent/test_families.py.
"""

from __future__ import annotations

from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TypeAlias

    from meshfast.telemetry.processes import Processes
    from meshfast.telemetry.source import HttpSeries, Source, TcpSeries, WorkerStats

    Labels: TypeAlias = dict[str, str]
    Value: TypeAlias = "int | float | HistogramValue"
    Sample: TypeAlias = tuple[Labels, Value]

__all__ = ["BUCKETS", "COUNTER", "GAUGE", "HISTOGRAM", "AgentFacts", "Family", "HistogramValue",
           "collect"]  # fmt: skip

COUNTER = "counter"
GAUGE = "gauge"
HISTOGRAM = "histogram"

# Envoy's default bounds (metrics/v3/stats.proto, HistogramBucketSettings); the last bucket is +Inf.
BUCKETS = (0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1_000.0, 2_500.0, 5_000.0,
           10_000.0, 30_000.0, 60_000.0, 300_000.0, 600_000.0, 1_800_000.0, 3_600_000.0,
           float("inf"))  # fmt: skip


class HistogramValue:
    """Samples per bucket, not cumulative, one for each of `BUCKETS`, and their sum."""

    __slots__ = ("buckets", "sum")

    def __init__(self, buckets: list[int], sum: float) -> None:
        """Keep both; the count is the sum of the buckets."""
        self.buckets = buckets
        self.sum = sum


class Family:
    """One metric: name, kind, help (one line) and its samples, to be walked once."""

    __slots__ = ("help", "kind", "name", "samples")

    def __init__(self, name: str, kind: str, help: str, samples: Iterable[Sample]) -> None:
        """Keep the four; `samples` may be a generator."""
        self.name = name
        self.kind = kind
        self.help = help
        self.samples = samples


class AgentFacts:
    """What the agent itself counts, for its own families; changed by the agent only.

    `endpoints` maps a slot to (cluster, address) for the snapshot that workers run. The keys of
    `reloads` and `lookups` are fixed, so that their series exist from the first scrape. What is
    between `is_sidecar` and the end is of sidecars only; `certificate_expires` is in seconds since
    1970, 0 before there is one, and `control_plane_lost_at` a monotonic time, None while connected.
    """

    __slots__ = ("access_log_dropped", "certificate_expires", "certificate_overdue",
                 "certificate_requests", "control_plane_losses", "control_plane_lost_at",
                 "endpoints", "generation", "is_sidecar", "last_reload_success", "lookups",
                 "reloads", "spans_dropped", "spans_posted", "version")  # fmt: skip

    def __init__(self, version: str, generation: int) -> None:
        """Start with nothing counted; the snapshot at start counts as a successful load."""
        self.version = version
        self.generation = generation
        self.access_log_dropped = 0
        self.endpoints: dict[int, tuple[str, str]] = {}
        self.last_reload_success = True
        self.lookups = {"failure": 0, "success": 0, "timeout": 0}
        self.reloads = {"refused": 0, "success": 0}
        self.spans_dropped = 0
        self.spans_posted = 0
        self.is_sidecar = False
        self.certificate_expires = 0.0
        self.certificate_overdue = False
        self.certificate_requests = 0
        self.control_plane_losses = 0
        self.control_plane_lost_at: float | None = monotonic()


def collect(source: Source, facts: AgentFacts, processes: Processes) -> Iterator[Family]:
    """Read the shared memory once and give the families of one scrape, one at a time."""
    workers = source.workers()
    http = source.http_series()
    tcp = source.tcp_series()
    yield from _istio_http(http)
    for name, help, value in TCP_COUNTERS:
        samples = ((_istio_labels(series.labels), value(series)) for series in tcp)
        yield Family(name, COUNTER, help, samples)
    for name, kind, help, of_worker in WORKER_METRICS:
        yield Family(name, kind, help, _by_worker(workers, kind, of_worker))
    yield from _refusals_and_losses(source, workers, facts)
    yield _active_requests(source, facts)
    yield from _of_the_agent(facts)
    if facts.is_sidecar:
        yield from _of_the_sidecar(facts)
    yield from _of_the_processes(processes, workers)


def _istio_http(series: Iterable[HttpSeries]) -> Iterator[Family]:
    yield Family(
        "istio_requests_total",
        COUNTER,
        "Requests handled, by both ends.",
        ((_istio_labels(one.labels), one.requests) for one in series),
    )
    for name, help, value in HTTP_HISTOGRAMS:
        samples = ((_istio_labels(one.labels), value(one)) for one in series)
        yield Family(name, HISTOGRAM, help, samples)


def _istio_labels(labels: Labels) -> Labels:
    """Complete the labels of a series to Istio's (istio.io, reference/config/metrics).

    A cluster is one of a mesh of several, which has no name here. Of a workload that is known but
    carries no revision the version is unknown and the canonical revision is "latest".
    """
    completed = labels.copy()
    for side in ("source", "destination"):
        completed[f"{side}_cluster"] = "unknown"
        revision = f"{side}_canonical_revision"
        known = labels[f"{side}_canonical_service"] != "unknown"
        if known and labels[revision] == "unknown":
            completed[revision] = "latest"
    return completed


def _duration(series: HttpSeries) -> HistogramValue:
    return HistogramValue(series.duration_ms.buckets, series.duration_ms.sum)


def _request_bytes(series: HttpSeries) -> HistogramValue:
    return HistogramValue(series.request_bytes.buckets, series.request_bytes.sum)


def _response_bytes(series: HttpSeries) -> HistogramValue:
    return HistogramValue(series.response_bytes.buckets, series.response_bytes.sum)


HTTP_HISTOGRAMS: tuple[tuple[str, str, Callable[[HttpSeries], HistogramValue]], ...] = (
    (
        "istio_request_duration_milliseconds",
        "Time from the first byte of a request to the last of its response.",
        _duration,
    ),
    ("istio_request_bytes", "Bytes of request heads and bodies.", _request_bytes),
    ("istio_response_bytes", "Bytes of response heads and bodies.", _response_bytes),
)

TCP_COUNTERS: tuple[tuple[str, str, Callable[[TcpSeries], int]], ...] = (
    (
        "istio_tcp_sent_bytes_total",
        "Bytes sent to the downstream of TCP connections.",
        lambda series: series.sent_bytes,
    ),
    (
        "istio_tcp_received_bytes_total",
        "Bytes received from the downstream of TCP connections.",
        lambda series: series.received_bytes,
    ),
    (
        "istio_tcp_connections_opened_total",
        "TCP connections opened.",
        lambda series: series.opened,
    ),
    (
        "istio_tcp_connections_closed_total",
        "TCP connections closed.",
        lambda series: series.closed,
    ),
)

WORKER_METRICS: tuple[tuple[str, str, str, Callable[[WorkerStats], int | float]], ...] = (
    (
        "meshfast_worker_connections",
        GAUGE,
        "Downstream connections open now.",
        lambda worker: worker.connections,
    ),
    (
        "meshfast_worker_exchanges",
        GAUGE,
        "Exchanges in flight now.",
        lambda worker: worker.exchanges,
    ),
    (
        "meshfast_worker_generation",
        GAUGE,
        "The snapshot a worker serves from.",
        lambda worker: worker.generation,
    ),
    (
        "meshfast_worker_loop_turn_max_seconds",
        GAUGE,
        "The longest turn of the event loop since the worker started.",
        lambda worker: worker.loop_turn_max_us / 1_000_000,
    ),
    (
        "meshfast_worker_loop_turns_total",
        COUNTER,
        "Turns of the event loop.",
        lambda worker: worker.loop_turns,
    ),
    (
        "meshfast_worker_accepted_total",
        COUNTER,
        "Downstream connections accepted.",
        lambda worker: worker.accepted,
    ),
    (
        "meshfast_worker_handed_over_total",
        COUNTER,
        "Accepted connections handed to a less loaded worker.",
        lambda worker: worker.handed_over,
    ),
)


def _by_worker(
    workers: Iterable[WorkerStats], kind: str, value: Callable[[WorkerStats], int | float]
) -> Iterator[Sample]:
    """A slot without a process has no gauges, but what it counted stays counted."""
    for worker in workers:
        if kind == COUNTER or worker.state != "gone":
            yield {"worker": str(worker.slot)}, value(worker)


def _refusals_and_losses(
    source: Source, workers: Iterable[WorkerStats], facts: AgentFacts
) -> Iterator[Family]:
    yield Family(
        "meshfast_rejected_total",
        COUNTER,
        "Inputs refused, by reason.",
        (({"reason": reason}, count) for reason, count in source.rejected()),
    )
    dropped = sum(worker.access_log_dropped for worker in workers) + facts.access_log_dropped
    yield Family(
        "meshfast_access_log_dropped_total",
        COUNTER,
        "Access-log lines dropped: ring full, output blocked or disk full.",
        [({}, dropped)],
    )
    yield Family(
        "meshfast_series_overflow_total",
        COUNTER,
        "Samples counted in an overflow series, because there were too many label sets.",
        [({}, sum(worker.series_overflow for worker in workers))],
    )
    yield Family(
        "meshfast_spans_dropped_total",
        COUNTER,
        "Spans dropped: ring full, or not taken by the Zipkin server in time.",
        [({}, sum(worker.spans_dropped for worker in workers) + facts.spans_dropped)],
    )
    yield Family(
        "meshfast_spans_posted_total",
        COUNTER,
        "Spans that the Zipkin server has taken.",
        [({}, facts.spans_posted)],
    )


def _active_requests(source: Source, facts: AgentFacts) -> Family:
    active = {line.slot: line.active for line in source.endpoints()}
    return Family(
        "meshfast_upstream_active_requests",
        GAUGE,
        "Requests sent to an endpoint whose response is not finished, over all workers.",
        (
            ({"cluster": cluster, "endpoint": address}, active.get(slot, 0))
            for slot, (cluster, address) in facts.endpoints.items()
        ),
    )


def _of_the_agent(facts: AgentFacts) -> Iterator[Family]:
    yield Family(
        "meshfast_build_info",
        GAUGE,
        "Always 1; the version is a label.",
        [({"version": facts.version}, 1)],
    )
    yield Family(
        "meshfast_config_generation",
        GAUGE,
        "The newest snapshot given to workers.",
        [({}, facts.generation)],
    )
    yield Family(
        "meshfast_config_last_reload_success",
        GAUGE,
        "1 when the last reload was applied, 0 when it was refused.",
        [({}, int(facts.last_reload_success))],
    )
    yield Family(
        "meshfast_config_reloads_total",
        COUNTER,
        "Reloads of the configuration, by result.",
        [({"result": result}, count) for result, count in facts.reloads.items()],
    )
    yield Family(
        "meshfast_dns_lookups_total",
        COUNTER,
        "Lookups of host names, by result.",
        [({"result": result}, count) for result, count in facts.lookups.items()],
    )


def _of_the_sidecar(facts: AgentFacts) -> Iterator[Family]:
    lost_at = facts.control_plane_lost_at
    yield Family(
        "meshfast_control_plane_connected",
        GAUGE,
        "1 while there is a stream to the control plane.",
        [({}, int(lost_at is None))],
    )
    yield Family(
        "meshfast_control_plane_staleness_seconds",
        GAUGE,
        "Since when the control plane has not been heard; 0 while connected.",
        [({}, 0.0 if lost_at is None else monotonic() - lost_at)],
    )
    yield Family(
        "meshfast_control_plane_losses_total",
        COUNTER,
        "Streams to the control plane that broke.",
        [({}, facts.control_plane_losses)],
    )
    yield Family(
        "meshfast_certificate_expiration_timestamp_seconds",
        GAUGE,
        "When the certificate expires, in seconds since the epoch; 0 before there is one.",
        [({}, facts.certificate_expires)],
    )
    yield Family(
        "meshfast_certificate_requests_total",
        COUNTER,
        "Attempts to renew the certificate.",
        [({}, facts.certificate_requests)],
    )
    yield Family(
        "meshfast_certificate_overdue",
        GAUGE,
        "1 when 60 % of the certificate's life have passed and it is not renewed.",
        [({}, int(facts.certificate_overdue))],
    )


def _of_the_processes(processes: Processes, workers: Iterable[WorkerStats]) -> Iterator[Family]:
    usage = processes.read({worker.pid for worker in workers if worker.state != "gone"})
    yield Family(
        "process_pss_bytes",
        GAUGE,
        "Proportional set size of the sidecar's processes, by role; read every 10 s at most.",
        [({"role": role}, pss) for role, pss in usage.pss_bytes.items()],
    )
    yield Family(
        "process_cpu_seconds_total",
        COUNTER,
        "User and system CPU time of the sidecar's processes, those that ended included.",
        [({}, usage.cpu_s)],
    )
    yield Family(
        "process_start_time_seconds",
        GAUGE,
        "When the sidecar started, in seconds since the epoch.",
        [({}, usage.started_s)],
    )
