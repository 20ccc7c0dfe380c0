"""Workers die: who is replaced, how fast, and what clients notice (docs/deaths.md)."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from meshfast.supervisor import channel
from meshfast.supervisor.children import BOOTING, Child
from meshfast.supervisor.fleet import Fleet
from meshfast.supervisor.holdings import Holdings
from meshfast.supervisor.loop import Loop
from tests.supervisor.harness import Load, Mesh, Stopped, connect


def sleep_until(moment: float) -> None:
    """Pace a test that does something every so often; no outcome depends on it."""
    time.sleep(max(0.0, moment - time.monotonic()))


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
    new = mesh.ask()  # waits in the backlog of the socket that the supervisor holds
    assert time.monotonic() - killed_at < 0.5
    assert new["pid"] != old["pid"]
    assert new["slot"] == old["slot"]


def test_no_connect_is_refused_or_hangs_while_a_worker_is_killed_every_100_ms(
    serving_mesh: Callable[..., Mesh],
) -> None:
    mesh = serving_mesh(workers=4)
    kills, clients = 30, 3
    with Load(mesh.address(), clients) as load:
        began = time.monotonic()
        for kill in range(kills):
            os.kill(mesh.workers()[kill % 4], signal.SIGKILL)
            sleep_until(began + (kill + 1) * 0.1)
    assert load.seen["refused"] == load.seen["hung"] == 0
    # Only what a killed worker had accepted is cut: at most every client's connection per kill.
    assert load.seen["cut"] <= kills * clients
    assert load.seen["answered"] > 10 * kills


def test_ten_crashes_in_ten_seconds_are_followed_by_a_back_off_and_not_a_spin(
    serving_mesh: Callable[..., Mesh],
) -> None:
    mesh = serving_mesh(workers=1)
    mesh.worker_behaves("boot_exit=3")
    os.kill(mesh.ask()["pid"], signal.SIGKILL)
    began = time.monotonic()
    mesh.wait_for_text("died: exit code 3", times=13)
    # The tenth death waits 100 ms, the eleventh 200, the twelfth 400, the thirteenth 800.
    assert time.monotonic() - began > 0.7
    mesh.worker_behaves("")
    assert mesh.ask()["slot"] == 0


def test_a_worker_that_leaves_without_being_asked_is_replaced(
    serving_mesh: Callable[..., Mesh],
) -> None:
    mesh = serving_mesh(workers=1)
    old = mesh.ask()["pid"]
    with pytest.raises(ConnectionError):
        mesh.ask("exit 0")
    assert mesh.ask()["pid"] != old
    assert f"worker 0 (pid {old}) died: exit code 0" in mesh.stderr


def test_a_connection_handed_over_to_a_killed_worker_is_answered_by_the_next_on_the_slot(
    serving_mesh: Callable[..., Mesh],
) -> None:
    mesh = serving_mesh(workers=2)
    workers = mesh.workers()
    with Stopped(workers[1]), HandedOver(mesh, slot=1) as connection:
        os.kill(workers[1], signal.SIGKILL)
        answer = connection.ask()
    assert answer["slot"] == 1
    assert answer["pid"] != workers[1]


def test_a_connection_handed_over_to_an_empty_slot_is_answered_by_a_serving_worker(
    serving_mesh: Callable[..., Mesh],
) -> None:
    mesh = serving_mesh(workers=2)
    with HandedOver(mesh, slot=3) as connection:
        assert connection.ask()["slot"] in (0, 1)


def test_a_new_worker_begins_with_the_newest_snapshot_and_all_listeners(
    serving_mesh: Callable[..., Mesh],
) -> None:
    mesh = serving_mesh(workers=1)
    mesh.ask("snapshot 5", "metrics")
    mesh.ask("bind extra 127.0.0.1:0", "metrics")
    mesh.wait_for_message({"type": "bound", "name": "extra", "error": None})
    old = mesh.ask()["pid"]
    os.kill(old, signal.SIGKILL)
    answer = mesh.ask(name="extra")
    assert answer["pid"] != old
    assert (answer["generation"], answer["snapshot"]) == (5, "snapshot 5")


def test_a_worker_that_cannot_start_again_is_fatal_only_when_none_is_left(
    serving_mesh: Callable[..., Mesh],
) -> None:
    mesh = serving_mesh(workers=2)
    workers = mesh.workers()
    mesh.worker_behaves("boot_exit=78")
    os.kill(workers[0], signal.SIGKILL)
    mesh.wait_for_text("died: exit code 78")
    assert mesh.ask()["pid"] == workers[1]
    os.kill(workers[1], signal.SIGKILL)
    assert mesh.wait() == 1
    assert "stopping: worker 1 cannot start and no worker is left" in mesh.stderr


def test_a_worker_that_does_not_become_ready_in_time_is_killed(
    holdings: Holdings,
) -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    ours, theirs = channel.pair()
    fleet = Fleet(holdings, Loop())
    fleet.workers[0] = Child(0, sleeper.pid, ours, 0, 1, 1030.0, BOOTING)
    fleet.kill_overdue(1029.9)
    assert sleeper.poll() is None
    assert fleet.next_deadline(1029.9) == 1030.0
    fleet.kill_overdue(1030.0)
    assert sleeper.wait(20) == -signal.SIGKILL
    os.close(ours)
    os.close(theirs)


class HandedOver:
    """A connection that one worker has accepted and sent into the inbox of another slot."""

    def __init__(self, mesh: Mesh, slot: int) -> None:
        self.end = connect(mesh.address())
        self.lines = self.end.makefile()
        self.end.sendall(f"hand-over {slot}\n".encode())
        assert self.lines.readline() == "{}\n"

    def ask(self) -> dict[str, Any]:
        """Ask whoever has it now."""
        self.end.sendall(b"who\n")
        return dict(json.loads(self.lines.readline()))

    def __enter__(self) -> "HandedOver":
        return self

    def __exit__(self, *_: object) -> None:
        self.lines.close()
        self.end.close()
