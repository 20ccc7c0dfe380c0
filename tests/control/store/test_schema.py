"""What is on disk is checked before it is used, and again when it is read."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from meshfast.control.store import CorruptError, Limits, Put, SqliteStore, Transaction
from meshfast.control.store.schema import connect_reader, connect_writer
from meshfast.discovery import ORIGIN

VALUE = b"the value that is looked for in the file"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with a closed store: three revisions, two keys."""
    store = SqliteStore(tmp_path / "store")
    for key, value in (("a", b"1"), ("a", VALUE), ("b", b"2")):
        store.transact(Transaction((Put(key, value),)))
    store.close()
    return tmp_path / "store"


def damage(directory: Path, *statements: str) -> None:
    connection = sqlite3.connect(directory / "store.db")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def refusal(directory: Path) -> str:
    with pytest.raises(CorruptError) as refused:
        SqliteStore(directory)
    return str(refused.value)


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        ("DELETE FROM current WHERE key = 'a'", "missing from the current"),
        ("UPDATE current SET history = 1 WHERE key = 'a'", "its newest value"),
        ("UPDATE current SET lease = 7 WHERE key = 'a'", "its newest value"),
        ("DELETE FROM history WHERE key = 'b'", "its newest value"),
        ("UPDATE state SET n = 2", "newer than the last revision"),
        ("PRAGMA application_id = 1", "not one of meshfast"),
        ("PRAGMA user_version = 2", "schema version 2"),
    ],
)
def test_refuses_tables_that_disagree(directory: Path, statement: str, finding: str) -> None:
    damage(directory, statement)
    assert finding in refusal(directory)


@pytest.mark.parametrize("keep", [100, 4096, -4096], ids=["header", "one page", "a page short"])
def test_refuses_a_truncated_file(directory: Path, keep: int) -> None:
    data = (directory / "store.db").read_bytes()
    (directory / "store.db").write_bytes(data[:keep])
    refusal(directory)


def test_refuses_what_is_no_database(directory: Path) -> None:
    (directory / "store.db").write_bytes(b"kind: VirtualService\n" * 500)
    refusal(directory)


def test_leaves_a_foreign_database_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(0o700)
    (tmp_path / "store" / "store.db").touch(0o600)
    damage(tmp_path / "store", "CREATE TABLE theirs (x)")
    before = sqlite3.connect(tmp_path / "store" / "store.db")
    refusal(tmp_path / "store")
    assert before.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]
    before.close()


def test_a_first_opening_that_did_not_end_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(0o700)
    (tmp_path / "store" / "store.db").touch(0o600)
    store = SqliteStore(tmp_path / "store")
    assert store.revision() == ORIGIN
    store.close()


def test_a_value_that_was_changed_on_disk_is_not_returned(directory: Path) -> None:
    data = (directory / "store.db").read_bytes()
    assert data.count(VALUE) == 1
    (directory / "store.db").write_bytes(data.replace(VALUE, VALUE.replace(b"value", b"vaLue")))
    store = SqliteStore(directory)
    reads: list[Callable[[], object]] = [
        lambda: store.read("a"),
        lambda: store.scan(""),
        store.watch("", after=ORIGIN).poll,
    ]
    for read in reads:
        with pytest.raises(CorruptError, match="damaged"):
            read()
    assert store.read("b") is not None
    store.close()


def test_history_cannot_be_rewritten(directory: Path) -> None:
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        damage(directory, "UPDATE history SET value = x'00' WHERE n = 1")


def test_the_writer_syncs_every_commit_and_readers_cannot_write(directory: Path) -> None:
    writer = connect_writer(directory / "store.db", Limits())
    assert writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    full = 2  # https://sqlite.org/pragma.html#pragma_synchronous
    assert writer.execute("PRAGMA synchronous").fetchone() == (full,)
    reader = connect_reader(directory / "store.db")
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.execute("DELETE FROM history")
    reader.close()
    writer.close()
