"""Which line of the shared memory counts for which endpoint: stable slots across generations.

Every endpoint of a snapshot owns one line per worker in the shared memory, chosen by its slot. The
same (cluster, address) keeps its slot from generation to generation, so that its counters go on.
A slot that is no longer used is *leaving*: workers may still run the generation that used it, and a
new owner would inherit their counts. It is free again after `release(generation)`, which the agent
says when every worker has applied that generation.

Invariants:
1. A slot belongs to at most one (cluster, address) at a time, leaving ones included.
2. `assign` changes either everything or nothing.
3. Given the same calls, the same slots come out: the lowest free one first.

Tests: tests/core/test_slots.py.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping

from meshfast.errors import ConfigError
from meshfast.policy.document import Document, decode_document

__all__ = ["SLOTS_MAX", "SlotAllocator", "SlotsError"]

SLOTS_MAX = 4096  # lines per worker in the shared memory, layout version 1

Key = tuple[str, str]  # (cluster name, address)


class SlotsError(ConfigError):
    """There are fewer free slots than are needed."""


class SlotAllocator:
    """Hands out slots `0 <= slot < slots_max`; one allocator lives as long as its shared memory."""

    def __init__(self, slots_max: int = SLOTS_MAX) -> None:
        """Start with every slot free."""
        self._owned: dict[Key, int] = {}
        self._last_used: dict[Key, int] = {}  # generation that used the key last
        self._free = list(range(slots_max))  # a sorted list is a heap

    @classmethod
    def from_document(cls, document: bytes | Document) -> SlotAllocator:
        """Take over the slots of a running snapshot, so that the next generation keeps them."""
        if isinstance(document, bytes):
            document = decode_document(document)
        allocator = cls()
        for cluster in document.clusters:
            for endpoint in cluster.endpoints:
                key = (cluster.name, endpoint.address)
                allocator._owned[key] = endpoint.slot
                allocator._last_used[key] = document.generation
        taken = set(allocator._owned.values())
        allocator._free = [slot for slot in allocator._free if slot not in taken]
        return allocator

    @property
    def free(self) -> int:
        """Count the slots that nobody has."""
        return len(self._free)

    def owns(self, key: Key) -> bool:
        """Tell whether the key has a slot already."""
        return key in self._owned

    def assign(self, keys: Iterable[Key], generation: int) -> dict[Key, int]:
        """Give every key its slot for `generation`; a key seen before keeps the slot it had.

        Raises SlotsError when the free slots do not suffice; nothing has changed then.
        """
        wanted = list(dict.fromkeys(keys))
        fresh = [key for key in wanted if key not in self._owned]
        if len(fresh) > len(self._free):
            total = len(self._owned) + len(self._free)
            raise SlotsError(
                f"{len(wanted)} endpoints do not fit into {total} slots "
                f"({len(self._owned)} are in use or being left by workers)"
            )
        for key in fresh:
            self._owned[key] = heapq.heappop(self._free)
        for key in wanted:
            self._last_used[key] = generation
        return {key: self._owned[key] for key in wanted}

    def reserve(self, slots: Mapping[Key, int]) -> None:
        """Keep slots of older snapshots from new owners: a worker still holds one of those.

        An exchange holds the snapshot it was routed by until its end, for hours if it is a
        WebSocket. An endpoint that comes back gets its old slot.
        """
        for key, slot in slots.items():
            if key not in self._owned and slot in self._free:
                self._owned[key] = slot
                self._last_used[key] = 0
                self._free.remove(slot)
        heapq.heapify(self._free)

    def release(self, generation: int) -> None:
        """Free the slots whose last use is older: every worker runs `generation` or a later one."""
        left = [key for key, used in self._last_used.items() if used < generation]
        for key in left:
            del self._last_used[key]
            heapq.heappush(self._free, self._owned.pop(key))
