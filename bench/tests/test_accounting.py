"""Behaviour of bench.accounting on processes whose cost is known."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bench import accounting
from bench.accounting import Task
from bench.processes import stop, wait_until

BURN = """
import sys, time
print("ready", flush=True); sys.stdin.readline()
end = time.process_time() + {seconds}
while time.process_time() < end: pass
print("done", flush=True); sys.stdin.readline()
"""

FORK = """
import os, sys, time
block = b"x" * {bytes}
os.fork()
time.sleep(600)
"""


@contextmanager
def child(source: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run Python in a session of its own; stop it at the end."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", source],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            stop(process)


def tell(process: subprocess.Popen[bytes], awaited: bytes) -> None:
    """Let the child go on, and wait for its word."""
    assert process.stdin is not None
    process.stdin.write(b"\n")
    hear(process, awaited)


def hear(process: subprocess.Popen[bytes], awaited: bytes) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().strip() == awaited


def test_run_time_is_what_a_process_burnt() -> None:
    with child(BURN.format(seconds=0.3)) as process:
        hear(process, b"ready")
        before = accounting.run_time([process.pid])
        tell(process, b"done")
        spent = accounting.spent(before, accounting.run_time([process.pid]))
    assert spent.lost == ()
    assert spent.total_ns == pytest.approx(0.3e9, rel=0.05)
    assert list(spent.by_pid) == [process.pid]


def test_a_core_was_at_least_as_busy_as_the_process_pinned_to_it() -> None:
    core = max(os.sched_getaffinity(0))
    with child(BURN.format(seconds=0.3)) as process:
        os.sched_setaffinity(process.pid, {core})
        hear(process, b"ready")
        before = accounting.core_times()[core]
        tell(process, b"done")
        after = accounting.core_times()[core]
    # Read in ticks where cpuacct is not mounted: ten of them, 4 ms each, are allowed to be missing.
    assert after.busy_ns - before.busy_ns > 0.26e9
    assert after.steal_ns >= before.steal_ns


def test_members_are_root_descendants_and_orphans_of_the_session() -> None:
    orphan = "import os, time\nif os.fork() == 0:\n  os.fork(); time.sleep(600)\ntime.sleep(600)"
    with child(orphan) as process:
        wait_until("three processes", 10, lambda: len(accounting.members(process.pid)) == 3)
        tree = accounting.members(process.pid)
        assert process.pid in tree
        process.kill()
        process.wait()
        left = accounting.members(process.pid)
        assert left == [pid for pid in tree if pid != process.pid]


def test_a_task_that_ended_is_named_instead_of_forgotten() -> None:
    spent = accounting.spent({Task(1, 1): 100, Task(1, 2): 50}, {Task(1, 1): 130})
    assert spent.lost == (Task(1, 2),)


def test_a_task_that_began_in_the_window_counts_from_nothing() -> None:
    spent = accounting.spent({Task(1, 1): 100}, {Task(1, 1): 130, Task(9, 9): 5})
    assert spent.by_pid == {1: 30, 9: 5}
    assert spent.total_ns == 35


def test_readers_survive_a_process_that_is_gone() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert accounting.run_time([gone.pid]) == {}
    assert accounting.pss_bytes(gone.pid) is None
    assert accounting.start_time(gone.pid) is None
    assert accounting.alone_bytes([gone.pid]) == 0
    assert accounting.name(gone.pid) == "?"


def test_memory_shared_after_a_fork_counts_once() -> None:
    block = 32 * 2**20
    with child(FORK.format(bytes=block)) as process:
        wait_until("two processes", 10, lambda: len(accounting.members(process.pid)) == 2)
        tree = accounting.members(process.pid)
        sizes = [accounting.pss_bytes(pid) or 0 for pid in tree]
        alone = accounting.alone_bytes(tree)
    assert all(size > block / 2 for size in sizes)
    assert block < sum(sizes) < 1.5 * block
    assert sum(sizes) <= alone < 1.5 * block


def test_pages_shared_with_strangers_count_in_full_when_alone() -> None:
    with child("import time; time.sleep(600)") as process:
        # The test runs on the same interpreter, so its file pages have a second user.
        wait_until("interpreter mapped", 10, lambda: bool(accounting.file_pages(process.pid)))
        pss = accounting.pss_bytes(process.pid)
        assert pss is not None
        assert accounting.alone_bytes([process.pid]) > pss
