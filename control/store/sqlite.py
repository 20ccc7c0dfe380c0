"""The embedded store: SQLite in one directory, for one control plane, with nothing to install.

Policy of connections: one writer thread with the only writing connection (writer.py), and a pool of
read-only connections, each used by one caller at a time. WAL lets both go on side by side, and a
reader that starts after an acknowledgement sees the write. Reads are short; nobody holds one open
between calls, so the log is always cut at the next checkpoint.

What this module does not do: share the files with a second control plane (the lock refuses), make
backups (copy with `sqlite3 .backup` or litestream; a restored copy starts a new epoch by itself),
or encrypt.

Invariants: those of the contract. Here:
1. A watch keeps no queue. It reads the history behind its cursor, so its memory is one page.
2. A read is one transaction: the state, its revision and the check against compaction agree.

Tests: tests/control/store/ (contract.py over this back end, test_killed.py, test_sqlite.py).
"""

from __future__ import annotations

import os
import select
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from meshfast.control.store import files, schema
from meshfast.control.store.bounds import check_key, check_prefix, check_transaction, page_size
from meshfast.control.store.contract import (
    Change,
    ChangeSet,
    CompactedError,
    Entry,
    LimitError,
    Limits,
    Listing,
    Transaction,
    UnavailableError,
    UnknownRevisionError,
)
from meshfast.control.store.writer import Writer, contains
from meshfast.discovery import Revision

__all__ = ["SqliteStore"]

DATABASE: Final = "store.db"
LOCK: Final = "store.lock"
#: One page of a watch, so that 256 revisions of 8 MiB are not read at once. At least one revision
#: is always handed out.
POLL_BYTES_MAX: Final = 16 << 20
#: Greater than every character of a key, and not one itself (bounds.py).
AFTER_ALL_KEYS: Final = "\x7f"

READ = f"""
    SELECT {schema.ENTRY_COLUMNS} FROM history AS h
    WHERE h.key = ? AND h.n <= ? ORDER BY h.n DESC LIMIT 1"""
SCAN = f"""
    SELECT {schema.ENTRY_COLUMNS} FROM history AS h
    WHERE h.key >= :from AND h.key < :to AND h.key > :after AND h.value IS NOT NULL
      AND h.n = (SELECT max(x.n) FROM history AS x WHERE x.key = h.key AND x.n <= :at)
    ORDER BY h.key LIMIT :limit"""
SCAN_CURRENT = f"""
    SELECT {schema.ENTRY_COLUMNS} FROM current AS c JOIN history AS h ON h.id = c.history
    WHERE c.key >= :from AND c.key < :to AND c.key > :after
    ORDER BY c.key LIMIT :limit"""
CHANGES = f"""
    SELECT {schema.ENTRY_COLUMNS} FROM history AS h
    WHERE h.n > :after AND h.key >= :from AND h.key < :to ORDER BY h.n, h.key"""


class SqliteStore:
    """A store in a directory. See `contract.Store` for the methods."""

    def __init__(
        self,
        directory: Path,
        *,
        limits: Limits | None = None,
        clock_ms: Callable[[], int] = lambda: time.monotonic_ns() // 1_000_000,
        wall_clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        """Open the store, making it when the directory is new or empty.

        Raises `UnsafeFileError`, `BusyError` (another process has it), `CorruptError`. Takes time
        in proportion to the size of the store, since all of it is checked.
        """
        self.limits = limits or Limits()
        self._clock_ms = clock_ms
        self._path = directory / DATABASE
        files.private_directory(directory)
        self._held: int | None = files.hold(directory / LOCK)
        try:
            connection = self._open_database()
        except BaseException:
            os.close(self._held)
            raise
        self._idle: list[sqlite3.Connection] = []
        self._guard = threading.Lock()
        self._watches: set[_SqliteWatch] = set()
        self._writer = Writer(
            connection,
            epoch_wanted=wall_clock_ms(),
            clock_ms=clock_ms,
            on_commit=self._wake_watches,
        )

    def _open_database(self) -> sqlite3.Connection:
        logs = [self._path.with_name(DATABASE + suffix) for suffix in ("-wal", "-shm")]
        files.create_file(self._path)
        for log in logs:
            if os.path.lexists(log):
                files.check_file(log)
        connection = schema.connect_writer(self._path, self.limits)
        try:
            if schema.is_empty(connection):
                schema.initialise(connection)
            schema.check(connection, self._path)
            for log in logs:
                files.check_file(log)
        except BaseException:
            connection.close()
            raise
        return connection

    def revision(self) -> Revision:
        """See the contract."""
        with self._reading() as connection:
            return _head(connection)

    def read(self, key: str, *, at: Revision | None = None) -> Entry | None:
        """See the contract."""
        check_key(key, self.limits)
        with self._reading() as connection:
            n = _head(connection).n if at is None else _kept(connection, at)
            row = connection.execute(READ, (key, n)).fetchone()
        return None if row is None else schema.entry_of(row)

    def scan(
        self, prefix: str, *, at: Revision | None = None, after: str = "", limit: int | None = None
    ) -> Listing:
        """See the contract."""
        check_prefix(prefix, self.limits)
        limit = page_size(limit, self.limits)
        span = {"from": prefix, "to": prefix + AFTER_ALL_KEYS, "after": after, "limit": limit + 1}
        with self._reading() as connection:
            revision = _head(connection)
            if at is None or at == revision:
                rows = connection.execute(SCAN_CURRENT, span).fetchall()
            else:
                revision = at
                span["at"] = _kept(connection, at)
                rows = connection.execute(SCAN, span).fetchall()
        entries = tuple(entry for row in rows[:limit] if (entry := schema.entry_of(row)))
        return Listing(revision, entries, more=len(rows) > limit)

    def submit(self, transaction: Transaction) -> Future[Revision]:
        """See the contract."""
        check_transaction(transaction, self.limits)
        return self._writer.transaction(transaction)

    def transact(self, transaction: Transaction) -> Revision:
        """See the contract."""
        return self.submit(transaction).result()

    def watch(self, prefix: str, *, after: Revision) -> _SqliteWatch:
        """See the contract."""
        check_prefix(prefix, self.limits)
        with self._reading() as connection:
            _kept(connection, after)
        watch = _SqliteWatch(self, prefix, after)
        with self._guard:
            self._watches.add(watch)
        watch.wake()
        return watch

    def compact(self, through: Revision) -> None:
        """See the contract."""
        self._writer.compact(through).result()

    def grant(self, ttl_ms: int) -> int:
        """See the contract."""
        low, high = self.limits.lease_ms_min, self.limits.lease_ms_max
        if not low <= ttl_ms <= high:
            raise LimitError(f"a lease lasts {low} to {high} ms, not {ttl_ms}")
        return self._writer.grant(ttl_ms).result()

    def keep_alive(self, lease: int) -> None:
        """See the contract. Does not wait for the writer and costs no disk write."""
        self._writer.leases.keep_alive(lease, self._clock_ms())

    def revoke(self, lease: int) -> Revision:
        """See the contract."""
        return self._writer.revoke(lease).result()

    def sweep(self) -> None:
        """End the leases that are due now, instead of within the next `TICK_MS`."""
        self._writer.sweep().result()

    def close(self) -> None:
        """See the contract."""
        self._writer.close()
        with self._guard:
            idle, self._idle = self._idle, []
            watches = list(self._watches)
            held, self._held = self._held, None
        for watch in watches:
            watch.close()
        for connection in idle:
            connection.close()
        if held is not None:
            os.close(held)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection inside a read transaction."""
        with self._guard:
            if not self._is_open():
                raise UnavailableError("the store is closed")
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = schema.connect_reader(self._path)
        try:
            connection.execute("BEGIN")
            yield connection
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            with self._guard:
                if self._is_open():
                    self._idle.append(connection)
                else:
                    connection.close()

    def _is_open(self) -> bool:
        return self._held is not None

    def _wake_watches(self) -> None:
        with self._guard:
            for watch in self._watches:
                watch.wake()

    def _changes(
        self, prefix: str, after: Revision, limit: int
    ) -> tuple[tuple[ChangeSet, ...], Revision, bool]:
        """Read a page: the change sets, how far they cover the history, whether there is more."""
        span = {"from": prefix, "to": prefix + AFTER_ALL_KEYS, "after": after.n}
        sets: list[ChangeSet] = []
        changes: list[Change] = []
        current, size = after, 0
        with self._reading() as connection:
            _kept(connection, after)
            head = _head(connection)
            for row in connection.execute(CHANGES, span):
                revision = Revision(row[5], row[6])
                if changes and revision != current:
                    sets.append(ChangeSet(current, tuple(changes)))
                    changes = []
                    if len(sets) == limit or size >= POLL_BYTES_MAX:
                        return tuple(sets), current, True
                current = revision
                changes.append(Change(row[0], schema.entry_of(row)))
                size += len(row[0]) + len(row[1] or b"")
        if changes:
            sets.append(ChangeSet(current, tuple(changes)))
        return tuple(sets), head, False

    def _forget_watch(self, watch: _SqliteWatch) -> bool:
        with self._guard:
            known = watch in self._watches
            self._watches.discard(watch)
        return known


class _SqliteWatch:
    """A cursor and an eventfd that the writer raises after each turn. See `contract.Watch`."""

    def __init__(self, store: SqliteStore, prefix: str, after: Revision) -> None:
        self._store = store
        self._prefix = prefix
        self.revision = after
        self._descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        """See the contract."""
        return self._descriptor

    def poll(self, limit: int | None = None) -> tuple[ChangeSet, ...]:
        """See the contract."""
        limit = page_size(limit, self._store.limits)
        self._refuse_if_closed()
        self._settle()
        sets, self.revision, more = self._store._changes(self._prefix, self.revision, limit)
        if more:
            self.wake()
        return sets

    def wait(self, timeout_ms: int) -> bool:
        """See the contract."""
        self._refuse_if_closed()
        poller = select.poll()  # select takes descriptors below 1024 only
        poller.register(self._descriptor, select.POLLIN)
        return bool(poller.poll(timeout_ms))

    def close(self) -> None:
        """See the contract."""
        if self._store._forget_watch(self):
            os.close(self._descriptor)
            self._descriptor = -1

    def wake(self) -> None:
        """Make the descriptor readable. The store calls it while it holds its guard."""
        os.eventfd_write(self._descriptor, 1)

    def _refuse_if_closed(self) -> None:
        if self._descriptor < 0:
            raise UnavailableError("the watch is closed")

    def _settle(self) -> None:
        """Make the descriptor unreadable before reading, so that a later commit raises it again."""
        try:
            os.eventfd_read(self._descriptor)
        except BlockingIOError:
            return


def _head(connection: sqlite3.Connection) -> Revision:
    return Revision(*connection.execute("SELECT epoch, n FROM state").fetchone())


def _kept(connection: sqlite3.Connection, revision: Revision) -> int:
    """Return the n of a revision whose state the history can still show."""
    (compacted,) = connection.execute("SELECT compacted FROM state").fetchone()
    if revision.n < compacted:
        raise CompactedError(f"{revision} is older than the kept history, n = {compacted}")
    if not contains(connection, revision):
        raise UnknownRevisionError(f"{revision} is not a revision of this store")
    return revision.n
