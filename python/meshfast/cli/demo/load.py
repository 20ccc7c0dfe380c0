"""The demo's callers: a few threads that ask in a loop, keep their connections, count every answer.

What counts as an error: any status but 200, a connection that breaks, refuses or times out. Nothing
is tried again, so that an error of the mesh cannot hide.

Tests: tests/demo/test_demo.py.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

__all__ = ["Load", "Sample"]

CALLERS = 4
TIMEOUT_S = 5.0
# Each caller waits this long between two requests: a steady load, not a race.
PAUSE_S = 0.002


@dataclass
class Sample:
    """What was answered in a span of time."""

    seconds: float = 0.0
    versions: Counter[str] = field(default_factory=Counter)
    errors: int = 0
    latencies_ms: list[float] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """Requests, answered well or not."""
        return sum(self.versions.values()) + self.errors

    def share(self, version: str) -> float:
        """The part of good answers that came from a version, 0 to 1."""
        answered = sum(self.versions.values())
        return self.versions[version] / answered if answered else 0.0

    def percentile_ms(self, percent: float) -> float:
        """A percentile of the latencies; 0 when there are none."""
        ordered = sorted(self.latencies_ms)
        if not ordered:
            return 0.0
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


class Load:
    """Callers of one URL's port, until stopped."""

    def __init__(self, port: int) -> None:
        """Start them."""
        self._port = port
        self._lock = threading.Lock()
        self._current = Sample()
        self._since = time.monotonic()
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(CALLERS)]
        for thread in self._threads:
            thread.start()

    def take(self) -> Sample:
        """Return what happened since the last call."""
        now = time.monotonic()
        with self._lock:
            sample, self._current = self._current, Sample()
            sample.seconds, self._since = now - self._since, now
        return sample

    def stop(self) -> Sample:
        """End the callers and return what `take` would."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        return self.take()

    def _call(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_S)
        while not self._stopping.is_set():
            start = time.perf_counter()
            try:
                connection.request("GET", "/")
                response = connection.getresponse()
                body = response.read()
                version = json.loads(body)["version"] if response.status == 200 else ""
            except (OSError, http.client.HTTPException):
                connection.close()
                version = ""
            took_ms = (time.perf_counter() - start) * 1000
            with self._lock:
                if version:
                    self._current.versions[version] += 1
                    self._current.latencies_ms.append(took_ms)
                else:
                    self._current.errors += 1
            time.sleep(PAUSE_S)
        connection.close()
