"""Behaviour of bench.load: wrk's report, and responses that end a measurement."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from bench.load import check_body, parse_wrk, run_wrk, wrk_command
from bench.processes import HarnessError, WrongResponseError, free_port

Answering = Callable[[bytes, bytes], AbstractContextManager[int]]
Need = Callable[..., None]

GOOD = """Running 2s test @ http://127.0.0.1:8080/
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   161.02us   35.12us   1.03ms   84.29%
    Req/Sec    97.52k     2.01k  100.82k    72.73%
  {count} requests in {time}, 59.16MB read
{errors}Requests/sec:  96999.69
Transfer/sec:     28.17MB
"""


def report(count: int = 203698, time: str = "2.10s", errors: str = "") -> str:
    return GOOD.format(count=count, time=time, errors=errors)


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("2.10s", 2.1), ("508.31ms", 0.50831), ("900.00us", 0.0009), ("1.50m", 90.0)],
)
def test_reads_requests_and_time_in_every_unit(time: str, seconds: float) -> None:
    load = parse_wrk(report(time=time))
    assert load.requests == 203698
    assert load.seconds == pytest.approx(seconds)
    assert load.requests_per_second == pytest.approx(203698 / seconds)
    assert (load.socket_errors, load.not_2xx) == (0, 0)


def test_adds_up_socket_errors_of_every_kind() -> None:
    errors = "  Socket errors: connect 1, read 20, write 300, timeout 4000\n"
    assert parse_wrk(report(errors=errors)).socket_errors == 4321


def test_reads_responses_outside_2xx_and_3xx() -> None:
    assert parse_wrk(report(errors="  Non-2xx or 3xx responses: 17\n")).not_2xx == 17


@pytest.mark.parametrize("output", ["", "unable to connect to 127.0.0.1:1 Connection refused\n"])
def test_refuses_output_without_a_result(output: str) -> None:
    with pytest.raises(HarnessError, match="no request"):
        parse_wrk(output)


def test_refuses_a_run_that_completed_nothing() -> None:
    with pytest.raises(HarnessError, match="no request"):
        parse_wrk(report(count=0))


def test_asks_wrk_for_whole_seconds(need: Need) -> None:
    need("wrk")
    command = wrk_command(8080, 16, 0.5, 1)
    assert command[command.index("--duration") + 1] == "1s"
    assert command[command.index("--connections") + 1] == "16"


def test_a_fraction_of_a_second_is_measured_and_cut(answering: Answering, need: Need) -> None:
    need("wrk")
    with answering(b"200 OK", b"good") as port:
        load = run_wrk(port, 1, 0.3, 1)
    assert load.requests > 0
    assert 0.25 < load.seconds < 0.9
    assert load.cpu_ns > 0


def test_a_run_with_a_wrong_status_ends_the_measurement(answering: Answering, need: Need) -> None:
    need("wrk")
    wrong = pytest.raises(WrongResponseError, match="Non-2xx")
    with answering(b"503 Service Unavailable", b"bad") as port, wrong:
        run_wrk(port, 1, 0.3, 1)


def test_a_run_without_a_server_ends_the_measurement(need: Need) -> None:
    need("wrk")
    with pytest.raises(HarnessError, match="wrk exited with 1"):
        run_wrk(free_port(), 1, 0.3, 1)


def test_a_body_that_differs_ends_the_measurement(answering: Answering) -> None:
    with answering(b"200 OK", b"good") as port:
        check_body("proxy", port, b"good")
        with pytest.raises(WrongResponseError, match="proxy answered 200 with b'good'"):
            check_body("proxy", port, b"better")


def test_a_proxy_that_is_gone_ends_the_measurement() -> None:
    with pytest.raises(WrongResponseError, match="did not answer"):
        check_body("proxy", free_port(), b"good")
