"""What leaves the proxy, name by name: upstream, in local answers, in the access log."""

from __future__ import annotations

import re
import socket
import threading
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest

from tests.dataplane.harness import (
    Client,
    Origin,
    Proxy,
    Response,
    echo_origin,
    forwarding,
    free_port,
    pool,
)

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-(0[01])")
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"

# Istio's JSON access log (pilot/pkg/model/telemetry_logging.go), and the trace.
KEYS = {
    "authority",
    "bytes_received",
    "bytes_sent",
    "connection_termination_details",
    "downstream_local_address",
    "downstream_remote_address",
    "duration",
    "method",
    "path",
    "protocol",
    "request_id",
    "requested_server_name",
    "response_code",
    "response_code_details",
    "response_flags",
    "route_name",
    "start_time",
    "trace_id",
    "upstream_cluster",
    "upstream_host",
    "upstream_local_address",
    "upstream_service_time",
    "upstream_transport_failure_reason",
    "user_agent",
    "x_forwarded_for",
}


def sent(port: int, *lines: str) -> dict[str, list[str]]:
    """Send a request with these header lines; return what reached the origin, values by name."""
    with Client(port) as client:
        head = "".join(line + "\r\n" for line in ("GET /p?q=1 HTTP/1.1", "Host: shop", *lines))
        client.send(f"{head}\r\n".encode("latin-1"))
        response = client.response()
    assert response.status == 200
    return values_of(response.body.split(b"\r\n\r\n")[0].split(b"\r\n")[1:])


def values_of(lines: list[bytes]) -> dict[str, list[str]]:
    values: dict[str, list[str]] = {}
    for line in lines:
        name, value = line.decode("latin-1").split(":", 1)
        values.setdefault(name, []).append(value.strip())
    return values


def test_what_is_added_to_a_bare_request(echoing: tuple[Proxy, int]) -> None:
    _, port = echoing
    values = sent(port)
    assert set(values) == {
        "Host",
        "traceparent",
        "x-b3-sampled",
        "x-b3-spanid",
        "x-b3-traceid",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-request-id",
    }
    assert all(len(each) == 1 for each in values.values())
    assert UUID.fullmatch(values["x-request-id"][0])
    assert values["x-forwarded-for"] == ["127.0.0.1"]
    assert values["x-forwarded-proto"] == ["http"]
    parent = TRACEPARENT.fullmatch(values["traceparent"][0])
    assert parent
    trace, span, flags = parent.groups()
    assert values["x-b3-traceid"] == [trace]
    assert values["x-b3-spanid"] == [span]
    assert values["x-b3-sampled"] == [flags[1]]
    assert sent(port)["x-request-id"] != values["x-request-id"]


def test_what_came_goes_on_as_it_came(echoing: tuple[Proxy, int]) -> None:
    _, port = echoing
    parent = f"00-{TRACE}-{SPAN}-01"
    values = sent(port, "X-Request-ID: mine", f"Traceparent: {parent}", "Tracestate: a=1")
    assert values["X-Request-ID"] == ["mine"]
    assert values["Traceparent"] == [parent]
    assert values["Tracestate"] == ["a=1"]
    assert not {"x-request-id", "traceparent", "x-b3-traceid"} & set(values)
    assert sent(port, f"b3: {TRACE}-{SPAN}-d")["b3"] == [f"{TRACE}-{SPAN}-d"]


def test_the_caller_stands_behind_earlier_proxies(echoing: tuple[Proxy, int]) -> None:
    _, port = echoing
    values = sent(port, "X-Forwarded-For: 10.0.0.1", "x-forwarded-for: 10.0.0.2, 10.0.0.3")
    assert values["x-forwarded-for"] == ["10.0.0.1, 10.0.0.2, 10.0.0.3, 127.0.0.1"]
    assert "X-Forwarded-For" not in values
    assert sent(port, "X-Forwarded-Proto: https")["x-forwarded-proto"] == ["http"]


@pytest.mark.parametrize(
    ("line", "flags", "sampled", "debug"),
    [
        ("b3: 0", "00", ["0"], None),
        ("b3: 1", "01", ["1"], None),
        ("b3: d", "01", None, ["1"]),
        ("X-B3-Sampled: 0", "00", ["0"], None),
        ("X-B3-Sampled: 1", "01", ["1"], None),
        ("X-B3-Flags: 1", "01", None, ["1"]),
    ],
)
def test_a_decision_without_a_trace_is_kept(
    echoing: tuple[Proxy, int],
    line: str,
    flags: str,
    sampled: list[str] | None,
    debug: list[str] | None,
) -> None:
    _, port = echoing
    values = sent(port, line)
    parent = TRACEPARENT.fullmatch(values["traceparent"][0])
    assert parent
    assert parent[3] == flags
    assert values["x-b3-traceid"] == [parent[1]]
    assert (values.get("x-b3-sampled"), values.get("x-b3-flags")) == (sampled, debug)
    assert not {"b3", "X-B3-Sampled", "X-B3-Flags"} & set(values)


@pytest.mark.parametrize(
    "lines",
    [
        [f"traceparent: 00-{TRACE.upper()}-{SPAN}-01"],
        [f"traceparent: 00-{TRACE}-{SPAN}-01"] * 2,
        [f"traceparent: ff-{TRACE}-{SPAN}-01"],
        [f"traceparent: 00-{'0' * 32}-{SPAN}-01"],
    ],
    ids=["upper", "two", "version", "zero"],
)
def test_a_broken_traceparent_is_replaced(echoing: tuple[Proxy, int], lines: list[str]) -> None:
    _, port = echoing
    values = sent(port, *lines, "tracestate: a=1")
    [value] = values["traceparent"]
    parent = TRACEPARENT.fullmatch(value)
    assert parent
    assert parent[1] != TRACE
    assert "tracestate" not in values


@pytest.mark.parametrize("lines", [["x-request-id: " + "i" * 129], ["x-request-id: i"] * 2])
def test_a_request_id_nobody_should_log_is_replaced(tmp_path: Path, lines: list[str]) -> None:
    with echo_origin() as origin, forwarding(origin, tmp_path) as (proxy, port):
        [made] = sent(port, *lines)["x-request-id"]
        assert UUID.fullmatch(made)
        assert proxy.records(1)[0]["request_id"] == made
        assert sent(port, "x-request-id: " + "i" * 128)["x-request-id"] == ["i" * 128]


def answer(port: int, data: bytes) -> Response:
    with Client(port) as client:
        client.send(data)
        return client.response()


def test_local_answers_are_found_in_the_log(tmp_path: Path) -> None:
    """By x-request-id, whether the request could be read or not."""
    with echo_origin() as origin:
        pass
    mine = b"X-Request-ID: mine\r\n\r\n"
    cases = [
        (503, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (503, b"GET / HTTP/1.1\r\nHost: a\r\n" + mine),
        (405, b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n"),
        (405, b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n"),
        (200, b"OPTIONS * HTTP/1.1\r\nHost: a\r\nMax-Forwards: 0\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n" + mine),
        (431, b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 40_000 + b"\r\n\r\n"),
    ]
    with forwarding(origin, tmp_path) as (proxy, port):
        for number, (status, data) in enumerate(cases, 1):
            response = answer(port, data)
            assert response.status == status
            given = response.header("x-request-id")
            assert given
            expected = "mine" if (status, data[-len(mine) :]) == (503, mine) else None
            assert given == expected if expected else UUID.fullmatch(given)
            date = response.header("date")
            assert date
            assert date.endswith(" GMT")
            assert abs(parsedate_to_datetime(date) - datetime.now(UTC)) < timedelta(seconds=30)
            record = proxy.records(number)[-1]
            assert (record["request_id"], record["response_code"]) == (given, status)
            assert record["upstream_service_time"] is None


def test_a_forwarded_answer_is_not_touched(tmp_path: Path) -> None:
    with echo_origin() as origin, forwarding(origin, tmp_path) as (_, port):
        response = answer(port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert [line.split(b":")[0] for line in response.lines] == [b"content-length"]


def test_the_record_of_a_forwarded_request(tmp_path: Path) -> None:
    ends: list[Any] = []

    def script(client: Client) -> None:
        ends.append(client.socket.getpeername())
        origin.request(client)
        pause.wait(0.05)
        client.send(b"HTTP/1.1 201 Created\r\nContent-Length: 3\r\n\r\nyes")

    pause = threading.Event()
    with Origin(script) as origin, forwarding(origin, tmp_path) as (proxy, port):
        with Client(port) as client:
            own = client.socket.getsockname()
            client.send(
                b"POST /p?q=1 HTTP/1.1\r\nHost: shop\r\nUser-Agent: test/1\r\n"
                b"X-Forwarded-For: 10.0.0.1\r\nX-Request-Id: mine\r\n"
                b"Traceparent: 00-" + f"{TRACE}-{SPAN}".encode() + b"-01\r\n"
                b"Content-Length: 5\r\n\r\nhello"
            )
            assert client.response().body == b"yes"
        [record] = proxy.records(1)
    assert set(record) == KEYS
    start = datetime.fromisoformat(record.pop("start_time"))
    assert abs(start - datetime.now(UTC)) < timedelta(seconds=30)
    duration, service = record.pop("duration"), record.pop("upstream_service_time")
    assert type(duration) is type(service) is int
    assert 50 <= service <= duration < 20_000
    [(host, local_port)] = ends
    assert record == {
        "authority": "shop",
        "bytes_received": 5,
        "bytes_sent": 3,
        "connection_termination_details": None,
        "downstream_local_address": f"127.0.0.1:{port}",
        "downstream_remote_address": f"127.0.0.1:{own[1]}",
        "method": "POST",
        "path": "/p?q=1",
        "protocol": "HTTP/1.1",
        "request_id": "mine",
        "requested_server_name": None,
        "response_code": 201,
        "response_code_details": "via_upstream",
        "response_flags": "-",
        "route_name": "default/upstream/0",
        "trace_id": TRACE,
        "upstream_cluster": f"outbound|{origin.port}||upstream.default",
        "upstream_host": f"127.0.0.1:{origin.port}",
        "upstream_local_address": f"{host}:{local_port}",
        "upstream_transport_failure_reason": None,
        "user_agent": "test/1",
        "x_forwarded_for": "10.0.0.1, 127.0.0.1",
    }


def test_the_record_of_a_refused_connect(tmp_path: Path) -> None:
    with echo_origin() as origin:
        pass
    with forwarding(origin, tmp_path) as (proxy, port):
        assert answer(port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").status == 503
        [record] = proxy.records(1)
    assert set(record) == KEYS
    assert record["response_flags"] == "UF,URX"
    detail = "upstream_reset_before_response_started{connection_failure}"
    assert record["response_code_details"] == detail
    assert record["upstream_transport_failure_reason"] == "Connection refused (os error 111)"
    assert record["upstream_service_time"] is None
    assert record["x_forwarded_for"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("said", "status", "detail"),
    [
        (b"", 503, "upstream_reset_before_response_started{connection_termination}"),
        (b"HTTP/1.1 20", 503, "upstream_reset_before_response_started{connection_termination}"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
            200,
            "upstream_reset_after_response_started{connection_termination}",
        ),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nha",
            200,
            "upstream_reset_after_response_started{connection_termination}",
        ),
    ],
    ids=["nothing", "half-a-head", "half-a-body", "half-a-chunk"],
)
def test_an_upstream_that_leaves_says_when(
    tmp_path: Path, said: bytes, status: int, detail: str
) -> None:
    def script(client: Client) -> None:
        origin.request(client)
        client.send(said)

    with Origin(script) as origin, forwarding(origin, tmp_path) as (proxy, port):
        with Client(port) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            client.read_until(b"\r\n\r\n")
            [record] = proxy.records(1)
    assert (record["response_code"], record["response_flags"]) == (status, "UC")
    assert record["response_code_details"] == detail


def test_an_upstream_that_breaks_its_framing_is_not_one_that_left(tmp_path: Path) -> None:
    def script(client: Client) -> None:
        origin.request(client)
        client.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+1\r\nx\r\n")
        client.rest()

    with Origin(script) as origin, forwarding(origin, tmp_path) as (proxy, port):
        with Client(port) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            [record] = proxy.records(1)
        assert (record["response_code"], record["response_flags"]) == (200, "UPE")
        assert record["response_code_details"].startswith("http1.chunk")
        assert proxy.rejected(record["response_code_details"]) == 1


def test_a_tcp_session_that_found_an_endpoint_failed_at_nothing(tmp_path: Path) -> None:
    port = free_port()
    with echo_origin("good") as good:
        ports = [*[free_port() for _ in range(6)], good.port]
        endpoints = ", ".join(f"{{address: 127.0.0.1, ports: {{tcp: {one}}}}}" for one in ports)
        config = tmp_path / "mesh.yaml"
        config.write_text(pool(port, endpoints, "tcp"))
        with Proxy(["-c", str(config)], tmp_path, workers=1) as proxy:
            for _ in range(3):
                with Client(port) as client:
                    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                    assert client.response().body.startswith(b"good\n")
                    client.socket.shutdown(socket.SHUT_WR)
                    client.rest()
            records = proxy.records(3)
    for record in records:
        assert set(record) == KEYS
        assert record["protocol"] == "TCP"
        assert record["upstream_host"] == f"127.0.0.1:{good.port}"
        assert record["upstream_transport_failure_reason"] is None
        assert record["response_flags"] == "-"
        assert record["request_id"] is None
        assert record["x_forwarded_for"] is None
