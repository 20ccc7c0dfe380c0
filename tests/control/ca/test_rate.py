"""A bucket a key: a burst, then so many a second, in bounded memory."""

from meshfast.control.ca.rate import Rates


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def taken(rates: Rates, key: str, times: int) -> int:
    return sum(rates.take(key) for _ in range(times))


def test_a_burst_then_the_rate() -> None:
    clock = Clock()
    rates = Rates(2.0, 5, clock_s=clock)
    assert taken(rates, "a", 20) == 5
    clock.now_s += 1.5
    assert taken(rates, "a", 20) == 3
    clock.now_s += 3600
    assert taken(rates, "a", 20) == 5


def test_keys_do_not_share() -> None:
    rates = Rates(1.0, 1, clock_s=Clock())
    assert taken(rates, "a", 5) == 1
    assert taken(rates, "b", 5) == 1


def test_memory_is_bounded_and_the_busy_are_remembered() -> None:
    clock = Clock()
    rates = Rates(1.0, 2, clock_s=clock, keys_max=10)
    assert taken(rates, "busy", 5) == 2
    for number in range(1000):
        rates.take(f"once-{number}")
        assert not rates.take("busy")
    assert len(rates) <= 10


def test_full_buckets_are_forgotten_first() -> None:
    clock = Clock()
    rates = Rates(1.0, 2, clock_s=clock, keys_max=10)
    for number in range(10):
        rates.take(f"old-{number}")
    clock.now_s += 2.0
    rates.take("new")
    assert len(rates) == 1
