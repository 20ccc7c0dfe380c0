"""The embedded store keeps the contract."""

import asyncio
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings

from meshfast.control.store import (
    Condition,
    ConflictError,
    Put,
    SqliteStore,
    Store,
    Transaction,
    UnknownRevisionError,
)
from meshfast.control.store.sqlite import POLL_BYTES_MAX
from meshfast.discovery import ORIGIN, Revision
from tests.control.store.contract import LIMITS, Harness, StoreContract
from tests.control.store.model import ModelledStore

STEP_MS = 500  # below STALL_MS: time that passes while the store runs


class SqliteHarness:
    """Opens stores in one directory, on a clock that only the test moves."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.now_ms = 1_000_000
        self.store: SqliteStore | None = None

    def open(self) -> SqliteStore:
        self.close()
        self.store = SqliteStore(self.directory, limits=LIMITS, clock_ms=lambda: self.now_ms)
        return self.store

    def advance(self, ms: int) -> None:
        assert self.store is not None
        for _ in range(0, ms, STEP_MS):
            self.now_ms += STEP_MS
            self.store.sweep()

    def close(self) -> None:
        if self.store is not None:
            self.store.close()


class TestSqlite(StoreContract):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> Harness:
        return SqliteHarness(tmp_path / "store")


def test_is_a_store(tmp_path: Path) -> None:
    store: Store = SqliteStore(tmp_path / "store")
    store.close()


class ModelledSqlite(ModelledStore):
    """The randomised part of the contract over the embedded store."""

    def __init__(self) -> None:
        self.directory = TemporaryDirectory()
        self.harness = SqliteHarness(Path(self.directory.name) / "store")
        super().__init__()

    def teardown(self) -> None:
        super().teardown()
        self.directory.cleanup()


TestModelledSqlite = ModelledSqlite.TestCase
TestModelledSqlite.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def put(store: SqliteStore, key: str, value: bytes = b"v") -> Revision:
    return store.transact(Transaction((Put(key, value),)))


def test_a_restored_copy_never_repeats_a_revision(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store")
    kept = put(store, "a", b"kept")
    store.close()
    shutil.copytree(tmp_path / "store", tmp_path / "backup")
    store = SqliteStore(tmp_path / "store")
    lost = put(store, "a", b"lost")
    store.close()
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "backup").rename(tmp_path / "store")
    store = SqliteStore(tmp_path / "store")
    other = put(store, "a", b"other")
    assert other.n == lost.n
    assert other > lost
    for refused in (lambda: store.read("a", at=lost), lambda: store.watch("", after=lost)):
        with pytest.raises(UnknownRevisionError):
            refused()
    with pytest.raises(ConflictError):
        store.transact(Transaction((Put("a", b"x"),), (Condition("a", lost),)))
    assert [s.revision for s in store.watch("", after=kept).poll()] == [other]
    store.close()


def test_an_epoch_grows_when_the_clock_went_back(tmp_path: Path) -> None:
    epochs = []
    for wall_ms in (1000, 500, 500, 3000):
        store = SqliteStore(tmp_path / "store", wall_clock_ms=lambda now=wall_ms: now)  # type: ignore[misc]
        epochs.append(put(store, "a").epoch)
        store.close()
    assert epochs == [1000, 1001, 1002, 3000]


def test_an_opening_that_writes_nothing_leaves_no_trace(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store", wall_clock_ms=lambda: 1000)
    at = put(store, "a")
    store.close()
    store = SqliteStore(tmp_path / "store", wall_clock_ms=lambda: 2000)
    assert store.revision() == at
    store.close()


def test_a_page_of_a_watch_is_bounded_in_bytes(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "store")
    value = b"x" * (1 << 20)
    revisions = [put(store, f"k{i}", value) for i in range(20)]
    watch = store.watch("", after=ORIGIN)
    first = [s.revision for s in watch.poll()]
    assert len(first) == POLL_BYTES_MAX >> 20
    assert watch.wait(0), "there is more"
    assert first + [s.revision for s in watch.poll()] == revisions
    store.close()


def test_stalled_sidecars_are_not_expired_by_a_stalled_store(tmp_path: Path) -> None:
    harness = SqliteHarness(tmp_path / "store")
    store = harness.open()
    lease = store.grant(10_000)
    store.transact(Transaction((Put("a", b"", lease),)))
    harness.now_ms += 3_600_000
    store.sweep()
    store.keep_alive(lease)
    assert store.read("a") is not None
    harness.close()


def test_an_event_loop_follows_a_watch_without_threads_of_its_own(tmp_path: Path) -> None:
    """The way of the push room, as the contract describes it."""

    async def follow(store: SqliteStore, count: int) -> list[Revision]:
        watch = store.watch("a/", after=ORIGIN)
        loop = asyncio.get_running_loop()
        seen: list[Revision] = []
        done = loop.create_future()

        def wake() -> None:
            while sets := watch.poll(limit=3):
                seen.extend(s.revision for s in sets)
            if len(seen) == count:
                done.set_result(None)

        loop.add_reader(watch.fileno(), wake)
        writes = [store.submit(Transaction((Put(f"a/{i}", b""),))) for i in range(count)]
        acknowledged = await asyncio.gather(*map(asyncio.wrap_future, writes))
        await asyncio.wait_for(done, 10)
        loop.remove_reader(watch.fileno())
        watch.close()
        assert seen == acknowledged
        return seen

    store = SqliteStore(tmp_path / "store")
    assert len(asyncio.run(follow(store, 40))) == 40
    store.close()
