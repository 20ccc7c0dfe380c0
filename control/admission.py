"""Connections that have not said yet who they are: how many there may be, and who makes place.

From the accept to a Hello that was believed, or to the end. A source is an IPv4 address, or the /64
of an IPv6 one, which is what a host has to itself (RFC 6177: never less for a site).

    a place is free                               → in
    a source has more places than the newest
    one's would have                              → the oldest of the source with most goes
    the oldest of the source with most is silent
    for longer than an honest one takes           → it goes
    otherwise                                     → the newest stays out

So strangers that say nothing shut out neither other sources nor, for long, their own, and a fleet
behind one address may have all places that nobody else wants. A larger one is let in by portions,
each as fast as handshakes are made: who is at work on one is not thrown out for the next in line.
Its sidecars try again at random (agent/link.py).

Does not do: I/O; reading a clock, time is an argument; limiting streams that are known
(push/streams.py).

Invariants:
1. There are never more than the bound. The place of a connection is free when it was ended.
2. `enter` and the returned `leave` are paired; `leave` may be called twice, also by one that was
   ended.

Tests: tests/control/server/test_admission.py.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

__all__ = ["PATIENCE_S", "Admission"]

#: A handshake takes milliseconds, so even 10,000 sidecars that come back pass quickly.
WAITING_MAX: Final = 1024
#: More than the handshakes of all places take together: 900 at once took 3.8 s on two busy cores
#: that also had the callers.
PATIENCE_S: Final = 5.0
SOURCE_BITS_OF_IPV6: Final = 64


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """One connection, and how to end it."""

    source: str
    since_s: float
    end: Callable[[], None]


class Admission:
    """The waiting connections of one control plane. Belongs to one event loop."""

    def __init__(
        self,
        *,
        waiting_max: int = WAITING_MAX,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Start with nobody."""
        self._waiting_max = waiting_max
        self._patience_s = patience_s
        # By source, the oldest first; a source without any is not there.
        self._sources: dict[str, dict[_Waiting, None]] = {}
        self._count = 0

    def __len__(self) -> int:
        """Count those that wait."""
        return self._count

    @property
    def is_crowded(self) -> bool:
        """Whether half of all places are taken, which is far more than honest ones need."""
        return 2 * self._count >= self._waiting_max

    def enter(
        self, address: str, now_s: float, end: Callable[[], None]
    ) -> Callable[[], None] | None:
        """Let one in; return what is to be called when it waits no more, None when it may not.

        `end` is called when it has to make place for another; `leave` is not needed then.
        """
        source = _source(address)
        if not self._has_place(source, now_s):
            return None
        mine = _Waiting(source, now_s, end)
        self._sources.setdefault(source, {})[mine] = None
        self._count += 1

        def leave() -> None:
            self._remove(mine)

        return leave

    def _has_place(self, source: str, now_s: float) -> bool:
        """Say whether one of the source may come in, for which another may have to go."""
        if self._count < self._waiting_max:
            return True
        crowd = max(self._sources.values(), key=len)
        oldest = next(iter(crowd))
        # The newest would have no more than the crowd is left with.
        is_share = len(crowd) > len(self._sources.get(source, ())) + 1
        if not is_share and now_s - oldest.since_s < self._patience_s:
            return False
        self._remove(oldest)
        oldest.end()
        return True

    def _remove(self, one: _Waiting) -> None:
        crowd = self._sources.get(one.source, {})
        if one not in crowd:
            return
        del crowd[one]
        self._count -= 1
        if not crowd:
            del self._sources[one.source]


def _source(address: str) -> str:
    """Name who a connection is counted with."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    if ip.ipv4_mapped is not None:
        return str(ip.ipv4_mapped)
    return str(ipaddress.ip_network((int(ip), SOURCE_BITS_OF_IPV6), strict=False))
