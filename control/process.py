"""The control plane as a process: private files, a log on stderr, signals, an exit code.

    start → one line on stdout → serve → SIGTERM or SIGINT → goodbye to streams → exit 0

Does not do: parse arguments (the CLI does), or serve the operator API, which is handed in.

Invariants:
1. What this process makes is 0600 or narrower, and no key of it is in a core dump.
2. When any part of the control plane fails, the process ends with 1: whoever started it sees that.

Tests: tests/control/server/test_process.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Final

from meshfast.control.operations import Operations
from meshfast.control.server import ControlPlane, Options
from meshfast.errors import MeshfastError

__all__ = ["ServeApi", "run"]

LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s %(message)s"
LEVELS: Final = {
    "error": logging.ERROR,
    "warn": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": logging.DEBUG,
}

#: Listens for the operator API when called; what it returns serves until it is cancelled.
ServeApi = Callable[[Operations], Coroutine[Any, Any, None]]


def run(options: Options, *, log_level: str, serve_api: ServeApi | None = None) -> None:
    """Run until a signal. Raises `MeshfastError` when the control plane cannot start or go on."""
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.basicConfig(stream=sys.stderr, level=LEVELS[log_level], format=LOG_FORMAT)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    asyncio.run(_run(options, serve_api))


async def _run(options: Options, serve_api: ServeApi | None) -> None:
    plane = ControlPlane(options)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    try:
        try:
            await plane.start()
        except OSError as error:
            # asyncio joins address and reason; names that do not resolve have numbers below 0.
            code = error.errno or 0
            reason = os.strerror(code) if code > 0 else error.strerror
            raise MeshfastError(
                f"cannot listen on {options.host}:{options.port}: {reason}"
            ) from None
        api = None if serve_api is None else serve_api(plane.operations)
        print(f"control plane ready: sidecars on {', '.join(plane.addresses)}", flush=True)
        work: list[asyncio.Task[Any]]
        work = [asyncio.create_task(stopped.wait()), asyncio.create_task(plane.failed())]
        if api is not None:
            work.append(asyncio.create_task(api))
        done, rest = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        for task in done:
            task.result()
    finally:
        await plane.stop()
