"""The one place where the supervisor waits: `poll` over descriptors, each with what to call.

Level-triggered: a callback that leaves something unread is called again. `poll` and not `epoll`:
there are some dozens of descriptors, and nothing of it has to survive a fork or an `exec`.

Tests: every test of tests/supervisor/ goes through it.
"""

from __future__ import annotations

import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Loop"]


class Loop:
    """Descriptors and their callbacks."""

    __slots__ = ("_callbacks", "_poller")

    def __init__(self) -> None:
        """Begin without descriptors."""
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._poller = select.poll()

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call back when *fd* can be read or its peer is gone."""
        self._callbacks[fd] = callback
        self._poller.register(fd, select.POLLIN)

    def forget(self, fd: int) -> None:
        """Stop watching; called before the descriptor is closed."""
        if self._callbacks.pop(fd, None):
            self._poller.unregister(fd)

    def turn(self, timeout_s: float | None) -> None:
        """Wait for something to happen, at most *timeout_s*, and call back.

        A descriptor that an earlier callback of the same turn forgot is not called.
        """
        # Rounded up: a timer that is due in 0.4 ms must not become a spin of zero waits.
        timeout_ms = None if timeout_s is None else int(max(timeout_s, 0.0) * 1000) + 1
        for fd, _ in self._poller.poll(timeout_ms):
            callback = self._callbacks.get(fd)
            if callback is not None:
                callback()
