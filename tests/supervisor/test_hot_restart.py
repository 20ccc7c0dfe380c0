"""Hot restart: the supervisor re-executes itself and nobody notices (docs/deaths.md)."""

import signal
from collections.abc import Callable

from tests.supervisor.harness import Load, Mesh, wait_until


def hot_restart(mesh: Mesh, image: int = 1) -> None:
    """Restart and wait until every child is new."""
    old = mesh.children()
    mesh.signal(signal.SIGUSR2)
    mesh.wait_for_text(f"all workers are of image {image}")
    wait_until(lambda: not set(old) & set(mesh.children()), "the old children are gone")
    wait_until(lambda: len(mesh.children()) == len(old), "the new children are there")
    wait_until(mesh.heard, "the new agent answers")


def test_ten_hot_restarts_under_load_refuse_no_connect_and_cut_none(
    serving_mesh: Callable[..., Mesh],
) -> None:
    mesh = serving_mesh(workers=2)
    with Load(mesh.address()) as load:
        for image in range(1, 11):
            hot_restart(mesh, image)
    assert load.seen["refused"] == load.seen["hung"] == load.seen["cut"] == 0
    assert mesh.process.poll() is None
