"""Memory and CPU time of the sidecar's processes, read from /proc.

Reading PSS walks page tables, milliseconds for each process: whatever the number of scrapes, it is
done every 10 s at most. A process that cannot be read (gone, or of another user) is left out.

Invariant: `cpu_s` never goes backwards; the time of a process that ended stays in the sum.

Tests: tests/agent/test_processes.py.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["REFRESH_S", "Processes", "Usage"]

REFRESH_S = 10.0

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Usage:
    """One reading: PSS in bytes by role, CPU seconds of all, start time (seconds since 1970)."""

    __slots__ = ("cpu_s", "pss_bytes", "started_s")

    def __init__(self, pss_bytes: dict[str, int], cpu_s: float, started_s: float) -> None:
        """Keep the three."""
        self.pss_bytes = pss_bytes
        self.cpu_s = cpu_s
        self.started_s = started_s


class Processes:
    """The supervisor, its workers and the agent; one instance for the agent's life."""

    def __init__(
        self, supervisor: int, agent: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Name the processes that stay; the workers are told at every reading."""
        self._supervisor = supervisor
        self._agent = agent
        self._clock = clock
        self._running: dict[tuple[int, bytes], int] = {}  # (pid, start) -> ticks of CPU
        self._ended_ticks = 0
        self._read_at = -REFRESH_S
        self._usage = Usage({}, 0.0, _started_s(supervisor))

    def read(self, workers: set[int]) -> Usage:
        """Return the usage, at most `REFRESH_S` old."""
        now = self._clock()
        if now - self._read_at < REFRESH_S:
            return self._usage
        self._read_at = now
        roles = {"agent": [self._agent], "supervisor": [self._supervisor], "worker": [*workers]}
        pss = {role: sum(map(_pss_bytes, pids)) for role, pids in roles.items()}
        cpu_s = self._cpu_ticks({self._agent, self._supervisor, *workers}) / _TICKS_PER_S
        self._usage = Usage(pss, cpu_s, self._usage.started_s)
        return self._usage

    def _cpu_ticks(self, pids: set[int]) -> int:
        running = {}
        for pid in pids:
            fields = _stat(pid)
            if fields:
                # proc(5): fields 14 and 15 are utime and stime; 22 is the start, which tells a
                # process from a later one with the same id.
                running[pid, fields[19]] = int(fields[11]) + int(fields[12])
        for process, ticks in self._running.items():
            if process not in running:
                self._ended_ticks += ticks
        self._running = running
        return self._ended_ticks + sum(running.values())


def _pss_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def _stat(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat from the third on; the second may hold spaces and brackets."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return []


def _started_s(pid: int) -> float:
    fields = _stat(pid)
    if not fields:
        return 0.0
    since_boot = int(fields[19]) / _TICKS_PER_S
    return round(time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot, 2)
