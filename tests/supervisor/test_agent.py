"""The agent dies or asks for something: snapshots, listeners (docs/deaths.md)."""

import os
import signal
import socket
from collections.abc import Callable
from contextlib import ExitStack

from tests.supervisor.harness import Load, Mesh, Stopped, wait_until


def test_traffic_does_not_notice_the_death_of_the_agent(
    serving_mesh: Callable[..., Mesh],
) -> None:
    mesh = serving_mesh()
    with Load(mesh.address()) as load:
        for _ in range(5):
            old = mesh.ask(name="metrics")["pid"]
            os.kill(old, signal.SIGKILL)
            wait_until(
                lambda old=old: mesh.ask(name="metrics")["pid"] != old,  # type: ignore[misc]
                "a new agent",
            )
    assert load.seen["refused"] == load.seen["hung"] == load.seen["cut"] == 0


def test_a_new_agent_begins_with_the_newest_snapshot_and_hears_that_the_mesh_serves(
    serving_mesh: Callable[..., Mesh],
) -> None:
    mesh = serving_mesh()
    old = mesh.ask("snapshot 3", "metrics")["pid"]
    mesh.wait_for_message({"type": "applied", "generation": 3})
    os.kill(old, signal.SIGKILL)
    new = mesh.ask(name="metrics")
    assert new["pid"] != old
    assert new["settings"]["generation"] == 3
    mesh.wait_for_message({"type": "serving"})
    mesh.wait_for_message({"type": "applied", "generation": 3})


def test_an_agent_that_cannot_start_again_leaves_the_traffic_alone(
    serving_mesh: Callable[..., Mesh],
) -> None:
    mesh = serving_mesh()
    mesh.agent_behaves("boot_exit=78")
    os.kill(mesh.ask(name="metrics")["pid"], signal.SIGKILL)
    mesh.wait_for_text("died: exit code 78")
    assert mesh.ask()["slot"] in (0, 1)
    assert mesh.process.poll() is None


def test_a_snapshot_reaches_every_worker_and_is_answered_when_all_serve_from_it(
    serving_mesh: Callable[..., Mesh],
) -> None:
    mesh = serving_mesh(workers=2)
    mesh.ask("snapshot 2", "metrics")
    mesh.wait_for_message({"type": "applied", "generation": 2})
    seen: dict[int, str] = {}
    while len(seen) < 2:
        answer = mesh.ask()
        seen[answer["slot"]] = answer["snapshot"]
    assert set(seen.values()) == {"snapshot 2"}


def test_a_snapshot_is_not_answered_while_a_worker_serves_from_an_older_one(
    serving_mesh: Callable[..., Mesh],
) -> None:
    mesh = serving_mesh(workers=2)
    workers = mesh.workers()
    with Stopped(workers[1]):
        mesh.ask("snapshot 2", "metrics")
        wait_until(lambda: mesh.ask()["generation"] == 2, "worker 0 has it")
        assert {"type": "applied", "generation": 2} not in mesh.heard()
    mesh.wait_for_message({"type": "applied", "generation": 2})


def test_a_worker_that_dies_in_between_does_not_hold_up_the_answer(
    serving_mesh: Callable[..., Mesh],
) -> None:
    mesh = serving_mesh(workers=2)
    workers = mesh.workers()
    with Stopped(workers[1]):
        mesh.ask("snapshot 2", "metrics")
        wait_until(lambda: mesh.ask()["generation"] == 2, "worker 0 has it")
        os.kill(workers[1], signal.SIGKILL)
        mesh.wait_for_message({"type": "applied", "generation": 2})
    assert mesh.workers().keys() == {0, 1}


def test_a_snapshot_that_is_not_newer_is_dropped(serving_mesh: Callable[..., Mesh]) -> None:
    mesh = serving_mesh(workers=1)
    mesh.ask("snapshot 4", "metrics")
    mesh.wait_for_message({"type": "applied", "generation": 4})
    for generation in (3, 4):
        mesh.ask(f"snapshot {generation}", "metrics")
        mesh.wait_for_text(f"snapshot {generation} is not newer than 4: dropped")
    mesh.ask("snapshot 5", "metrics")
    mesh.wait_for_message({"type": "applied", "generation": 5})
    numbers = [one["generation"] for one in mesh.heard() if one["type"] == "applied"]
    assert numbers == [4, 5]


def test_a_listener_that_is_asked_for_reaches_the_running_workers(
    serving_mesh: Callable[..., Mesh],
) -> None:
    mesh = serving_mesh(workers=2)
    workers = mesh.workers()
    mesh.ask("bind extra 127.0.0.1:0", "metrics")
    mesh.wait_for_message({"type": "bound", "name": "extra", "error": None})
    assert mesh.ask(name="extra")["pid"] in workers.values()


def test_asking_again_for_the_same_listener_is_no_error_but_another_address_is(
    serving_mesh: Callable[..., Mesh],
) -> None:
    mesh = serving_mesh()
    mesh.ask("bind extra 127.0.0.1:0", "metrics")
    mesh.wait_for_message({"type": "bound", "name": "extra", "error": None})
    address = mesh.address("extra")
    mesh.ask(f"bind extra {address}", "metrics")
    wait_until(lambda: len([m for m in mesh.heard() if m["type"] == "bound"]) == 2, "answered")
    mesh.ask("bind extra 127.0.0.1:1", "metrics")
    mesh.wait_for_message(
        {"type": "bound", "name": "extra", "error": f"EEXIST: extra listens on {address}"}
    )
    errors = [one["error"] for one in mesh.heard() if one["type"] == "bound"]
    assert errors[:2] == [None, None]


def test_a_listener_that_is_taken_is_answered_with_the_reason(
    serving_mesh: Callable[..., Mesh],
) -> None:
    mesh = serving_mesh()
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        address = f"127.0.0.1:{server.getsockname()[1]}"
        mesh.ask(f"bind extra {address}", "metrics")
        (bound,) = wait_until(
            lambda: [one for one in mesh.heard() if one["type"] == "bound"], "an answer"
        )
    assert bound["error"].startswith(f"EADDRINUSE: {address}: ")
    assert mesh.ask()["slot"] in (0, 1)
