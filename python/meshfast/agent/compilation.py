"""One run of the compiler: its memory files, its process, and what it said.

The agent keeps no document: what goes in and comes out lies in memory files whose descriptors the
process inherits under fixed numbers (see `meshfast.agent.compiler`).

Invariants:
1. A run ends: the compiler ends itself after 30 s, and is killed after 35 s.
2. `close` closes every memory file that was not taken.

Tests: tests/agent/test_reload.py.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys

from meshfast.agent.loop import READ

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from meshfast.agent.loop import Loop

__all__ = ["COMPILER", "Compilation"]

COMPILER = (sys.executable, "-I", "-m", "meshfast.agent.compiler")

RUN_S = 35.0  # the compiler ends itself after 30 s

_IGNORED_BY_THE_AGENT = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Compilation:
    """A run and its results; `problems` is why there is no new snapshot, empty when there is."""

    def __init__(self, request: dict[str, Any], running_fd: int, kept_fd: int | None) -> None:
        """`running_fd` holds the running snapshot, `kept_fd` the file to compile instead of disk's.

        `kept_fd` is None for a run that reads the file, and keeps a copy of it.
        """
        self._request_fd = _memory("request")
        self._response_fd = _memory("response")
        self._blob_fd = os.memfd_create(
            f"meshfast-snapshot-{request['generation']}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        )
        self._copy_fd = _memory("configuration") if kept_fd is None else os.dup(kept_fd)
        self._running_fd = running_fd
        os.write(self._request_fd, json.dumps(request | {"kept": kept_fd is not None}).encode())
        self.problems: list[str] = []
        self.changed = ""
        self.hosts: dict[str, list[str]] = {}
        self.listeners: dict[str, str] = {}

    def run(self, loop: Loop, compiler: Sequence[str], done: Callable[[], None]) -> None:
        """Start the process, and call `done` when it has ended and its results are here."""
        pid = self._spawn(compiler)
        pidfd = os.pidfd_open(pid)
        watchdog = loop.call_later(RUN_S, lambda: os.kill(pid, signal.SIGKILL))

        def on_exit(_ready: int) -> None:
            watchdog.cancel()
            loop.watch(pidfd, 0, on_exit)
            os.close(pidfd)
            self._take_results(os.waitpid(pid, 0)[1])
            done()

        loop.watch(pidfd, READ, on_exit)

    def take_blob(self) -> int:
        """The new snapshot, sealed; the descriptor is the caller's."""
        fcntl.fcntl(self._blob_fd, fcntl.F_ADD_SEALS, _SEALS)
        return os.dup(self._blob_fd)

    def take_copy(self) -> int:
        """The configuration file as it was compiled; the descriptor is the caller's."""
        return os.dup(self._copy_fd)

    def close(self) -> None:
        """Let go of the memory files."""
        for fd in (self._request_fd, self._response_fd, self._blob_fd, self._copy_fd):
            os.close(fd)

    def _spawn(self, compiler: Sequence[str]) -> int:
        fds = {
            0: self._request_fd,
            1: self._response_fd,
            3: self._running_fd,
            4: self._blob_fd,
            5: self._copy_fd,
        }
        # First out of the way of 3, 4 and 5, which are the agent's own for something else.
        moved = {to: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for to, fd in fds.items()}
        try:
            return os.posix_spawn(
                compiler[0],
                list(compiler),
                os.environ,
                file_actions=[(os.POSIX_SPAWN_DUP2, fd, to) for to, fd in moved.items()],
                setsigdef=_IGNORED_BY_THE_AGENT,
            )
        finally:
            for fd in moved.values():
                os.close(fd)

    def _take_results(self, status: int) -> None:
        code = os.waitstatus_to_exitcode(status)
        if code != 0:
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            self.problems.append(f"the compiler failed ({how}); what it said is on stderr")
            return
        response = json.loads(os.pread(self._response_fd, os.fstat(self._response_fd).st_size, 0))
        self.problems = response.get("problems", [])
        self.changed = response.get("changed", "")
        self.hosts = response.get("hosts", {})
        self.listeners = response.get("listeners", {})


def _memory(name: str) -> int:
    return os.memfd_create(f"meshfast-compile-{name}")
