"""The load of the demo: paced whatever the mesh does, strict about answers, exact about changes."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter

import pytest

from meshfast.cli.demo.load import CONNECTIONS, Load, Sample, version_of


def chain(path: str, version: str = "v1") -> bytes:
    """The answer of the whole chain."""
    inventory = {"service": "inventory", "version": "v1", "path": path}
    payment = {"service": "payment-service", "version": version, "path": path, "next": inventory}
    return json.dumps({"service": "order", "version": "v1", "path": path, "next": payment}).encode()


def test_the_version_is_that_of_the_payment_service_in_a_whole_chain() -> None:
    assert version_of("/orders/7", 200, chain("/orders/7", "v2")) == "v2"


BAD = {
    "a status": (503, b"no healthy upstream", "503 no healthy upstream"),
    "another path": (200, chain("/orders/8"), "not the answer of order to /orders/7"),
    "a chain that ends early": (
        200,
        b'{"service": "order", "path": "/orders/7"}',
        "not the answer of payment-service",
    ),
    "no JSON": (200, b"<html>", "Expecting value"),
    "no object": (200, b"[]", "not the answer of order"),
}


@pytest.mark.parametrize(("status", "body", "reason"), BAD.values(), ids=BAD)
def test_an_answer_that_is_not_the_chains_is_an_error(
    status: int, body: bytes, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        version_of("/orders/7", status, body)


def test_requests_are_due_at_the_rate_and_each_has_a_path_of_its_own() -> None:
    paths: list[str] = []

    def fetch(path: str) -> tuple[int, bytes]:
        paths.append(path)
        return 200, chain(path)

    load = Load(fetch, 500)
    load.start()
    time.sleep(0.4)
    sample = load.stop()
    # As many as were due: never more, and fewer only if this machine stood still.
    assert 100 <= sample.requests <= sample.seconds * 500 + 1
    assert sample.versions == Counter(v1=len(paths))
    assert len(set(paths)) == len(paths)


def test_a_request_counts_where_it_began_and_a_sample_waits_for_its_requests() -> None:
    held = threading.Event()

    def fetch(path: str) -> tuple[int, bytes]:
        if held.is_set():
            return 200, chain(path, "v2")
        assert held.wait(10)
        return 200, chain(path, "v1")

    load = Load(fetch, 10_000)
    load.start()
    while load._window.pending < CONNECTIONS:
        time.sleep(0.001)
    threading.Timer(0.2, held.set).start()
    before = load.take()
    assert before.versions == Counter(v1=CONNECTIONS)
    assert load.stop().versions.keys() == {"v2"}


def test_the_latency_counts_from_when_a_request_was_due() -> None:
    def fetch(path: str) -> tuple[int, bytes]:
        time.sleep(0.05)
        return 200, chain(path)

    load = Load(fetch, 10 * CONNECTIONS / 0.05)  # ten times what the threads can do
    load.start()
    time.sleep(0.3)
    sample = load.stop()
    assert sample.percentile_ms(0) >= 50
    assert sample.percentile_ms(99) > 150


def test_errors_are_counted_as_requests_with_their_reason_and_not_as_answers() -> None:
    def fetch(path: str) -> tuple[int, bytes]:
        if path == "/orders/0":
            return 200, chain(path)
        raise ConnectionResetError("by peer")

    load = Load(fetch, 500)
    load.start()
    time.sleep(0.1)
    sample = load.stop()
    assert (sample.requests, sample.share("v1")) == (sample.errors + 1, 1.0)
    assert sample.reasons == Counter({"ConnectionResetError: by peer": sample.errors})
    assert sample.errors > 0


def test_a_sample_travels_as_json_and_samples_add_up() -> None:
    one = Sample(1.0, Counter(v1=8, v2=2), 5, Counter(reset=5), [1.0, 2.0, 3.0, 4.0])
    both = Sample.of_json(json.dumps(vars(one)).encode())
    both.add(one)
    assert (both.seconds, both.requests, both.errors, both.rate) == (2.0, 30, 10, 15.0)
    assert (both.share("v2"), both.reasons["reset"]) == (0.2, 10)
    assert (one.percentile_ms(50), one.percentile_ms(99)) == (3.0, 4.0)
    assert (Sample().share("v2"), Sample().rate, Sample().percentile_ms(50)) == (0.0, 0.0, 0.0)
