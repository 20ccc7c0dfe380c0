"""All streams: who is connected, which instance is which stream's, and what was seen last.

Does not do: I/O. Streams report here, the pusher and operators ask.

Invariants:
1. One stream per instance of an identity: a newer one replaces the older. Instances of different
   identities have nothing to do with each other, whatever they are called.
2. The number of streams is bounded, and so is the memory of those that are gone.
3. Every stream of a namespace has the same view.

Tests: tests/control/server/test_stream.py, test_limits.py, test_revocation.py.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from meshfast.control.push.status import SidecarStatus
from meshfast.control.push.view import NamespaceView
from meshfast.discovery import Code

if TYPE_CHECKING:
    from meshfast.control.ca import SpiffeId
    from meshfast.control.push.stream import Stream

__all__ = ["Streams"]

#: One control plane's share; each costs a few descriptors and about 100 KiB.
STREAMS_MAX: Final = 10_000
#: Sidecars that are gone without a goodbye stay on show for an hour.
GONE_MAX: Final = 1_000
GONE_S: Final = 3600.0


class Streams:
    """The streams of one control plane. Belongs to one event loop."""

    def __init__(
        self,
        view: Callable[[str], NamespaceView],
        is_revoked: Callable[[SpiffeId], bool],
        *,
        streams_max: int = STREAMS_MAX,
    ) -> None:
        """`view` gives what a namespace sees now."""
        self.view = view
        self._is_revoked = is_revoked
        self._streams_max = streams_max
        self._all: set[Stream] = set()
        self._instances: dict[tuple[str, str], Stream] = {}
        self._gone: OrderedDict[tuple[str, str], SidecarStatus] = OrderedDict()

    def __iter__(self) -> Iterator[Stream]:
        """All streams that are open now; the set may change meanwhile."""
        return iter(list(self._all))

    def __len__(self) -> int:
        """Count the open streams."""
        return len(self._all)

    def admit(self, stream: Stream) -> tuple[Code, str] | None:
        """Take a stream, or say why not."""
        if self._is_revoked(stream.peer.identity):
            return Code.REVOKED, f"{stream.peer.identity} was revoked"
        if len(self._all) >= self._streams_max:
            return Code.SLOW, "too many streams; try again later"
        self._all.add(stream)
        return None

    def greet(self, stream: Stream) -> None:
        """Its Hello came."""
        key = _instance(stream)
        other = self._instances.get(key)
        if other is not None:
            other.end(Code.REPLACED, "the instance has connected again")
        self._instances[key] = stream
        self._gone.pop(key, None)

    def remove(self, stream: Stream) -> None:
        """The stream has ended."""
        self._all.discard(stream)
        if stream.hello is None:
            return
        key = _instance(stream)
        if self._instances.get(key) is stream:
            del self._instances[key]
            if stream.has_left:  # a job that is done is nobody to look after
                return
            self._gone[key] = stream.status(connected=False)
            self._forget(time.time())

    def end_revoked(self) -> None:
        """End the streams of identities that were revoked."""
        for stream in self:
            if self._is_revoked(stream.peer.identity):
                stream.end(Code.REVOKED, f"{stream.peer.identity} was revoked")

    def status(self) -> list[SidecarStatus]:
        """Show every sidecar, those that are gone too, in the order of their names."""
        self._forget(time.time())
        shown = [stream.status(connected=True) for stream in self._instances.values()]
        shown += self._gone.values()
        return sorted(shown, key=lambda one: (one.namespace, one.workload, one.instance))

    def _forget(self, now_s: float) -> None:
        while self._gone:
            oldest = next(iter(self._gone.values()))
            if len(self._gone) <= GONE_MAX and now_s - oldest.last_seen_s < GONE_S:
                return
            self._gone.popitem(last=False)


def _instance(stream: Stream) -> tuple[str, str]:
    """Name an instance: the identity, and its name among those of the identity."""
    assert stream.hello is not None, "an instance is named by Hello"
    return str(stream.peer.identity), stream.hello.node.instance
