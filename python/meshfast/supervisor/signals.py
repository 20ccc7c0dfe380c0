"""Signals as bytes in a pipe: they arrive between two turns of the loop and never inside one.

The Python handlers do nothing; the interpreter writes the number of each signal to the pipe
(`signal.set_wakeup_fd`) and the loop reads it. Between a fork and the child's own dispositions all
signals are blocked, because until then the child would write into the supervisor's pipe.

Tests: tests/supervisor/test_signals.py.
"""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

__all__ = [
    "block",
    "dispositions_of_a_child",
    "dispositions_of_an_application",
    "install",
    "take",
    "unblock",
]

HANDLED = (
    signal.SIGCHLD,
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
# Commands to the mesh go to the supervisor, which tells the children through their channels. A
# service manager that signals the whole control group (systemd's KillMode=control-group) must not
# cut off the requests that are about to be drained, so a child leaves these alone.
SUPERVISORS_OWN = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
TAKEN_BYTES_MAX = 4096


def install() -> int:
    """Route the handled signals into a new pipe and return its reading end."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in HANDLED:
        signal.signal(number, _noted)
    return reading


def take(reading: int) -> list[int]:
    """Return the numbers of the signals that arrived, oldest first."""
    try:
        return list(os.read(reading, TAKEN_BYTES_MAX))
    except BlockingIOError:
        return []


def block() -> None:
    """Hold back every signal; they stay pending, also across `exec`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def unblock() -> None:
    """Let signals through."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())


def dispositions_of_a_child() -> None:
    """Give a fresh child its own dispositions; called with signals blocked, unblocks them.

    SIGPIPE stays ignored, as the interpreter and Rust both want it.
    """
    signal.set_wakeup_fd(-1)
    for number in HANDLED:
        signal.signal(number, signal.SIG_DFL)
    for number in SUPERVISORS_OWN:
        signal.signal(number, signal.SIG_IGN)
    unblock()


def dispositions_of_an_application() -> None:
    """Give a child that becomes another program the defaults; unblocks all signals.

    What is ignored stays so across `exec`: SIGPIPE and SIGXFSZ by the interpreter, SIGINT and
    SIGQUIT by a shell that starts a job in the background, SIGHUP by nohup. None of it is meant for
    a program that is started later and told to stop by a signal, so all is reset, as systemd does.
    nohup keeps its meaning: a terminal that hangs up signals its session's leader and foreground
    group, and the application is in neither; the supervisor takes SIGHUP as a command.
    """
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    unblock()


def _noted(_number: int, _frame: FrameType | None) -> None:
    """Exist: a signal that is ignored or default never reaches the pipe."""
