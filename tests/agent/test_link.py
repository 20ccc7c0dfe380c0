"""When the link tries again; everything else of it is seen in test_mesh.py."""

from meshfast.agent import link


def test_the_first_retry_after_a_steady_stream_is_spread_over_a_second() -> None:
    delays = [link._delay_s(0) for _ in range(1000)]
    assert min(delays) >= 0.1
    assert max(delays) <= 1.0
    assert sum(delay > 0.5 for delay in delays) > 300


def test_later_retries_are_spread_over_ten_seconds_at_most() -> None:
    delays = [link._delay_s(1000) for _ in range(1000)]
    assert min(delays) >= 0.1
    assert max(delays) <= 10.0
    assert sum(delay > 5.0 for delay in delays) > 300
