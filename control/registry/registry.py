"""Registered workloads in the store, each under a lease that lives as long as its stream.

While a stream is open its lease is kept alive, which writes nothing. When the stream ends without a
word, the lease runs out after the grace period: time to reconnect without anybody noticing. A
workload that says goodbye is removed at once.

A control plane that has just started finds workloads whose sidecars are still reconnecting. Their
leases are held for them; those that have not come back by then go one by one, not all at once.

Does not do: authenticate (push does), watch, or look into what is registered.

Invariants:
1. A key is of one identity, which has its share of endpoints and no more, those that are being
   written included: sidecars have room for so many in all.
2. A key belongs to the stream that registered it last; what an older stream says is ignored.
3. The same registration again writes nothing.
4. A workload that serves a port is never in the store without its service. Whatever puts one that
   was not there writes the service, too, though it stays as it is: so a condition on the service
   fails for who has looked for its workloads before (operations.py, population.py).
5. Whoever waited for its turn looks again whether it still is the one that may write.
6. Registering costs the same among few workloads and among many.

Tests: tests/control/registry/test_registry.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final
from weakref import WeakValueDictionary

import msgspec

from meshfast.control.registry.roll import Roll
from meshfast.control.registry.workload import (
    WORKLOADS_PREFIX,
    ServiceRecord,
    WorkloadRecord,
)
from meshfast.control.store import (
    Condition,
    ConflictError,
    Delete,
    Entry,
    LeaseGoneError,
    Put,
    Store,
    Transaction,
    scan_all,
)
from meshfast.errors import MeshfastError

__all__ = ["Registry", "ShareError"]

#: After a stream has ended; Istio's delay before an auto-registered workload is removed.
GRACE_MS: Final = 10_000
#: After a start, until workloads that did not come back begin to go; sidecars need 30 s at most.
ADOPTION_MS: Final = 60_000
#: And over how long they go, spread evenly.
ADOPTION_SPREAD_MS: Final = 60_000
#: Endpoints of one identity: a quarter of what a sidecar has slots for (policy/slots.py).
ENDPOINTS_MAX: Final = 1024


class ShareError(MeshfastError):
    """The identity has registered as many endpoints as it may."""


@dataclass(slots=True, eq=False)
class _Held:
    """A key that is kept alive: by its stream, or without one until `until_ms`."""

    key: str
    lease: int = 0
    record: WorkloadRecord | None = None
    coming: WorkloadRecord | None = None  # while it is written
    stream: object | None = None
    until_ms: int = 0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Registry:
    """The registered workloads of one control plane. Its methods belong to one event loop."""

    def __init__(
        self,
        store: Store,
        *,
        grace_ms: int = GRACE_MS,
        adoption_ms: int = ADOPTION_MS,
        adoption_spread_ms: int = ADOPTION_SPREAD_MS,
        clock_ms: Callable[[], int] = lambda: time.monotonic_ns() // 1_000_000,
    ) -> None:
        """Keep workloads in the store; `adopt` takes over those that are there."""
        self._store = store
        self._grace_ms = grace_ms
        self._adoption_ms = adoption_ms
        self._adoption_spread_ms = adoption_spread_ms
        self._clock_ms = clock_ms
        self._held: dict[str, _Held] = {}
        self._roll = Roll()
        #: By service; there while somebody writes or waits.
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @property
    def keep_alive_ms(self) -> int:
        """How often `keep_alive` has to be called: two may be late before a lease runs out."""
        return self._grace_ms // 3

    def adopt(self) -> int:
        """Keep alive what a former control plane left, for a while; say how many."""
        entries = list(scan_all(self._store, WORKLOADS_PREFIX))
        first_ms = self._clock_ms() + self._adoption_ms
        for at, entry in enumerate(entries):
            until_ms = first_ms + self._adoption_spread_ms * at // len(entries)
            held = _Held(entry.key, entry.lease, record=decode(entry), until_ms=until_ms)
            self._held[entry.key] = held
            self._count(held)
        self.keep_alive()
        return len(entries)

    async def register(self, stream: object, record: WorkloadRecord) -> None:
        """Take a registration. Raises `ShareError`, and what the store raises."""
        key = record.key
        while True:
            held = self._held.setdefault(key, _Held(key))
            async with held.turn:
                if self._held.get(key) is not held:
                    continue  # it was let go of while this waited
                self._check_share(held, record)
                held.coming = record
                self._count(held)
                try:
                    await self._write_in_turn(held, record)
                    held.record = record
                finally:
                    held.coming = None
                    self._count(held)
                held.stream = stream
                return

    async def register_again(self, stream: object, record: WorkloadRecord) -> None:
        """Write what `keep_alive` has named, unless something newer was said meanwhile."""
        held = self._held.get(record.key)
        if held is None:
            return
        async with held.turn:
            is_current = self._held.get(record.key) is held and held.stream is stream
            if is_current and held.record == record:
                await self._write_in_turn(held, record)

    async def deregister(self, stream: object, key: str) -> None:
        """Remove a workload at once, unless another stream has taken it over."""
        held = self._held.get(key)
        if held is None:
            return
        async with held.turn:
            if self._held.get(key) is held and held.stream is stream:
                await asyncio.to_thread(self._delete, key)
                self._let_go(held)

    def release(self, stream: object) -> None:
        """The stream has ended: what it registered stays for the grace period."""
        for held in [held for held in self._held.values() if held.stream is stream]:
            self._keep_alive(held)
            held.stream = None
            held.until_ms = self._clock_ms()

    def keep_alive(self) -> list[tuple[object, WorkloadRecord]]:
        """Give time to the leases of open streams; return what was lost and has to be said again.

        A lease of an open stream is lost when this was not called for longer than the grace period.
        """
        now_ms = self._clock_ms()
        lost: list[tuple[object, WorkloadRecord]] = []
        for held in list(self._held.values()):
            if held.turn.locked():
                continue  # being written, which gives it its time
            if held.stream is None and now_ms >= held.until_ms:
                self._let_go(held)
            elif not self._keep_alive(held):
                if held.stream is None or held.record is None:
                    self._let_go(held)
                else:
                    lost.append((held.stream, held.record))
        return lost

    def _keep_alive(self, held: _Held) -> bool:
        try:
            self._store.keep_alive(held.lease)
        except LeaseGoneError:
            return False
        return True

    def _count(self, held: _Held) -> None:
        """Have the roll count a key as what it is, or is to be."""
        current = held.coming or held.record
        if current is None:
            self._roll.leave(held.key)
        else:
            self._roll.enter(held.key, current, held.record)

    def _let_go(self, held: _Held) -> None:
        del self._held[held.key]
        self._roll.leave(held.key)

    def _check_share(self, mine: _Held, record: WorkloadRecord) -> None:
        if mine.record is not None and len(record.ports) <= len(mine.record.ports):
            return
        taken = self._roll.endpoints(record.identity, besides=mine.key)
        if taken + len(record.ports) > ENDPOINTS_MAX:
            raise ShareError(f"{record.identity} has {taken} endpoints, {ENDPOINTS_MAX} at most")

    async def _write_in_turn(self, held: _Held, record: WorkloadRecord) -> None:
        """Write, one after the other for each service: all who come write its entry.

        Two at once would conflict; of thousands, most would try again and again.
        """
        turn = self._turns.setdefault(record.service_key, asyncio.Lock())
        async with turn:
            await asyncio.to_thread(self._write, held, record)

    def _write(self, held: _Held, record: WorkloadRecord) -> None:
        """Put the record under a living lease, and its service, until both are there.

        What is there under a living lease as this registry knows it, came with its service, and
        everybody since has counted it: the service is not looked at. Otherwise, looking once more
        after the last write finds a workload that came while it was made and had nothing to write
        itself.
        """
        is_known = held.record == record
        while True:
            entry = self._store.read(held.key)
            if entry is not None:
                held.lease = entry.lease
            alive = self._keep_alive(held)
            before = None if entry is None else decode(entry)
            is_there = alive and before == record
            if is_there and is_known:
                return
            puts, conditions = self._service(held, record, before)
            if is_there and not puts:
                return
            lease = held.lease if alive else self._store.grant(self._grace_ms)
            puts.append(Put(held.key, msgspec.json.encode(record), lease))
            conditions.append(Condition(held.key, None if entry is None else entry.modified))
            is_known = False
            # It may expire, or its service be written, at this very moment.
            with suppress(ConflictError, LeaseGoneError):
                self._store.transact(Transaction(tuple(puts), tuple(conditions)))
                held.lease = lease

    def _service(
        self, held: _Held, record: WorkloadRecord, before: WorkloadRecord | None
    ) -> tuple[list[Put | Delete], list[Condition]]:
        """Give what has to be written for the service of a workload, and what must still hold.

        The entry is read before the other workloads are looked at, those that are being written
        among them: what comes later finds what is written for this one, and adds to it. For a
        workload that was not there `before`, or was of another service, the entry is written again
        as it is. Whoever has not seen the workload and relies on that fails then.
        """
        key = record.service_key
        entry = self._store.read(key)
        after = self._roll.service(key)
        if after is None and held.record is not None and held.record.service_key == key:
            after = ServiceRecord.of([held.record])  # the last one leaves it as it was with it
        if after is not None:
            value = msgspec.json.encode(after)
        elif entry is not None:
            value = entry.value
        else:
            return [], [Condition(key, None)]
        comes = before is None or before.service_key != key
        puts: list[Put | Delete] = []
        if comes or entry is None or entry.value != value:
            puts.append(Put(key, value))
        return puts, [Condition(key, None if entry is None else entry.modified)]

    def _delete(self, key: str) -> None:
        """Remove the record that is there now, if there is one."""
        entry = self._store.read(key)
        if entry is None:
            return
        transaction = Transaction((Delete(key),), (Condition(key, entry.modified),))
        with suppress(ConflictError):  # it expired at this very moment
            self._store.transact(transaction)


def decode(entry: Entry) -> WorkloadRecord:
    """Read a record from the store."""
    return msgspec.json.decode(entry.value, type=WorkloadRecord)
