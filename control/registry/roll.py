"""What the workloads of a registry amount to: endpoints of each identity, ports of each service.

Kept up as workloads come and go, so that neither question looks at all of them: a fleet that comes
back asks both for every workload.

Does not do: read or write the store, or know streams and leases.

Invariants:
1. A key counts once, for one identity and one service; a workload that is being written counts as
   soon as it may be, and with as many endpoints as it had or is to have, whichever is more.
2. Entering costs as much as the service has different sets of ports, not workloads.

It may be asked from any thread while its owner changes it.

Tests: tests/control/registry/test_roll.py.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from threading import Lock

from meshfast.control.registry.workload import ServiceRecord, WorkloadRecord
from meshfast.discovery import Port

__all__ = ["Roll"]

#: The workloads of a service by what they serve: address and key, in this order.
_Sets = dict[tuple[Port, ...], list[tuple[str, str]]]


class Roll:
    """Who is there, by key."""

    def __init__(self) -> None:
        """Begin with nobody."""
        self._lock = Lock()
        self._entered: dict[str, tuple[WorkloadRecord, int]] = {}
        self._endpoints: Counter[str] = Counter()
        self._services: dict[str, _Sets] = {}

    def enter(
        self, key: str, current: WorkloadRecord, former: WorkloadRecord | None = None
    ) -> None:
        """Count a workload in place of what its key was; `former` is what it may still be.

        Both are of the identity that the key is of.
        """
        endpoints = max(len(current.ports), 0 if former is None else len(former.ports))
        if self._entered.get(key) == (current, endpoints):
            return
        with self._lock:
            self._strike(key)
            self._entered[key] = (current, endpoints)
            self._endpoints[current.identity] += endpoints
            sets = self._services.setdefault(current.service_key, {})
            insort(sets.setdefault(current.ports, []), (current.address, key))

    def leave(self, key: str) -> None:
        """Count a workload no more; nothing happens when it was not counted."""
        with self._lock:
            self._strike(key)

    def endpoints(self, identity: str, *, besides: str) -> int:
        """Say how many endpoints an identity has under other keys than one."""
        with self._lock:
            entered = self._entered.get(besides)
            is_among = entered is not None and entered[0].identity == identity
            return self._endpoints[identity] - (entered[1] if entered and is_among else 0)

    def service(self, service_key: str) -> ServiceRecord | None:
        """Make the record of a service; None when no workload of it has ports."""
        with self._lock:
            firsts = sorted(found[0] for found in self._services.get(service_key, {}).values())
            return ServiceRecord.of(self._entered[key][0] for _, key in firsts)

    def _strike(self, key: str) -> None:
        entered = self._entered.pop(key, None)
        if entered is None:
            return
        record, endpoints = entered
        self._endpoints[record.identity] -= endpoints
        if not self._endpoints[record.identity]:
            del self._endpoints[record.identity]
        sets = self._services[record.service_key]
        found = sets[record.ports]
        del found[bisect_left(found, (record.address, key))]
        if not found:
            del sets[record.ports]
        if not sets:
            del self._services[record.service_key]
