"""Where the sidecars of the demo send their spans, and the trace that is read back from there.

A small collector with the part of Zipkin's API (v2) that the demo uses: `POST /api/v2/spans` and
`GET /api/v2/traces?serviceName=…&limit=…`. A real Zipkin server can stand in its place
(`--zipkin-address`): the trace is read from it in the same way.

Does not do: keep more than the newest traces, search by anything but a service, show.

Tests: tests/demo/test_spans.py.
"""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

__all__ = ["Collector", "Trace", "joined", "read_trace"]

TRACES_MAX = 1000
BODY_BYTES_MAX = 8 << 20
READ_MAX = 100
READ_S = 5.0
#: How long `close` waits for the server at most.
POLL_S = 0.05

Span = dict[str, Any]


@dataclass(frozen=True)
class Trace:
    """A trace in which every span hangs on one root: its services in the order they were called.

    `began_s` is in seconds since 1970.
    """

    id: str
    services: tuple[str, ...]
    spans: int
    began_s: float
    duration_ms: float


class Collector:
    """An HTTP server on a free port of the loopback interface, from the start to `close`."""

    def __init__(self) -> None:
        """Start it."""
        self._lock = threading.Lock()
        self._traces: dict[str, list[Span]] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_S,), daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> str:
        """`HOST:PORT`, as `--zipkin-address` takes it."""
        return f"127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _take(self, spans: Sequence[Span]) -> None:
        with self._lock:
            for span in spans:
                self._traces.setdefault(span["traceId"], []).append(span)
            while len(self._traces) > TRACES_MAX:
                del self._traces[next(iter(self._traces))]

    def _find(self, name: str, limit: int) -> list[list[Span]]:
        with self._lock:
            found = [spans for spans in self._traces.values() if name in map(_service, spans)]
            return [list(spans) for spans in found[-limit:]]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        take, find = self._take, self._find

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 60.0

            def do_POST(self) -> None:
                """Take spans; 202 as Zipkin answers."""
                length = int(self.headers.get("Content-Length") or 0)
                if self.path != "/api/v2/spans" or length > BODY_BYTES_MAX:
                    return self.send_error(404)
                try:
                    take(json.loads(self.rfile.read(length)))
                except (ValueError, LookupError, TypeError):
                    return self.send_error(400)
                self._answer(202, b"")

            def do_GET(self) -> None:
                """Give the newest traces that a service has a span in."""
                target = urlsplit(self.path)
                query = parse_qs(target.query)
                if target.path != "/api/v2/traces" or "serviceName" not in query:
                    return self.send_error(404)
                limit = int(query.get("limit", ["10"])[0])
                self._answer(200, json.dumps(find(query["serviceName"][0], limit)).encode())

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        return Handler


def read_trace(address: str, services: Sequence[str], since_s: float) -> Trace | None:
    """Find a trace that joins all services and began since a time in seconds since 1970.

    A real server may hold those of earlier demos. Raises OSError when none answers.
    """
    query = urlencode({"serviceName": f"{services[0]}.default", "limit": READ_MAX})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"http://{address}/api/v2/traces?{query}", timeout=READ_S) as answer:
        traces: list[list[Span]] = json.loads(answer.read())
    for trace in filter(None, map(joined, traces)):
        if set(services) <= set(trace.services) and trace.began_s >= since_s:
            return trace
    return None


def joined(spans: Sequence[Span]) -> Trace | None:
    """Describe the trace of some spans; None when they are not one tree."""
    ids = {span["id"] for span in spans}
    roots = {span["id"] for span in spans if not span.get("parentId")}
    parents = {span["parentId"] for span in spans if span.get("parentId")}
    if len({span["traceId"] for span in spans}) != 1 or len(roots) != 1 or not parents <= ids:
        return None
    ordered = sorted(spans, key=lambda span: span.get("timestamp", 0))
    services = dict.fromkeys(_service(span).partition(".")[0] for span in ordered)
    durations = [span.get("duration", 0) for span in spans if span["id"] in roots]
    began_s = ordered[0].get("timestamp", 0) / 1e6
    return Trace(spans[0]["traceId"], tuple(services), len(spans), began_s, max(durations) / 1000)


def _service(span: Span) -> str:
    return str(span.get("localEndpoint", {}).get("serviceName", ""))
