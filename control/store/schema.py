"""The tables of the embedded store, how a connection is set up, and what is checked at opening.

`history` is append-only: a row per key and revision, with the value, or without one where the
revision removed the key. `current` points at the newest row of each key that exists; it never holds
a value of its own, so the two cannot disagree about one. Compaction is the only thing that deletes
history.

What this module does not do: write. Transactions are in writer.py.

Invariants, checked at every opening (`CorruptError`):
1. The file is ours (`application_id`) and of a schema version that this code knows.
2. SQLite's own integrity check finds nothing.
3. Every `current` row points at the newest row of its key, which has a value, and every key whose
   newest row has a value is in `current`.
4. No row is newer than `state`.
Besides, each value carries a checksum, which is compared whenever the value is read: SQLite does
not protect the contents of its pages.

Tests: tests/control/store/test_schema.py.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from zlib import crc32

from meshfast.control.store.contract import CorruptError, Entry, Limits
from meshfast.discovery import Revision

__all__ = [
    "ENTRY_COLUMNS",
    "check",
    "connect_reader",
    "connect_writer",
    "entry_of",
    "initialise",
    "is_empty",
]

#: "mesh" in ASCII, in the header of the file: `file store.db` and we can tell whose it is.
APPLICATION_ID = 0x6D657368
SCHEMA_VERSION = 1
PAGE_BYTES = 4096
#: Another process may look (a backup tool); it gets this long to finish.
BUSY_TIMEOUT_MS = 5_000
#: The log is cut back to this after a checkpoint, so one large write does not cost disk for ever.
LOG_BYTES_MAX = 16 << 20

#: Columns that `entry_of` takes, from `history AS h`.
ENTRY_COLUMNS = (
    "h.key, h.value, h.checksum, h.created_epoch, h.created_n, h.epoch, h.n, h.changes, h.lease"
)

# No STRICT tables and no RETURNING: RHEL 9 has SQLite 3.34.
TABLES = """
CREATE TABLE state (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    epoch INTEGER NOT NULL,
    n INTEGER NOT NULL CHECK (n >= 0),
    compacted INTEGER NOT NULL CHECK (compacted BETWEEN 0 AND n)
);
INSERT INTO state VALUES (1, 0, 0, 0);
CREATE TABLE epochs (
    first INTEGER PRIMARY KEY CHECK (first > 0),
    epoch INTEGER NOT NULL UNIQUE
);
CREATE TABLE history (
    id INTEGER PRIMARY KEY,
    epoch INTEGER NOT NULL,
    n INTEGER NOT NULL,
    key TEXT NOT NULL,
    value BLOB,
    checksum INTEGER NOT NULL,
    created_epoch INTEGER NOT NULL,
    created_n INTEGER NOT NULL CHECK (created_n <= n),
    changes INTEGER NOT NULL,
    lease INTEGER NOT NULL,
    UNIQUE (key, n)
);
CREATE INDEX history_by_n ON history (n);
CREATE TRIGGER history_is_append_only BEFORE UPDATE ON history
BEGIN SELECT RAISE (ABORT, 'history is append-only'); END;
CREATE TABLE current (
    key TEXT PRIMARY KEY,
    history INTEGER NOT NULL UNIQUE,
    lease INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX current_by_lease ON current (lease) WHERE lease <> 0;
CREATE TABLE leases (
    id INTEGER PRIMARY KEY,
    ttl_ms INTEGER NOT NULL
);
"""

#: Each query finds what must not be there.
BROKEN = {
    "a current key does not point at its newest value": """
        SELECT 1 FROM current AS c LEFT JOIN history AS h ON h.id = c.history
        WHERE h.value IS NULL OR h.key <> c.key OR h.lease <> c.lease
           OR EXISTS (SELECT 1 FROM history AS x WHERE x.key = c.key AND x.n > h.n)
        LIMIT 1""",
    "a key with a value is missing from the current ones": """
        SELECT 1 FROM history AS h WHERE h.value IS NOT NULL
           AND NOT EXISTS (SELECT 1 FROM history AS x WHERE x.key = h.key AND x.n > h.n)
           AND NOT EXISTS (SELECT 1 FROM current AS c WHERE c.history = h.id)
        LIMIT 1""",
    "a change is newer than the last revision": """
        SELECT 1 FROM history, state WHERE history.n > state.n LIMIT 1""",
}


def connect_writer(path: Path, limits: Limits) -> sqlite3.Connection:
    """Open the connection that writes. Raises `CorruptError` when the log cannot be used.

    WAL lets readers go on during a commit. FULL syncs the log at every commit: NORMAL would lose
    acknowledged writes in a power cut.
    """
    connection = _connect(f"{path.absolute().as_uri()}?mode=rw")
    try:
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise CorruptError(f"{path}: the journal is {mode}, not wal (a network file system?)")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES_MAX}")
        connection.execute(f"PRAGMA max_page_count = {limits.size_bytes_max // PAGE_BYTES}")
    except sqlite3.DatabaseError as error:
        connection.close()
        raise CorruptError(f"{path}: {error}") from error
    except CorruptError:
        connection.close()
        raise
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open a connection that cannot write."""
    return _connect(f"{path.absolute().as_uri()}?mode=ro")


def is_empty(connection: sqlite3.Connection) -> bool:
    """Say whether the file holds nothing yet: new, or its first opening did not get to the end."""
    return not connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()


def initialise(connection: sqlite3.Connection) -> None:
    """Make the tables, all or none of them."""
    marks = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};"
    connection.executescript(f"BEGIN IMMEDIATE; {marks} {TABLES} COMMIT;")


def check(connection: sqlite3.Connection, path: Path) -> None:
    """Refuse a file that is not a whole store of ours. Raises `CorruptError`."""
    try:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if application != APPLICATION_ID:
            raise CorruptError(f"{path}: is a database, but not one of meshfast")
        if version != SCHEMA_VERSION:
            raise CorruptError(
                f"{path}: schema version {version}; this meshfast knows {SCHEMA_VERSION}"
            )
        finding = connection.execute("PRAGMA integrity_check (1)").fetchone()[0]
        if finding != "ok":
            raise CorruptError(f"{path}: {finding}")
        for meaning, query in BROKEN.items():
            if connection.execute(query).fetchone():
                raise CorruptError(f"{path}: {meaning}")
    except sqlite3.DatabaseError as error:
        raise CorruptError(f"{path}: {error}") from error


def entry_of(row: tuple[object, ...]) -> Entry | None:
    """Turn a row of `ENTRY_COLUMNS` into an entry; `None` where the row records a removal.

    Raises `CorruptError` when the value is not the one that was written.
    """
    key, value, checksum, created_epoch, created_n, epoch, n, changes, lease = row
    if value is None:
        return None
    assert isinstance(key, str)
    assert isinstance(value, bytes)
    if crc32(value) != checksum:
        raise CorruptError(f"the value of {key} at {epoch}-{n} is damaged")
    return Entry(
        key=key,
        value=value,
        created=Revision(_integer(created_epoch), _integer(created_n)),
        modified=Revision(_integer(epoch), _integer(n)),
        changes=_integer(changes),
        lease=_integer(lease),
    )


def _integer(column: object) -> int:
    assert isinstance(column, int)
    return column


def _connect(uri: str) -> sqlite3.Connection:
    # Connections move between threads (a pool; the opening thread hands its own to the writer)
    # but serve one at a time. No implicit transactions: every BEGIN is written out.
    connection = sqlite3.connect(
        uri,
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=BUSY_TIMEOUT_MS / 1000,
    )
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    return connection
