"""The hops of the demo, from the metrics of its sidecars: golden signals, identities, mutual TLS.

A hop is what one service asks of one version of another. What it costs is told by the caller's
sidecar (Istio's `reporter="source"`), which sees every failure; who was on the line is told by both
ends, each about the other. A hop is mutual TLS when the callee's sidecar has seen an identity of
the caller on all of its requests, and the caller's sidecar one of the callee.

Percentiles are Prometheus's `histogram_quantile`: interpolated inside a bucket of Istio's.

Does not do: subtract. Counters are those of the sidecars' whole lives.

Tests: tests/demo/test_hops.py.
"""

from __future__ import annotations

import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from prometheus_client.parser import text_string_to_metric_families

__all__ = ["Hop", "hops_of", "scrape"]

REQUESTS = "istio_requests_total"
DURATION = "istio_request_duration_milliseconds_bucket"
MUTUAL_TLS = "mutual_tls"
SCRAPE_S = 5.0

#: Labels and value.
Series = tuple[dict[str, str], float]


@dataclass
class Hop:
    """One hop. `buckets` are cumulative counts by upper bound in ms; errors are statuses ≥ 500.

    `rate` is in requests a second, of a time that the reader of the counters chooses.
    """

    source: str
    destination: str
    version: str
    source_principal: str = ""
    destination_principal: str = ""
    requests: int = 0
    errors: int = 0
    rate: float = 0.0
    #: As the callee's sidecar saw them: in all, and under mutual TLS from the caller's identity.
    arrived: int = 0
    arrived_mutual_tls: int = 0
    buckets: dict[float, float] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells hops apart: caller, callee and its version."""
        return self.source, self.destination, self.version

    @property
    def is_mutual_tls(self) -> bool:
        """Tell whether both ends name each other, and every good answer came by mutual TLS."""
        identities = (self.source_principal, self.destination_principal)
        return (
            all(one.startswith("spiffe://") for one in identities)
            and 0 < self.arrived == self.arrived_mutual_tls
            and self.arrived >= self.requests - self.errors
        )

    def percentile_ms(self, percent: float) -> float:
        """Interpolate a percentile; 0 when there is none."""
        bounds = sorted(self.buckets)
        total = self.buckets[bounds[-1]] if bounds else 0.0
        if not total:
            return 0.0
        rank = total * percent / 100
        for lower, upper in pairwise([0.0, *bounds]):
            below = self.buckets.get(lower, 0.0)
            if self.buckets[upper] >= rank:
                if upper == float("inf"):
                    return lower
                within = (rank - below) / (self.buckets[upper] - below)
                return lower + (upper - lower) * within
        return bounds[-1]


def scrape(addresses: Iterable[str]) -> dict[str, list[Series]]:
    """Read the two metrics of all sidecars, by name. Raises OSError.

    Callers go first: what they have counted has arrived by the time the callee is read.
    """
    found: dict[str, list[Series]] = {REQUESTS: [], DURATION: []}
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for address in addresses:
        with direct.open(f"http://{address}/metrics", timeout=SCRAPE_S) as answer:
            lines = answer.read().decode().splitlines()
        # Parsing is slow and there are two dozen other families.
        wanted = "\n".join(line for line in lines if line.startswith((REQUESTS, DURATION)))
        for family in text_string_to_metric_families(wanted + "\n"):
            for sample in family.samples:
                if sample.name in found:
                    found[sample.name].append((sample.labels, sample.value))
    return found


def hops_of(series: dict[str, list[Series]], chain: Sequence[str]) -> list[Hop]:
    """Join what both ends say, in the order of the calls; `chain` names the callees in order."""
    hops: dict[tuple[str, str, str], Hop] = {}

    def hop(labels: dict[str, str]) -> Hop:
        key = (labels["source_app"], labels["destination_app"], labels["destination_version"])
        return hops.setdefault(key, Hop(*key))

    for labels, value in series[REQUESTS]:
        one = hop(labels)
        if labels["reporter"] == "source":
            one.requests += int(value)
            one.errors += int(value) if labels["response_code"] >= "500" else 0
            one.destination_principal = labels["destination_principal"]
        else:
            mutual = labels["connection_security_policy"] == MUTUAL_TLS
            one.arrived += int(value)
            one.arrived_mutual_tls += int(value) if mutual else 0
            one.source_principal = labels["source_principal"]
    for labels, value in series[DURATION]:
        if labels["reporter"] == "source":
            buckets = hop(labels).buckets
            bound = float(labels["le"])
            buckets[bound] = buckets.get(bound, 0.0) + value
    order = {name: place for place, name in enumerate(chain)}
    return sorted(
        hops.values(), key=lambda one: (order.get(one.destination, len(order)), one.version)
    )
