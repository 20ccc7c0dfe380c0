"""Who serves what, read from the store at the moment of a decision.

The mesh's memory (push/mesh.py) follows the store a moment behind, and belongs to the event loop.
What is decided from workloads and is to hold when it is written is decided from this, and written
under its `conditions`.

Does not do: follow changes, write, or say which entries cannot be read (the mesh's memory does).

Invariants:
1. A transaction under the `conditions` of a service fails when a workload of it has come, gone or
   changed, or has been revoked, since this was read. Who comes writes the service
   (registry/registry.py), which is read before the workloads for that.

Tests: tests/control/server/test_operations.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from meshfast.control.ca.issuance import REVOKED_PREFIX, revoked_key
from meshfast.control.registry import (
    SERVICES_PREFIX,
    WORKLOADS_PREFIX,
    ServiceRecord,
    WorkloadRecord,
    service_key,
)
from meshfast.control.store import Condition, Entry, Store, scan_all
from meshfast.control.translate import MeshService, mesh_services

__all__ = ["Population", "revisions_of"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Population:
    """The services of a moment, with the workloads that may be called, oldest first."""

    _services: Mapping[str, Entry]
    _workloads: tuple[tuple[Entry, WorkloadRecord], ...]

    @classmethod
    def read(cls, store: Store) -> Population:
        """Read what is there. Raises what the store raises."""
        services = {entry.key: entry for entry in scan_all(store, SERVICES_PREFIX)}
        workloads = _records(scan_all(store, WORKLOADS_PREFIX), WorkloadRecord)
        revoked = {entry.key for entry in scan_all(store, REVOKED_PREFIX)}
        called = [pair for pair in workloads if _revoked_key(pair[1]) not in revoked]
        return cls(services, tuple(sorted(called, key=lambda pair: pair[0].created)))

    def services(self) -> Mapping[str, MeshService]:
        """Make the services of the mesh, by host."""
        known = (record for _, record in _records(self._services.values(), ServiceRecord))
        return mesh_services((record for _, record in self._workloads), known)

    def revision(self, namespace: str, name: str) -> str:
        """Give the revision of a service, as `revisions_of` does; empty when nobody serves it."""
        mine = (record for _, record in self._of(namespace, name))
        return revisions_of(mine).get((namespace, name), "")

    def conditions(self, namespace: str, name: str) -> list[Condition]:
        """Give what holds while the workloads of a service are these, the most telling first."""
        key = service_key(namespace, name)
        service = self._services.get(key)
        mine = list(self._of(namespace, name))
        return [
            Condition(key, None if service is None else service.modified),
            *(Condition(one, None) for one in sorted({_revoked_key(who) for _, who in mine})),
            *(Condition(entry.key, entry.modified) for entry, _ in mine),
        ]

    def _of(self, namespace: str, name: str) -> Iterator[tuple[Entry, WorkloadRecord]]:
        for entry, record in self._workloads:
            if (record.namespace, record.service) == (namespace, name):
                yield entry, record


def revisions_of(workloads: Iterable[WorkloadRecord]) -> dict[tuple[str, str], str]:
    """Give the revision of each service, by namespace and name: a hash of who is there."""
    found: dict[tuple[str, str], list[tuple[str, str, list[tuple[str, str]]]]] = {}
    for one in workloads:
        who = (one.identity, one.instance, sorted(one.labels.items()))
        found.setdefault((one.namespace, one.service), []).append(who)
    return {
        key: hashlib.sha256(msgspec.json.encode(sorted(who))).hexdigest()[:16]
        for key, who in found.items()
    }


def _records(entries: Iterable[Entry], type: type[T]) -> Iterator[tuple[Entry, T]]:
    for entry in entries:
        with suppress(msgspec.DecodeError):
            yield entry, msgspec.json.decode(entry.value, type=type)


def _revoked_key(record: WorkloadRecord) -> str:
    return revoked_key(record.namespace, record.account)
