"""Fixtures of the data-plane tests: one proxy per module where tests do not disturb each other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dataplane.harness import Origin, Proxy, echo_origin, forwarding


@pytest.fixture(scope="module")
def echo() -> Iterator[Origin]:
    """An origin that answers with what it was sent."""
    with echo_origin() as origin:
        yield origin


@pytest.fixture(scope="module")
def echoing(echo: Origin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Proxy, int]]:
    """A proxy in front of the echo origin, and its port."""
    with forwarding(echo, tmp_path_factory.mktemp("proxy")) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder of the test's own."""
    return tmp_path
