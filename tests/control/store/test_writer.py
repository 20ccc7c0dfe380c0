"""Turns: what one commit holds, and what happens when it cannot be made."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from meshfast.control.store import (
    BusyError,
    Condition,
    ConflictError,
    Delete,
    FullError,
    LeaseGoneError,
    Limits,
    Put,
    SqliteStore,
    Transaction,
    UnavailableError,
)
from meshfast.control.store.writer import JOBS_MAX
from meshfast.discovery import ORIGIN, Revision

PAGES = Limits(size_bytes_max=40 * 4096)


class Gate:
    """Holds the writer inside a turn, so that the jobs behind it gather for the next one."""

    def __init__(self, store: SqliteStore) -> None:
        self._entered, self._leave = threading.Event(), threading.Event()
        self._real = store._writer._on_commit
        store._writer._on_commit = self._hold
        self._store = store
        store.submit(put("gate"))
        assert self._entered.wait(10)

    def _hold(self) -> None:
        self._real()
        self._entered.set()
        assert self._leave.wait(10)

    def open(self) -> None:
        self._store._writer._on_commit = self._real
        self._leave.set()


class Failing:
    """A connection on which a statement fails as the disk would make it fail."""

    def __init__(self, connection: sqlite3.Connection, statement: str, code: int) -> None:
        self._connection, self._statement, self._code = connection, statement, code

    def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
        if statement.startswith(self._statement):
            error = sqlite3.OperationalError("as told by the test")
            error.sqlite_errorcode = self._code
            raise error
        return self._connection.execute(statement, *parameters)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def put(key: str, value: bytes = b"v", lease: int = 0) -> Transaction:
    return Transaction((Put(key, value, lease),))


def error_of(future: Future[Revision]) -> BaseException | None:
    return future.exception(timeout=10)


def fail(store: SqliteStore, statement: str, code: int) -> None:
    failing = Failing(store._writer._connection, statement, code)
    store._writer._connection = failing  # type: ignore[assignment]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(tmp_path / "store", limits=PAGES)
    yield store
    store.close()


def test_jobs_that_wait_together_share_a_commit_and_not_a_revision(store: SqliteStore) -> None:
    commits: list[Revision] = []
    store._writer._on_commit = lambda: commits.append(store.revision())
    gate = Gate(store)
    commits.clear()
    futures = [store.submit(put(f"k{i}")) for i in range(20)]
    gate.open()
    revisions = [future.result(10) for future in futures]
    assert [r.n for r in revisions] == list(range(2, 22))
    assert commits == [revisions[-1]], "one commit, seen after its last revision"


def test_a_refused_job_leaves_the_others_of_its_turn_alone(store: SqliteStore) -> None:
    gate = Gate(store)
    first = store.submit(put("a"))
    conflict = store.submit(Transaction((Put("b", b""),), (Condition("b", ORIGIN),)))
    gone = store.submit(Transaction((Put("c", b""), Put("d", b"", lease=7))))
    last = store.submit(put("e"))
    gate.open()
    assert isinstance(error_of(conflict), ConflictError)
    assert isinstance(error_of(gone), LeaseGoneError)
    assert last.result(10).n == first.result(10).n + 1
    assert [entry.key for entry in store.scan("").entries] == ["a", "e", "gate"]


def test_a_job_sees_those_before_it_in_its_turn(store: SqliteStore) -> None:
    gate = Gate(store)
    creations = [
        store.submit(Transaction(put("a").writes, (Condition("a", None),))) for _ in range(2)
    ]
    gate.open()
    assert error_of(creations[0]) is None
    assert isinstance(error_of(creations[1]), ConflictError)


def test_a_cancelled_job_writes_nothing(store: SqliteStore) -> None:
    gate = Gate(store)
    future = store.submit(put("a"))
    assert future.cancel()
    gate.open()
    store.transact(put("b"))
    assert store.read("a") is None


def test_refuses_more_jobs_than_may_wait(store: SqliteStore) -> None:
    gate = Gate(store)
    waiting = [store.submit(put("a")) for _ in range(JOBS_MAX)]
    with pytest.raises(BusyError):
        store.submit(put("b"))
    gate.open()
    assert waiting[-1].result(60).n == JOBS_MAX + 1
    assert store.read("b") is None


def test_a_full_store_refuses_what_is_large_and_takes_what_is_small(store: SqliteStore) -> None:
    gate = Gate(store)
    large = store.submit(put("large", b"x" * 200_000))
    small = store.submit(put("small"))
    gate.open()
    assert isinstance(error_of(large), FullError)
    assert error_of(small) is None
    assert [entry.key for entry in store.scan("").entries] == ["gate", "small"]


def test_a_full_store_takes_writes_again_after_a_compaction(store: SqliteStore) -> None:
    while True:
        try:
            at = store.transact(put("a", b"x" * 20_000))
        except FullError:
            break
    assert store.revision() == at
    store.compact(at)
    assert store.transact(put("a", b"x" * 20_000)).n == at.n + 1


def test_closing_during_a_turn_finishes_what_waits(store: SqliteStore) -> None:
    gate = Gate(store)
    waiting = [store.submit(put(f"k{i}")) for i in range(200)]  # more than one turn
    closing = threading.Thread(target=store.close)
    closing.start()
    deadline = time.monotonic() + 10
    while not store._writer._refusal:
        assert time.monotonic() < deadline, "closing did not begin"
        time.sleep(0.001)
    with pytest.raises(UnavailableError):
        store.submit(put("late"))
    gate.open()
    closing.join()
    assert [error_of(future) for future in waiting] == [None] * len(waiting)


def test_a_write_that_ended_unknown_stops_the_store(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store")
    before = store.transact(put("a"))
    gate = Gate(store)
    fail(store, "COMMIT", sqlite3.SQLITE_IOERR)
    futures = [store.submit(put(f"k{i}")) for i in range(200)]  # more than one turn
    gate.open()
    assert {type(error_of(future)) for future in futures} == {UnavailableError}
    with pytest.raises(UnavailableError, match="as told by the test"):
        store.submit(put("b"))
    assert store.revision().n == before.n + 1
    store.close()
    store = SqliteStore(tmp_path / "store")
    assert store.transact(put("b")).n == before.n + 2
    store.close()


def test_files_held_by_another_process_are_not_the_end(store: SqliteStore) -> None:
    real = store._writer._connection
    fail(store, "BEGIN", sqlite3.SQLITE_BUSY)
    with pytest.raises(BusyError):
        store.transact(put("a"))
    store._writer._connection = real
    assert store.transact(put("a")).n == 1


def test_a_bug_in_a_job_answers_its_callers_and_stops(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(transaction: Transaction) -> Revision:
        raise ZeroDivisionError

    monkeypatch.setattr(store._writer, "_apply", broken)
    with pytest.raises(UnavailableError):
        store.transact(put("a"))
    with pytest.raises(UnavailableError):
        store.submit(put("a"))


def test_a_lease_that_cannot_end_ends_later(tmp_path: Path) -> None:
    now_ms = 0
    store = SqliteStore(tmp_path / "store", clock_ms=lambda: now_ms)
    lease = store.grant(1000)
    store.transact(put("a", lease=lease))
    real = store._writer._connection
    fail(store, "DELETE FROM leases", sqlite3.SQLITE_FULL)
    now_ms = 1500
    store.sweep()
    assert store.read("a") is not None
    store.keep_alive(lease)
    store._writer._connection = real
    now_ms = 3000
    store.sweep()
    assert store.read("a") is None
    store.close()


def test_a_lease_whose_grant_failed_is_not_kept(store: SqliteStore) -> None:
    fail(store, "INSERT INTO leases", sqlite3.SQLITE_FULL)
    with pytest.raises(FullError):
        store.grant(1000)
    assert len(store._writer.leases) == 0


def test_deleting_twice_in_a_turn_makes_one_revision(store: SqliteStore) -> None:
    store.transact(put("a"))
    gate = Gate(store)
    first, second = (store.submit(Transaction((Delete("a"),))) for _ in range(2))
    gate.open()
    assert first.result(10) == second.result(10)
