"""Deadlines on a clock that is an argument."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshfast.control.store import LeaseGoneError
from meshfast.control.store.leases import STALL_MS, TICK_MS, Leases


def due_until(leases: Leases, start_ms: int, end_ms: int) -> dict[int, int]:
    """Ask at every tick; return lease → the time at which it was due."""
    found = {}
    for now_ms in range(start_ms, end_ms + 1, TICK_MS):
        found.update(dict.fromkeys(leases.due(now_ms), now_ms))
    return found


def test_a_lease_is_due_when_its_time_is_over_and_once() -> None:
    leases = Leases([(1, 1000), (2, 3000)], 0)
    assert due_until(leases, 0, 5000) == {1: 1000, 2: 3000}
    assert len(leases) == 0


def test_leases_that_are_due_together_come_in_the_order_of_their_deadlines() -> None:
    leases = Leases([(1, 1200), (2, 1100)], 0)
    assert leases.due(1500) == [2, 1]


def test_a_keep_alive_gives_the_full_time() -> None:
    leases = Leases([(1, 1000)], 0)
    assert due_until(leases, 0, 750) == {}
    leases.keep_alive(1, 800)
    assert due_until(leases, 1000, 5000) == {1: 2000}


def test_a_keep_alive_does_not_shorten_a_lease() -> None:
    leases = Leases([(1, 1000)], 0)
    leases.keep_alive(1, -500)
    assert leases.due(750) == []


def test_a_lease_that_is_gone_cannot_be_kept() -> None:
    leases = Leases([(1, 1000), (2, 1000)], 0)
    leases.remove(2)
    leases.remove(2)
    assert leases.due(1000) == [1]
    for lease in (1, 2, 3):
        with pytest.raises(LeaseGoneError):
            leases.keep_alive(lease, 1000)


def test_time_in_which_nobody_asked_is_given_back() -> None:
    leases = Leases([(lease, 10_000) for lease in range(1000)], 0)
    due_until(leases, 0, 4_000)
    assert leases.due(3_600_000) == [], "a stopped process must not expire the whole mesh"
    found = due_until(leases, 3_600_000, 3_700_000)
    assert set(found.values()) == {3_606_000}


def test_a_late_tick_gives_nothing_back() -> None:
    leases = Leases([(1, 1000)], 0)
    assert leases.due(STALL_MS) == [1]


def test_the_first_lease_after_a_quiet_time_gets_no_more_than_its_own() -> None:
    leases = Leases([], 0)
    leases.add(1, 1000, 60_000)
    assert due_until(leases, 60_000, 70_000) == {1: 61_000}


@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(1, 3_000), st.integers(0, 4)), max_size=30),
)
def test_no_lease_is_due_before_its_time(seconds: list[int], steps: list[tuple[int, int]]) -> None:
    leases = Leases([(i, s * 1000) for i, s in enumerate(seconds)], 0)
    kept = dict.fromkeys(range(len(seconds)), 0)
    now_ms = 0
    for step_ms, lease in steps:
        now_ms += step_ms
        for due in leases.due(now_ms):
            assert now_ms - kept.pop(due) >= seconds[due] * 1000
        if lease in kept:
            leases.keep_alive(lease, now_ms)
            kept[lease] = now_ms
