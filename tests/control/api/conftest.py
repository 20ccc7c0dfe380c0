"""A control plane whose operator API is asked over its socket."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meshfast.control.api import SOCKET_NAME
from meshfast.control.api.serve import serve
from tests.control.server.conftest import Plane, plane, start

__all__ = ["Api", "plane", "start"]


class Api:
    """The API of a plane, from the moment it listens until `stop`."""

    def __init__(self, plane: Plane) -> None:
        self.plane = plane
        self.directory: Path = plane.options.state_dir
        self._task: asyncio.Task[None] = plane.call(
            lambda: asyncio.get_running_loop().create_task(serve(plane.operations, self.directory))
        )

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Send one request; a body of bytes goes as it is. Return status and decoded answer."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("localhost", timeout=20)
        descriptor = os.open(self.directory, os.O_PATH)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(20)
        connection.sock.connect(f"/proc/self/fd/{descriptor}/{SOCKET_NAME}")
        os.close(descriptor)
        connection.request(method, path, content)
        answer = connection.getresponse()
        decoded = json.loads(answer.read())
        connection.close()
        return answer.status, decoded

    def stop(self) -> None:
        """Stop serving, as the process does."""

        async def stopped() -> None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

        self.plane.ask(stopped())


@pytest.fixture
def api(plane: Plane) -> Iterator[Api]:
    one = Api(plane)
    yield one
    one.stop()
