"""The agent's own log: one JSON line per event on stderr.

    {"time":"2026-11-24T12:00:00.123Z","level":"info","process":"agent","event":"reload applied",…}

Events are lower case; fields, not prose; never secrets, never payload. A line is dropped when
stderr would block: the agent never waits for whoever reads its log.

Tests: tests/agent/test_log.py.
"""

from __future__ import annotations

import json
import os
import select
import time

__all__ = ["LEVELS", "Log"]

# The words of `--log-level`, and which lines they begin with.
LEVELS = {"trace": 0, "debug": 0, "info": 1, "warn": 2, "error": 3}
_WORDS = ("debug", "info", "warning", "error")

_LINE_BYTES_MAX = 4096  # PIPE_BUF: what a pipe takes whole, or not at all


class Log:
    """Writes events of `level` and above to a descriptor."""

    def __init__(self, level: str, fd: int = 2) -> None:
        """`level` is one of `LEVELS`."""
        self._from = LEVELS[level]
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def debug(self, event: str, **fields: object) -> None:
        """Say what only a developer wants to know."""
        self._write(0, event, fields)

    def info(self, event: str, **fields: object) -> None:
        """Say what happened as intended."""
        self._write(1, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Say what an operator should look at."""
        self._write(2, event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Say what failed."""
        self._write(3, event, fields)

    def _write(self, level: int, event: str, fields: dict[str, object]) -> None:
        if level < self._from:
            return
        record = {"time": _now(), "level": _WORDS[level], "process": "agent", "event": event}
        line = json.dumps(record | fields, separators=(",", ":")).encode() + b"\n"
        try:
            for start in range(0, len(line), _LINE_BYTES_MAX):
                if not self._poll.poll(0):
                    return
                os.write(self._fd, line[start : start + _LINE_BYTES_MAX])
        except OSError:
            pass  # stderr is gone or its disk is full: there is nowhere to say so


def _now() -> str:
    seconds = time.time()
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds * 1000) % 1000:03d}Z"
