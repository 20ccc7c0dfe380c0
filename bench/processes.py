"""Processes of the measurement: started pinned to a core, ready before use, gone afterwards.

A `Running` leads its own session, so a terminal's Ctrl-C reaches the bench alone, which then stops
what it started. Nothing is ever stopped by name: only process ids that belong to a `Running`,
checked against their start time so that a reused id is never hit.

Invariants:
1. When `running` is left, by whatever exit, no process of it is left and its directory is removed;
   a signal that comes in the middle of a start or a stop waits for its end.
2. `running` yields only after a good response came through, or raises HarnessError with the output.

Tests: bench/tests/test_processes.py.
"""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from bench import accounting

READY_S = 30.0
STOP_S = 10.0
POLL_S = 0.01
OUTPUT_BYTES_MAX = 4000


class HarnessError(Exception):
    """The measurement itself failed; no figure may be drawn from it."""


class WrongResponseError(HarnessError):
    """A candidate answered something else than the origin does."""


@dataclass(frozen=True)
class Running:
    """A started process tree. command is what was executed, pinning included."""

    name: str
    pid: int
    port: int
    command: tuple[str, ...]
    directory: Path

    def members(self) -> list[int]:
        """List the processes of this tree."""
        return accounting.members(self.pid)


def free_port() -> int:
    """Reserve nothing, but find a port that is free now on 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fetch(port: int, path: str = "/", timeout_s: float = 5.0) -> tuple[int, bytes]:
    """GET a path from 127.0.0.1:port; return status and body. Raises OSError or HTTPException."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def accepts(port: int) -> bool:
    """Tell whether 127.0.0.1:port accepts a connection."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(what: str, seconds: float, condition: Callable[[], bool]) -> None:
    """Poll a condition. Raises HarnessError naming `what` when the deadline passes."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise HarnessError(f"{what}: not within {seconds:g} s")
        time.sleep(POLL_S)


@contextmanager
def running(
    name: str,
    arguments: Callable[[Path], Sequence[str]],
    *,
    port: int,
    core: int,
    expected_body: bytes | None,
    ready_s: float = READY_S,
) -> Iterator[Running]:
    """Start a process pinned to a core, wait for the right body at port, stop it at the end.

    arguments: given the process's own directory, returns the command (it may write files there).
    expected_body: None where no plain client can ask; then an accepted connection is enough.
    Raises HarnessError when it exits or does not answer rightly in time.
    """
    directory: Path | None = None
    process: subprocess.Popen[bytes] | None = None
    try:
        with signals_deferred():
            directory = Path(tempfile.mkdtemp(prefix=f"bench-{name}-"))
            command = ("taskset", "--cpu-list", str(core), *arguments(directory))
            with (directory / "output").open("wb") as output:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment(directory),
                    start_new_session=True,
                )
        started = Running(name, process.pid, port, command, directory)
        await_good_response(started, process, expected_body, ready_s)
        yield started
    finally:
        with signals_deferred():
            if process is not None:
                stop(process)
            if directory is not None:
                shutil.rmtree(directory, ignore_errors=True)


class Signals:
    """Whether a signal may end the program now, and the one that has to wait until it may."""

    deferred = 0
    waiting: int | None = None


def end_on_signals() -> None:
    """Make SIGINT and SIGTERM an exit (128 + number) that unwinds and stops what was started."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)


def leave(number: int, _frame: FrameType | None) -> None:
    """Exit now, or when the last `signals_deferred` is left."""
    if Signals.deferred:
        Signals.waiting = number
    else:
        raise SystemExit(128 + number)


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Hold signals back while a process is started or stopped.

    The signal mask is left alone: a started process would inherit it.
    """
    Signals.deferred += 1
    try:
        yield
    finally:
        Signals.deferred -= 1
    if Signals.waiting is not None and not Signals.deferred:
        number, Signals.waiting = Signals.waiting, None
        raise SystemExit(128 + number)


def environment(directory: Path) -> dict[str, str]:
    """Make an environment that sets nothing by accident (MESHFAST_*), with places of its own.

    Two instances of one candidate must not meet in a runtime directory.
    """
    kept = {name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ}
    return {**kept, "LANG": "C.UTF-8", "TMPDIR": str(directory), "XDG_RUNTIME_DIR": str(directory)}


def await_good_response(
    started: Running, process: subprocess.Popen[bytes], expected_body: bytes | None, ready_s: float
) -> None:
    """Wait for 200 and the body, or for an accept. Raises HarnessError with the output's end."""
    last = "no answer yet"

    def good() -> bool:
        nonlocal last
        if process.poll() is not None:
            raise HarnessError(
                f"{started.name} exited with {process.returncode} before it answered; "
                f"its output:\n{output_end(started)}"
            )
        if expected_body is None:
            return accepts(started.port)
        try:
            status, body = fetch(started.port)
        except (OSError, http.client.HTTPException) as error:
            last = repr(error)
            return False
        last = f"status {status}, {len(body)} bytes"
        return status == 200 and body == expected_body

    try:
        wait_until(f"{started.name} ready", ready_s, good)
    except HarnessError as error:
        if process.poll() is not None:
            raise
        raise HarnessError(f"{error}; last: {last}; output:\n{output_end(started)}") from None


def output_end(started: Running) -> str:
    """Return the last part of what the process printed."""
    return (started.directory / "output").read_bytes()[-OUTPUT_BYTES_MAX:].decode(errors="replace")


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the root, wait for it, SIGKILL to whatever of the tree is left, wait again.

    A root that exits before its children has left them behind; they get no second term.
    """
    tree = {pid: accounting.start_time(pid) for pid in accounting.members(process.pid)}

    def alive() -> list[int]:
        tree.update(
            (pid, accounting.start_time(pid))
            for pid in accounting.members(process.pid)
            if pid not in tree
        )
        process.poll()
        return [pid for pid, started in tree.items() if still_runs(pid, started)]

    send(process.pid, signal.SIGTERM, tree)
    deadline = time.monotonic() + STOP_S
    while process.pid in alive() and time.monotonic() < deadline:
        time.sleep(POLL_S)
    for pid in alive():
        send(pid, signal.SIGKILL, tree)
    wait_until(f"process tree {process.pid} gone after SIGKILL", STOP_S, lambda: not alive())
    process.wait()


def still_runs(pid: int, started: str | None) -> bool:
    """Tell whether this very process exists and is more than a zombie."""
    fields = accounting.stat_fields(pid)
    return (
        fields is not None
        and fields[accounting.STAT_START_TIME] == started
        and fields[accounting.STAT_STATE] not in accounting.ENDED
    )


def send(pid: int, number: signal.Signals, tree: Mapping[int, str | None]) -> None:
    """Signal a process of the tree unless it is gone or its id belongs to another one now."""
    if still_runs(pid, tree.get(pid)):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
