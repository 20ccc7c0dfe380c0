"""The demo as a user runs it: the installed command, on a pipe and on a terminal, to any end."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meshfast.cli.demo.policy import CANARY
from meshfast.cli.demo.stage import descendants, wait_until
from meshfast.cli.demo.story import ACTS, APPLIES, RATE

MESHFAST = Path(sys.executable).with_name("meshfast")
SECONDS = 5
DEADLINE_S = 100
#: The sweeper, a control plane, and five supervisors with two workers, an agent and an application.
PROCESSES = 1 + 1 + 5 * (1 + 2 + 1 + 1)
SERVICES = ("load", "order", "payment-service", "inventory")

# The canary as the documents have it: applied word for word.
VERBATIM = """\
apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata:
  name: payment-service
spec:
  http:
    - route:
        - destination:
            host: payment-service
            subset: v1
          weight: 90
        - destination:
            host: payment-service
            subset: v2
          weight: 10
"""


def environment(folder: Path) -> dict[str, str]:
    """Of a demo whose temporary files lie in a folder of their own."""
    return {**os.environ, "TMPDIR": str(folder), "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """One whole demo, short, that prints JSON."""
    folder = tmp_path_factory.mktemp("whole")
    command = [str(MESHFAST), "demo", "--duration", str(SECONDS), "-o", "json"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
        env=environment(folder),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(folder.iterdir()) == []
    return done


@pytest.fixture(scope="module")
def story(run: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What it printed on stdout."""
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def test_the_load_is_steady_and_every_answer_is_right(story: dict[str, Any]) -> None:
    assert story["errors"] == 0
    assert story["duration_s"] >= SECONDS
    assert story["requests"] == pytest.approx(RATE * story["duration_s"], rel=0.1)
    assert 0 < story["p50_ms"] <= story["p95_ms"] <= story["p99_ms"]


def test_the_canary_shifts_and_is_taken_back(story: dict[str, Any]) -> None:
    assert CANARY == VERBATIM
    assert story["baseline_share"] == 0
    assert 0 < story["v2_share"] < 0.2
    assert story["rollback_share"] == 0
    [warning] = story["warnings"]
    assert "hosts" in warning


def test_every_hop_is_mutual_tls_with_the_identities_of_both_ends(story: dict[str, Any]) -> None:
    hops = [(hop["source"], hop["destination"]) for hop in story["hop_details"]]
    pairs = [*itertools.pairwise(SERVICES)]
    assert hops == [pairs[0], pairs[1], pairs[1], pairs[2]]
    assert story["mtls_hops"] == story["hops"] == len(hops)
    for hop in story["hop_details"]:
        for end in ("source", "destination"):
            assert hop[f"{end}_principal"] == f"spiffe://cluster.local/ns/default/sa/{hop[end]}"
        assert hop["requests"] > 0
        assert hop["errors"] == 0
        assert 0 < hop["p50_ms"] <= hop["p95_ms"] <= hop["p99_ms"]


def test_one_trace_joins_all_services(story: dict[str, Any]) -> None:
    assert set(story["trace_services"]) == set(SERVICES)


def test_applies_converge_and_the_control_plane_is_not_missed(story: dict[str, Any]) -> None:
    assert story["applies"] == APPLIES * SECONDS // 20
    assert 0 < story["convergence_max_ms"] <= 1000
    assert story["errors_control_down"] == 0


def test_the_memory_of_a_sidecar_is_told_by_process(story: dict[str, Any]) -> None:
    sizes = story["pss_kb"]
    assert sizes.keys() == {"supervisor", "agent", "worker/1", "worker/2", "total"}
    assert 1_000 < sizes["total"] < 100_000


def test_progress_is_a_line_for_each_act_on_stderr(
    run: subprocess.CompletedProcess[str],
) -> None:
    ticked = re.findall(r"^ok     (.*?)  ", run.stderr, re.MULTILINE)
    assert ticked == [title for _, title in ACTS]
    assert "ok: " in run.stderr.splitlines()[-1]


# Makes standard input the terminal from which Ctrl-C comes.
AT_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """A demo on a terminal of its own, as its session's foreground."""

    def __init__(self, folder: Path) -> None:
        self.descriptor, inside = pty.openpty()
        termios.tcsetwinsize(inside, (24, 80))
        self.process = subprocess.Popen(
            [sys.executable, "-c", AT_TERMINAL, str(MESHFAST), "demo"],
            stdin=inside,
            stdout=inside,
            stderr=inside,
            env=environment(folder),
            start_new_session=True,
        )
        os.close(inside)
        self._shown = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # EIO: the last writer has gone
            while data := os.read(self.descriptor, 4096):
                self._shown += data

    @property
    def text(self) -> str:
        """Everything it has shown, without colours and movements."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._shown.decode(errors="replace"))

    def type(self, key: bytes) -> None:
        os.write(self.descriptor, key)

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait(self) -> int:
        """The exit code."""
        code = self.process.wait(60)
        self._reader.join(10)
        return code

    def close(self) -> None:
        self.process.terminate()
        self.wait()
        os.close(self.descriptor)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    one = Terminal(tmp_path)
    yield one
    one.close()


def all_running(demo: int) -> list[int]:
    """The processes of a demo, once all of them are there."""
    found = descendants(demo)
    return found if len(found) == PROCESSES else []


def until_on(terminal: Terminal, act: str) -> None:
    title = dict(ACTS)[act]

    def is_shown() -> bool:
        assert terminal.process.poll() is None, terminal.text
        return f"▸ {title}" in terminal.text

    wait_until(is_shown, f"{title}: {terminal.text}", 60)


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_ctrl_c_leaves_nothing_behind(terminal: Terminal, tmp_path: Path) -> None:
    processes = wait_until(lambda: all_running(terminal.pid), "all processes", 30)
    wait_until(lambda: "spiffe://cluster.local/ns/default/sa/load" in terminal.text, "hops", 30)
    terminal.type(b"\x03")
    assert terminal.wait() == 128 + signal.SIGINT
    assert gone(processes)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_everything_starts_leaves_nothing_behind(
    terminal: Terminal, tmp_path: Path
) -> None:
    started = wait_until(lambda: descendants(terminal.pid)[3:], "some processes", 30)
    terminal.type(b"\x03")
    assert terminal.wait() == 128 + signal.SIGINT
    assert gone(started)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [3, PROCESSES])
def test_sigkill_leaves_nothing_behind(terminal: Terminal, tmp_path: Path, count: int) -> None:
    started = wait_until(
        lambda: found if len(found := descendants(terminal.pid)) >= count else [], "processes", 30
    )
    assert list(tmp_path.iterdir())
    terminal.process.kill()
    wait_until(lambda: gone(started) and not list(tmp_path.iterdir()), "nothing to be left", 10)
    wait_until(lambda: not of_environment(f"TMPDIR={tmp_path}"), "nobody to be left", 10)


def of_environment(variable: str) -> list[int]:
    """The processes that have inherited a variable of the environment."""
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if variable.encode() in file.read_bytes().split(b"\0"):
                found.append(int(file.parent.name))
    return found


def test_an_application_that_dies_fails_the_demo_with_its_log(
    terminal: Terminal, tmp_path: Path
) -> None:
    processes = wait_until(lambda: all_running(terminal.pid), "all processes", 30)
    until_on(terminal, "baseline")
    [inventory] = [pid for pid in processes if b"\0inventory\0v1\0" in command_line(pid)]
    os.kill(inventory, signal.SIGKILL)
    assert terminal.wait() == 1
    assert "inventory-v1 has ended with 137; the end of its log:" in terminal.text
    assert f"(pid {inventory}) ended: signal SIGKILL" in terminal.text
    assert gone(processes)
    assert list(tmp_path.iterdir()) == []


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
