"""make/step runs a command under a name, passes its exit code on and keeps its seconds."""

import os
import subprocess
from pathlib import Path

from tests.repository import ROOT


def step(folder: Path, *arguments: str) -> tuple[int, str]:
    """Return the exit code and what is printed; the record of steps lies in *folder*."""
    done = subprocess.run(
        [ROOT / "make" / "step", *arguments],
        cwd=folder,
        env=os.environ | {"STEPS_FILE": "made/steps"},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout


def test_a_step_prints_its_name_and_seconds_around_its_output(tmp_path: Path) -> None:
    step(tmp_path, "--begin")
    code, printed = step(tmp_path, "say it", "echo", "two  words")
    assert code == 0
    assert printed == "\n== say it\ntwo  words\n== say it: 0 s\n"


def test_the_table_lists_the_steps_of_this_run_and_their_sum(tmp_path: Path) -> None:
    step(tmp_path, "--begin")
    step(tmp_path, "of an earlier run", "true")
    step(tmp_path, "--begin")
    step(tmp_path, "first", "true")
    step(tmp_path, "second thing", "true")
    _, printed = step(tmp_path, "--table")
    rows = [line.rsplit(maxsplit=1) for line in printed.splitlines() if line]
    assert [name for name, _ in rows] == ["step", "first", "second thing", "total"]
    assert all(seconds.isdigit() for _, seconds in rows[1:])


def test_a_failed_step_keeps_its_code_and_ends_with_the_table(tmp_path: Path) -> None:
    step(tmp_path, "--begin")
    step(tmp_path, "fine", "true")
    code, printed = step(tmp_path, "broken", "sh", "-c", "exit 7")
    assert code == 7
    table = [line.split() for line in printed.partition("seconds\n")[2].splitlines()]
    assert [row[0] for row in table] == ["fine", "broken", "total"]
    assert table[1][-1] == "failed"
