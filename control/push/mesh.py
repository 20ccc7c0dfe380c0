"""The state that sidecars see, in memory: resources, workloads and revoked identities.

    /resources/<kind>/<namespace>/<name>   a resource in JSON
    /workloads/<namespace>/<sa>/<instance> a registered workload
    /revoked/<namespace>/<sa>              an identity that gets nothing any more

Read once, page by page at one revision, then kept up by one watch over all keys. If the watch falls
behind a compaction, or the store is another one than before, everything is read again.

Does not do: write, wait (the owner reads the watch's descriptor), or translate.

Invariants:
1. Between calls the state is that of `revision`, whole; a workload of a revoked identity is not in
   it.
2. An entry that cannot be read is said and hides no other one; what it was before stays.

Tests: tests/control/push/test_mesh.py.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import msgspec

from meshfast.control.ca.issuance import REVOKED_PREFIX
from meshfast.control.registry import WORKLOADS_PREFIX, WorkloadRecord
from meshfast.control.store import (
    Change,
    CompactedError,
    Entry,
    Store,
    UnknownRevisionError,
    Watch,
)
from meshfast.discovery import Revision
from meshfast.errors import ConfigError
from meshfast.resources import Loaded, load_bytes
from meshfast.resources.kinds import Resource

__all__ = ["RESOURCES_PREFIX", "Mesh", "StoredResource", "encode_resource", "resource_key"]

RESOURCES_PREFIX: Final = "/resources/"
#: What JSON takes as it is and YAML does not, or takes for the end of a line (YAML 1.1, 4.1.1).
_ESCAPED: Final = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")

log = logging.getLogger(__name__)


def encode_resource(resource: Resource) -> bytes:
    """Write a resource as it is stored: JSON that the readers of YAML read back."""
    text = msgspec.json.encode(resource).decode()
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text).encode()


def resource_key(kind: str, namespace: str, name: str) -> str:
    """Name the key of a resource."""
    return f"{RESOURCES_PREFIX}{kind}/{namespace}/{name}"


@dataclass(frozen=True, slots=True)
class StoredResource:
    """A resource with the revisions of its first and its last write."""

    loaded: Loaded
    entry: Entry

    @classmethod
    def of(cls, entry: Entry) -> StoredResource:
        """Read a stored document. Raises `ConfigError`: another release may have taken it."""
        kind, namespace, name = entry.key.removeprefix(RESOURCES_PREFIX).split("/")
        [loaded] = load_bytes(entry.value, f"{kind} {namespace}/{name}")
        return cls(loaded, entry)


class Mesh:
    """The state of the mesh. Belongs to one event loop; `poll` after the watch became readable."""

    def __init__(self, store: Store) -> None:
        """Read everything. Raises what the store raises."""
        self._store = store
        self._watch: Watch | None = None
        self.resources: dict[str, StoredResource] = {}
        self._former: dict[str, StoredResource] = {}
        self._workloads: dict[str, tuple[Revision, WorkloadRecord]] = {}
        self._revoked: set[tuple[str, str]] = set()
        #: How often everything was read; each time the watch has another descriptor.
        self.readings = 0
        self._read_all()

    @property
    def revision(self) -> Revision:
        """The revision of the state."""
        return self._revision

    def fileno(self) -> int:
        """Return the descriptor that is readable when `poll` may find something."""
        assert self._watch is not None, "the watch is open until close"
        return self._watch.fileno()

    def poll(self) -> bool:
        """Take what the store has new; say whether anything that sidecars see has changed."""
        assert self._watch is not None, "the watch is open until close"
        changed = False
        try:
            while sets := self._watch.poll():
                for one in sets:
                    changed |= self._take(one.changes)
            self._revision = self._watch.revision
        except (CompactedError, UnknownRevisionError):
            self._watch.close()
            self._read_all()
            return True
        return changed

    def workloads(self) -> list[WorkloadRecord]:
        """Return the workloads that may be called, oldest registration first."""
        ordered = sorted(self._workloads.values(), key=lambda item: item[0])
        return [record for _, record in ordered if _identity_key(record) not in self._revoked]

    def is_revoked(self, namespace: str, service_account: str) -> bool:
        """Tell whether an identity was revoked."""
        return (namespace, service_account) in self._revoked

    def revoked(self) -> frozenset[tuple[str, str]]:
        """Return the revoked identities: namespace and service account."""
        return frozenset(self._revoked)

    def close(self) -> None:
        """Give up the watch."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _read_all(self) -> None:
        """Read one state and watch from there."""
        self.readings += 1
        self.resources, self._former = {}, self.resources
        self._workloads.clear()
        self._revoked.clear()
        listing = self._store.scan("/")
        self._revision = listing.revision
        while True:
            self._take(Change(entry.key, entry) for entry in listing.entries)
            if not listing.more:
                break
            after = listing.entries[-1].key
            listing = self._store.scan("/", at=self._revision, after=after)
        self._former = {}
        self._watch = self._store.watch("/", after=self._revision)

    def _take(self, changes: Iterable[Change]) -> bool:
        changed = False
        for change in changes:
            for prefix, take in self._takers:
                if change.key.startswith(prefix):
                    try:
                        take(self, change)
                    except (ConfigError, msgspec.DecodeError, ValueError) as error:
                        log.error("%s is not served as it is stored: %s", change.key, error)
                    changed = True
        return changed

    def _take_resource(self, change: Change) -> None:
        if change.entry is None:
            self.resources.pop(change.key, None)
            return
        if change.key in self._former:
            self.resources[change.key] = self._former[change.key]
        self.resources[change.key] = StoredResource.of(change.entry)

    def _take_workload(self, change: Change) -> None:
        if change.entry is None:
            self._workloads.pop(change.key, None)
        else:
            record = msgspec.json.decode(change.entry.value, type=WorkloadRecord)
            self._workloads[change.key] = (change.entry.created, record)

    def _take_revoked(self, change: Change) -> None:
        namespace, _, account = change.key.removeprefix(REVOKED_PREFIX).partition("/")
        if change.entry is None:
            self._revoked.discard((namespace, account))
        else:
            self._revoked.add((namespace, account))

    _takers = (
        (RESOURCES_PREFIX, _take_resource),
        (WORKLOADS_PREFIX, _take_workload),
        (REVOKED_PREFIX, _take_revoked),
    )


def _identity_key(record: WorkloadRecord) -> tuple[str, str]:
    """Name the identity as its revocation does."""
    return record.namespace, record.account
