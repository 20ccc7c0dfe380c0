"""What reaches an application through two sidecars, counted there: nothing more often than allowed.

The application answers `/warm` and closes its connection, once it has read it whole, at any other
request: at the worst moment, when it may have done what it was asked for.
"""

from __future__ import annotations

import base64
import http.client
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.mesh.harness import Fixture, free_port, wait_until

WARMING = 8

RULE = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: payment}}
spec:
  hosts: [payment]
  http:
{routes}"""
ROUTE = """\
    - match: [{{uri: {{prefix: /{attempts}/}}}}]
      route: [{{destination: {{host: payment}}}}]
      retries: {{attempts: {attempts}{on}}}
"""
ON = ', retryOn: "reset,5xx", backoff: 1ms'
# The first shows that a worker has the rule.
REST = """\
    - match: [{uri: {exact: /ready}}]
      route: [{destination: {host: payment}}]
      fault: {abort: {httpStatus: 418, percentage: {value: 100}}}
    - route: [{destination: {host: payment}}]
"""

# Notes each request as `<which of its connection> <method> <path>`.
APP = """
import http.server, os, sys
class App(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    turn = 0
    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.turn += 1
        with open(sys.argv[2], "a") as notes:
            notes.write(f"{self.turn} {self.command} {self.path}\\n")
        if self.path.startswith("/warm"):
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")
        else:
            self.close_connection = True
    do_GET = do_PUT = do_POST = answer
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), App).serve_forever()
"""


class Mesh(Fixture):
    """Order calls payment, by routes that differ in their attempts."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.notes = folder / "notes"
        self.notes.touch()
        port = free_port()
        self.command = [sys.executable, "-c", APP, str(port), str(self.notes)]
        self.url = f"http://payment:{port}"

    def start(self) -> None:
        """Start both and wait until they have the routes."""
        port = urlsplit(self.url).port
        self.run("payment", app_port=port, command=self.command)
        self.order = self.run("order")
        routes = [
            ROUTE.format(attempts=attempts, on=ON if attempts else "") for attempts in (0, 1, 3)
        ]
        applied: Any = self.control.ask(apply=RULE.format(routes="".join(routes) + REST))
        assert "error" not in applied, applied

        wait_until(lambda: self.call("GET", "/ready") == 418, "a worker of order has the rule")

        def has_all() -> bool:
            states = {one["state"] for one in self.control.ask(sidecars=True)}
            return states == {"SYNCED"} and self.call("GET", "/warm") == 200

        wait_until(has_all, "all workers have it, and reach payment")

    def call(self, method: str, path: str) -> int:
        """Call payment as order's application would, and return the status."""
        proxy = urlsplit(self.order.proxies()["http"])
        credential = base64.b64encode(f"{proxy.username}:{proxy.password}".encode()).decode()
        connection = http.client.HTTPConnection(str(proxy.hostname), proxy.port, timeout=20)
        with closing(connection):
            body = None if method == "GET" else b"body"
            headers = {"Proxy-Authorization": f"Basic {credential}"}
            connection.request(method, self.url + path, body, headers)
            return connection.getresponse().status

    def read(self, path: str) -> list[str]:
        """What the application read for a path."""
        lines = self.notes.read_text().splitlines()
        return [line for line in lines if line.endswith(f" {path}")]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with closing(Mesh(tmp_path_factory.mktemp("repeats"))) as one:
        one.start()
        yield one


@pytest.mark.parametrize("attempts", [0, 1, 3])
@pytest.mark.parametrize("method", ["GET", "PUT", "POST"])
def test_the_application_gets_a_request_once_and_once_more_for_each_attempt(
    method: str, attempts: int, mesh: Mesh
) -> None:
    reused = 0
    for number in range(4):
        for _ in range(WARMING):
            assert mesh.call("GET", "/warm") == 200
        path = f"/{attempts}/{method}/{number}"
        assert mesh.call(method, path) == 503
        read = mesh.read(path)
        expected = 1 if method == "POST" else 1 + attempts
        assert len(read) == expected, read
        reused += not read[0].startswith("1 ")
    assert reused, "none of the connections was a reused one"
