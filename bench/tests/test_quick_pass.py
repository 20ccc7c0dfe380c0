"""The whole harness once, as `make bench` runs it, only shorter."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

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


def command_lines() -> list[str]:
    """Read the command line of every process."""
    return [
        accounting.read_text(Path("/proc") / str(pid) / "cmdline") or ""
        for pid in accounting.process_ids()
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
    assert not [line for line in command_lines() if str(tmp_path) in line]


def test_a_pass_that_is_told_to_stop_leaves_nothing(
    tmp_path: Path, need: Callable[..., None]
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
        # The origin, two candidates and the control have their directories: the load is on.
        wait_until("all started", 30, lambda: len(list(temporary.iterdir())) == 4)
        process.terminate()
        assert process.wait(timeout=30) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()
    assert list(temporary.iterdir()) == []
    assert not [line for line in command_lines() if str(tmp_path) in line]


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
