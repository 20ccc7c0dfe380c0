"""Signals that end the demo, made into an ordinary exception that never comes at a bad moment.

SIGHUP, SIGINT and SIGTERM raise `SystemExit(128 + n)`, so that everything is cleaned up on the way
out. While signals are held (a process is just being started, or everything is being ended) they
wait. Only the first one counts: a second Ctrl-C cannot cut the cleaning up short, which is bounded.

Tests: tests/demo/test_interrupts.py.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Interrupts"]

SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """The handlers of the main thread, from `install` to the end of the process."""

    def __init__(self) -> None:
        """Change nothing yet."""
        self._is_held = False
        self._code = 0

    def install(self) -> None:
        """Take the signals over."""
        for number in SIGNALS:
            signal.signal(number, self._arrived)

    def hold(self) -> None:
        """Let nothing be raised any more."""
        self._is_held = True

    @contextmanager
    def held(self) -> Iterator[None]:
        """Raise what arrives meanwhile at the end, unless signals were held before."""
        before, self._is_held = self._is_held, True
        code = self._code
        try:
            yield
        finally:
            self._is_held = before
        if self._code != code and not before:
            raise SystemExit(self._code)

    def _arrived(self, number: int, _: object) -> None:
        if self._code:
            return
        self._code = 128 + number
        if not self._is_held:
            raise SystemExit(self._code)
