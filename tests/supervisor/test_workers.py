"""Workers die: who is replaced, how fast, and what clients notice (docs/deaths.md)."""

import os
import signal
import time
from collections.abc import Callable

from tests.supervisor.harness import Load, Mesh, wait_until


def test_every_worker_answers_on_the_shared_socket(serving_mesh: Callable[..., Mesh]) -> None:
    workers = serving_mesh(workers=2).workers()
    assert sorted(workers) == [0, 1]
    assert len(set(workers.values())) == 2


def test_a_killed_worker_is_replaced_on_its_slot_within_half_a_second(
    serving_mesh: Callable[..., Mesh],
) -> None:
    mesh = serving_mesh(workers=1)
    old = mesh.ask()
    os.kill(old["pid"], signal.SIGKILL)
    killed_at = time.monotonic()
    new = mesh.ask()
    assert time.monotonic() - killed_at < 0.5
    assert new["pid"] != old["pid"]
    assert new["slot"] == old["slot"]


def test_no_connect_is_refused_or_hangs_while_a_worker_is_killed_every_100_ms(
    serving_mesh: Callable[..., Mesh],
) -> None:
    mesh = serving_mesh(workers=4)
    kills = 0
    with Load(mesh.address()) as load:
        victims: list[int] = []
        began = time.monotonic()
        while kills < 30:
            slot = kills % 4
            victims.append(mesh.workers()[slot])
            os.kill(victims[-1], signal.SIGKILL)
            kills += 1
            due = began + kills * 0.1
            wait_until(lambda due=due: time.monotonic() >= due, "the next kill")  # type: ignore[misc]
    assert load.seen["refused"] == 0
    assert load.seen["hung"] == 0
    # Only what a killed worker had accepted is cut: at most every client's connection per kill.
    assert load.seen["cut"] <= kills * 3
    assert load.seen["answered"] > 10 * kills
