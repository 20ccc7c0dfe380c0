"""What is said to operators never holds up the supervisor."""

import fcntl
import os
import subprocess
import sys

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


def test_a_log_that_is_gone_is_ignored() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    assert run(3, writing) == "done\n"
    os.close(writing)
