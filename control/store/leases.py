"""Which leases are due. Deadlines live in memory; the database knows only that a lease exists.

A keep-alive of a thousand sidecars must cost no disk write, so deadlines are not stored. The price
is that a restarted control plane cannot know how old a lease was: it gives each its full time,
which is also what is wanted, since the sidecars could not reach it meanwhile.

What this module does not do: read a clock (time is an argument, in milliseconds of a monotonic
clock), or remove keys.

Invariants:
1. No lease is due earlier than its time-to-live after the last `keep_alive`.
2. Time in which nobody called `due` for longer than `STALL_MS` (process stopped, machine paused,
   disk hung) is given back to every lease: keep-alives could not be taken then either.
3. A lease that `due` has returned is gone for `keep_alive`, unless `add` puts it back.

Tests: tests/control/store/test_leases.py.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from meshfast.control.store.contract import LeaseGoneError

__all__ = ["STALL_MS", "TICK_MS", "Leases"]

#: How often the writer asks while there are leases. Expiry is late by at most this.
TICK_MS = 250
#: Eight missed ticks: longer than any write should take, shorter than any useful lease.
STALL_MS = 2_000


@dataclass(slots=True)
class _Lease:
    ttl_ms: int
    deadline_ms: int


class Leases:
    """The deadlines of all leases. Every method may be called from any thread."""

    def __init__(self, leases: Iterable[tuple[int, int]], now_ms: int) -> None:
        """Start with `(lease, ttl_ms)` pairs, each with its full time from now on."""
        self._lock = threading.Lock()
        self._leases = {lease: _Lease(ttl, now_ms + ttl) for lease, ttl in leases}
        self._asked_ms = now_ms

    def __len__(self) -> int:
        """Count the leases that are not due yet."""
        return len(self._leases)

    def add(self, lease: int, ttl_ms: int, now_ms: int) -> None:
        """Start a lease, or start it again."""
        with self._lock:
            if not self._leases:
                self._asked_ms = now_ms
            self._leases[lease] = _Lease(ttl_ms, now_ms + ttl_ms)

    def keep_alive(self, lease: int, now_ms: int) -> None:
        """Give a lease its full time again. Raises `LeaseGoneError`."""
        with self._lock:
            found = self._leases.get(lease)
            if found is None:
                raise LeaseGoneError(f"lease {lease} is gone")
            found.deadline_ms = max(found.deadline_ms, now_ms + found.ttl_ms)

    def remove(self, lease: int) -> None:
        """Forget a lease; nothing happens when it is not there."""
        with self._lock:
            self._leases.pop(lease, None)

    def due(self, now_ms: int) -> list[int]:
        """Take out and return the leases whose time is over, in order of their deadlines."""
        with self._lock:
            stalled_ms = now_ms - self._asked_ms
            self._asked_ms = now_ms
            if stalled_ms > STALL_MS:
                for lease in self._leases.values():
                    lease.deadline_ms += stalled_ms
            over = [
                (lease.deadline_ms, number)
                for number, lease in self._leases.items()
                if lease.deadline_ms <= now_ms
            ]
            for _, number in over:
                del self._leases[number]
            return [number for _, number in sorted(over)]
