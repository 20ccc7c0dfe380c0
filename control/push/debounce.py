"""When to push: after things have been quiet for a moment, but never later than a limit.

Istio's pipeline: 100 ms of quiet, 10 s at most. A rollout that registers a hundred workloads in a
second becomes a few pushes, and a stream of changes that never pauses still gets through.

Does not do: read a clock or wait; time is an argument, in seconds of a monotonic clock.

Invariants: `due_s` is at most `max_s` after the first change since `take`, and never before the
last change.

Tests: tests/control/push/test_debounce.py.
"""

from __future__ import annotations

from typing import Final

__all__ = ["MAX_S", "QUIET_S", "Debounce"]

QUIET_S: Final = 0.1
MAX_S: Final = 10.0


class Debounce:
    """Remembers the first and the last change that were not pushed."""

    def __init__(self, quiet_s: float = QUIET_S, max_s: float = MAX_S) -> None:
        """Wait for `quiet_s` without a change, at most `max_s` in all."""
        self._quiet_s = quiet_s
        self._max_s = max_s
        self._first_s: float | None = None
        self._last_s = 0.0

    def note(self, now_s: float) -> None:
        """Something has changed."""
        if self._first_s is None:
            self._first_s = now_s
        self._last_s = now_s

    def due_s(self) -> float | None:
        """Say when to push; `None` when nothing has changed."""
        if self._first_s is None:
            return None
        return min(self._last_s + self._quiet_s, self._first_s + self._max_s)

    def take(self) -> None:
        """What has changed is being pushed."""
        self._first_s = None
