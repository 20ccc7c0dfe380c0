"""What the supervisor tells an operator: one line on stderr, never more than it can write at once.

A terminal that is stopped or a log pipe that nobody reads must not stop the supervisor: a line that
would block is dropped. Not a logger: no levels beyond the two below, no times (the service manager
has them). Tests: tests/supervisor/test_report.py.
"""

from __future__ import annotations

import os
import select

__all__ = ["LINE_BYTES_MAX", "say"]

# A pipe that polls writable takes PIPE_BUF bytes without blocking (pipe(7)).
LINE_BYTES_MAX = 4096

STDERR = 2


def say(text: str) -> None:
    """Write one line to stderr; drop it if that would block or nobody listens any more."""
    line = f"meshfast: {text}\n".encode(errors="backslashreplace")[:LINE_BYTES_MAX]
    try:
        poller = select.poll()
        poller.register(STDERR, select.POLLOUT)
        if any(events & select.POLLOUT for _, events in poller.poll(0)):
            os.write(STDERR, line)
    except OSError:
        return
