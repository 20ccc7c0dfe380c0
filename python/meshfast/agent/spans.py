"""Moves spans from the workers' rings to a Zipkin server: batches, one at a time, over HTTP.

    rings → queue → POST /api/v2/spans → 202 → the next batch

Spans are made in the workers, one JSON object a line; nothing here reads them. A server that is
slow, gone or refuses holds up nobody: sockets do not block, the queue is bounded, and what does not
fit waits in the rings, where the workers drop and count it.

Does not do: TLS, keeping spans over a restart, sampling.

Invariants:
1. One batch is on its way at a time, for `POST_S` at most; the next one begins when it has ended.
2. At most `QUEUE_BYTES_MAX` and what one look at the rings gives are held here.
3. Every span is counted once: posted when the server took its batch, dropped when it refused it
   (4xx) or `TRIES_MAX` posts of it failed. Newer spans are worth more than old ones, so a batch is
   given up some time.
4. A batch whose answer was lost may be posted twice; Zipkin merges spans by their identifiers.

Tests: tests/agent/test_spans.py; a real server in tests/mesh/test_tracing.py.
"""

from __future__ import annotations

import os
import socket
import time
from errno import EINPROGRESS

from meshfast.agent.loop import READ, WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from meshfast.agent.log import Log
    from meshfast.agent.loop import Loop
    from meshfast.agent.resolver import Resolver
    from meshfast.telemetry.families import AgentFacts
    from meshfast.telemetry.source import Source

__all__ = ["SpanExporter"]

DRAIN_BYTES = 128 * 1024  # of each ring and look
QUEUE_BYTES_MAX = 1024 * 1024  # about 1,100 spans
BATCH_BYTES_MAX = 256 * 1024

# A ring holds 256 KiB, 290 spans of a worker. Without spans the wait doubles.
BUSY_S = 0.05
IDLE_S_MAX = 0.5
# Batches begin at least so far apart, unless there is a whole one.
BATCH_S = 0.5

POST_S = 5.0
TRIES_MAX = 3
DELAY_S_MIN = 0.5
DELAY_S_MAX = 10.0

STATUS_LINE_BYTES_MAX = 4096


class SpanExporter:
    """Drains and posts on its own timer, from the first turn to `finish`."""

    def __init__(
        self,
        loop: Loop,
        source: Source,
        facts: AgentFacts,
        log: Log,
        resolver: Resolver,
        address: str,
    ) -> None:
        """`address` is `host:port` of the server."""
        self._loop = loop
        self._source = source
        self._facts = facts
        self._log = log
        self._resolver = resolver
        self._address = address
        host, _, port = address.rpartition(":")
        self._host = host
        self._port = int(port)
        self._queue: list[bytes] = []
        self._queued_bytes = 0
        self._batch: list[bytes] = []
        self._tries = 0
        self._failures = 0  # in a row, over all batches
        self._post: _Post | None = None
        self._is_resolving = False
        self._next_at = 0.0
        self._wait_s = BUSY_S
        self._known_ip = ""
        self._failing = ""
        self._stopped = False
        self._tick()

    def finish(self, patience_s: float) -> None:
        """Post what is there now, for `patience_s` at most, and count the rest as dropped.

        The loop has ended; this waits for the server, but for nobody's name.
        """
        deadline = time.monotonic() + patience_s
        self._stopped = True
        if self._post is not None:
            self._post.close()
            self._post = None
        while True:
            self._batch = self._batch or self._take_batch()
            if not self._batch:
                break
            if not self._post_waiting(deadline):
                break
        self._drop(len(self._batch) + len(self._queue))
        while lost := self._source.drain_spans(DRAIN_BYTES):
            self._drop(lost.count(b"\n"))

    # rings and queue

    def _tick(self) -> None:
        if self._stopped:
            return
        moved = self._drain()
        self._wait_s = BUSY_S if moved else min(2 * self._wait_s, IDLE_S_MAX)
        self._begin()
        self._loop.call_later(self._wait_s, self._tick)

    def _drain(self) -> int:
        """Take spans while there is room for them; the bytes that came."""
        if self._queued_bytes >= QUEUE_BYTES_MAX:
            return 0
        data = self._source.drain_spans(DRAIN_BYTES)
        self._queue += data.splitlines()
        self._queued_bytes += len(data)
        return len(data)

    def _take_batch(self) -> list[bytes]:
        self._drain()
        batch: list[bytes] = []
        size = 0
        while len(batch) < len(self._queue) and size < BATCH_BYTES_MAX:
            span = self._queue[len(batch)]
            batch.append(span)
            size += len(span) + 1
        del self._queue[: len(batch)]
        self._queued_bytes -= size
        return batch

    # posting

    def _begin(self) -> None:
        """Begin to post when something is there, it is time, and nothing is on its way."""
        if self._post is not None or self._is_resolving or time.monotonic() < self._next_at:
            return
        self._batch = self._batch or self._take_batch()
        if self._batch:
            self._is_resolving = True
            self._resolver.resolve(self._host, self._on_addresses)

    def _on_addresses(self, addresses: list[str], error: str | None) -> None:
        self._is_resolving = False
        if self._stopped:
            return
        if not addresses:
            return self._on_end(0, error or "no addresses")
        # Another one after a failure: the first may be of a family that nobody serves.
        self._known_ip = addresses[self._tries % len(addresses)]
        request = self._request()
        self._post = _Post(self._loop, (self._known_ip, self._port), request, self._on_end)
        self._post.start()

    def _request(self) -> bytes:
        body = b"[" + b",".join(self._batch) + b"]"
        # `b3: 0` asks a server that traces itself to leave this out.
        head = (
            f"POST /api/v2/spans HTTP/1.1\r\nHost: {self._address}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            "User-Agent: meshfast\r\nb3: 0\r\nConnection: close\r\n\r\n"
        )
        return head.encode("ascii") + body

    def _on_end(self, status: int, why: str) -> None:
        """Hear how a post has ended: a status, or 0 and why there is none."""
        self._post = None
        self._settle(status, why)
        now = time.monotonic()
        if self._failures:
            bound = min(DELAY_S_MIN * 2 ** min(self._failures, 10), DELAY_S_MAX)
            # At random, so that not all sidecars come back to a server at once.
            self._next_at = now + bound * (256 + os.urandom(1)[0]) / 512
        elif self._queued_bytes < BATCH_BYTES_MAX:
            self._next_at = now + BATCH_S
        else:
            self._next_at = now

    def _settle(self, status: int, why: str) -> None:
        self._tries += 1
        self._failures += 1
        if 200 <= status < 300:
            self._facts.spans_posted += len(self._batch)
            self._batch = []
            self._tries = self._failures = 0
            self._note("")
            return
        self._note(why or f"status {status}")
        if 400 <= status < 500 or self._tries >= TRIES_MAX:
            self._drop(len(self._batch))
            self._batch = []
            self._tries = 0

    def _drop(self, spans: int) -> None:
        self._facts.spans_dropped += spans

    def _note(self, failing: str) -> None:
        """Say when posting begins to fail, and when it works again; once each."""
        if failing and not self._failing:
            self._log.warning("spans are not posted", zipkin=self._address, error=failing)
        elif self._failing and not failing:
            dropped = self._facts.spans_dropped
            self._log.info("spans are posted again", zipkin=self._address, dropped_total=dropped)
        self._failing = failing

    def _post_waiting(self, deadline: float) -> bool:
        """Post the batch to an address that is known already, and wait; True when it was taken."""
        known: list[str] = []
        self._resolver.resolve(self._host, lambda found, _error: known.extend(found))
        ip = known[0] if known else self._known_ip
        if not ip:
            return False
        try:
            status = _post_and_wait((ip, self._port), self._request(), deadline)
        except OSError as error:
            self._note(str(error))
            return False
        if not 200 <= status < 300:
            self._note(f"status {status}")
            return False
        self._facts.spans_posted += len(self._batch)
        self._batch = []
        return True


class _Post:
    """One request on one connection; calls back once, with the status or why there is none."""

    def __init__(
        self,
        loop: Loop,
        address: tuple[str, int],
        request: bytes,
        done: Callable[[int, str], None],
    ) -> None:
        self._loop = loop
        self._address = address
        self._unsent = memoryview(request)
        self._done = done
        self._answer = b""
        self._socket = _socket(address[0])
        self._socket.setblocking(False)
        self._timer = loop.call_later(POST_S, lambda: self._end(0, f"no answer in {POST_S:g} s"))

    def start(self) -> None:
        """Connect; a refusal may be known at once."""
        error = self._socket.connect_ex(self._address)
        if error not in (0, EINPROGRESS):
            # Not from within the caller, which is about to note that this is on its way.
            self._timer.cancel()
            self._timer = self._loop.call_later(0, lambda: self._end(0, os.strerror(error)))
            return
        self._loop.watch(self._socket.fileno(), WRITE, self._on_writable)

    def close(self) -> None:
        """Give up without calling back."""
        self._timer.cancel()
        self._loop.watch(self._socket.fileno(), 0, self._on_readable)
        self._socket.close()

    def _on_writable(self, _ready: int) -> None:
        error = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            return self._end(0, os.strerror(error))
        try:
            self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError:
            # It may have answered before it closed, as 413 does.
            self._unsent = self._unsent[:0]
        if not self._unsent:
            self._loop.watch(self._socket.fileno(), READ, self._on_readable)

    def _on_readable(self, _ready: int) -> None:
        try:
            piece = self._socket.recv(STATUS_LINE_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError as error:
            return self._end(0, error.strerror or str(error))
        self._answer += piece
        if b"\r\n" in self._answer:
            status = _status(self._answer)
            return self._end(status, "" if status else "the answer is not HTTP")
        if not piece or len(self._answer) >= STATUS_LINE_BYTES_MAX:
            self._end(0, "the answer is not HTTP" if self._answer else "closed without an answer")

    def _end(self, status: int, why: str) -> None:
        self.close()
        self._done(status, why)


def _post_and_wait(address: tuple[str, int], request: bytes, deadline: float) -> int:
    """Post, waiting until the deadline; the status. Raises OSError, TimeoutError too."""

    def left_s() -> float:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("no answer in time")
        return left

    with _socket(address[0]) as server:
        server.settimeout(left_s())
        server.connect(address)
        server.settimeout(left_s())
        server.sendall(request)
        answer = b""
        while b"\r\n" not in answer and len(answer) < STATUS_LINE_BYTES_MAX:
            server.settimeout(left_s())
            piece = server.recv(STATUS_LINE_BYTES_MAX)
            if not piece:
                break
            answer += piece
    return _status(answer)


def _socket(ip: str) -> socket.socket:
    return socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM)


def _status(answer: bytes) -> int:
    """The status of a response; 0 when it is not HTTP."""
    version, _, rest = answer.partition(b" ")
    digits = rest[:3]
    return int(digits) if version.startswith(b"HTTP/1.") and digits.isdigit() else 0
