"""The command line of the supervisor; for the CLI and for the supervisor itself, not for people.

    --settings-fd N   start with the settings in this memfd (what `launch` does)
    --settings FILE   become a subreaper and start with the settings in a file
    --state-fd N      take over from the image before (hot restart)
    --check --state-fd N   tell by the exit code whether this image could take over; change nothing

Exit codes: the application's, or 0 when there is none and it stopped as asked; 1 could not start or
go on, 2 wrong command line.

Tests: tests/supervisor/test_boot.py.
"""

from __future__ import annotations

import json
import os
import sys

from meshfast.supervisor import lock
from meshfast.supervisor.holdings import Holdings
from meshfast.supervisor.hot_restart import State, StateError, check
from meshfast.supervisor.launch import launch
from meshfast.supervisor.report import fail, keep_to, say
from meshfast.supervisor.settings import Settings, SettingsError
from meshfast.supervisor.sockets import BindError, bind_all
from meshfast.supervisor.supervisor import Supervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["main"]

USAGE = "usage: python -I -m meshfast.supervisor --settings-fd N | --settings FILE"


def main(arguments: list[str]) -> int:
    """Run what the arguments say; return the exit code."""
    try:
        match arguments:
            case ["--settings-fd", fd] if fd.isdecimal():
                supervisor = _boot(_read(int(fd)))
            case ["--settings", path]:
                _launch(path)
            case ["--state-fd", fd] if fd.isdecimal():
                supervisor = _resume(_read(int(fd)))
            case ["--check", "--state-fd", fd] if fd.isdecimal():
                check(_read(int(fd)))
                return 0
            case _:
                fail(USAGE)
                return 2
    except (BindError, OSError, SettingsError, StateError, lock.LockError) as error:
        fail(str(error))
        return 1
    with open("/proc/self/comm", "w", encoding="ascii") as comm:
        comm.write("meshfast")  # what ps and top show (proc(5))
    return supervisor.run()


def _boot(text: bytes) -> Supervisor:
    """Validate, lock, bind; raise what is wrong with nothing left behind."""
    settings = Settings.parse(text)
    keep_to(settings.log_level)
    for fd in (settings.shared_memory_fd, settings.snapshot_fd):
        os.set_inheritable(fd, False)
    lock_fd, was_unclean = lock.acquire(settings.runtime_dir, settings.instance)
    try:
        listeners = bind_all(settings.sockets, was_unclean)
    except BindError:
        lock.release(lock_fd)
        raise
    for entry, listener in zip(settings.sockets, listeners, strict=True):
        missed = entry.address if listener.address == entry.kept else entry.kept or entry.address
        instead = "" if listener.address == missed else f" instead of {missed}"
        say(f"listening on {listener.address}{instead} ({listener.name})")
    return Supervisor(Holdings(settings, lock_fd, listeners))


def _launch(path: str) -> NoReturn:
    with open(path, "rb") as file:
        text = file.read()
    settings = Settings.parse(text)
    fds = [settings.shared_memory_fd, settings.snapshot_fd]
    launch(json.dumps(settings.document).encode(), fds)


def _resume(text: bytes) -> Supervisor:
    state = State.parse(text)
    keep_to(state.holdings.settings.log_level)
    for fd in state.fds():
        os.set_inheritable(fd, False)
    return Supervisor.resume(state)


def _read(fd: int) -> bytes:
    """Return the content of a memfd and close it."""
    with open(fd, "rb") as file:
        file.seek(0)
        return file.read()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
