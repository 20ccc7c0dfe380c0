"""The demo as a user runs it: the installed command, its JSON, its exit code."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pty
import re
import subprocess
import sys
import termios
from collections import Counter
from pathlib import Path

import pytest

from meshfast.cli.demo.load import Sample
from meshfast.cli.demo.story import ACTS, Result

demo = importlib.import_module("meshfast.cli.demo")

MESHFAST = Path(sys.executable).with_name("meshfast")


def test_every_act_comes_out_as_expected() -> None:
    command = [str(MESHFAST), "demo", "--duration", "5", "-o", "json"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    story = json.loads(run.stdout)
    assert story["requests"] > 500
    assert story["errors"] <= 4
    assert abs(story["v2_share"] - 0.1) < 0.05
    assert story["rollback_share"] == 0
    assert [act["problem"] for act in story["acts"]] == [""] * 5


@pytest.fixture(scope="module")
def piped() -> list[str]:
    """The lines of a demo whose output goes to a file or a pipe."""
    command = [str(MESHFAST), "demo", "--duration", "5"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout.splitlines()


def terminal(columns: int) -> list[str]:
    """The lines of a demo on a terminal, without their colours."""
    reader, writer = pty.openpty()
    termios.tcsetwinsize(writer, (24, columns))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    command = [str(MESHFAST), "demo", "--duration", "5"]
    with subprocess.Popen(
        command, stdin=writer, stdout=writer, stderr=writer, env=environment | {"TERM": "xterm"}
    ) as run:
        os.close(writer)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the last writer has gone
            while data := os.read(reader, 4096):
                shown += data
        os.close(reader)
        assert run.wait(timeout=10) == 0, shown
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()).splitlines()


def check(lines: list[str]) -> None:
    """Every act has all its values and its verdict, and the last line says how it went."""
    heading = "act req/s v2 errors p50 p95 p99"
    assert lines[1].split() == heading.split()
    for line, act in zip(lines[2:-1], ACTS, strict=True):
        title, values = line[: len(act.title)], line[len(act.title) :]
        assert title == act.title
        assert re.fullmatch(r" +\d+ +\d+\.\d% +\d+( +\d+\.\d){3}  ok", values), line
    assert re.fullmatch(
        r"ok: \d+ requests, [0-4] errors; the canary got \d+\.\d%, and 0% once taken back",
        lines[-1],
    )
    assert max(map(len, lines)) <= 80


def test_a_pipe_shows_every_value_and_ends_with_one_sentence(piped: list[str]) -> None:
    check(piped)


def test_a_terminal_of_80_columns_shows_every_value() -> None:
    check(terminal(80))


def test_a_failed_act_is_named_in_the_table_and_in_the_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = Result(ACTS[1].title, Sample(), Sample(1.0, Counter(v1=9, v2=1), errors=7), "7 errors")
    assert list(demo._show(iter([bad]))) == [bad]
    assert capsys.readouterr().out.splitlines()[-1].endswith("FAIL")
    assert demo._sentence([bad], {}) == "failed: canary: 10 % to v2 (SIGHUP): 7 errors"


def test_requests_lost_during_a_change_are_errors_of_the_act() -> None:
    assert Result("killed", Sample(errors=2), Sample(1.0, errors=1), "").errors == 3


def test_a_sample_counts_errors_as_requests_and_not_as_answers() -> None:
    sample = Sample(1.0, Counter(v1=8, v2=2), errors=5, latencies_ms=[1.0, 2.0, 3.0, 4.0])
    assert sample.requests == 15
    assert sample.share("v2") == 0.2
    assert (sample.percentile_ms(50), sample.percentile_ms(99)) == (3.0, 4.0)
    assert Sample().share("v2") == 0.0
