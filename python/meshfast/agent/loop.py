"""One thread, one selector, timers: what everything in the agent runs on.

Callbacks must return soon and must not block. An exception in a callback ends the agent (the
supervisor starts another one), because a callback that failed once on a level-triggered descriptor
would be called for ever.

Tests: through tests/agent/test_agent.py; every other test of the agent runs on it.
"""

from __future__ import annotations

import heapq
import selectors
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["READ", "WRITE", "Loop", "Timer"]

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE


class Timer:
    """A call in the future; `cancel()` may be called at any time, more than once."""

    __slots__ = ("at", "call")

    def __init__(self, at: float, call: Callable[[], None]) -> None:
        """Keep the monotonic time and what to call."""
        self.at = at
        self.call: Callable[[], None] | None = call

    def __lt__(self, other: Timer) -> bool:
        """Earlier first."""
        return self.at < other.at

    def cancel(self) -> None:
        """Do not call."""
        self.call = None


class Loop:
    """Calls back when descriptors are ready and when timers are due."""

    def __init__(self) -> None:
        """Start with nothing to watch."""
        self._selector = selectors.DefaultSelector()
        self._timers: list[Timer] = []
        self._stopped = False

    def watch(self, fd: int, events: int, call: Callable[[int], None]) -> None:
        """Call `call(ready_events)` while `fd` is ready; replaces what was watched there before.

        `events` is `READ`, `WRITE`, both, or 0 to watch nothing.
        """
        known = fd in self._selector.get_map()
        if known and events:
            self._selector.modify(fd, events, call)
        elif events:
            self._selector.register(fd, events, call)
        elif known:
            self._selector.unregister(fd)

    def call_later(self, delay_s: float, call: Callable[[], None]) -> Timer:
        """Call once, `delay_s` seconds from now at the earliest."""
        timer = Timer(time.monotonic() + delay_s, call)
        heapq.heappush(self._timers, timer)
        return timer

    def stop(self) -> None:
        """Return from `run` after this turn."""
        self._stopped = True

    def run(self) -> None:
        """Turn until `stop`."""
        while not self._stopped:
            for key, ready in self._selector.select(self._wait_s()):
                # An earlier callback of this turn may have closed or changed this descriptor.
                if self._selector.get_map().get(key.fd) is key:
                    key.data(ready)
            self._call_timers()

    def _wait_s(self) -> float | None:
        while self._timers and self._timers[0].call is None:
            heapq.heappop(self._timers)
        return max(0.0, self._timers[0].at - time.monotonic()) if self._timers else None

    def _call_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0].at <= now:
            call = heapq.heappop(self._timers).call
            if call is not None:
                call()
