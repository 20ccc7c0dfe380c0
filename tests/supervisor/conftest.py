"""The one fixture of this suite: a mesh that is started by the test and always ended."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.supervisor.harness import Mesh


@pytest.fixture
def serving_mesh(tmp_path: Path) -> Iterator[Callable[..., Mesh]]:
    """Return a function that starts a mesh with the given arguments and waits until it serves."""
    with ExitStack() as stack:

        def start(**arguments: Any) -> Mesh:
            return stack.enter_context(Mesh(tmp_path, **arguments))

        yield start


@pytest.fixture
def started_mesh(tmp_path: Path) -> Iterator[Callable[..., Mesh]]:
    """Return a function that starts a mesh that may never serve; it is ended with the test."""
    meshes: list[Mesh] = []

    def start(**arguments: Any) -> Mesh:
        meshes.append(Mesh(tmp_path, **arguments).start())
        return meshes[-1]

    yield start
    for mesh in meshes:
        mesh.close()
