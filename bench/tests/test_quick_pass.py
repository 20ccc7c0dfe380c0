"""The whole harness once, as `make bench` runs it, only shorter."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import accounting
from bench.candidates import BENCH
from bench.processes import wait_until

ROOT = BENCH.parent


def bench(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run python -m bench with its temporary and output directories inside tmp_path."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    return subprocess.run(
        [sys.executable, "-m", "bench", "--out", str(tmp_path / "out"), *arguments],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=False,
    )


def left_behind(tmp_path: Path) -> list[str]:
    """Name the processes whose environment says that they came from this test."""
    return [
        accounting.name(pid)
        for pid in accounting.process_ids()
        if str(tmp_path) in (accounting.read_text(Path("/proc") / str(pid) / "environ") or "")
    ]


def test_a_quick_pass_measures_reports_and_leaves_nothing(
    tmp_path: Path, need: Callable[..., None]
) -> None:
    need("nginx", "wrk", "cc", "taskset")
    results = tmp_path / "RESULTS.md"
    done = bench(
        tmp_path,
        "--quick", "--seconds", "0.5", "--clients", "4", "--retries", "0",
        "--candidates", "relay,nginx", "--results", str(results),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "HTTP/1.1 keep-alive" in done.stdout
    text = results.read_text()
    assert "| nginx | 4 |" in text
    assert "- load: wrk" in text
    assert str(ROOT) not in text

    (written,) = (tmp_path / "out").iterdir()
    data = json.loads(written.read_text())
    (case,) = data["cases"]
    assert {row["label"] for row in case["rows"]} == {"relay", "nginx", "relay (again)"}
    assert len(case["runs"]) == 3 * 3
    assert all(run["requests"] > 100 for run in case["runs"])
    assert all(row["cpu_us"]["median"] > 0 for row in case["rows"])
    # One per client, and one that wrk opens to see whether anybody is there.
    assert all(run["upstream"]["connections"] <= 5 for run in case["runs"])
    assert all(0 <= run["upstream"]["requests"] - run["requests"] <= 4 for run in case["runs"])
    assert "keepalive 1024;" in case["commands"]["nginx"]["config"]
    assert {memory["label"] for memory in data["memory"]} == {"relay", "nginx"}

    assert list((tmp_path / "temporary").iterdir()) == []
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(
    ("directories", "number"),
    [(1, signal.SIGINT), (2, signal.SIGTERM), (3, signal.SIGINT), (4, signal.SIGTERM)],
)
def test_a_pass_that_is_told_to_stop_leaves_nothing(
    tmp_path: Path, need: Callable[..., None], number: signal.Signals, directories: int
) -> None:
    need("nginx", "wrk", "cc", "taskset")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = subprocess.Popen(
        [
            sys.executable, "-m", "bench", "--candidates", "relay,nginx", "--no-memory",
            "--out", str(tmp_path / "out"),
        ],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        # The origin, two candidates, the control: the n-th is being started when its directory is
        # there, which is the moment in which a process could be left without a keeper.
        wait_until("started", 30, lambda: len(list(temporary.glob("bench-*"))) == directories)
        process.send_signal(number)
        assert process.wait(timeout=30) == 128 + number
    finally:
        process.kill()
        process.wait()
    assert list(temporary.iterdir()) == []
    assert left_behind(tmp_path) == []


def test_a_named_candidate_that_is_absent_ends_with_how_to_get_it(
    tmp_path: Path, need: Callable[..., None]
) -> None:
    need("cc")
    done = bench(tmp_path, "--candidates", "meshfast", "--meshfast", str(tmp_path / "absent"))
    assert done.returncode == 1
    assert "--meshfast PATH" in done.stdout


def test_unknown_arguments_are_refused(tmp_path: Path) -> None:
    done = bench(tmp_path, "--fast")
    assert done.returncode == 2
    assert "--fast" in done.stderr
