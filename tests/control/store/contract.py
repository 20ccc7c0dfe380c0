"""What every back end of the store is held to. A back end's test file subclasses `StoreContract`
with a `Harness`; nothing here knows how the data is kept.

The randomised part against a naive model is in model.py.
"""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import pytest

from meshfast.control.store import (
    Change,
    CompactedError,
    Condition,
    ConflictError,
    Delete,
    Entry,
    LeaseGoneError,
    LimitError,
    Limits,
    Put,
    Store,
    Transaction,
    UnavailableError,
    UnknownRevisionError,
    Watch,
)
from meshfast.discovery import ORIGIN, Revision

LIMITS = Limits(operations_max=8, value_bytes_max=1000, transaction_bytes_max=2000, page_max=50)


class Harness(Protocol):
    """How the tests open a back end and move its time."""

    def open(self) -> Store:
        """Open the same data again; the store opened before is closed."""

    def advance(self, ms: int) -> None:
        """Let time pass for the leases, while the store is running."""

    def close(self) -> None:
        """Close what is open and remove the data."""


def put(store: Store, key: str, value: bytes = b"v", lease: int = 0) -> Revision:
    return store.transact(Transaction((Put(key, value, lease),)))


def delete(store: Store, key: str) -> Revision:
    return store.transact(Transaction((Delete(key),)))


def drain(watch: Watch) -> list[tuple[Revision, list[str]]]:
    """Poll until nothing is left: the revisions, each with its keys."""
    seen = []
    while sets := watch.poll():
        seen += [(s.revision, [change.key for change in s.changes]) for s in sets]
    return seen


class StoreContract:
    """The numbers in comments are those of contract.py."""

    @pytest.fixture
    def store(self, harness: Harness) -> Iterator[Store]:
        yield harness.open()
        harness.close()

    # 1, 4, 5: transactions

    def test_a_new_store_is_empty_at_the_origin(self, store: Store) -> None:
        assert store.revision() == ORIGIN
        assert store.read("a") is None
        assert store.scan("").entries == ()

    def test_a_transaction_writes_all_keys_in_one_revision(self, store: Store) -> None:
        put(store, "gone")
        at = store.transact(Transaction((Put("a", b"1"), Put("b", b"2"), Delete("gone"))))
        assert store.revision() == at
        assert store.read("a") == Entry("a", b"1", created=at, modified=at, changes=1)
        assert store.read("b") == Entry("b", b"2", created=at, modified=at, changes=1)
        assert store.read("gone") is None

    def test_one_failed_condition_writes_nothing(self, store: Store) -> None:
        first = put(store, "a")
        with pytest.raises(ConflictError) as refusal:
            store.transact(
                Transaction(
                    (Put("a", b"new"), Put("b", b"new")),
                    (Condition("a", first), Condition("b", first), Condition("c", None)),
                )
            )
        assert refusal.value.conflicts == (("b", None),)
        assert store.revision() == first
        assert store.read("b") is None

    def test_a_condition_compares_the_last_change(self, store: Store) -> None:
        first = put(store, "a", b"1")
        second = store.transact(Transaction((Put("a", b"2"),), (Condition("a", first),)))
        with pytest.raises(ConflictError) as refusal:
            store.transact(Transaction((Put("a", b"3"),), (Condition("a", first),)))
        assert refusal.value.conflicts == (("a", second),)

    def test_only_one_of_two_creators_wins(self, store: Store) -> None:
        create = Transaction((Put("a", b"mine"),), (Condition("a", None),))
        store.transact(create)
        with pytest.raises(ConflictError):
            store.transact(create)

    def test_a_key_made_again_starts_anew(self, store: Store) -> None:
        put(store, "a")
        put(store, "a")
        assert _changes(store) == 2
        delete(store, "a")
        again = put(store, "a")
        entry = store.read("a")
        assert entry is not None
        assert (entry.created, entry.changes) == (again, 1)

    def test_deleting_what_is_absent_makes_no_revision(self, store: Store) -> None:
        at = put(store, "a")
        assert delete(store, "b") == at
        assert store.revision() == at

    def test_increments_of_many_threads_all_count(self, store: Store) -> None:
        put(store, "counter", b"0")

        def increment() -> None:
            done = 0
            while done < 10:
                entry = store.read("counter")
                assert entry is not None
                value = b"%d" % (int(entry.value) + 1)
                condition = Condition("counter", entry.modified)
                try:
                    store.transact(Transaction((Put("counter", value),), (condition,)))
                except ConflictError:
                    continue
                done += 1

        threads = [threading.Thread(target=increment) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        entry = store.read("counter")
        assert entry is not None
        assert (entry.value, entry.changes) == (b"40", 41)

    # 2, 3: durability and revisions

    def test_everything_is_there_after_a_restart(self, harness: Harness, store: Store) -> None:
        first = put(store, "a", b"1")
        second = put(store, "b", b"2")
        store = harness.open()
        assert store.revision() == second
        assert [e.modified for e in store.scan("").entries] == [first, second]

    def test_a_restart_begins_a_new_epoch_and_keeps_the_count(
        self, harness: Harness, store: Store
    ) -> None:
        first = put(store, "a")
        second = put(harness.open(), "a")
        assert second.epoch > first.epoch
        assert second.n == first.n + 1

    # 6: reads

    def test_a_read_at_a_revision_sees_that_state(self, store: Store) -> None:
        first = put(store, "a", b"1")
        second = put(store, "a", b"2")
        third = delete(store, "a")
        values: list[bytes | None] = []
        for at in (ORIGIN, first, second, third):
            entry = store.read("a", at=at)
            values.append(None if entry is None else entry.value)
        assert values == [None, b"1", b"2", None]

    def test_a_scan_covers_its_prefix_only_and_in_order(self, store: Store) -> None:
        for key in ("b/1", "a", "b/", "b0", "b/~", "c", "b/2"):
            put(store, key)
        assert [e.key for e in store.scan("b/").entries] == ["b/", "b/1", "b/2", "b/~"]

    def test_pages_of_a_scan_belong_to_one_state(self, store: Store) -> None:
        for key in "abcde":
            put(store, key)
        page = store.scan("", limit=2)
        delete(store, "c")
        put(store, "bb")
        keys = [e.key for e in page.entries]
        while page.more:
            page = store.scan("", at=page.revision, after=keys[-1], limit=2)
            keys += [e.key for e in page.entries]
        assert keys == ["a", "b", "c", "d", "e"]

    def test_a_page_that_ends_with_the_last_key_says_so(self, store: Store) -> None:
        put(store, "a")
        put(store, "b")
        assert not store.scan("", limit=2).more

    # 7: watches

    def test_a_watch_yields_every_change_once_and_in_order(self, store: Store) -> None:
        before = put(store, "a/0")
        watch = store.watch("a/", after=before)
        both = store.transact(Transaction((Put("a/1", b""), Put("a/2", b""), Put("b", b""))))
        put(store, "b")
        gone = delete(store, "a/1")
        assert drain(watch) == [(both, ["a/1", "a/2"]), (gone, ["a/1"])]
        assert watch.poll() == ()

    def test_a_watch_replays_history_with_values(self, store: Store) -> None:
        first = put(store, "a", b"1")
        second = put(store, "a", b"2")
        third = delete(store, "a")
        sets = store.watch("", after=ORIGIN).poll()
        assert [s.revision for s in sets] == [first, second, third]
        assert [s.changes for s in sets] == [
            (Change("a", Entry("a", b"1", created=first, modified=first, changes=1)),),
            (Change("a", Entry("a", b"2", created=first, modified=second, changes=2)),),
            (Change("a", None),),
        ]

    def test_a_watch_goes_on_over_a_restart(self, harness: Harness, store: Store) -> None:
        first = put(store, "a")
        second = put(store, "b")
        store = harness.open()
        watch = store.watch("", after=first)
        third = put(store, "c")
        assert drain(watch) == [(second, ["b"]), (third, ["c"])]

    def test_a_watch_is_readable_exactly_while_there_is_something(self, store: Store) -> None:
        watch = store.watch("a", after=ORIGIN)
        drain(watch)
        assert not watch.wait(0)
        for _ in range(3):
            put(store, "a")
        assert watch.wait(5000)
        assert len(watch.poll(limit=2)) == 2
        assert watch.wait(0)
        assert len(watch.poll()) == 1
        assert not watch.wait(0)

    def test_a_watch_wakes_another_thread(self, store: Store) -> None:
        watch = store.watch("", after=ORIGIN)
        drain(watch)
        woken: list[bool] = []
        waiter = threading.Thread(target=lambda: woken.append(watch.wait(10_000)))
        waiter.start()
        put(store, "a")
        waiter.join()
        assert woken == [True]

    def test_a_watch_of_a_quiet_prefix_keeps_up(self, store: Store) -> None:
        watch = store.watch("quiet", after=ORIGIN)
        at = put(store, "loud")
        assert watch.poll() == ()
        assert watch.revision == at
        store.compact(at)
        assert watch.poll() == ()

    def test_a_closed_watch_refuses(self, store: Store) -> None:
        watch = store.watch("", after=ORIGIN)
        watch.close()
        watch.close()
        with pytest.raises(UnavailableError):
            watch.poll()
        with pytest.raises(UnavailableError):
            watch.wait(0)

    # 8, 9: compaction and unknown revisions

    def test_compaction_forgets_what_came_before(self, store: Store) -> None:
        first = put(store, "a", b"1")
        second = put(store, "a", b"2")
        third = put(store, "b", b"3")
        watch = store.watch("", after=first)
        store.compact(second)
        for forgotten in (ORIGIN, first):
            with pytest.raises(CompactedError):
                store.read("a", at=forgotten)
            with pytest.raises(CompactedError):
                store.scan("", at=forgotten)
            with pytest.raises(CompactedError):
                store.watch("", after=forgotten)
        with pytest.raises(CompactedError):
            watch.poll()
        assert drain(store.watch("", after=second)) == [(third, ["b"])]

    def test_compaction_keeps_every_later_state(self, store: Store) -> None:
        revisions = [put(store, "a", b"%d" % i) for i in range(4)]
        revisions.append(delete(store, "a"))
        store.compact(revisions[1])
        states = [store.scan("", at=at).entries for at in revisions[1:]]
        assert [[e.value for e in state] for state in states] == [[b"1"], [b"2"], [b"3"], []]

    def test_compaction_to_the_end_keeps_the_state(self, harness: Harness, store: Store) -> None:
        put(store, "a", b"1")
        put(store, "b", b"2")
        last = delete(store, "b")
        before = store.scan("")
        store.compact(last)
        store = harness.open()
        assert store.scan("") == before
        assert put(store, "c").n == last.n + 1

    def test_compaction_does_not_go_back(self, store: Store) -> None:
        first = put(store, "a")
        second = put(store, "a")
        store.compact(second)
        store.compact(second)
        with pytest.raises(CompactedError):
            store.compact(first)

    def test_a_revision_of_another_history_is_refused(self, store: Store) -> None:
        at = put(store, "a")
        for stranger in (
            Revision(at.epoch, at.n + 1),
            Revision(at.epoch + 1, at.n),
            Revision(at.epoch - 1, at.n),
            Revision(at.epoch, 0),
        ):
            with pytest.raises(UnknownRevisionError):
                store.read("a", at=stranger)
            with pytest.raises(UnknownRevisionError):
                store.watch("", after=stranger)
            with pytest.raises(UnknownRevisionError):
                store.compact(stranger)

    # 10: leases

    def test_the_keys_of_a_lease_vanish_together(self, harness: Harness, store: Store) -> None:
        lease = store.grant(10_000)
        put(store, "stays")
        put(store, "a", lease=lease)
        start = put(store, "b", lease=lease)
        watch = store.watch("", after=start)
        harness.advance(9_000)
        assert drain(watch) == []
        harness.advance(2_000)
        assert watch.wait(5_000)
        assert drain(watch) == [(store.revision(), ["a", "b"])]
        assert [e.key for e in store.scan("").entries] == ["stays"]

    def test_a_keep_alive_gives_the_full_time(self, harness: Harness, store: Store) -> None:
        lease = store.grant(10_000)
        put(store, "a", lease=lease)
        at = store.revision()
        harness.advance(9_000)
        store.keep_alive(lease)
        assert store.revision() == at, "a keep-alive is not a write"
        harness.advance(9_000)
        assert store.read("a") is not None
        harness.advance(2_000)
        _until(lambda: store.read("a") is None)

    def test_a_restart_gives_the_full_time(self, harness: Harness, store: Store) -> None:
        lease = store.grant(10_000)
        put(store, "a", lease=lease)
        harness.advance(9_000)
        store = harness.open()
        harness.advance(9_000)
        entry = store.read("a")
        assert entry is not None
        assert entry.lease == lease
        harness.advance(2_000)
        _until(lambda: store.read("a") is None)

    def test_a_key_put_without_its_lease_stays(self, store: Store) -> None:
        lease = store.grant(10_000)
        put(store, "a", lease=lease)
        put(store, "b", lease=lease)
        put(store, "a")
        store.revoke(lease)
        assert [e.key for e in store.scan("").entries] == ["a"]

    def test_a_lease_that_is_gone_is_refused(self, store: Store) -> None:
        lease = store.grant(10_000)
        at = store.revoke(lease)
        with pytest.raises(LeaseGoneError):
            store.keep_alive(lease)
        with pytest.raises(LeaseGoneError):
            store.revoke(lease)
        with pytest.raises(LeaseGoneError):
            store.transact(Transaction((Put("a", b""), Put("b", b"", lease))))
        assert store.revision() == at
        assert store.read("a") is None

    # 11: limits

    @pytest.mark.parametrize("key", ["", "a b", "a\n", "ä", "\x7f", "k" * 513], ids=ascii)
    def test_refuses_a_key_that_is_not_printable_or_too_long(self, store: Store, key: str) -> None:
        with pytest.raises(LimitError):
            put(store, key)
        with pytest.raises(LimitError):
            store.read(key)

    @pytest.mark.parametrize(
        "transaction",
        [
            Transaction((Put("a", b"x" * 1001),)),
            Transaction((Put("a", b"x" * 700), Put("b", b"x" * 700), Put("c", b"x" * 700))),
            Transaction(tuple(Put(f"k{i}", b"") for i in range(9))),
            Transaction((), tuple(Condition(f"k{i}", None) for i in range(9))),
            Transaction((Put("a", b""), Delete("a"))),
            Transaction((Put("a", b"", -1),)),
        ],
        ids=["value", "size", "writes", "conditions", "a key twice", "negative lease"],
    )
    def test_refuses_a_transaction_beyond_the_limits(
        self, store: Store, transaction: Transaction
    ) -> None:
        with pytest.raises(LimitError):
            store.transact(transaction)
        assert store.revision() == ORIGIN

    def test_accepts_what_is_just_within_the_limits(self, store: Store) -> None:
        put(store, "k" * 512, b"x" * 1000)
        assert put(store, "\x21\x7e").n == 2

    def test_refuses_pages_and_leases_beyond_the_limits(self, store: Store) -> None:
        watch = store.watch("", after=ORIGIN)
        for limit in (0, LIMITS.page_max + 1):
            with pytest.raises(LimitError):
                store.scan("", limit=limit)
            with pytest.raises(LimitError):
                watch.poll(limit=limit)
        for ttl_ms in (LIMITS.lease_ms_min - 1, LIMITS.lease_ms_max + 1):
            with pytest.raises(LimitError):
                store.grant(ttl_ms)

    # life

    def test_a_closed_store_refuses(self, store: Store) -> None:
        watch = store.watch("", after=ORIGIN)
        store.close()
        store.close()
        with pytest.raises(UnavailableError):
            put(store, "a")
        with pytest.raises(UnavailableError):
            store.read("a")
        with pytest.raises(UnavailableError):
            watch.poll()

    def test_closing_finishes_what_was_accepted(self, harness: Harness, store: Store) -> None:
        futures = [store.submit(Transaction((Put(f"k{i:02}", b""),))) for i in range(20)]
        store.close()
        last = max(future.result() for future in futures)
        store = harness.open()
        assert store.revision() == last
        assert len(store.scan("").entries) == 20


def _changes(store: Store) -> int:
    entry = store.read("a")
    assert entry is not None
    return entry.changes


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)
