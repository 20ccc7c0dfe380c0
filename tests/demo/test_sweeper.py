"""Whatever ends the demo, what it started and its folder go; nobody else's processes do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from meshfast.cli.demo.stage import wait_until
from meshfast.cli.demo.sweeper import MARK, swept_folder

# A demo that has started a process in a group of its own, which has started another; both are deaf.
KILLED = """
import os, subprocess, sys, time
from pathlib import Path
from meshfast.cli.demo.sweeper import MARK, swept_folder
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
both = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {deaf!r}]).wait()"
with swept_folder() as folder:
    (folder / "secret").write_text("of an authority")
    environment = {**os.environ, MARK: str(folder)}
    subprocess.Popen([sys.executable, "-c", both], env=environment, process_group=0)
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def killed() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        yield process
        process.kill()


def marked(folder: Path) -> list[int]:
    """The processes that carry the mark of a folder."""
    variable, found = f"{MARK}={folder}".encode(), []
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            if variable in file.read_bytes().split(b"\0"):
                found.append(int(file.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_nothing_outlives_a_demo_that_was_killed(
    killed: subprocess.Popen[str], send: object
) -> None:
    assert killed.stdout is not None
    folder = Path(killed.stdout.readline().strip())
    wait_until(lambda: len(marked(folder)) == 2, "two processes", 10)
    assert callable(send)
    send(killed.pid, signal.SIGKILL)
    wait_until(lambda: not folder.exists(), "the folder to be gone", 10)
    assert marked(folder) == []


def test_an_ordinary_end_removes_the_folder_and_waits_for_the_sweeper() -> None:
    with swept_folder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_demo_sweeps_nothing_of_another() -> None:
    with ExitStack() as ended:
        other = ended.enter_context(swept_folder())
        process = subprocess.Popen(["sleep", "60"], env={MARK: f"{other}/"})
        ended.callback(process.wait)
        ended.callback(process.kill)
        with swept_folder() as folder:
            assert folder != other
        assert other.exists()
        assert process.poll() is None
