"""The embedded store keeps the contract."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings

from meshfast.control.store import SqliteStore, Store
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
