"""What a store promises to the control plane, whichever back end keeps it. The promise is etcd's.

A store maps keys to values and remembers how it got there. Every change is one transaction, every
transaction that changes something is one revision, and a watch replays revisions in order without
a gap. Back ends: `sqlite.py` (default). Another one (etcd, for several control planes) is written
against this page and tests/control/store/contract.py.

What a store does not do: understand values, validate configuration (that happens before the write),
take heartbeats (a keep-alive costs no write), or run asyncio.

Semantics, each held by the contract's tests:
1.  A transaction applies whole or not at all; all its changes carry one revision.
2.  `transact` returns after the change is durable; it can be lost neither by a killed process nor,
    as far as the disk keeps its word, by a power cut.
3.  Revisions grow, and a revision never names two different writes: not after a crash, a restart or
    the restore of an old copy (the epoch differs then).
4.  A condition compares the revision of the key's last change; `None` means that the key must be
    absent. One failed condition fails the transaction, and nothing is written.
5.  A transaction that changes nothing (only deletes of absent keys) makes no revision.
6.  Reads see every acknowledged write. A read `at` a revision sees exactly the state after it.
7.  A watch yields every change to a key with its prefix after its start revision, in order, whole
    revisions only, each once.
8.  Compaction through R forgets states before R; reading `at` an older one or watching from before
    R raises `CompactedError`. The current state is never touched.
9.  A revision that this history does not contain raises `UnknownRevisionError`: the store was
    restored from an older copy, and the caller has to read everything again.
10. The keys of a lease vanish together, in one revision, not before its time-to-live has passed
    since the last keep-alive. Time in which the store did not run does not count, so a stopped
    control plane that comes back finds every lease with its full time.
11. Keys, values and transactions are bounded by `Limits`; what is larger is refused unread.

Push room: how it reads from asyncio. A `Watch` is a cursor into the history, plus a descriptor
that is readable while there is something to read: `loop.add_reader(watch.fileno(), wake)`, then
`watch.poll()` until it returns nothing. There is no callback from a foreign thread and no queue
that a slow reader could fill: the history itself is the queue. A reader that stays behind beyond
a compaction is told so (8) and lists again. `submit` returns a `concurrent.futures.Future`, for
`asyncio.wrap_future`; reads are short and local.

Tests: tests/control/store/.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from meshfast.discovery import Revision
from meshfast.errors import MeshfastError

__all__ = [
    "BusyError",
    "Change",
    "ChangeSet",
    "CompactedError",
    "Condition",
    "ConflictError",
    "CorruptError",
    "Delete",
    "Entry",
    "FullError",
    "LeaseGoneError",
    "LimitError",
    "Limits",
    "Listing",
    "Put",
    "Store",
    "StoreError",
    "Transaction",
    "UnavailableError",
    "UnknownRevisionError",
    "UnsafeFileError",
    "Watch",
    "scan_all",
]


class StoreError(MeshfastError):
    """The store refused, or could not do, what it was asked."""


class BusyError(StoreError):
    """Too many writes are waiting, or another process holds the files; nothing was written."""


class CompactedError(StoreError):
    """The revision is older than the history that is still kept; read the current state instead."""


class ConflictError(StoreError):
    """A condition did not hold; nothing was written. `conflicts` names each key and what it has."""

    conflicts: tuple[tuple[str, Revision | None], ...]

    def __init__(self, conflicts: Sequence[tuple[str, Revision | None]]) -> None:
        """Keep every failed condition, not only the first."""
        self.conflicts = tuple(conflicts)
        found = ", ".join(f"{key} is {at or 'absent'}" for key, at in self.conflicts)
        super().__init__(f"changed in the meantime: {found}")


class CorruptError(StoreError):
    """What is on disk is not what was written, or is not a store at all."""


class FullError(StoreError):
    """The store has reached its size limit or the disk is full; nothing was written."""


class LeaseGoneError(StoreError):
    """The lease has expired, was revoked, or never existed."""


class LimitError(StoreError):
    """A key, value, prefix or transaction breaks the limits; nothing was written."""


class UnavailableError(StoreError):
    """The store is closed, or stopped itself because a write ended in an unknown state."""


class UnknownRevisionError(StoreError):
    """The revision is not part of this history: read everything again."""


class UnsafeFileError(StoreError):
    """A file or directory of the store could be read or changed by another user."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of a store. A back end may be opened with smaller ones.

    On etcd, whose own defaults are 128 operations and 1.5 MiB, these need `--max-txn-ops=1024`
    and `--max-request-bytes=8912896` (the transaction and half a MiB for framing).
    """

    key_bytes_max: int = 512
    #: Precedent: a Kubernetes object in etcd has to stay below about 1.5 MiB.
    value_bytes_max: int = 1 << 20
    #: Puts, deletes and conditions together.
    operations_max: int = 1024
    #: Keys and values together.
    transaction_bytes_max: int = 8 << 20
    #: Entries in one `scan`, revisions in one `poll`.
    page_max: int = 1000
    #: 1 s to 1 day. Below a second a keep-alive over a network cannot be relied on.
    lease_ms_min: int = 1_000
    lease_ms_max: int = 86_400_000
    #: etcd's default quota (`quota-backend-bytes`) is 2 GiB as well.
    size_bytes_max: int = 2 << 30


@dataclass(frozen=True, slots=True)
class Entry:
    """A key as it was after some revision.

    `created <= modified`. `changes` counts from 1 since `created` (etcd's version). `lease` is 0
    when the key lives on its own.
    """

    key: str
    value: bytes
    created: Revision
    modified: Revision
    changes: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Listing:
    """Entries in key order at `revision`. `more` says that the limit cut the answer short."""

    revision: Revision
    entries: tuple[Entry, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class Condition:
    """The key was last changed at `modified`; `None`: the key is absent."""

    key: str
    modified: Revision | None


@dataclass(frozen=True, slots=True)
class Put:
    """Set a key. `lease` 0 detaches the key from the lease it had."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a key; nothing happens when it is absent."""

    key: str


@dataclass(frozen=True, slots=True)
class Transaction:
    """Writes that happen together when every condition holds. A key is written at most once."""

    writes: tuple[Put | Delete, ...]
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """One key after one revision; `entry` is `None` when the revision removed it."""

    key: str
    entry: Entry | None


@dataclass(frozen=True, slots=True)
class ChangeSet:
    """All changes of one revision that a watch covers, in key order."""

    revision: Revision
    changes: tuple[Change, ...]


class Watch(Protocol):
    """A cursor over the changes below a prefix. It belongs to one thread at a time."""

    @property
    def revision(self) -> Revision:
        """Everything up to and including this revision has been handed out."""

    def fileno(self) -> int:
        """Return a descriptor that is readable while `poll` may have something, for a selector."""

    def poll(self, limit: int | None = None) -> tuple[ChangeSet, ...]:
        """Take the next revisions; empty when there are none yet. Never waits.

        At most `limit` of them, `page_max` unless told, and about 16 MiB.
        Raises `CompactedError` when the cursor fell behind a compaction; the watch is useless then.
        """

    def wait(self, timeout_ms: int) -> bool:
        """Wait until `poll` may have something; say whether it may. For callers without a loop."""

    def close(self) -> None:
        """Give up the descriptor. May be called twice."""


class Store(Protocol):
    """The contract. All methods may be called from any thread; the module says what they mean."""

    @property
    def limits(self) -> Limits:
        """The bounds that this store was opened with."""

    def revision(self) -> Revision:
        """Return the revision of the last write, `ORIGIN` before the first."""

    def read(self, key: str, *, at: Revision | None = None) -> Entry | None:
        """Return the entry, now or after revision `at`; `None` when it is absent.

        Raises `CompactedError`, `UnknownRevisionError`, `CorruptError`, `LimitError`.
        """

    def scan(
        self, prefix: str, *, at: Revision | None = None, after: str = "", limit: int | None = None
    ) -> Listing:
        """Return entries below `prefix` whose key is greater than `after`, in key order.

        At most `limit` entries, `page_max` unless told.
        To page through one state, pass the first answer's `revision` as `at` and its last key as
        `after`. Raises as `read`.
        """

    def submit(self, transaction: Transaction) -> Future[Revision]:
        """Hand a transaction to the writer; the future resolves as `transact` returns or raises.

        Raises `BusyError`, `LimitError` and `UnavailableError` at once. A future that is cancelled
        in time writes nothing.
        """

    def transact(self, transaction: Transaction) -> Revision:
        """Apply a transaction and return its revision once durable.

        Returns the current revision when nothing had to change. Raises `BusyError`,
        `ConflictError`, `FullError`, `LeaseGoneError`, `LimitError`, `UnavailableError`; in all
        these cases but the last nothing was written.
        """

    def watch(self, prefix: str, *, after: Revision) -> Watch:
        """Watch changes below `prefix` that came after a revision, usually a `Listing.revision`.

        Raises `CompactedError`, `UnknownRevisionError`, `LimitError`.
        """

    def compact(self, through: Revision) -> None:
        """Forget the states before `through`. Compacting the same revision again does nothing.

        Raises `CompactedError` for an older one, `UnknownRevisionError`.
        """

    def grant(self, ttl_ms: int) -> int:
        """Make a lease and return its number (> 0). Raises `LimitError`."""

    def keep_alive(self, lease: int) -> None:
        """Give a lease its full time again. Raises `LeaseGoneError`."""

    def revoke(self, lease: int) -> Revision:
        """End a lease and remove its keys in one revision. Raises `LeaseGoneError`."""

    def close(self) -> None:
        """Finish accepted writes and let go of the files. May be called twice."""


def scan_all(store: Store, prefix: str, *, of_one_revision: bool = False) -> Iterator[Entry]:
    """Give every entry below `prefix`, page by page, in key order.

    Without `of_one_revision` each page is of the moment at which it is read. Raises as `scan`.
    """
    listing = store.scan(prefix)
    yield from listing.entries
    while listing.more:
        at = listing.revision if of_one_revision else None
        listing = store.scan(prefix, at=at, after=listing.entries[-1].key)
        yield from listing.entries
