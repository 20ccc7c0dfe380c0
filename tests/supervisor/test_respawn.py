"""When a dead child may be replaced; time is an argument."""

from meshfast.supervisor.respawn import Respawn


def die(post: Respawn, times: int, every_s: float, now: float = 1000.0) -> float:
    """Let children die one after the other; return the moment of the last death."""
    for _ in range(times):
        post.on_death(now, was_ready=True)
        last = now
        now = max(now + every_s, post.not_before)
    return last


def test_nine_deaths_in_a_row_are_replaced_at_once() -> None:
    post = Respawn()
    last = die(post, 9, every_s=0.1)
    assert post.not_before == last


def test_the_tenth_death_in_ten_seconds_starts_a_back_off_of_100_ms() -> None:
    post = Respawn()
    last = die(post, 10, every_s=1.0)
    assert post.not_before == last + 0.1


def test_ten_deaths_in_more_than_ten_seconds_do_not() -> None:
    post = Respawn()
    last = die(post, 50, every_s=1.2)
    assert post.not_before == last


def test_the_back_off_doubles_up_to_five_seconds() -> None:
    post = Respawn()
    now = die(post, 10, every_s=0.0)
    delays = []
    for _ in range(8):
        now = post.not_before
        post.on_death(now, was_ready=True)
        delays.append(post.not_before - now)
    assert [round(delay, 3) for delay in delays] == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]


def test_a_replacement_that_lives_for_ten_seconds_ends_the_back_off() -> None:
    post = Respawn()
    die(post, 14, every_s=0.0)
    now = post.not_before + 10.0
    post.on_death(now, was_ready=True)
    assert post.not_before == now


def test_a_replacement_that_dies_at_nine_seconds_does_not_end_it() -> None:
    post = Respawn()
    die(post, 14, every_s=0.0)
    now = post.not_before + 9.0
    post.on_death(now, was_ready=True)
    assert post.not_before > now + 1.0


def test_failed_boots_are_counted_until_one_succeeds() -> None:
    post = Respawn()
    post.on_death(1.0, was_ready=False)
    post.on_death(2.0, was_ready=False)
    assert post.boot_deaths == 2
    post.on_ready()
    post.on_death(3.0, was_ready=True)
    assert post.boot_deaths == 0
