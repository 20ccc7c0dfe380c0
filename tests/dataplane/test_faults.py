"""Faults on purpose at a whole proxy, from the file: who waits, who is refused, what is logged."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from tests.dataplane.harness import Client, Response, echo_origin, pooled

ASKED = 400


def ask(port: int, *lines: str) -> Response:
    with Client(port) as client:
        head = "".join(f"{line}\r\n" for line in ("GET / HTTP/1.1", "Host: a", *lines, ""))
        client.send(head.encode())
        return client.response()


def test_a_delay_comes_before_the_request_and_is_no_timeout(tmp_path: Path) -> None:
    rules = [
        "timeout: 50ms",
        "fault: {delay: {fixedDelay: 300ms, percentage: {value: 100}}}",
    ]
    with echo_origin() as origin, pooled([origin], tmp_path, rules) as (proxy, port):
        begun = time.monotonic()
        assert ask(port).status == 200
        assert time.monotonic() - begun >= 0.3
        [record] = proxy.records(1)
    assert record["response_flags"] == "DI"
    assert record["duration"] >= 300


def test_an_abort_falls_on_its_share_and_touches_nobody(tmp_path: Path) -> None:
    rules = ["fault: {abort: {httpStatus: 418, percentage: {value: 30}}}"]
    with echo_origin() as origin, pooled([origin], tmp_path, rules) as (proxy, port):
        with Client(port) as client:
            outcomes: Counter[int] = Counter()
            for _ in range(ASKED):
                client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                outcomes[client.response().status] += 1
        records = proxy.records(ASKED)
        heads = len(origin.heads)
    # Six standard deviations of Binomial(400, 0.3): 6 * sqrt(84) = 55.
    assert abs(outcomes[418] - 120) <= 55, outcomes
    assert outcomes[200] == heads == ASKED - outcomes[418]
    aborted = [record for record in records if record["response_code"] == 418]
    assert {record["response_flags"] for record in aborted} == {"FI"}
    assert {record["response_code_details"] for record in aborted} == {"fault_filter_abort"}
    assert {record["upstream_host"] for record in aborted} == {None}


def test_delay_and_abort_together(tmp_path: Path) -> None:
    rules = [
        "fault:",
        "  delay: {fixedDelay: 100ms, percentage: {value: 100}}",
        "  abort: {httpStatus: 503, percentage: {value: 100}}",
    ]
    with echo_origin() as origin, pooled([origin], tmp_path, rules) as (proxy, port):
        begun = time.monotonic()
        assert ask(port).status == 503
        assert time.monotonic() - begun >= 0.1
        assert origin.accepted == 0
        [record] = proxy.records(1)
    assert record["response_flags"] == "DI,FI"


def test_a_caller_that_speaks_grpc_reads_the_status_of_an_abort_in_its_head(tmp_path: Path) -> None:
    rules = ["fault: {abort: {grpcStatus: RESOURCE_EXHAUSTED, percentage: {value: 100}}}"]
    with echo_origin() as origin, pooled([origin], tmp_path, rules) as (_, port):
        response = ask(port, "Content-Type: application/grpc")
        assert (response.status, response.header("grpc-status")) == (200, "8")
        assert response.header("content-type") == "application/grpc"
        assert response.body == b""
        assert origin.accepted == 0
