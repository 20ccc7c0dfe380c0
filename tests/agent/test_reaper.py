"""The reaper with a loop that is stepped by hand, real processes and the real shared memory."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from meshfast.agent.reaper import Reaper


class SteppedLoop:
    """Keeps what is to be called."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        assert seconds > 0
        self.calls.append(call)

    def step(self) -> None:
        self.calls.pop(0)()


class Lines:
    """A source with these workers."""

    def __init__(self, *workers: tuple[int, int, str]) -> None:
        self.lines = [
            SimpleNamespace(slot=slot, pid=pid, state=state) for slot, pid, state in workers
        ]
        self.reaped: list[tuple[int, int]] = []

    def workers(self) -> list[Any]:
        return self.lines

    def reap(self, slot: int, pid: int) -> bool:
        self.reaped.append((slot, pid))
        return True


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_line_is_reset_when_its_process_is_gone_twice_in_a_row() -> None:
    gone = dead_pid()
    source = Lines((0, os.getpid(), "serving"), (1, gone, "draining"), (2, gone, "gone"))
    loop = SteppedLoop()
    Reaper(loop, source)  # type: ignore[arg-type]
    assert source.reaped == [], "a successor may be starting"
    loop.step()
    assert source.reaped == [(1, gone)]


def test_a_successor_in_time_keeps_its_line() -> None:
    source = Lines((0, dead_pid(), "serving"))
    loop = SteppedLoop()
    Reaper(loop, source)  # type: ignore[arg-type]
    source.lines[0].pid = os.getpid()
    loop.step()
    loop.step()
    assert source.reaped == []
