"""The one thread that writes: it takes jobs in turns, and one commit makes a whole turn durable.

A commit costs one wait for the disk, whatever is in it. While a turn waits, the next jobs gather,
so a thousand sidecars that register at once cost a few commits and not a thousand. Each job is
still a transaction of its own with a revision of its own: it checks everything before it writes
anything, so a job that refuses leaves nothing behind for the others of its turn.

What this module does not do: read for callers, watch, or open and check files.

Invariants:
1. Only this thread uses the writing connection. (SQLite allows one writer at a time anyway; with
   one thread nobody waits for a lock, and a turn is a batch.)
2. A future resolves after the commit of its turn, never before.
3. When a write ends in a state we cannot know (I/O error, damage), the writer stops for good: after
   a failed fsync the kernel may claim success for lost pages, so only a new opening, which reads
   what is really there, can go on. A full disk is known not to have written, and goes on.
4. The epoch is recorded together with its first write, so an opening that writes nothing leaves no
   trace, and no revision of it was ever shown to anybody.

Tests: tests/control/store/contract.py for what is written, test_writer.py for turns and failures.
"""

from __future__ import annotations

import queue
import secrets
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

from meshfast.control.store.contract import (
    BusyError,
    CompactedError,
    Condition,
    ConflictError,
    Delete,
    FullError,
    LeaseGoneError,
    Put,
    StoreError,
    Transaction,
    UnavailableError,
    UnknownRevisionError,
)
from meshfast.control.store.leases import TICK_MS, Leases
from meshfast.discovery import Revision

__all__ = ["JOBS_MAX", "Writer", "contains"]

#: Jobs that may wait. More callers than this at once is a flood; they are told to come back.
JOBS_MAX = 1024
#: Jobs in one turn: enough to share a commit among many, few enough to acknowledge soon.
TURN_JOBS_MAX = 128

NEWEST = "SELECT h.epoch, h.n FROM current c JOIN history h ON h.id = c.history WHERE c.key = ?"
CREATED = (
    "SELECT h.created_epoch, h.created_n, h.changes "
    "FROM current c JOIN history h ON h.id = c.history WHERE c.key = ?"
)
APPEND = (
    "INSERT INTO history (epoch, n, key, value, checksum, created_epoch, created_n, changes, lease)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
POINT = (
    "INSERT INTO current (key, history, lease) VALUES (?, ?, ?) "
    "ON CONFLICT (key) DO UPDATE SET history = excluded.history, lease = excluded.lease"
)
#: Rows that no state from the compacted revision on can show: a later row of the key is old enough
#: too, or the row is a removal.
FORGET = """
    DELETE FROM history WHERE n <= :through AND (
        value IS NULL OR EXISTS (
            SELECT 1 FROM history AS x
            WHERE x.key = history.key AND x.n > history.n AND x.n <= :through))
"""
#: The epoch that covers the compacted revision has to stay: it says whose revision that is.
FORGET_EPOCHS = """
    DELETE FROM epochs WHERE first < (SELECT max(first) FROM epochs WHERE first <= :through)
"""

Action = Callable[[], Any]


def _nothing(outcome: Any) -> None:
    """Follow a commit with nothing."""


@dataclass(frozen=True, slots=True)
class _Job:
    """`action` runs inside the turn's commit, `then` takes its outcome after it."""

    action: Action
    then: Callable[[Any], None] = _nothing
    future: Future[Any] = field(default_factory=Future)


def contains(connection: sqlite3.Connection, revision: Revision) -> bool:
    """Say whether the history of this database made, or would still show, the revision."""
    epoch, n = connection.execute("SELECT epoch, n FROM state").fetchone()
    if revision == Revision(0, 0):
        return True
    row = connection.execute(
        "SELECT epoch FROM epochs WHERE first <= ? ORDER BY first DESC LIMIT 1", (revision.n,)
    ).fetchone()
    return row is not None and row[0] == revision.epoch <= epoch and revision.n <= n


class Writer:
    """Runs jobs on its own thread. Every public method may be called from any thread."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        *,
        epoch_wanted: int,
        clock_ms: Callable[[], int],
        on_commit: Callable[[], None],
    ) -> None:
        """Take over a checked connection and start the thread.

        `on_commit` is called on the writer's thread after a turn that made revisions. The epoch is
        `epoch_wanted`, or one more than the last when the clock went back.
        """
        self._connection = connection
        self._clock_ms = clock_ms
        self._on_commit = on_commit
        epoch, self._n, _ = connection.execute("SELECT epoch, n, compacted FROM state").fetchone()
        self._head = Revision(epoch, self._n)
        self._epoch = max(epoch + 1, epoch_wanted)
        self.leases = Leases(connection.execute("SELECT id, ttl_ms FROM leases"), clock_ms())
        self._jobs: queue.Queue[_Job | None] = queue.Queue(JOBS_MAX)
        self._door = threading.Lock()
        # Why nothing is taken any more. Closing sets it too, but then what was accepted is
        # finished; `_broken` belongs to the writer's thread and means that nothing can be.
        self._refusal = ""
        self._broken = False
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    def transaction(self, transaction: Transaction) -> Future[Revision]:
        """Queue a transaction that is within the limits."""
        return self._submit(_Job(lambda: self._apply(transaction)))

    def grant(self, ttl_ms: int) -> Future[int]:
        """Queue the making of a lease."""
        return self._submit(
            _Job(
                lambda: self._grant(ttl_ms),
                then=lambda lease: self.leases.add(lease, ttl_ms, self._clock_ms()),
            )
        )

    def revoke(self, lease: int) -> Future[Revision]:
        """Queue the end of a lease."""
        return self._submit(self._revocation(lease))

    def compact(self, through: Revision) -> Future[None]:
        """Queue a compaction."""
        return self._submit(_Job(lambda: self._compact(through)))

    def sweep(self) -> Future[None]:
        """Queue nothing: what is due is ended before any turn, so also before this one."""
        return self._submit(_Job(lambda: None))

    def close(self) -> None:
        """Finish what is queued, stop the thread, close the connection."""
        with self._door:
            first = not self._refusal
            self._refusal = self._refusal or "the store is closed"
        if first:
            self._jobs.put(None)
        self._thread.join()

    def _submit(self, job: _Job) -> Future[Any]:
        with self._door:
            if self._refusal:
                raise UnavailableError(self._refusal)
            try:
                self._jobs.put_nowait(job)
            except queue.Full:
                raise BusyError(f"{JOBS_MAX} writes are waiting") from None
        return job.future

    # The rest runs on the writer's thread.

    def _run(self) -> None:
        going_on = True
        while going_on:
            jobs, going_on = self._gather()
            self._expire()
            self._turn([job for job in jobs if job.future.set_running_or_notify_cancel()])
            if self._broken:
                self._refuse_waiting()
                break
        self._connection.close()

    def _gather(self) -> tuple[list[_Job], bool]:
        """Wait for a job, or a tick of the leases; take what else is there already."""
        jobs: list[_Job] = []
        timeout = TICK_MS / 1000 if self.leases else None
        try:
            job = self._jobs.get(timeout=timeout)
            while job is not None:
                jobs.append(job)
                if len(jobs) == TURN_JOBS_MAX:
                    return jobs, True
                job = self._jobs.get_nowait()
        except queue.Empty:
            return jobs, True
        return jobs, False

    def _turn(self, jobs: list[_Job]) -> None:
        """Run jobs in one commit, then resolve their futures."""
        if not jobs:
            return
        before = self._head
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            outcomes = [self._outcome(job.action) for job in jobs]
            self._connection.execute("COMMIT")
        except (
            Exception
        ) as error:  # not only SQLite's: a bug of ours must not leave callers waiting
            self._undo(before)
            self._fail(jobs, error)
            return
        if self._head != before:
            self._on_commit()
        for job, outcome in zip(jobs, outcomes, strict=True):
            if isinstance(outcome, StoreError):
                job.future.set_exception(outcome)
            else:
                job.then(outcome)
                job.future.set_result(outcome)

    @staticmethod
    def _outcome(action: Action) -> object:
        try:
            return action()
        except StoreError as error:
            return error

    def _undo(self, before: Revision) -> None:
        self._head, self._n = before, before.n
        if self._connection.in_transaction:
            try:
                self._connection.execute("ROLLBACK")
            except sqlite3.Error as error:
                self._stop(error)

    def _fail(self, jobs: list[_Job], error: Exception) -> None:
        """Answer a turn that was not committed."""
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_IOERR) & 0xFF
        if code == sqlite3.SQLITE_FULL and not self._broken:
            if len(jobs) > 1:  # one large write must not fail the small ones beside it
                for job in jobs:
                    self._turn([job])
                return
            answer: StoreError = FullError(f"no room for the write: {error}")
        elif code == sqlite3.SQLITE_BUSY and not self._broken:
            answer = BusyError("another process holds the store's files")
        else:
            self._stop(error)
            answer = UnavailableError(self._refusal)
        for job in jobs:
            job.future.set_exception(answer)

    def _stop(self, error: Exception) -> None:
        self._broken = True
        with self._door:
            self._refusal = f"the store stopped after an error, open it again: {error}"

    def _refuse_waiting(self) -> None:
        """Answer what was queued before the door was shut; nothing can be queued after."""
        while True:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return
            if job is not None and job.future.set_running_or_notify_cancel():
                job.future.set_exception(UnavailableError(self._refusal))

    def _expire(self) -> None:
        """End the leases that are due, each in a revision of its own; put back what failed."""
        for lease in self.leases.due(self._clock_ms()):
            job = self._revocation(lease)
            self._turn([job])
            if job.future.exception() is None:
                continue
            ttl_ms = None if self._broken else self._ttl(lease)
            if ttl_ms is not None:
                self.leases.add(lease, ttl_ms, self._clock_ms())

    def _revocation(self, lease: int) -> _Job:
        return _Job(lambda: self._revoke(lease), then=lambda _: self.leases.remove(lease))

    def _ttl(self, lease: int) -> int | None:
        row = self._connection.execute(
            "SELECT ttl_ms FROM leases WHERE id = ?", (lease,)
        ).fetchone()
        return None if row is None else int(row[0])

    def _apply(self, transaction: Transaction) -> Revision:
        self._check_conditions(transaction.conditions)
        for lease in {w.lease for w in transaction.writes if isinstance(w, Put) and w.lease}:
            if self._ttl(lease) is None:
                raise LeaseGoneError(f"lease {lease} is gone")
        return self._write(transaction.writes)

    def _check_conditions(self, conditions: tuple[Condition, ...]) -> None:
        conflicts: list[tuple[str, Revision | None]] = []
        for condition in conditions:
            row = self._connection.execute(NEWEST, (condition.key,)).fetchone()
            found = None if row is None else Revision(*row)
            if found != condition.modified:
                conflicts.append((condition.key, found))
        if conflicts:
            raise ConflictError(conflicts)

    def _write(self, writes: tuple[Put | Delete, ...]) -> Revision:
        """Append one revision; everything that may refuse has been asked before."""
        present = {
            write.key: self._connection.execute(CREATED, (write.key,)).fetchone()
            for write in writes
        }
        effective = [
            write for write in writes if isinstance(write, Put) or present[write.key] is not None
        ]
        if not effective:
            return self._head
        revision = self._next()
        for write in effective:
            if isinstance(write, Put):
                self._put(revision, write, present[write.key])
            else:
                self._delete(revision, write)
        return revision

    def _next(self) -> Revision:
        revision = Revision(self._epoch, self._n + 1)
        if self._head.epoch != self._epoch:
            self._connection.execute(
                "INSERT INTO epochs (first, epoch) VALUES (?, ?)", (revision.n, revision.epoch)
            )
        self._connection.execute("UPDATE state SET epoch = ?, n = ?", (revision.epoch, revision.n))
        self._head, self._n = revision, revision.n
        return revision

    def _put(self, at: Revision, put: Put, created: tuple[int, int, int] | None) -> None:
        created_epoch, created_n, changes = created or (at.epoch, at.n, 0)
        checksum = crc32(put.value)
        row = self._connection.execute(
            APPEND,
            (
                at.epoch,
                at.n,
                put.key,
                put.value,
                checksum,
                created_epoch,
                created_n,
                changes + 1,
                put.lease,
            ),
        ).lastrowid
        self._connection.execute(POINT, (put.key, row, put.lease))

    def _delete(self, at: Revision, delete: Delete) -> None:
        self._connection.execute(
            APPEND, (at.epoch, at.n, delete.key, None, 0, at.epoch, at.n, 0, 0)
        )
        self._connection.execute("DELETE FROM current WHERE key = ?", (delete.key,))

    def _grant(self, ttl_ms: int) -> int:
        # Random, so that a lease of a timeline lost to a restore can never be taken for a new one.
        lease = secrets.randbits(62) + 1
        self._connection.execute("INSERT INTO leases (id, ttl_ms) VALUES (?, ?)", (lease, ttl_ms))
        return lease

    def _revoke(self, lease: int) -> Revision:
        if self._ttl(lease) is None:
            raise LeaseGoneError(f"lease {lease} is gone")
        keys = self._connection.execute(
            "SELECT key FROM current WHERE lease = ? AND lease <> 0 ORDER BY key", (lease,)
        ).fetchall()
        self._connection.execute("DELETE FROM leases WHERE id = ?", (lease,))
        return self._write(tuple(Delete(key) for (key,) in keys))

    def _compact(self, through: Revision) -> None:
        (compacted,) = self._connection.execute("SELECT compacted FROM state").fetchone()
        if through.n < compacted:  # first: the epochs of what is gone are gone as well
            raise CompactedError(f"the history before n = {compacted} is gone already")
        if not contains(self._connection, through):
            raise UnknownRevisionError(f"{through} is not a revision of this store")
        self._connection.execute("UPDATE state SET compacted = ?", (through.n,))
        self._connection.execute(FORGET, {"through": through.n})
        self._connection.execute(FORGET_EPOCHS, {"through": through.n})
