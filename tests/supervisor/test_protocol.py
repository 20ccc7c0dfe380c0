"""Children that break the protocol are replaced; they cannot stop or confuse the supervisor."""

import signal
from collections.abc import Callable

import pytest

from tests.supervisor.harness import Mesh, wait_until

WRONG = [
    "nonsense",
    '{"type":"nonsense"}',
    '{"type":"applied"}',
    '{"type":"applied","generation":99}',
    '{"type":"applied","generation":true}',
]


@pytest.mark.parametrize("message", WRONG)
def test_a_worker_that_says_something_wrong_is_replaced(
    serving_mesh: Callable[..., Mesh], message: str
) -> None:
    mesh = serving_mesh(workers=1)
    old = mesh.ask()["pid"]
    mesh.tell(f"say {message}")
    mesh.wait_for_text(f"worker 0 (pid {old}) broke the protocol")
    wait_until(lambda: mesh.ask()["pid"] != old, "a new worker answers")


@pytest.mark.parametrize(
    "message", ["nonsense", '{"type":"snapshot","generation":9}', '{"type":"bind","name":7}']
)
def test_an_agent_that_says_something_wrong_is_replaced(
    serving_mesh: Callable[..., Mesh], message: str
) -> None:
    mesh = serving_mesh(workers=1)
    old = mesh.ask(name="metrics")["pid"]
    mesh.tell(f"say {message}", "metrics")
    mesh.wait_for_text(f"agent (pid {old}) broke the protocol")
    wait_until(lambda: mesh.ask(name="metrics")["pid"] != old, "a new agent answers")


def test_a_worker_that_hangs_up_is_replaced(serving_mesh: Callable[..., Mesh]) -> None:
    mesh = serving_mesh(workers=1)
    old = mesh.ask()["pid"]
    mesh.tell("hang-up")
    mesh.wait_for_text(f"worker 0 (pid {old}) died: signal SIGKILL")
    assert mesh.ask()["pid"] != old


def test_a_worker_that_does_not_read_its_channel_is_replaced_and_nobody_waits_for_it(
    serving_mesh: Callable[..., Mesh],
) -> None:
    mesh = serving_mesh(workers=1, worker="is_deaf=True")
    old = mesh.ask()["pid"]
    mesh.worker_behaves("")
    generation = 1
    while mesh.workers() == {0: old}:
        generation += 1
        mesh.ask(f"snapshot {generation}", "metrics")
        assert generation < 5_000
    mesh.wait_for_text(f"worker 0 (pid {old}) died: signal SIGKILL")
    mesh.signal(signal.SIGTERM)
    assert mesh.wait() == 0
