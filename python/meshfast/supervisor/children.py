"""Children: forking one, what a child is, how it becomes itself.

A child is a pid, a control channel and a phase. `fork` returns in the supervisor only: the child
gets its own process group and dispositions, closes every descriptor that is not in its settings,
imports its room by dotted name and runs `main(settings)` until it exits.

Invariants
1. Between `fork` and its own dispositions a child has all signals blocked.
2. A child never returns into the supervisor's loop: whatever happens ends in `os._exit`.
3. A child holds no descriptor of the supervisor: neither the lock nor another child's channel.

No PR_SET_PDEATHSIG for workers and agent: after the supervisor's death workers finish what they
have (docs/deaths.md). Tests: tests/supervisor/test_children.py.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys

from meshfast.supervisor import channel, signals
from meshfast.supervisor.report import fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

__all__ = ["BOOTING", "BOOT_FAILURE", "DRAINING", "SERVING", "Child", "describe_status", "fork"]

BOOTING = "booting"
SERVING = "serving"
DRAINING = "draining"

# EX_CONFIG of sysexits.h: the child cannot start and a next one could not either.
BOOT_FAILURE = 78
# An uncaught exception in a child's `main`; any code but 0 and BOOT_FAILURE is a crash.
CRASH = 70

# Less than any core file, and the one limit that also holds where cores go to a program
# (`|` in core_pattern): there the kernel ignores 0 and takes 1 for "none" (fs/coredump.c).
CORE_BYTES = 1

OOM_SCORE_STEP = 100
OOM_SCORE_MAX = 1000


class Child:
    """A running worker or agent.

    `slot` is the worker's slot, -1 for the agent. `applied` is the snapshot it serves from or was
    given at birth, `identity` the serial of its identity likewise. `kill_at` is the monotonic
    second at which it is killed if it still lives, None if it may live on. `image` is the
    supervisor's image that forked it. `quiet`: it has no inbound exchange and takes none.
    """

    __slots__ = ("applied", "fd", "identity", "image", "kill_at", "phase", "pid", "quiet", "slot")

    def __init__(
        self,
        slot: int,
        pid: int,
        fd: int,
        image: int,
        applied: int,
        kill_at: float | None,
        phase: str = BOOTING,
        identity: int = 0,
        quiet: bool = False,
    ) -> None:
        """Keep the fields; `fd` is the supervisor's end of the control channel, -1 when closed."""
        self.slot = slot
        self.pid = pid
        self.fd = fd
        self.image = image
        self.applied = applied
        self.kill_at = kill_at
        self.phase = phase
        self.identity = identity
        self.quiet = quiet

    @property
    def name(self) -> str:
        """Return how operators are told of it."""
        return "agent" if self.slot < 0 else f"worker {self.slot}"

    def send(self, message: dict[str, Any], fds: tuple[int, ...] = ()) -> None:
        """Send a message; a child that does not read its channel is stuck and is killed."""
        if self.fd >= 0 and not channel.Channel(self.fd).send(message, fds):
            self.kill()

    def kill(self) -> None:
        """Send SIGKILL; the pid is not reaped yet, so it is still this child's."""
        os.kill(self.pid, signal.SIGKILL)

    def to_document(self) -> dict[str, Any]:
        """Return the fields as JSON data; the constructor takes them back."""
        return {name: getattr(self, name) for name in self.__slots__}


def fork(
    module: str,
    module_path: list[str],
    settings_for: Callable[[int], dict[str, Any]],
) -> tuple[int, int]:
    """Fork a child and return its pid and the supervisor's end of its channel.

    *settings_for* makes the settings document for a control descriptor. Raises `OSError` when the
    system gives no process or descriptor.
    """
    ours, theirs = channel.pair()
    settings = settings_for(theirs)
    # What exists now is shared by all children; the collector must not touch (and copy) it.
    gc.freeze()
    signals.block()
    try:
        pid = os.fork()
    except OSError:
        os.close(ours)
        os.close(theirs)
        signals.unblock()
        raise
    if pid == 0:
        _be_a_child(module, module_path, settings)
    signals.unblock()
    os.close(theirs)
    return pid, ours


def describe_status(status: int) -> str:
    """Return a wait status in words."""
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def _be_a_child(module: str, module_path: list[str], settings: dict[str, Any]) -> NoReturn:
    code = BOOT_FAILURE
    try:
        os.setpgid(0, 0)
        signals.dispositions_of_a_child()
        _close_all_but({0, 1, 2, *_fds_named_by(settings)})
        _limit_the_damage()
        sys.path[:0] = module_path
        main = importlib.import_module(module).main
        code = CRASH
        main(json.dumps(settings).encode())
    except BaseException as error:
        fail(f"{module}: {type(error).__name__}: {error}")
        if code == CRASH:
            sys.excepthook(type(error), error, error.__traceback__)
    finally:
        os._exit(code)


def _fds_named_by(settings: dict[str, Any]) -> list[int]:
    """Return what a settings document names: every `…_fd`, and `fd` in the entries of its lists."""
    fds = [value for name, value in settings.items() if name.endswith("_fd") and value is not None]
    for value in settings.values():
        if type(value) is list:
            fds += [entry["fd"] for entry in value if "fd" in entry]
    return fds


def _close_all_but(kept: set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            try:
                os.close(int(name))
            except OSError:  # the descriptor of the listing itself
                continue


def _limit_the_damage() -> None:
    """No core files, which would hold keys; and let the kernel's OOM killer choose a child first.

    A child is replaced in milliseconds, the supervisor is not.
    """
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    wanted = CORE_BYTES if hard == resource.RLIM_INFINITY else min(CORE_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_CORE, (wanted, hard))
    try:
        with open("/proc/self/oom_score_adj", "r+") as score:
            wanted = min(int(score.read()) + OOM_SCORE_STEP, OOM_SCORE_MAX)
            score.seek(0)
            score.write(str(wanted))
    except OSError:
        return
