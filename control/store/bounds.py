"""The form of keys and the size of requests, checked on the caller's thread before anything waits.

What this module does not do: know a back end. Every back end calls it, so that a key that one
accepts is accepted by all.

Invariants:
1. A key is printable ASCII without space. Byte order, character order and the order of every back
   end's index are then the same, and `prefix + DEL` ends the keys of a prefix.
2. Nothing larger than `Limits` reaches the writer.

Tests: tests/control/store/contract.py.
"""

from __future__ import annotations

import re

from meshfast.control.store.contract import LimitError, Limits, Put, Transaction

__all__ = ["check_key", "check_prefix", "check_transaction", "page_size"]

PRINTABLE = re.compile(r"[\x21-\x7e]*")


def check_key(key: str, limits: Limits) -> None:
    """Raise `LimitError` unless the string can be a key."""
    if not key:
        raise LimitError("a key has at least one character")
    check_prefix(key, limits)


def check_prefix(prefix: str, limits: Limits) -> None:
    """Raise `LimitError` unless a key could begin with the string; the empty one begins all."""
    if len(prefix) > limits.key_bytes_max:
        raise LimitError(f"a key has at most {limits.key_bytes_max} characters, not {len(prefix)}")
    if not PRINTABLE.fullmatch(prefix):
        raise LimitError(f"a key is printable ASCII without spaces, not {prefix!r}")


def check_transaction(transaction: Transaction, limits: Limits) -> None:
    """Raise `LimitError` unless every key, every value and the whole are within the limits."""
    operations = len(transaction.writes) + len(transaction.conditions)
    if operations > limits.operations_max:
        raise LimitError(f"{operations} operations; a transaction has {limits.operations_max}")
    size = 0
    written: set[str] = set()
    for write in transaction.writes:
        check_key(write.key, limits)
        if write.key in written:
            raise LimitError(f"{write.key} is written twice in one transaction")
        written.add(write.key)
        size += len(write.key)
        if isinstance(write, Put):
            _check_value(write, limits)
            size += len(write.value)
    for condition in transaction.conditions:
        check_key(condition.key, limits)
        size += len(condition.key)
    if size > limits.transaction_bytes_max:
        raise LimitError(f"{size} bytes; a transaction has {limits.transaction_bytes_max}")


def page_size(limit: int | None, limits: Limits) -> int:
    """Return how many to return at most. Raises `LimitError` for more than a page, or none."""
    if limit is None:
        return limits.page_max
    if not 0 < limit <= limits.page_max:
        raise LimitError(f"a page has 1 to {limits.page_max}, not {limit}")
    return limit


def _check_value(put: Put, limits: Limits) -> None:
    if len(put.value) > limits.value_bytes_max:
        raise LimitError(
            f"{put.key} has {len(put.value)} bytes; a value has {limits.value_bytes_max}"
        )
    if put.lease < 0:
        raise LimitError(f"{put.key}: a lease has a positive number, not {put.lease}")
