"""A control plane in a thread with an event loop of its own, and what tests ask of it."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from meshfast import _core
from meshfast.control.ca import IssuanceLimits
from meshfast.control.server import ControlPlane, Options
from meshfast.discovery import JoinToken

T = TypeVar("T")
ANSWER_S = 20.0


class Plane:
    """A control plane that runs beside the test."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.control = ControlPlane(options)
        self.ask(self.control.start())

    def ask(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run something on the control plane's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(ANSWER_S)

    def call(self, function: Callable[[], T]) -> T:
        """Call something on the control plane's loop."""

        async def called() -> T:
            return function()

        return self.ask(called())

    @property
    def operations(self) -> Any:
        return self.control.operations

    def token(self, service: str = "payment", **options: Any) -> JoinToken:
        created = self.ask(self.operations.create_token(service, **options))
        return JoinToken.parse(created.text)

    def stop(self) -> None:
        self.ask(self.control.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(ANSWER_S)
        self._loop.close()


Start = Callable[..., Plane]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
        assert isinstance(port, int)
        return port


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start control planes; those that still run at the end are stopped."""
    running: list[Plane] = []

    def started(**options: Any) -> Plane:
        defaults: dict[str, Any] = {
            "state_dir": tmp_path / "state",
            "host": "127.0.0.1",
            "port": 0,
            "trust_domain": "cluster.local",
            "build": _core.Snapshot.build,
            "issuance_limits": IssuanceLimits(instance_burst=1000, total_burst=1000),
        }
        plane = Plane(Options(**(defaults | options)))
        running.append(plane)
        return plane

    yield started
    for plane in running:
        if plane._thread.is_alive():
            plane.stop()


@pytest.fixture
def plane(start: Start) -> Plane:
    """A control plane with its defaults."""
    return start()
