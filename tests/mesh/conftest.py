"""The control plane of a test, with operations as calls or as commands."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mesh.harness import Control
from tests.mesh.operating import Operator


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    plane = Control(tmp_path)
    yield plane
    plane.close()


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Operator]:
    one = Operator(tmp_path)
    yield one
    one.stop()
