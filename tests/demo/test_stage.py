"""The processes of the demo: what fails says why, and nothing outlives the stage."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshfast.cli.demo import stage as stages
from meshfast.cli.demo.interrupts import Interrupts
from meshfast.cli.demo.stage import (
    CONTROL,
    DemoError,
    Stage,
    descendants,
    reserved_port,
    wait_until,
)
from meshfast.cli.demo.sweeper import MARK

STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen(["sleep", "60"])
print("deaf", flush=True)
time.sleep(60)
"""


def stage_of(folder: Path, program: str) -> Stage:
    """A stage whose `meshfast` is a Python program."""
    command = folder / "meshfast"
    command.write_text(f"#!{sys.executable}\n{program}")
    command.chmod(0o700)
    return Stage(folder, command, Interrupts())


@pytest.fixture
def stubborn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    monkeypatch.setattr(stages, "STOP_S", 0.5)
    monkeypatch.setattr(stages, "READY_S", 2.0)
    one = stage_of(tmp_path, STUBBORN)
    yield one
    one.close()


def test_a_process_that_ends_too_early_is_an_error_with_the_end_of_its_log(tmp_path: Path) -> None:
    program = "import sys\nfor n in range(99): print('line', n)\nsys.exit('no such file: /x')"
    stage = stage_of(tmp_path, program)
    with pytest.raises(DemoError) as failed:
        stage.start(100, zipkin_address="")
    stage.close()
    lines = str(failed.value).splitlines()
    assert lines[0] == "control has ended with 1; the end of its log:"
    assert lines[-1] == "no such file: /x"
    assert len(lines) == 1 + stages.LOG_LINES


def test_a_process_that_is_not_ready_in_time_is_an_error_with_the_end_of_its_log(
    stubborn: Stage,
) -> None:
    with pytest.raises(DemoError) as failed:
        stubborn.start(100, zipkin_address="")
    assert str(failed.value).splitlines() == [
        "waited 2 s for it to be ready; the end of the log of control:",
        "deaf",
    ]


def test_what_does_not_end_is_killed_with_all_below_it(stubborn: Stage, tmp_path: Path) -> None:
    with pytest.raises(DemoError):
        stubborn.start(100, zipkin_address="")
    pid = stubborn._processes[CONTROL].pid
    [below] = descendants(pid)
    stubborn.close()
    assert not Path(f"/proc/{pid}").exists()
    wait_until(lambda: not is_running(below), "the child's end", 10)


def test_proxies_and_settings_of_the_caller_do_not_reach_the_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "https_proxy", "MESHFAST_PORT", "KEPT"):
        monkeypatch.setenv(name, "1")
    stage = stage_of(tmp_path, "import os; print(sorted(os.environ)); raise SystemExit(1)")
    with pytest.raises(DemoError) as failed:
        stage.start(100, zipkin_address="")
    stage.close()
    names = str(failed.value).splitlines()[-1]
    assert "'KEPT'" in names
    assert "PROXY" not in names.upper()
    assert re.findall("MESHFAST_[A-Z_]+", names) == [MARK]


def is_running(pid: int) -> bool:
    """Whether a process lives; one that only waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_reserved_port_is_given_to_nobody_who_asks_for_any() -> None:
    reserved = [reserved_port() for _ in range(200)]
    held = {one.getsockname()[1] for one in reserved}
    others = []
    for number in range(400):
        others.append(socket.socket())
        if number % 2:
            others[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        others[-1].bind(("127.0.0.1", 0))
    assert held.isdisjoint(one.getsockname()[1] for one in others)
    for one in [*reserved, *others]:
        one.close()


def test_a_program_can_listen_on_a_reserved_port() -> None:
    with reserved_port() as held:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(held.getsockname())
        # create_server sets SO_REUSEADDR, as http.server does.
        with socket.create_server(held.getsockname()) as listening:
            with socket.create_connection(held.getsockname()):
                listening.accept()[0].close()


def test_descendants_are_found_whatever_the_names_of_processes(tmp_path: Path) -> None:
    odd = tmp_path / ") 1 ("
    odd.symlink_to("/bin/sleep")
    pid = os.posix_spawn(str(odd), [str(odd), "60"], {})
    try:
        wait_until(lambda: odd.name in Path(f"/proc/{pid}/comm").read_text(), "its name", 10)
        assert pid in descendants(os.getpid())
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    assert pid not in descendants(os.getpid())
