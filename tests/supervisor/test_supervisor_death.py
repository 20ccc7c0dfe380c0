"""The supervisor is killed: workers finish what they have, a new one can start (docs/deaths.md)."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.supervisor.harness import HeldConnection, Mesh, is_alive, wait_until


def test_workers_finish_what_they_have_and_end_and_the_agent_ends_at_once(
    serving_mesh: Callable[..., Mesh],
) -> None:
    mesh = serving_mesh(workers=2)
    workers = mesh.workers()
    agent = mesh.ask(name="metrics")["pid"]
    with HeldConnection(mesh) as held:
        mesh.signal(signal.SIGKILL)
        mesh.wait()
        wait_until(lambda: not is_alive(agent), "the agent ends")
        answer = held.ask()
        assert answer["pid"] in workers.values()
    for pid in workers.values():
        wait_until(lambda pid=pid: not is_alive(pid), "the worker ends")  # type: ignore[misc]


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_new_supervisor_starts_while_orphans_still_drain(
    serving_mesh: Callable[..., Mesh], tmp_path: Path, kind: str
) -> None:
    mesh = serving_mesh(workers=2)
    address = mesh.address()
    if kind == "unix":
        local = f"unix:{tmp_path}/socket"
        mesh.ask(f"bind local {local}", "metrics")
        mesh.wait_for_message({"type": "bound", "name": "local", "error": None})
        address = local
    mesh.workers()
    with HeldConnection(mesh) as held:
        mesh.signal(signal.SIGKILL)
        mesh.wait()
        folder = tmp_path / "second"
        folder.mkdir()
        web = {"name": "web", "address": address, "owner": "worker", "fallback": False}
        runtime_dir = mesh.settings["runtime_dir"]
        with Mesh(folder, sockets=[web], runtime_dir=runtime_dir) as second:
            assert second.ask()["pid"] not in mesh.seen
            assert held.ask()["pid"] in mesh.seen
