"""The demo's application: an ordinary HTTP service that knows nothing of meshfast.

Run as `python -I -m meshfast.cli.demo.service NAME VERSION PORT`. It answers every GET with its
name and version as JSON and keeps connections alive, as any service does.

Tests: tests/demo/test_demo.py.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

__all__ = ["serve"]


def serve(name: str, version: str, port: int) -> None:
    """Answer on a port of the loopback interface until the process ends."""
    body = json.dumps({"service": name, "version": version}).encode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            """Answer; headers and body leave in one write."""
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self._headers_buffer.append(b"\r\n" + body)  # type: ignore[attr-defined]
            self.flush_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: the proxy's access log has it."""

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
