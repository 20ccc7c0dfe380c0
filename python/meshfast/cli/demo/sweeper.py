"""The folder of the demo, and a process that removes what a killed demo has left.

    with swept_folder() as folder:  →  python -I -S sweeper.py FOLDER, which waits for EOF

A demo that ends by itself, or by a signal that can be handled, ends its processes in order and
removes its folder. SIGKILL lets it do neither. So a small process holds the other end of a pipe:
when the demo has gone, however, it kills every process with the mark of the folder in its
environment, which all that the demo starts inherit, and then removes the folder.

Does not do: end anything in order. Nobody is left whom that would serve.

Invariants:
1. It kills no process without the mark, and none that has taken the number of a marked one over.
2. It is in a session of its own: what ends the demo's group or its terminal does not end it.
3. It uses the standard library alone, and holds nothing open of the demo's but the pipe.

Killed itself, or together with the demo (by a cgroup), it can do nothing. A demo that is killed
before it has started the sweeper leaves an empty folder.

Tests: tests/demo/test_sweeper.py, tests/demo/test_demo.py.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["MARK", "swept_folder"]

#: The variable of the environment that has the folder, in every process of the demo.
MARK = "MESHFAST_DEMO_FOLDER"
PAUSE_S = 0.05
#: A process that was killed goes when the kernel lets it, and not while it waits for a dead disk.
SWEEP_S = 30.0


@contextlib.contextmanager
def swept_folder() -> Iterator[Path]:
    """Make a folder for this user alone, which is gone at the end, whatever that is."""
    with tempfile.TemporaryDirectory(prefix="meshfast-demo-") as folder:
        sweeper = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        try:
            yield Path(folder)
        finally:
            sweeper.communicate()


def main(folder: str) -> None:
    """Wait for the end of the demo, then remove what is left of it."""
    sys.stdin.buffer.read()
    give_up_s = time.monotonic() + SWEEP_S
    # A process may be between its fork and the exec that gives it the mark: look twice.
    quiet = 0
    while quiet < 2 and time.monotonic() < give_up_s:
        quiet = 0 if _kill_marked(folder) else quiet + 1
        time.sleep(PAUSE_S)
    shutil.rmtree(folder, ignore_errors=True)


def _kill_marked(folder: str) -> bool:
    """Kill what has the mark; tell whether there was any."""
    mark = os.fsencode(f"{MARK}={folder}")
    found = False
    for name in os.listdir("/proc"):
        # Of others, or gone meanwhile. A zombie has no environment any more.
        with contextlib.suppress(OSError):
            if name.isdecimal():
                found |= _kill_if_marked(int(name), mark)
    return found


def _kill_if_marked(pid: int, mark: bytes) -> bool:
    process = os.pidfd_open(pid)  # first, so that it is the process that is looked at
    try:
        is_marked = mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if is_marked:
            signal.pidfd_send_signal(process, signal.SIGKILL)
        return is_marked
    finally:
        os.close(process)


if __name__ == "__main__":
    main(sys.argv[1])
