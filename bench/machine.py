"""The facts of a machine and a tree that a figure is worth nothing without.

Tests: bench/tests/test_report.py.
"""

from __future__ import annotations

import datetime
import gzip
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.candidates import BENCH, Candidate, render

VERSION_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Machine:
    """Where and on what a measurement was made."""

    date: str
    commit: str
    kernel: str
    processor: str
    cores: int
    memory_mib: int
    irq_time_in_tasks: str


def machine_facts() -> Machine:
    """Collect the facts; what cannot be known is "unknown"."""
    return Machine(
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        commit=commit(),
        kernel=f"{platform.system()} {platform.release()} {platform.machine()}",
        processor=processor(),
        cores=os.cpu_count() or 0,
        memory_mib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20,
        irq_time_in_tasks=irq_time_in_tasks(),
    )


def output_of(command: Sequence[str], *, any_exit: bool = False) -> str:
    """Run a short command; its output, or "" when it cannot run or (unless any_exit) fails."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=VERSION_TIMEOUT_S,
            check=not any_exit,
            cwd=BENCH.parent,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def commit() -> str:
    """Name the commit, with "+ changes" when tracked files differ from it."""
    head = output_of(("git", "rev-parse", "--short=12", "HEAD")).strip()
    if not head:
        return "unknown"
    changed = output_of(("git", "status", "--porcelain", "--untracked-files=no")).strip()
    return f"{head} + changes" if changed else head


def processor() -> str:
    """Name the processor's model."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def irq_time_in_tasks() -> str:
    """Tell whether a sender's run time holds the receive path it runs for its peer on loopback.

    With CONFIG_IRQ_TIME_ACCOUNTING the kernel takes soft interrupts out of task time, and every
    figure of this bench would lack most of TCP input.
    """
    try:
        config = gzip.decompress(Path("/proc/config.gz").read_bytes()).decode()
    except OSError:
        return "unknown"
    return "no" if "CONFIG_IRQ_TIME_ACCOUNTING=y" in config else "yes"


def version_of(candidate: Candidate, binary: str) -> str:
    """Return the line in which a program states its version."""
    command = [render(part, {"binary": binary}) for part in candidate.version]
    lines = [line.strip() for line in output_of(command).splitlines() if line.strip()]
    return lines[0].removeprefix(binary).strip() if lines else "unknown"
