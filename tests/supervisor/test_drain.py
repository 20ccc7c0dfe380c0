"""SIGTERM: finish what runs, refuse what is new, be gone in time (docs/deaths.md)."""

import signal
from collections.abc import Callable

import pytest

from tests.supervisor.harness import Mesh


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_idle_mesh_ends_with_zero(
    serving_mesh: Callable[..., Mesh], number: signal.Signals
) -> None:
    mesh = serving_mesh()
    mesh.signal(number)
    assert mesh.wait() == 0
    assert mesh.children() == []
