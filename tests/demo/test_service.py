"""The demo's application: ordinary, but it calls by its proxy and copies what a trace needs."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from meshfast.cli.demo import service
from meshfast.cli.demo.service import TRACE_HEADERS
from meshfast.cli.demo.stage import reserved_port, wait_until


class Proxy:
    """In the place of the sidecar: keeps what it was asked, and answers as the next service."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.connections: set[Any] = set()
        self.status = 200
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                proxy.asked.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
                proxy.connections.add(self.client_address)
                self.send_response(proxy.status)
                self.send_header("Content-Length", "9")
                self.end_headers()
                self.wfile.write(b'{"n": 42}')

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,))
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    one = Proxy()
    yield one
    one.close()


@pytest.fixture
def order(proxy: Proxy) -> Iterator[http.client.HTTPConnection]:
    """A connection to a service that calls http://payment-service by the proxy."""
    held = reserved_port()
    port = held.getsockname()[1]
    url = f"http://order-v1:se%2Fcret@127.0.0.1:{proxy.server.server_port}"
    command = [sys.executable, "-I", service.__file__, "order", "v1", str(port)]
    process = subprocess.Popen(
        [*command, "http://payment-service"], env={**os.environ, "HTTP_PROXY": url}
    )
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)

    def accepts() -> bool:
        try:
            connection.connect()
        except ConnectionRefusedError:
            return False
        return True

    try:
        wait_until(accepts, "the service to accept", 20)
        yield connection
    finally:
        connection.close()
        process.terminate()
        process.wait(10)
        held.close()


def ask(connection: http.client.HTTPConnection, **headers: str) -> tuple[int, Any]:
    connection.request("GET", "/orders/7", headers=headers)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_it_calls_the_next_service_by_its_proxy_and_answers_with_both(
    proxy: Proxy, order: http.client.HTTPConnection
) -> None:
    status, answer = ask(order)
    assert status == 200
    assert answer == {
        "service": "order", "version": "v1", "path": "/orders/7", "next": {"n": 42},
    }  # fmt: skip
    [(path, headers)] = proxy.asked
    assert path == "http://payment-service/orders/7"
    assert headers["host"] == "payment-service"
    assert headers["proxy-authorization"] == "Basic b3JkZXItdjE6c2UvY3JldA=="


def test_it_copies_the_headers_of_a_trace_and_no_others(
    proxy: Proxy, order: http.client.HTTPConnection
) -> None:
    trace = {name: f"value of {name}" for name in TRACE_HEADERS}
    ask(order, **trace, cookie="a=b")
    [(_, headers)] = proxy.asked
    assert {name: headers.get(name) for name in trace} == trace
    assert "cookie" not in headers


def test_connections_are_kept_on_both_sides(
    proxy: Proxy, order: http.client.HTTPConnection
) -> None:
    downstream = order.sock
    for _ in range(3):
        ask(order)
    assert order.sock is downstream
    assert len(proxy.connections) == 1


def test_a_failed_call_is_shown_and_not_tried_again(
    proxy: Proxy, order: http.client.HTTPConnection
) -> None:
    proxy.status = 503
    status, answer = ask(order)
    assert (status, answer["next"]) == (502, 'http://payment-service: 503 {"n": 42}')
    assert len(proxy.asked) == 1
