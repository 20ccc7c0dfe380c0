"""The application of `run -- CMD`: starts after the sidecar, ends before it; its code is ours.

It begins when the workers serve and the agent has said `meshed` (identity and configuration are
there), so that its first call already goes through the mesh. It leads a process group of its own:
Ctrl-C reaches the supervisor only, and the supervisor's SIGTERM reaches what the application
started in its group. The kernel sends it SIGTERM when the supervisor dies (PR_SET_PDEATHSIG), since
without its sidecar it must not go on as if it had one.

What it does not do: start it again, read its output, hand a terminal over (it runs in the
background of the supervisor's terminal).

Invariants
1. It is started once in the life of an instance, hot restarts included.
2. It inherits standard input, output and error and nothing else, with every signal at its default,
   whatever the supervisor was started with.
3. A command that cannot be executed ends like a shell's: 127 not found, 126 not executable.

Tests: tests/supervisor/test_app.py.
"""

from __future__ import annotations

import os
import signal

from meshfast.supervisor import signals
from meshfast.supervisor.children import describe_status
from meshfast.supervisor.holdings import Holdings
from meshfast.supervisor.report import fail, say, warn
from meshfast.supervisor.settings import AppSettings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

__all__ = ["KILLED_BASE", "App"]

PR_SET_PDEATHSIG = 1  # linux/prctl.h

# As in a shell (POSIX, XCU 2.8.2).
NOT_FOUND = 127
NOT_EXECUTABLE = 126
KILLED_BASE = 128


class App:
    """The one application, or none.

    `pid` is 0 before it runs and after it ended; `exit_code` is None until then. `is_told`: it got
    SIGTERM. `kill_at` is the
    monotonic second at which it is killed if it still lives.
    """

    __slots__ = ("exit_code", "holdings", "is_told", "kill_at", "pid")

    def __init__(self, holdings: Holdings) -> None:
        """Begin without a process; `start_if_due` makes it."""
        self.holdings = holdings
        self.pid = 0
        self.exit_code: int | None = None
        self.is_told = False
        self.kill_at: float | None = None

    def adopt(self, document: dict[str, Any]) -> None:
        """Take over the application of the image before."""
        self.pid = document["pid"]
        self.exit_code = document["exit_code"]
        self.is_told = document["is_told"]
        self.kill_at = document["kill_at"]

    def to_document(self) -> dict[str, Any]:
        """Return the state as JSON data; `adopt` takes it back."""
        return {
            "pid": self.pid,
            "exit_code": self.exit_code,
            "is_told": self.is_told,
            "kill_at": self.kill_at,
        }

    @property
    def is_running(self) -> bool:
        """Tell whether its process lives."""
        return self.pid != 0

    @property
    def is_gone(self) -> bool:
        """Tell whether it ran and ended."""
        return self.exit_code is not None

    def start_if_due(self) -> None:
        """Start it unless it ran before, there is none, or the sidecar is not ready for it."""
        settings = self.holdings.settings.app
        if settings is None or self.pid or self.is_gone or not self.holdings.is_meshed:
            return
        addresses = {one.name: one.address for one in self.holdings.listeners}
        signals.block()
        try:
            pid = os.fork()
        except OSError as error:
            signals.unblock()
            fail(f"{settings.command[0]} cannot be started: {error.strerror}")
            self.exit_code = NOT_EXECUTABLE
            return
        if pid == 0:
            _become(settings, addresses)
        signals.unblock()
        self.pid = pid
        say(f"started {settings.command[0]} (pid {pid})")

    def stop(self, now: float, deadline_s: float) -> None:
        """Send SIGTERM to its group, once; SIGKILL follows after *deadline_s*."""
        if self.pid and not self.is_told:
            self.is_told = True
            self.kill_at = now + deadline_s
            self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to its group."""
        if self.pid:
            self._signal(signal.SIGKILL)

    def kill_overdue(self, now: float) -> None:
        """Kill it if its time to stop is over."""
        if self.pid and self.kill_at is not None and now >= self.kill_at:
            warn(f"the application (pid {self.pid}) is not gone in time and is killed")
            self.kill_at = None
            self.kill()

    def on_exit(self, pid: int, status: int) -> bool:
        """Account for a reaped process; False when it is not the application."""
        if pid != self.pid:
            return False
        self.pid = 0
        code = os.waitstatus_to_exitcode(status)
        self.exit_code = code if code >= 0 else KILLED_BASE - code
        say(f"the application (pid {pid}) ended: {describe_status(status)}")
        return True

    def _signal(self, number: signal.Signals) -> None:
        """Signal the group: what the application started in it ends with it."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:  # it has not become its group's leader yet
            os.kill(self.pid, number)


def _become(settings: AppSettings, addresses: dict[str, str]) -> NoReturn:
    """Turn this forked child into the application."""
    code = NOT_EXECUTABLE
    name = settings.command[0]
    try:
        os.setpgid(0, 0)
        signals.dispositions_of_an_application()
        _die_with_the_supervisor()
        os.execvpe(name, settings.command, _environment(settings, addresses))
    except FileNotFoundError:
        code = NOT_FOUND
        fail(f"{name}: command not found")
    except OSError as error:
        fail(f"{name}: cannot be executed: {error.strerror}")
    finally:
        os._exit(code)


def _environment(settings: AppSettings, addresses: dict[str, str]) -> dict[str, str]:
    environment = dict(os.environ)
    for name, value in settings.env.items():
        for socket_name, address in addresses.items():
            value = value.replace("{" + socket_name + "}", address)
        environment[name] = value
    return environment


def _die_with_the_supervisor() -> None:
    """Ask the kernel for SIGTERM when the supervisor dies; it may have died already."""
    import ctypes  # only here, in a process that is about to be another program

    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
