"""Connections that have not said yet who they are: how many there may be, in all and per address.

From the accept to a Hello that was believed, or to the end. What is beyond is closed unread, before
TLS costs anything. A fleet that comes back at once is let in by portions: its sidecars try again at
random (agent/link.py).

Does not do: I/O; limiting streams that are known (push/streams.py).

Invariants: `enter` and the returned `leave` are paired; `leave` may be called twice.

Tests: tests/control/server/test_admission.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

__all__ = ["Admission"]

#: A handshake takes milliseconds, so even 10,000 sidecars that come back pass quickly.
WAITING_MAX: Final = 1024
#: Sidecars behind one address translation, or of one host.
WAITING_OF_ADDRESS_MAX: Final = 256


class Admission:
    """The waiting connections of one listener. Belongs to one event loop."""

    def __init__(
        self, *, waiting_max: int = WAITING_MAX, of_address_max: int = WAITING_OF_ADDRESS_MAX
    ) -> None:
        """Start with nobody."""
        self._waiting_max = waiting_max
        self._of_address_max = of_address_max
        self._waiting: Counter[str] = Counter()

    def __len__(self) -> int:
        """Count those that wait."""
        return self._waiting.total()

    def enter(self, address: str) -> Callable[[], None] | None:
        """Let one in; return what is to be called when it waits no more, None when it may not."""
        if len(self) >= self._waiting_max or self._waiting[address] >= self._of_address_max:
            return None
        self._waiting[address] += 1
        is_waiting = True

        def leave() -> None:
            nonlocal is_waiting
            if is_waiting:
                is_waiting = False
                self._waiting[address] -= 1
                if not self._waiting[address]:
                    del self._waiting[address]

        return leave
