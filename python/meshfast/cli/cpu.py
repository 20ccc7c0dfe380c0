"""How many CPUs this process may use: its affinity, cut by the CPU quota of its control groups.

`os.cpu_count()` names the machine's CPUs; in a container with a quota of one CPU, as many workers
would only take turns. A quota of 1.5 CPUs counts as 2, as in Istio.

Tests: tests/core/test_cpu.py, with trees of files in the place of `/`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["cpus"]


def cpus(root: Path = Path("/")) -> int:
    """Count the CPUs, at least 1; `root` is where `proc` and `sys` are mounted."""
    allowed = float(len(os.sched_getaffinity(0)))
    return max(1, math.ceil(min([allowed, *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """Give the quota, in CPUs, of each control group around this process that has one."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            for group in _ancestors(root / "sys/fs/cgroup", path):
                yield from _ratio(*_read(group / "cpu.max").split()[:2])
        elif "cpu" in controllers.split(","):
            for group in _ancestors(root / "sys/fs/cgroup" / controllers, path):
                quota = _read(group / "cpu.cfs_quota_us")
                yield from _ratio(quota, _read(group / "cpu.cfs_period_us"))


def _ancestors(mount: Path, path: str) -> Iterator[Path]:
    """Give the group and every group around it; a container often sees its own as the root."""
    group = mount / path.strip("/")
    while group != mount:
        yield group
        group = group.parent
    yield mount


def _ratio(quota: str = "", period: str = "") -> Iterator[float]:
    """Give quota / period; nothing for `max`, -1 and files that are not there."""
    try:
        microseconds, per = int(quota), int(period)
    except ValueError:
        return
    if microseconds > 0 and per > 0:
        yield microseconds / per


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
