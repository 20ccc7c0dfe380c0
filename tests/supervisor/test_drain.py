"""SIGTERM: finish what runs, refuse what is new, be gone in time (docs/deaths.md)."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.supervisor.harness import HeldConnection, Mesh, connect, wait_until


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_idle_mesh_ends_with_zero(
    serving_mesh: Callable[..., Mesh], number: signal.Signals
) -> None:
    mesh = serving_mesh()
    mesh.signal(number)
    assert mesh.wait() == 0
    assert mesh.children() == []


def test_a_connection_that_is_in_use_is_finished(serving_mesh: Callable[..., Mesh]) -> None:
    mesh = serving_mesh(drain_ms=20_000)
    with HeldConnection(mesh) as held:
        mesh.signal(signal.SIGTERM)
        mesh.wait_for_message({"type": "drain", "deadline_ms": 20_000})
        assert held.ask()["slot"] in (0, 1)
    assert mesh.wait() == 0
    assert "killed" not in mesh.stderr


def test_a_connect_while_draining_is_refused_and_not_left_waiting(
    serving_mesh: Callable[..., Mesh],
) -> None:
    mesh = serving_mesh(drain_ms=20_000)
    with HeldConnection(mesh):
        mesh.signal(signal.SIGTERM)

        def is_refused() -> bool:
            try:
                connect(mesh.address(), 1).close()
            except ConnectionRefusedError:
                return True
            return False

        wait_until(is_refused, "connects are refused")
        assert mesh.process.poll() is None
    assert mesh.wait() == 0


def test_the_agent_outlives_the_workers_and_is_then_stopped(
    serving_mesh: Callable[..., Mesh],
) -> None:
    mesh = serving_mesh(drain_ms=20_000)
    with HeldConnection(mesh):
        mesh.signal(signal.SIGTERM)
        mesh.wait_for_message({"type": "drain", "deadline_ms": 20_000})
        assert {"type": "stop"} not in mesh.heard()
    assert mesh.wait() == 0


def test_a_worker_that_does_not_end_is_killed_a_second_after_its_deadline(
    serving_mesh: Callable[..., Mesh],
) -> None:
    mesh = serving_mesh(workers=1, drain_ms=300, worker="is_stubborn=True")
    began = time.monotonic()
    mesh.signal(signal.SIGTERM)
    assert mesh.wait() == 0
    assert 1.3 <= time.monotonic() - began < 1.3 + 5.0
    assert "is not drained in time and is killed" in mesh.stderr


def test_an_agent_that_does_not_stop_is_killed(serving_mesh: Callable[..., Mesh]) -> None:
    mesh = serving_mesh(workers=1, agent="is_stubborn=True")
    mesh.signal(signal.SIGTERM)
    assert mesh.wait() == 0
    assert "is not gone in time and is killed" in mesh.stderr


def test_a_second_signal_ends_everything_at_once(serving_mesh: Callable[..., Mesh]) -> None:
    mesh = serving_mesh(drain_ms=60_000)
    with HeldConnection(mesh):
        mesh.signal(signal.SIGTERM)
        mesh.wait_for_text("draining for up to 60000 ms")
        began = time.monotonic()
        mesh.signal(signal.SIGINT)
        assert mesh.wait() == 0
        assert time.monotonic() - began < 5.0
    assert mesh.children() == []


def test_a_worker_that_dies_while_draining_is_not_replaced(
    serving_mesh: Callable[..., Mesh],
) -> None:
    mesh = serving_mesh(workers=1, drain_ms=60_000)
    with HeldConnection(mesh):
        pid = mesh.ask()["pid"]
        mesh.signal(signal.SIGTERM)
        mesh.wait_for_text("draining for up to")
        os.kill(pid, signal.SIGKILL)
        assert mesh.wait() == 0
    assert f"worker 0 (pid {pid}) ended while draining: signal SIGKILL" in mesh.stderr


def test_a_signal_while_booting_ends_with_zero(
    started_mesh: Callable[..., Mesh], tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    mesh = started_mesh(workers=1, drain_ms=20_000, worker=f"gate={str(gate)!r}")
    mesh.wait_for_text("waits at the gate")
    mesh.signal(signal.SIGTERM)
    mesh.wait_for_text("draining for up to")
    gate.touch()
    assert mesh.wait() == 0
    assert "serving" not in mesh.stderr


def test_unix_sockets_are_removed_and_the_lock_is_free_at_the_end(
    serving_mesh: Callable[..., Mesh], tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    local = {"name": "web", "address": f"unix:{path}", "owner": "worker", "fallback": False}
    mesh = serving_mesh(sockets=[local])
    assert path.is_socket()
    mesh.signal(signal.SIGTERM)
    assert mesh.wait() == 0
    assert not path.exists()
    assert (tmp_path / "run" / "default.lock").read_text() == ""
