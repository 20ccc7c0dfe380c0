"""Memory and CPU by role: read seldom, never backwards."""

import os
import subprocess
import sys
import time
from pathlib import Path

from meshfast.telemetry.processes import REFRESH_S, Processes
from tests.agent.harness import wait_for

SPIN = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ntime.sleep(60)"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_memory_is_told_by_role_and_read_every_ten_seconds_at_most() -> None:
    clock = Clock()
    processes = Processes(os.getppid(), os.getpid(), clock)
    first = processes.read({os.getpid()})
    assert first.pss_bytes["agent"] > 1_000_000
    assert set(first.pss_bytes) == {"agent", "supervisor", "worker"}
    clock.now += REFRESH_S - 0.1
    assert processes.read({os.getpid()}) is first
    clock.now += 0.2
    assert processes.read({os.getpid()}) is not first


def test_cpu_time_does_not_go_backwards_when_a_worker_dies() -> None:
    clock = Clock()
    processes = Processes(os.getppid(), os.getpid(), clock)
    with subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        before = processes.read({worker.pid}).cpu_s
        assert before >= 0.3
        worker.kill()
    clock.now += REFRESH_S
    assert processes.read(set()).cpu_s >= before


def test_a_process_that_cannot_be_read_counts_nothing() -> None:
    usage = Processes(0, 0, Clock()).read({2**22 + 1})
    assert (usage.pss_bytes, usage.cpu_s) == ({"agent": 0, "supervisor": 0, "worker": 0}, 0.0)


def test_the_start_is_the_supervisors(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", SPIN], stdout=subprocess.DEVNULL) as supervisor:
        started = wait_for(lambda: Processes(supervisor.pid, 0).read(set()).started_s)
        supervisor.kill()
    assert abs(time.time() - started) < 5
