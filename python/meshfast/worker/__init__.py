"""A worker: what runs after the fork until the process ends, Rust only from then on.

`main` loads the extension (in the child, never before), hands it the settings and exits with the
code it returns: 0 drained, 78 cannot start, anything else a crash (see docs/deaths.md). What it
does not do: look into the settings, serve, log. The extension reports its own failures.

Invariants
1. The extension is not loaded before the fork: a copy of its threads' or its allocator's state
   across a fork would be undefined.
2. Python runs no code once the engine runs.

Tests: tests/supervisor/test_worker.py.
"""

from __future__ import annotations

import gc
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["BOOT_FAILURE", "main"]

EXTENSION = "meshfast._core"
# EX_CONFIG of sysexits.h: the supervisor does not try again while the mesh starts.
BOOT_FAILURE = 78


def main(settings: bytes) -> NoReturn:
    """Run the engine with the worker's settings (JSON) until it is drained, then exit.

    Exits with 78 and a line on stderr when the extension is missing, does not load or was loaded
    before the fork.
    """
    if EXTENSION in sys.modules:
        _refuse(f"{EXTENSION} was loaded before the fork")
    try:
        from meshfast._core import run_worker
    except ImportError as error:
        _refuse(f"{EXTENSION} does not load: {error}; is the wheel for this platform installed?")
    _name_process()
    gc.disable()
    os._exit(run_worker(settings))


def _name_process() -> None:
    """Show in ps and top what this process is (proc(5), `comm`: 15 bytes)."""
    with open("/proc/self/comm", "w", encoding="ascii") as comm:
        comm.write("meshfast-worker")


def _refuse(reason: str) -> NoReturn:
    os.write(2, f"meshfast: worker: {reason}\n".encode(errors="backslashreplace"))
    os._exit(BOOT_FAILURE)
