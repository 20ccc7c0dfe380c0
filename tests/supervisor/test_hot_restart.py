"""Hot restart: the supervisor re-executes itself and nobody notices (docs/deaths.md)."""

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from meshfast.supervisor.holdings import Holdings
from meshfast.supervisor.supervisor import DRAINING, SERVING, Supervisor
from tests.supervisor.harness import (
    HeldConnection,
    Load,
    Mesh,
    is_alive,
    status_field,
    wait_until,
)


def hot_restart(mesh: Mesh, image: int = 1) -> None:
    """Restart and wait until every child is new."""
    old = mesh.children()
    mesh.signal(signal.SIGUSR2)
    mesh.wait_for_text(f"all workers are of image {image}")
    wait_until(lambda: not set(old) & set(mesh.children()), "the old children are gone")
    wait_until(lambda: len(mesh.children()) == len(old), "the new children are there")
    wait_until(mesh.heard, "the new agent answers")


def pid_on(mesh: Mesh, slot: int) -> int:
    """Return the pid of the worker on a slot if that one answers, else 0."""
    answer = mesh.ask()
    return int(answer["pid"]) if answer["slot"] == slot else 0


def test_ten_hot_restarts_under_load_refuse_no_connect_and_cut_none(
    serving_mesh: Callable[..., Mesh],
) -> None:
    mesh = serving_mesh(workers=2)
    with Load(mesh.address()) as load:
        for image in range(1, 11):
            hot_restart(mesh, image)
    assert load.seen["refused"] == load.seen["hung"] == load.seen["cut"] == 0
    assert load.seen["answered"] > 100
    assert mesh.process.poll() is None


def test_workers_move_to_the_spare_slots_and_back(serving_mesh: Callable[..., Mesh]) -> None:
    mesh = serving_mesh(workers=2)
    assert sorted(mesh.workers()) == [0, 1]
    hot_restart(mesh, 1)
    assert sorted(mesh.workers()) == [2, 3]
    hot_restart(mesh, 2)
    assert sorted(mesh.workers()) == [0, 1]


def test_a_connection_that_is_in_use_is_finished_by_its_old_worker(
    serving_mesh: Callable[..., Mesh],
) -> None:
    mesh = serving_mesh(workers=1, drain_ms=60_000)
    with HeldConnection(mesh) as held:
        old = mesh.ask()["pid"]
        mesh.signal(signal.SIGUSR2)
        mesh.wait_for_text("all workers are of image 1")
        wait_until(lambda: mesh.ask()["slot"] == 1, "the new worker answers")
        assert held.ask()["pid"] == old
    wait_until(lambda: not is_alive(old), "the old worker ends")


def test_a_restart_during_a_long_drain_waits_for_the_slot_and_then_completes(
    serving_mesh: Callable[..., Mesh],
) -> None:
    mesh = serving_mesh(workers=1, drain_ms=60_000)
    with HeldConnection(mesh):
        mesh.signal(signal.SIGUSR2)
        mesh.wait_for_text("all workers are of image 1")
        middle = wait_until(lambda: pid_on(mesh, slot=1), "the second worker answers")
        mesh.signal(signal.SIGUSR2)
        mesh.wait_for_text("image 2 has taken over")
        assert mesh.ask()["pid"] == middle
        assert "all workers are of image 2" not in mesh.stderr
    mesh.wait_for_text("all workers are of image 2")
    wait_until(lambda: pid_on(mesh, slot=0), "the third worker answers")


def test_snapshot_listeners_lock_and_orphans_are_carried_over(
    serving_mesh: Callable[..., Mesh],
) -> None:
    mesh = serving_mesh(workers=1)
    mesh.ask("snapshot 7", "metrics")
    mesh.ask("bind extra 127.0.0.1:0", "metrics")
    mesh.wait_for_message({"type": "bound", "name": "extra", "error": None})
    hot_restart(mesh)
    answer = mesh.ask(name="extra")
    assert (answer["generation"], answer["snapshot"]) == (7, "snapshot 7")
    lock = Path(mesh.settings["runtime_dir"], "default.lock")
    assert lock.read_text() == f"{mesh.process.pid}\n"
    held = subprocess.run(["flock", "--nonblock", str(lock), "true"], check=False)
    assert held.returncode == 1
    orphan = mesh.ask("orphan")["pid"]
    mesh.seen.add(orphan)
    assert int(status_field(orphan, "PPid")) == mesh.process.pid
    os.kill(orphan, signal.SIGKILL)


def test_descriptors_do_not_add_up(serving_mesh: Callable[..., Mesh]) -> None:
    mesh = serving_mesh(workers=2)
    folder = Path(f"/proc/{mesh.process.pid}/fd")

    def count() -> int:
        return len(list(folder.iterdir()))

    hot_restart(mesh, 1)
    first = wait_until(count, "descriptors")
    for image in (2, 3, 4):
        hot_restart(mesh, image)
    wait_until(lambda: count() == first, f"{first} descriptors again, not {count()}")


def test_an_image_that_fails_its_check_is_not_executed(serving_mesh: Callable[..., Mesh]) -> None:
    mesh = serving_mesh(workers=2)
    before = mesh.children()
    (mesh.modules / "worker_under_test.py").write_text("this is no Python\n")
    mesh.signal(signal.SIGUSR2)
    mesh.wait_for_text("hot restart abandoned: the new image fails its check (exit code 1)")
    assert "worker_under_test: SyntaxError" in mesh.stderr
    assert "has taken over" not in mesh.stderr
    assert mesh.children() == before
    mesh.worker_behaves("")
    hot_restart(mesh)


def test_an_image_that_cannot_read_what_the_workers_share_is_not_executed(
    serving_mesh: Callable[..., Mesh],
) -> None:
    mesh = serving_mesh(workers=2)
    before = mesh.children()
    mesh.agent_behaves("unreadable='shared memory has layout 1, this meshfast reads 2'")
    mesh.signal(signal.SIGUSR2)
    mesh.wait_for_text("hot restart abandoned: the new image fails its check (exit code 1)")
    told = "what runs cannot be taken over, only restarted: shared memory has layout 1"
    assert told in mesh.stderr
    assert "has taken over" not in mesh.stderr
    assert mesh.children() == before
    mesh.agent_behaves("")
    hot_restart(mesh)


def test_a_new_worker_that_cannot_start_leaves_the_old_ones_in_charge(
    serving_mesh: Callable[..., Mesh],
) -> None:
    mesh = serving_mesh(workers=2)
    workers = mesh.workers()
    mesh.worker_behaves("boot_exit=78")
    mesh.signal(signal.SIGUSR2)
    mesh.wait_for_text("hot restart abandoned: the new worker cannot start, the old ones go on")
    assert mesh.workers() == workers
    mesh.worker_behaves("")
    hot_restart(mesh, 2)
    assert mesh.workers().keys() == {2, 3}


def test_a_worker_killed_during_the_passage_is_replaced(serving_mesh: Callable[..., Mesh]) -> None:
    mesh = serving_mesh(workers=2)
    workers = mesh.workers()
    with Load(mesh.address()) as load:
        mesh.signal(signal.SIGUSR2)
        os.kill(workers[0], signal.SIGKILL)
        mesh.wait_for_text("all workers are of image 1")
        wait_until(lambda: not any(map(is_alive, workers.values())), "the old workers are gone")
        assert len(mesh.workers()) == 2
    assert load.seen["refused"] == load.seen["hung"] == 0


def test_a_worker_killed_after_the_restart_is_replaced_on_its_new_slot(
    serving_mesh: Callable[..., Mesh],
) -> None:
    mesh = serving_mesh(workers=1)
    hot_restart(mesh)
    old = mesh.ask()
    os.kill(old["pid"], signal.SIGKILL)
    new = mesh.ask()
    assert new["pid"] != old["pid"]
    assert new["slot"] == old["slot"] == 1


def test_a_signal_that_came_before_exec_is_obeyed_first(
    holdings: Holdings, monkeypatch: pytest.MonkeyPatch, own_signals: None
) -> None:
    executed: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, arguments: executed.append(arguments))
    supervisor = Supervisor(holdings)
    supervisor.phase = SERVING
    supervisor.hot_restart.is_due = True
    signal.raise_signal(signal.SIGTERM)
    supervisor._re_execute()
    assert executed == []
    assert supervisor.phase == DRAINING
    supervisor.phase = SERVING
    supervisor._re_execute()
    assert len(executed) == 1


def test_a_stop_that_follows_at_once_is_not_lost(serving_mesh: Callable[..., Mesh]) -> None:
    mesh = serving_mesh(workers=2)
    mesh.signal(signal.SIGUSR2)
    mesh.wait_for_text("has taken over")
    mesh.signal(signal.SIGUSR2)
    mesh.signal(signal.SIGTERM)
    assert mesh.wait() == 0
    assert mesh.children() == []


def test_a_restart_while_draining_is_refused(serving_mesh: Callable[..., Mesh]) -> None:
    mesh = serving_mesh(drain_ms=60_000)
    with HeldConnection(mesh):
        mesh.signal(signal.SIGTERM)
        mesh.wait_for_text("draining for up to")
        mesh.signal(signal.SIGUSR2)
        mesh.wait_for_text("hot restart refused while draining")
    assert mesh.wait() == 0
