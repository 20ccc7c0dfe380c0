"""The control plane of a test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mesh.harness import Control


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    plane = Control(tmp_path)
    yield plane
    plane.close()
