"""The demo's load: a steady stream of requests on `order`, every answer checked, errors kept.

Run under `meshfast run` as `python -I -m meshfast.cli.demo.load PORT URL RATE`. The stream is an
open loop: a request is due every 1/RATE s whatever became of those before, and its latency counts
from the moment it was due, so that a mesh that stalls cannot hide it. What counts as an error: a
status other than 200, an answer that is not the whole chain with the path that was asked for, a
connection that breaks, refuses or times out. Nothing is tried again.

The demo asks on PORT: `POST /start` begins, `POST /take` answers with what happened since the last
one, `POST /stop` with the rest.

Invariant: a request belongs to the sample in which it began, and a sample is given out when all of
its requests have ended. What is taken after a change has been acknowledged is of after the change.

Tests: tests/demo/test_load.py.
"""

from __future__ import annotations

import http.client
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from meshfast.cli.demo.service import Client

__all__ = ["CHAIN", "SPLIT", "Load", "Sample", "version_of"]

#: Who has to have answered, in this order.
CHAIN = ("order", "payment-service", "inventory")
#: The one that has two versions.
SPLIT = "payment-service"
CONNECTIONS = 8
#: Different errors that are kept word by word; further ones are only counted.
REASONS_MAX = 20

#: Status and body for a path.
Fetch = Callable[[str], tuple[int, bytes]]


@dataclass
class Sample:
    """What became of the requests that began in a span of time."""

    seconds: float = 0.0
    versions: Counter[str] = field(default_factory=Counter)
    errors: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    latencies_ms: list[float] = field(default_factory=list)

    @classmethod
    def of_json(cls, text: bytes) -> Sample:
        """Read what the load process answers."""
        found = json.loads(text)
        for counter in ("versions", "reasons"):
            found[counter] = Counter(found[counter])
        return cls(**found)

    @property
    def requests(self) -> int:
        """Requests, answered well or not."""
        return sum(self.versions.values()) + self.errors

    @property
    def rate(self) -> float:
        """Requests a second; 0 for no time."""
        return self.requests / self.seconds if self.seconds else 0.0

    def share(self, version: str) -> float:
        """The part of good answers that came through a version of payment-service, 0 to 1."""
        answered = sum(self.versions.values())
        return self.versions[version] / answered if answered else 0.0

    def percentile_ms(self, percent: float) -> float:
        """A percentile of the latencies; 0 when there are none."""
        ordered = sorted(self.latencies_ms)
        if not ordered:
            return 0.0
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]

    def add(self, other: Sample) -> None:
        """Count another one in."""
        self.seconds += other.seconds
        self.versions.update(other.versions)
        self.errors += other.errors
        self.reasons.update(other.reasons)
        self.latencies_ms.extend(other.latencies_ms)


class Load:
    """Requests at a rate, by a few threads, from `start` to `stop`."""

    def __init__(self, fetch: Fetch, rate: float) -> None:
        """Send nothing yet. `rate` is in requests a second."""
        self._fetch = fetch
        self._rate = rate
        self._lock = threading.Condition()
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(CONNECTIONS)]
        self._window = _Window()
        self._began_s = self._since_s = 0.0
        self._due = 0

    def start(self) -> None:
        """Begin; the first request is due now."""
        self._began_s = self._since_s = time.monotonic()
        for thread in self._threads:
            thread.start()

    def take(self) -> Sample:
        """Begin a new sample and return the one before, once its requests have ended."""
        with self._lock:
            taken, self._window = self._window, _Window()
            now_s = time.monotonic()
            taken.sample.seconds, self._since_s = now_s - self._since_s, now_s
            self._lock.wait_for(lambda: not taken.pending)
        return taken.sample

    def stop(self) -> Sample:
        """Send nothing more, and return what `take` would."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        return self.take()

    def _call(self) -> None:
        while True:
            with self._lock:
                number, self._due = self._due, self._due + 1
            due_s = self._began_s + number / self._rate
            if self._stopping.wait(max(0.0, due_s - time.monotonic())):
                return
            with self._lock:
                window = self._window
                window.pending += 1
            path = f"/orders/{number}"
            try:
                version, reason = version_of(path, *self._fetch(path)), ""
            except (OSError, ValueError, http.client.HTTPException) as error:
                version, reason = "", f"{type(error).__name__}: {error}"
            took_ms = (time.monotonic() - due_s) * 1000
            with self._lock:
                window.count(version, reason, took_ms)
                self._lock.notify_all()


class _Window:
    """A sample that is being made, and how many of its requests are under way."""

    def __init__(self) -> None:
        self.sample = Sample()
        self.pending = 0

    def count(self, version: str, reason: str, took_ms: float) -> None:
        """Take in one request that has ended."""
        self.pending -= 1
        if version:
            self.sample.versions[version] += 1
            self.sample.latencies_ms.append(round(took_ms, 3))
            return
        self.sample.errors += 1
        if reason in self.sample.reasons or len(self.sample.reasons) < REASONS_MAX:
            self.sample.reasons[reason] += 1


def version_of(path: str, status: int, body: bytes) -> str:
    """Name the version of payment-service that an answer came through.

    Raises ValueError for an answer that is not the whole chain's to this path.
    """
    if status != 200:
        raise ValueError(f"{status} {body[:200].decode(errors='replace')}")
    answer: Any = json.loads(body)
    version = ""
    for name in CHAIN:
        if not isinstance(answer, dict) or (answer.get("service"), answer.get("path")) != (
            name,
            path,
        ):
            raise ValueError(f"not the answer of {name} to {path}: {body[:200]!r}")
        if name == SPLIT:
            version = str(answer.get("version"))
        answer = answer.get("next")
    return version


def _serve(port: int, load: Load) -> None:
    commands: dict[str, Callable[[], Sample | None]] = {
        "/start": load.start,
        "/take": load.take,
        "/stop": load.stop,
    }

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            """Obey."""
            if self.path not in commands:
                return self.send_error(404)
            sample = commands[self.path]()
            body = b"" if sample is None else json.dumps(vars(sample)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    client, url = Client(os.environ["HTTP_PROXY"]), sys.argv[2]
    _serve(int(sys.argv[1]), Load(lambda path: client.fetch(url + path), float(sys.argv[3])))
