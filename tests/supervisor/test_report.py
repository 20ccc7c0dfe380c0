"""What is said to operators never holds up the supervisor."""

import fcntl
import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from meshfast.supervisor.report import say
for number in range(int(sys.argv[1])):
    say(f"line {number} " + "x" * 1000)
print("done")
"""
F_GETPIPE_SZ = 1032  # linux/fcntl.h


def run(lines: int, stderr: int) -> str:
    command = [sys.executable, "-c", PROGRAM, str(lines)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=30, env=environment
    ).stdout


def test_a_log_that_nobody_reads_loses_lines_and_does_not_block() -> None:
    reading, writing = os.pipe()
    lines = fcntl.fcntl(writing, F_GETPIPE_SZ) // 1000 * 2
    assert run(lines, writing) == "done\n"
    os.close(writing)
    with open(reading) as pipe:
        said = pipe.read().splitlines()
    assert said[0].startswith("meshfast: line 0 x")
    assert 10 < len(said) < lines
    assert all(len(line) > 1000 for line in said)


LEVELS_OF = """
import sys
from meshfast.supervisor import report
report.keep_to(sys.argv[1])
for say in (report.say, report.warn, report.fail):
    say(say.__name__)
"""


@pytest.mark.parametrize(
    ("level", "heard"),
    [
        ("trace", "say warn fail"),
        ("info", "say warn fail"),
        ("warn", "warn fail"),
        ("error", "fail"),
    ],
)
def test_nothing_is_said_below_the_chosen_level(level: str, heard: str) -> None:
    command = [sys.executable, "-c", LEVELS_OF, level]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run(
        command, stderr=subprocess.PIPE, text=True, timeout=30, check=True, env=environment
    ).stderr
    assert said.splitlines() == [f"meshfast: {word}" for word in heard.split()]


def test_a_log_that_is_gone_is_ignored() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    assert run(3, writing) == "done\n"
    os.close(writing)
