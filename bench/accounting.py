"""What the kernel says processes have cost: run time by task, busy time by core, memory by process.

Run time is the scheduler's nanoseconds (`/proc/<pid>/task/<tid>/schedstat`, first field), which on
kernels without CONFIG_IRQ_TIME_ACCOUNTING includes the receive path that a sender on loopback runs
for its peer; `machine` records whether that holds. Tick-sampled figures (utime, stime) are not used
for results: at 250 Hz one second is 250 samples.

It does not decide anything, and it does not start or stop processes.

Invariants:
1. Every reader survives a process or task that ends while it is being read.
2. A task that ended between two readings takes its time with it: `spent` names it in `lost`
   instead of reporting a figure that is too small.

Tests: bench/tests/test_accounting.py.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

# A pagemap entry is 64 bits (Documentation/admin-guide/mm/pagemap.rst).
PAGEMAP_ENTRY_BYTES = 8
PAGE_PRESENT = 1 << 63
PAGE_OF_FILE = 1 << 61  # file or shared memory; clear for a private copy, which is anonymous
CPUACCT_PER_CORE = Path("/sys/fs/cgroup/cpuacct/cpuacct.usage_percpu")
NS_PER_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")

# Positions in /proc/<pid>/stat counted behind the command's closing parenthesis (proc(5) minus 3).
STAT_STATE = 0
STAT_PARENT = 1
STAT_SESSION = 3
STAT_START_TIME = 19
ENDED = ("Z", "X")

# Positions in a cpuN line of /proc/stat.
BUSY_FIELDS = (1, 2, 3, 6, 7)  # user, nice, system, irq, softirq; guest is part of user
STEAL_FIELD = 8


@dataclass(frozen=True)
class Task:
    """One thread of a measured process."""

    pid: int
    tid: int


@dataclass(frozen=True)
class Spent:
    """Run time between two readings: nanoseconds by process, and the tasks that ended meanwhile."""

    by_pid: Mapping[int, int]
    lost: tuple[Task, ...]

    @property
    def total_ns(self) -> int:
        """Sum over all processes."""
        return sum(self.by_pid.values())


@dataclass(frozen=True)
class CoreTime:
    """One reading of a core: nanoseconds spent in any task, and stolen by the hypervisor."""

    busy_ns: int
    steal_ns: int


def read_text(path: Path) -> str | None:
    """Read a file of /proc; None when the process is gone or not ours to read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        return None


def stat_fields(pid: int) -> list[str] | None:
    """Split /proc/<pid>/stat behind the command, which may hold spaces and parentheses."""
    text = read_text(PROC / str(pid) / "stat")
    return None if text is None else text.rpartition(")")[2].split()


def start_time(pid: int) -> str | None:
    """Return what tells a process from a later one of the same pid; None when it is gone."""
    fields = stat_fields(pid)
    return None if fields is None else fields[STAT_START_TIME]


def process_ids() -> list[int]:
    """List every process of this machine."""
    return [int(entry) for entry in os.listdir(PROC) if entry.isdigit()]


def members(root: int) -> list[int]:
    """List root, its descendants, and whoever else is in the session that root leads.

    The session finds processes whose parent died; descent finds those that left the session. One
    that has ended and was not waited for yet is no member.
    """
    parents: dict[int, int] = {}
    sessions: dict[int, int] = {}
    for pid in process_ids():
        fields = stat_fields(pid)
        if fields is not None and fields[STAT_STATE] not in ENDED:
            parents[pid] = int(fields[STAT_PARENT])
            sessions[pid] = int(fields[STAT_SESSION])
    found = {pid for pid in parents if pid == root or sessions[pid] == root}
    while True:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        if not more:
            return sorted(found)
        found |= more


def run_time(pids: Iterable[int]) -> dict[Task, int]:
    """Read the run time of every task of the given processes, in nanoseconds."""
    reading: dict[Task, int] = {}
    for pid in pids:
        try:
            tids = os.listdir(PROC / str(pid) / "task")
        except (FileNotFoundError, ProcessLookupError):
            continue
        for tid in tids:
            text = read_text(PROC / str(pid) / "task" / tid / "schedstat")
            if text:
                reading[Task(pid, int(tid))] = int(text.split()[0])
    return reading


def spent(before: Mapping[Task, int], after: Mapping[Task, int]) -> Spent:
    """Subtract two readings; a task that is new in the second began within the window."""
    by_pid: dict[int, int] = {}
    for task, ns in after.items():
        by_pid[task.pid] = by_pid.get(task.pid, 0) + ns - before.get(task, 0)
    return Spent(by_pid, tuple(task for task in before if task not in after))


def core_times() -> list[CoreTime]:
    """Read every core. Busy time is exact where cgroup v1 cpuacct is mounted, else in ticks."""
    lines = [
        line.split() for line in (PROC / "stat").read_text().splitlines() if line.startswith("cpu")
    ][1:]
    steal = [int(fields[STEAL_FIELD]) * NS_PER_TICK for fields in lines]
    per_core = read_text(CPUACCT_PER_CORE)
    if per_core is not None:
        busy = [int(ns) for ns in per_core.split()]
    else:
        busy = [sum(int(fields[i]) for i in BUSY_FIELDS) * NS_PER_TICK for fields in lines]
    return [CoreTime(b, s) for b, s in zip(busy, steal, strict=True)]


def name(pid: int) -> str:
    """Return the short name of a process ("?" when it is gone)."""
    return (read_text(PROC / str(pid) / "comm") or "?").strip()


def pss_bytes(pid: int) -> int | None:
    """Read the proportional set size of a process; None when it is gone."""
    return rollup_bytes(pid, "Pss")


def alone_bytes(pids: Iterable[int]) -> int:
    """Size of a process tree as if it were alone on the machine.

    Each page counts once, whoever shares it: PSS charges only a part of a page that strangers map
    too, and so flatters a program whose interpreter or libraries are also in use elsewhere.
    Anonymous pages are shared within the tree at most (after fork), so their PSS is exact.
    """
    anonymous = 0
    of_files: set[FilePage] = set()
    for pid in pids:
        anonymous += rollup_bytes(pid, "Pss_Anon") or 0
        of_files |= file_pages(pid)
    return anonymous + PAGE_BYTES * len(of_files)


def rollup_bytes(pid: int, key: str) -> int | None:
    """Read one sum of /proc/<pid>/smaps_rollup; None when the process is gone."""
    for line in (read_text(PROC / str(pid) / "smaps_rollup") or "").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return None


FilePage = tuple[str, str, int]  # device, inode, page of the file


def file_pages(pid: int) -> set[FilePage]:
    """List the pages of files and shared memory that a process has mapped and present."""
    found: set[FilePage] = set()
    maps = (read_text(PROC / str(pid) / "maps") or "").splitlines()
    try:
        pagemap = (PROC / str(pid) / "pagemap").open("rb", buffering=0)
    except (FileNotFoundError, ProcessLookupError):
        return found
    with pagemap:
        for line in maps:
            span, _, offset, device, inode, *_ = line.split()
            if inode == "0":
                continue
            start, end = (int(address, 16) // PAGE_BYTES for address in span.split("-"))
            pagemap.seek(start * PAGEMAP_ENTRY_BYTES)
            entries = pagemap.read((end - start) * PAGEMAP_ENTRY_BYTES)
            first = int(offset, 16) // PAGE_BYTES
            found |= {
                (device, inode, first + i)
                for i, (entry,) in enumerate(struct.iter_unpack("=Q", entries))
                if entry & PAGE_PRESENT and entry & PAGE_OF_FILE
            }
    return found
