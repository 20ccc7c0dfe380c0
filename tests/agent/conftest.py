"""The agent of a test, ended with it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.agent.harness import Supervised

Start = Callable[..., Supervised]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start agents with `start(access_log=…, config_path=…)`."""
    started: list[Supervised] = []

    def start(**agent: Any) -> Supervised:
        one = Supervised(tmp_path, **agent)
        started.append(one)
        return one

    yield start
    for one in started:
        one.close()
        assert "Traceback" not in one.log.read_text(), one.log.read_text()
