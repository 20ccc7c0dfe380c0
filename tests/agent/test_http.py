"""The metrics socket against clients of every kind: strict, bounded, never held up."""

import itertools
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from meshfast.agent import http
from meshfast.agent.http import CONNECTIONS_MAX, HEAD_BYTES_MAX
from meshfast.agent.loop import Loop
from meshfast.agent.process import SCRAPES_MAX
from tests.agent.conftest import Start
from tests.agent.fakes.recorded import http_series
from tests.agent.harness import Supervised, response, wait_for

GET = b"GET /healthz/live HTTP/1.1\r\nHost: agent\r\n\r\n"

REFUSED = {
    "no_request_line": (b"hello\r\n\r\n", 400),
    "three_spaces": (b"GET  /healthz/live HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a_bare_line_feed": (b"GET /healthz/live HTTP/1.1\nHost: a\r\n\r\n", 400),
    "a_control_character": (b"GET /healthz/\x00live HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "a_name_with_a_space": (b"GET /healthz/live HTTP/1.1\r\nHost : a\r\n\r\n", 400),
    "a_folded_line": (b"GET /healthz/live HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", 400),
    "a_value_with_a_carriage_return": (
        b"GET /healthz/live HTTP/1.1\r\nHost: a\rb\r\n\r\n",
        400,
    ),
    "no_host": (b"GET /healthz/live HTTP/1.1\r\n\r\n", 400),
    "two_hosts": (b"GET /healthz/live HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
    "another_version": (b"GET /healthz/live HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    "an_unknown_path": (b"GET /etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n", 404),
    "a_path_that_climbs": (b"GET /healthz/../metrics HTTP/1.1\r\nHost: a\r\n\r\n", 404),
    "a_large_head": (
        b"GET /healthz/live HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n" % (b"x" * HEAD_BYTES_MAX),
        431,
    ),
    "an_endless_head": (b"GET /" + b"x" * (HEAD_BYTES_MAX + 1), 431),
}


@pytest.mark.parametrize(("request_bytes", "status"), REFUSED.values(), ids=REFUSED.keys())
def test_refuses(start: Start, request_bytes: bytes, status: int) -> None:
    got, headers, _ = start().exchange(request_bytes)
    assert got == status
    assert headers["connection"] == "close"


def test_refuses_other_methods_and_names_the_two_it_knows(start: Start) -> None:
    agent = start()
    for method in (b"POST", b"PUT", b"DELETE", b"OPTIONS", b"get"):
        status, headers, _ = agent.exchange(method + GET[3:])
        assert (status, headers["allow"]) == (405, "GET, HEAD")


def test_a_body_that_nobody_asked_for_does_not_cut_the_answer(start: Start) -> None:
    agent = start()
    body = b"x" * 200_000
    head = b"POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
    with agent.connect() as client:
        client.sendall(head + body[:100_000])
        client.sendall(body[100_000:])
        client.shutdown(socket.SHUT_WR)
        assert response(read_all(client))[0] == 405


def test_head_has_the_headers_of_get_and_no_body(start: Start) -> None:
    agent = start()
    status, headers, body = agent.exchange(b"HEAD" + GET[3:])
    assert (status, body, headers["content-length"]) == (200, b"", "5")
    with agent.connect() as client:
        client.sendall(b"HEAD /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        head = read_all(client)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert head.endswith(b"\r\n\r\n")
    assert b"Transfer-Encoding: chunked" in head


def test_http_1_0_gets_an_unchunked_answer_without_a_host(start: Start) -> None:
    status, headers, body = start().exchange(b"GET /metrics HTTP/1.0\r\n\r\n")
    assert status == 200
    assert "transfer-encoding" not in headers
    assert body.startswith(b"# HELP istio_requests_total")


def test_absolute_form_and_query_are_understood(start: Start) -> None:
    target = b"GET http://agent:15020/healthz/live?x=1 HTTP/1.1\r\nHost: agent:15020\r\n\r\n"
    assert start().exchange(target)[0] == 200


def test_a_head_may_come_byte_by_byte(start: Start) -> None:
    with start().connect() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in GET:
            client.sendall(bytes([byte]))
        assert response(read_all(client))[0] == 200


def test_a_client_that_sends_half_a_head_is_told_after_five_seconds(start: Start) -> None:
    agent = start()
    with agent.connect() as client:
        began = time.monotonic()
        client.sendall(GET[:20])
        assert response(read_all(client))[0] == 408
        assert 4.5 < time.monotonic() - began < 8


def test_those_who_send_nothing_do_not_keep_a_scraper_out(start: Start) -> None:
    agent = start()
    idle = [agent.connect() for _ in range(3 * CONNECTIONS_MAX)]
    try:
        began = time.monotonic()
        assert agent.request("/healthz/live")[0] == 200
        assert time.monotonic() - began < 2
        assert open_sockets(agent) <= CONNECTIONS_MAX + 20
    finally:
        for one in idle:
            one.close()


def test_those_who_do_not_read_do_not_hold_up_others(start: Start) -> None:
    agent = start()
    agent.record(http=[http_series(5, source_app=f"app-{number}") for number in range(500)])
    deaf = []
    try:
        for _ in range(10):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", agent.port))
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
            deaf.append(client)
        began = time.monotonic()
        assert agent.request("/healthz/live")[0] == 200
        agent.log_lines(b'{"n":1}\n')
        agent.ask(1, "127.0.0.1")
        assert agent.answer()["addresses"] == ["127.0.0.1"]
        assert time.monotonic() - began < 2
    finally:
        for client in deaf:
            client.close()


def test_scrapes_at_a_time_are_limited_and_free_again_when_clients_go(start: Start) -> None:
    agent = start()
    agent.record(http=[http_series(5, source_app=f"app-{number}") for number in range(500)])
    deaf = [agent.connect() for _ in range(SCRAPES_MAX)]
    for client in deaf:
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 200"
    status, headers, _ = agent.request("/metrics")
    assert (status, headers["retry-after"]) == (503, "1")
    for client in deaf:
        client.close()
    wait_for(lambda: agent.request("/metrics")[0] == 200)


def test_a_client_that_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "RESPONSE_S", 0.2)
    loop = Loop()
    listening = socket.create_server(("127.0.0.1", 0))
    body = itertools.repeat(b"x" * 65536)
    ended = []

    class Watched(http.Server):
        def ended(self, connection: Any) -> None:
            super().ended(connection)
            ended.append(connection)
            loop.stop()

    server = Watched(loop, listening.fileno(), {"/endless": lambda _: http.Response(200, body)})
    with socket.create_connection(listening.getsockname()) as client:
        client.sendall(b"GET /endless HTTP/1.1\r\nHost: a\r\n\r\n")
        loop.call_later(5, loop.stop)
        loop.run()
        assert len(ended) == 1
    listening.detach()
    vars(server)["_socket"].close()


def test_a_scrape_of_many_series_is_interleaved_with_other_work(start: Start) -> None:
    agent = start()
    agent.record(http=[http_series(5, source_app=f"app-{number}") for number in range(1000)])
    with agent.connect() as scraper:
        scraper.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        first = scraper.recv(65536)
        agent.ask(1, "127.0.0.1")
        assert agent.answer()["id"] == 1
        rest = read_all(scraper)
    _, _, body = response(first + rest)
    assert body.count(b"istio_requests_total{") == 1000


def test_connections_are_closed_when_clients_go(start: Start) -> None:
    agent = start()
    before = open_sockets(agent)
    for _ in range(20):
        with agent.connect() as client:
            client.sendall(GET[:10])
    wait_for(lambda: open_sockets(agent) == before)


def open_sockets(agent: Supervised) -> int:
    return len(list(Path(f"/proc/{agent.process.pid}/fd").iterdir()))


def read_all(client: socket.socket) -> bytes:
    pieces = []
    while piece := client.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)
