"""The demo's application: an ordinary HTTP service that knows nothing of meshfast.

Run as a program, `python -I service.py NAME VERSION PORT [NEXT]`. It answers every GET with its
name, its version and the path as JSON, together with what the service at the URL NEXT answers to
the same path. Like any application in a mesh it calls by HTTP_PROXY and copies the headers of a
trace from the request it serves to the one it makes. The standard library is all it uses.

Does not do: try a call again. An error of the mesh has to stay visible: the answer is then 502.

Tests: tests/demo/test_service.py.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import select
import sys
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

__all__ = ["TRACE_HEADERS", "Client", "serve"]

# What an application has to copy for a trace to join: W3C trace context, B3 in both forms, and
# Envoy's request id.
TRACE_HEADERS = (
    "traceparent",
    "tracestate",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "x-request-id",
)
TIMEOUT_S = 5.0


class Client:
    """GET by the proxy of the environment, over connections that are kept; for many threads."""

    def __init__(self, proxy_url: str) -> None:
        """Connect to nothing yet. `proxy_url` is as HTTP_PROXY has it, with user and password."""
        proxy = urlsplit(proxy_url)
        self._host, self._port = proxy.hostname or "", proxy.port or 80
        credential = f"{unquote(proxy.username or '')}:{unquote(proxy.password or '')}"
        encoded = base64.b64encode(credential.encode()).decode()
        self._authorization = {"Proxy-Authorization": f"Basic {encoded}"}
        self._idle: list[http.client.HTTPConnection] = []

    def fetch(self, url: str, headers: Mapping[str, str] | None = None) -> tuple[int, bytes]:
        """Return status and body. Raises OSError and http.client.HTTPException."""
        connection = self._connection()
        try:
            connection.request("GET", url, headers={**(headers or {}), **self._authorization})
            answer = connection.getresponse()
            body = answer.read()
        except BaseException:
            connection.close()
            raise
        if not answer.will_close:
            self._idle.append(connection)
        return answer.status, body

    def _connection(self) -> http.client.HTTPConnection:
        """Take the connection that was used last, unless its other end has closed it."""
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread had the last one
                break
            if not select.select([connection.sock], [], [], 0)[0]:
                return connection
            connection.close()
        return http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)


def serve(name: str, version: str, port: int, next_url: str = "", proxy_url: str = "") -> None:
    """Answer on a port of the loopback interface until the process ends."""
    client = Client(proxy_url)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1  # head and body leave together

        def do_GET(self) -> None:
            """Answer, after the next service has."""
            answer: dict[str, Any] = {"service": name, "version": version, "path": self.path}
            status = 200
            if next_url:
                status, answer["next"] = self._ask_next()
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _ask_next(self) -> tuple[int, Any]:
            copied = {key: self.headers[key] for key in TRACE_HEADERS if key in self.headers}
            try:
                status, body = client.fetch(next_url + self.path, copied)
            except (OSError, http.client.HTTPException) as error:
                return 502, f"{next_url}: {type(error).__name__}: {error}"
            if status != 200:
                return 502, f"{next_url}: {status} {body.decode(errors='replace')}"
            return 200, json.loads(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: the sidecar's metrics have it."""

    class Server(ThreadingHTTPServer):
        request_queue_size = 128

    Server(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    threading.stack_size(256 * 1024)
    serve(
        sys.argv[1],
        sys.argv[2],
        int(sys.argv[3]),
        "".join(sys.argv[4:5]),
        os.environ.get("HTTP_PROXY", ""),
    )
