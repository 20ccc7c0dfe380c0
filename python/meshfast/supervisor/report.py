"""What the supervisor tells an operator: one line on stderr, never more than it can write at once.

A terminal that is stopped or a log pipe that nobody reads must not stop the supervisor: a line
that would block is dropped. Not a logger: no fields, no times (the service manager has them).

The level of the settings holds from when they are read on, in children too; before, all is said.

Tests: tests/supervisor/test_report.py, tests/dataplane/test_log_level.py.
"""

from __future__ import annotations

import os
import select

__all__ = ["LEVELS", "LINE_BYTES_MAX", "fail", "keep_to", "say", "warn"]

# A pipe that polls writable takes PIPE_BUF bytes without blocking (pipe(7)).
LINE_BYTES_MAX = 4096

STDERR = 2


# The words of `--log-level`; nothing here is said below `info`.
LEVELS = ("trace", "debug", "info", "warn", "error")
INFO, WARN, ERROR = LEVELS.index("info"), LEVELS.index("warn"), LEVELS.index("error")

_least = 0


def keep_to(level: str) -> None:
    """Say nothing below *level*, one of `LEVELS`, from now on."""
    global _least
    _least = LEVELS.index(level)


def say(text: str) -> None:
    """Say what happened as intended."""
    _write(INFO, text)


def warn(text: str) -> None:
    """Say what an operator should look at, while everything goes on."""
    _write(WARN, text)


def fail(text: str) -> None:
    """Say what failed."""
    _write(ERROR, text)


def _write(level: int, text: str) -> None:
    """Write one line to stderr; drop it if that would block or nobody listens any more."""
    if level < _least:
        return
    line = f"meshfast: {text}\n".encode(errors="backslashreplace")[:LINE_BYTES_MAX]
    try:
        poller = select.poll()
        poller.register(STDERR, select.POLLOUT)
        if any(events & select.POLLOUT for _, events in poller.poll(0)):
            os.write(STDERR, line)
    except OSError:
        return
