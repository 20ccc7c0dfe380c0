"""Moves access-log lines from the workers' rings to stdout, stderr or a file.

The lines are made in the workers; nothing here reads them. The agent never waits for the output.

Does not do: rotating (send SIGUSR1 after renaming the file), compressing, filtering.

Invariants:
1. What reaches the output is whole lines, in the order of each worker. After a full disk or a short
   write the rest of the line comes first, before anything newer.
2. Every line that does not reach the output is counted: by the worker when its ring is full, here
   when the output refuses (`facts.access_log_dropped`).
3. At most `DRAIN_BYTES` are held here.

Tests: tests/agent/test_access_log.py.
"""

from __future__ import annotations

import os
import socket
import stat
import time

from meshfast.agent.loop import WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from meshfast.agent.log import Log
    from meshfast.agent.loop import Loop
    from meshfast.telemetry.families import AgentFacts
    from meshfast.telemetry.source import Source

__all__ = ["AccessLog"]

DRAIN_BYTES = 256 * 1024
DRAINS_PER_TURN = 4

# A ring holds 512 KiB, 25 ms of a worker's 33,000 lines a second: while they flood in, the agent
# comes back at once. Without lines the wait doubles, so that an idle sidecar costs next to nothing.
FLOOD_BYTES = 64 * 1024
FLOOD_S = 0.002
BUSY_S = 0.02
IDLE_S_MAX = 0.2

# How long an output may refuse before newer lines are dropped here, not in the rings.
PATIENCE_S = 1.0

PIPE_BYTES = 4096  # PIPE_BUF: what a pipe takes whole, so that lines of two writers do not mix

OFF = "off"
_STANDARD = {"/dev/stderr": 2, "/dev/stdout": 1}


class AccessLog:
    """Drains the rings on its own timer, from the first turn to `finish`."""

    def __init__(self, loop: Loop, source: Source, facts: AgentFacts, log: Log, path: str) -> None:
        """`path` is `/dev/stdout`, `/dev/stderr`, a file, or `off`: drained and thrown away."""
        self._loop = loop
        self._source = source
        self._facts = facts
        self._log = log
        self._path = path
        self._sink = self._open()
        self._held = memoryview(b"")
        self._torn = False  # the held bytes begin inside a line, whose beginning was written
        self._taken_at = time.monotonic()
        self._failing = ""
        self._wait_s = BUSY_S
        self._tick()

    def reopen(self) -> None:
        """Write to a new file of the same name; the old one stays when that fails."""
        if self._path == OFF or self._path in _STANDARD:
            return
        sink = self._open()
        if sink is None:
            return
        if self._sink is not None:
            self._loop.watch(self._sink.fd, 0, self._on_writable)
            self._sink.close()
        self._sink = sink
        self._log.info("access log reopened", path=self._path)

    def finish(self, patience_s: float) -> None:
        """Move what is there now, waiting for the output for `patience_s` at most; then count."""
        deadline = time.monotonic() + patience_s
        while self._move() or (self._held and not self._failing):
            if time.monotonic() >= deadline:
                break
            time.sleep(0.005)
        self._drop(self._held)
        while lost := self._source.drain_access_log(DRAIN_BYTES):
            self._drop(memoryview(lost))

    def _open(self) -> _Sink | None:
        try:
            return None if self._path == OFF else _Sink(self._path)
        except OSError as error:
            self._log.error("access log cannot be opened", path=self._path, error=str(error))
            return None

    def _tick(self) -> None:
        moved = self._move()
        if moved >= FLOOD_BYTES:
            self._wait_s = FLOOD_S
        else:
            self._wait_s = BUSY_S if moved else min(2 * self._wait_s, IDLE_S_MAX)
        self._loop.call_later(self._wait_s, self._tick)

    def _move(self) -> int:
        """Move lines until there are none or the output refuses; the bytes that came."""
        moved = 0
        for _ in range(DRAINS_PER_TURN):
            if self._held and not self._write():
                self._refuse_when_impatient()
                break
            data = self._source.drain_access_log(DRAIN_BYTES)
            if not data:
                break
            self._held = memoryview(data)
            self._taken_at = time.monotonic()
            moved += len(data)
        return moved

    def _write(self) -> bool:
        """Write what is held; False when the output does not take all of it now."""
        if self._path == OFF:
            self._held = memoryview(b"")
            return True
        if self._sink is None:
            self._sink = self._open()
        if self._sink is None:
            self._drop_held("cannot be opened")
            return False
        try:
            while self._held:
                written = self._sink.write(self._held)
                self._torn = self._held[written - 1] != 0x0A
                self._held = self._held[written:]
                self._taken_at = time.monotonic()
        except BlockingIOError:
            self._loop.watch(self._sink.fd, WRITE, self._on_writable)
            return False
        except OSError as error:
            self._drop_held(error.strerror or str(error))
            return False
        self._note_recovery()
        return True

    def _on_writable(self, _ready: int) -> None:
        if self._sink is not None:
            self._loop.watch(self._sink.fd, 0, self._on_writable)
        self._move()

    def _refuse_when_impatient(self) -> None:
        if time.monotonic() - self._taken_at < PATIENCE_S:
            return
        self._note_failure("the output takes nothing")
        self._drop(memoryview(self._source.drain_access_log(DRAIN_BYTES)))

    def _drop_held(self, why: str) -> None:
        """Drop the held lines, but keep the rest of one whose beginning was written."""
        self._note_failure(why)
        end = bytes(self._held).find(b"\n") + 1 if self._torn else 0
        self._drop(self._held[end:])
        self._held = self._held[:end]

    def _drop(self, lines: memoryview) -> None:
        self._facts.access_log_dropped += bytes(lines).count(b"\n")

    def _note_failure(self, why: str) -> None:
        if not self._failing:
            self._log.error("access log lines are dropped", path=self._path, error=why)
        self._failing = why

    def _note_recovery(self) -> None:
        if self._failing:
            dropped = self._facts.access_log_dropped
            self._log.info("access log is written again", path=self._path, dropped_total=dropped)
        self._failing = ""


class _Sink:
    """An output that takes bytes without blocking, or raises BlockingIOError."""

    def __init__(self, path: str) -> None:
        standard = _STANDARD.get(path)
        self.fd = _open_file(path) if standard is None else _open_standard(standard)
        mode = os.fstat(self.fd).st_mode
        self._socket = socket.socket(fileno=os.dup(self.fd)) if stat.S_ISSOCK(mode) else None
        self._is_pipe = stat.S_ISFIFO(mode)

    def write(self, data: memoryview) -> int:
        """Write some of `data`, at least a byte; raises OSError."""
        if self._socket is not None:
            return self._socket.send(data, socket.MSG_DONTWAIT)
        if self._is_pipe:
            data = data[: _whole_lines(data[:PIPE_BYTES])]
        return os.write(self.fd, data)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        os.close(self.fd)


def _whole_lines(data: memoryview) -> int:
    """Where the last whole line ends; all of it when there is none."""
    return bytes(data).rfind(b"\n") + 1 or len(data)


def _open_file(path: str) -> int:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    return os.open(path, flags, 0o600)


def _open_standard(fd: int) -> int:
    """Open what `fd` is once more: O_NONBLOCK on `fd` itself would change it for everybody."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            return os.open(f"/proc/self/fd/{fd}", flags)
        except PermissionError:  # a pipe or terminal of another user: after su, in some containers
            os.set_blocking(fd, False)
    return os.dup(fd)
