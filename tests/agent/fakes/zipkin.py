"""A Zipkin server that takes spans, refuses them, is slow, or hangs; in threads of the test."""

from __future__ import annotations

import http.server
import json
import threading
import time
from typing import Any


class FakeZipkin:
    """Listens from the start; `status` and `delay_s` may change at any time."""

    def __init__(self) -> None:
        self.status = 202
        self.delay_s = 0.0
        self.batches: list[list[Any]] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        self._stopped = threading.Event()
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                fake.take(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.address = f"127.0.0.1:{self._server.server_address[1]}"

    def take(self, request: http.server.BaseHTTPRequestHandler) -> None:
        """Answer one post; a batch counts when it is taken."""
        body = request.rfile.read(int(request.headers["Content-Length"]))
        self.requests.append((request.path, dict(request.headers)))
        until = time.monotonic() + self.delay_s
        while time.monotonic() < until and not self._stopped.wait(0.01):
            pass
        if self._stopped.is_set():
            return
        if self.status == 202:
            self.batches.append(json.loads(body))
        request.send_response(self.status)
        request.send_header("Content-Length", "0")
        request.end_headers()

    @property
    def spans(self) -> list[Any]:
        """Every span that was taken, in order."""
        return [span for batch in self.batches for span in batch]

    def close(self) -> None:
        """Listen no more."""
        self._stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
