"""A real Prometheus scrapes every sidecar of a mesh and answers the queries of docs/mesh.md."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.mesh.chain import Chain
from tests.mesh.harness import DEADLINE_S, wait_until
from tests.mesh.servers import Prometheus
from tests.repository import text

REQUESTS, FAILING, SLOW = 100, 10, 20

INVENTORY = '{reporter="destination",destination_service_name="inventory"}'
PAYMENT = 'reporter="source",destination_service_name="payment-service"'
TOTAL = f"sum(istio_requests_total{INVENTORY})"
IDENTITY = f"""sum(istio_requests_total{{{PAYMENT},
    source_workload_namespace="default",source_canonical_service="order"}})"""


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    chain = Chain(tmp_path)
    yield chain
    chain.close()


@pytest.fixture
def prometheus(chain: Chain, tmp_path: Path) -> Iterator[Prometheus]:
    server = Prometheus(tmp_path, chain.metrics_addresses())
    yield server
    server.close()


def queries() -> list[str]:
    """The queries of the page, in order, about this chain's payment-service."""
    page = text(Path("docs/mesh.md"))
    written = re.findall(r"^```promql\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return [query.replace('"payment"', '"payment-service"') for query in written]


def served(chain: Chain) -> float:
    """The calls that the last service of the chain has served, by its sidecar."""
    address = chain.sidecars["inventory"].address("metrics")
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=DEADLINE_S) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    samples = [sample for family in families for sample in family.samples]
    return sum(one.value for one in samples if one.name == "istio_requests_total")


def test_prometheus_answers_p99_and_error_rate(chain: Chain, prometheus: Prometheus) -> None:
    wait_until(lambda: prometheus.ask('sum(up{job="mesh"})') == 4, "all sidecars are scraped")
    # A rate needs a sample from before: one call of each kind makes the series.
    for path in ("/", "/fail", "/slow"):
        chain.call(path)
    failed = f'sum(istio_requests_total{{{PAYMENT},response_code="500"}})'
    wait_until(lambda: prometheus.ask(failed) == 1, "the first failure was scraped")
    before = served(chain)
    wait_until(lambda: prometheus.ask(TOTAL) == before, "the first calls were scraped")

    for number in range(REQUESTS):
        # All along, so that what Prometheus extrapolates at both ends is the same of all series.
        failing, slow = number % (REQUESTS // FAILING) == 0, number % (REQUESTS // SLOW) == 1
        path = "/fail" if failing else "/slow" if slow else "/"
        assert chain.call(path)[0] == (500 if failing else 200)
    wait_until(lambda: prometheus.ask(TOTAL) == before + REQUESTS, "all calls were scraped")
    wait_until(lambda: prometheus.ask(failed) == 1 + FAILING, "all failures were scraped")

    p99, error_rate = queries()
    assert prometheus.ask(error_rate) == pytest.approx(FAILING / REQUESTS, abs=0.03)
    # Of 20 % that take 60 ms; the bucket is (50, 100], a busy machine may need a higher one.
    p99_ms = prometheus.ask(p99)
    assert p99_ms is not None
    assert 50 < p99_ms < 2_500
    assert (prometheus.ask(IDENTITY) or 0) >= REQUESTS
