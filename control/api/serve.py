"""The operator API on its Unix socket.

Does not do: listen on TCP. Nobody is authenticated but by the file system, which says who may open
a socket and nothing about who may reach a port.

Invariants:
1. The socket is 0600 from the moment it exists, in a directory that was checked to be 0700.
2. A socket that a killed control plane left behind is replaced: the store's lock, which is held
   before anything is served, says that nobody listens on it.
3. The signals of the process stay those of process.py.

Tests: tests/control/api/test_serve.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import uvicorn

from meshfast.control.api import SOCKET_NAME
from meshfast.control.api.app import application
from meshfast.control.operations import Operations
from meshfast.control.store.files import private_directory

__all__ = ["serve"]

BACKLOG: Final = 128
#: Operators are few; what is beyond gets 503 from uvicorn.
CONCURRENCY_MAX: Final = 64
#: How long a request that is under way may take when the process stops.
GRACE_S: Final = 3


def serve(operations: Operations, directory: Path) -> Coroutine[Any, Any, None]:
    """Listen when called, and serve while the result is awaited; cancelling it stops.

    `directory` is the state directory. Raises `UnsafeFileError`, `OSError`.
    """
    return _serve(operations, directory, _listen(directory))


def _listen(directory: Path) -> socket.socket:
    private_directory(directory)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # A socket's address has 107 bytes at most (sun_path, unix(7)); a directory's path may be longer
    # than that, its descriptor's is not.
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    before = os.umask(0o177)
    try:
        with suppress(FileNotFoundError):
            os.unlink(SOCKET_NAME, dir_fd=descriptor)
        listening.bind(f"/proc/self/fd/{descriptor}/{SOCKET_NAME}")
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    finally:
        os.umask(before)
        os.close(descriptor)
    return listening


async def _serve(operations: Operations, directory: Path, listening: socket.socket) -> None:
    server = _Server(
        uvicorn.Config(
            application(operations),
            http="h11",
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            log_level=logging.WARNING,
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            limit_concurrency=CONCURRENCY_MAX,
            timeout_graceful_shutdown=GRACE_S,
        )
    )
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        await asyncio.shield(serving)
    except asyncio.CancelledError:
        server.should_exit = True
        await serving
        raise
    finally:
        with suppress(FileNotFoundError):
            os.unlink(directory / SOCKET_NAME)


class _Server(uvicorn.Server):
    """uvicorn without its handlers of signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the process."""
        yield
