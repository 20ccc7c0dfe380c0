"""The fixtures of this suite: meshes that are always ended, and holdings without a process."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from meshfast.supervisor import signals
from meshfast.supervisor.holdings import Holdings
from meshfast.supervisor.settings import Settings
from meshfast.supervisor.sockets import bind_all
from tests.supervisor.harness import Mesh
from tests.supervisor.test_settings import GOOD


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


@pytest.fixture
def own_signals() -> Iterator[None]:
    """Give the test process its own handlers and mask back after a test that installs some."""
    handlers = {number: signal.getsignal(number) for number in signals.HANDLED}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    yield
    writing = signal.set_wakeup_fd(-1)
    if writing >= 0:
        os.close(writing)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@pytest.fixture
def holdings(tmp_path: Path) -> Iterator[Holdings]:
    """Return holdings with one TCP and one Unix socket; everything is closed with the test."""
    before = set(os.listdir("/proc/self/fd"))
    sockets = [
        {"name": "web", "address": "127.0.0.1:0", "owner": "worker", "fallback": False},
        {"name": "metrics", "address": f"unix:{tmp_path}/m", "owner": "agent", "fallback": False},
    ]
    given = {"shared_memory_fd": os.memfd_create("m"), "snapshot_fd": os.memfd_create("s")}
    settings = Settings.parse(json.dumps({**GOOD, **given, "sockets": sockets}).encode())
    lock_fd = os.memfd_create("lock")
    yield Holdings(settings, lock_fd, bind_all(settings.sockets, has_predecessor=False))
    for name in set(os.listdir("/proc/self/fd")) - before:
        try:
            os.close(int(name))
        except OSError:
            continue
