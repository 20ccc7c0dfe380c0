"""Versioned configuration: revisions, compare-and-set, watch, leases. See contract.py.

The control plane opens one `SqliteStore` and speaks to it as a `Store`.
"""

from meshfast.control.store.contract import (
    BusyError,
    Change,
    ChangeSet,
    CompactedError,
    Condition,
    ConflictError,
    CorruptError,
    Delete,
    Entry,
    FullError,
    LeaseGoneError,
    LimitError,
    Limits,
    Listing,
    Put,
    Store,
    StoreError,
    Transaction,
    UnavailableError,
    UnknownRevisionError,
    UnsafeFileError,
    Watch,
    scan_all,
)
from meshfast.control.store.sqlite import SqliteStore

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
    "SqliteStore",
    "Store",
    "StoreError",
    "Transaction",
    "UnavailableError",
    "UnknownRevisionError",
    "UnsafeFileError",
    "Watch",
    "scan_all",
]
