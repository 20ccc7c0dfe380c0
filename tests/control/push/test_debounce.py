"""When a push is due: after quiet, and never later than the limit."""

from hypothesis import given
from hypothesis import strategies as st

from meshfast.control.push.debounce import Debounce


def test_nothing_is_due_when_nothing_changed() -> None:
    assert Debounce().due_s() is None


def test_one_change_is_pushed_after_100_ms() -> None:
    debounce = Debounce()
    debounce.note(50.0)
    assert debounce.due_s() == 50.1


def test_a_later_change_begins_the_quiet_anew_up_to_ten_seconds() -> None:
    debounce = Debounce()
    for tick in range(200):
        debounce.note(tick * 0.09)
    assert debounce.due_s() == 10.0


def test_what_was_taken_is_not_due_again() -> None:
    debounce = Debounce()
    debounce.note(1.0)
    debounce.take()
    assert debounce.due_s() is None
    debounce.note(9.0)
    assert debounce.due_s() == 9.1


@given(st.lists(st.floats(0, 2), min_size=1, max_size=50))
def test_it_is_due_between_the_last_change_and_ten_seconds_after_the_first(
    pauses: list[float],
) -> None:
    debounce, now_s = Debounce(), 0.0
    first = None
    for pause in pauses:
        now_s += pause
        first = now_s if first is None else first
        debounce.note(now_s)
        due = debounce.due_s()
        assert due is not None
        assert due <= first + 10.0
        assert due >= min(now_s, first + 10.0)
