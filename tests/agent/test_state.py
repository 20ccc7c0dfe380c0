"""The state directory: whole versions or none, private files, and nothing torn by any death."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from meshfast.agent.state import StateDirectory, StateError
from tests.agent.harness import ROOT, wait_for
from tests.agent.state_writer import content

KILLS = 200


@pytest.fixture
def state(tmp_path: Path) -> StateDirectory:
    return StateDirectory(str(tmp_path / "state" / "payment"))


def test_gives_back_what_was_written(state: StateDirectory) -> None:
    for data in (b"", b"x", bytes(range(256)) * 1000):
        state.write_now("resources", data)
        assert state.read("resources") == data


def test_nothing_is_there_at_first(state: StateDirectory) -> None:
    assert state.read("identity") is None


def test_a_process_killed_at_any_moment_leaves_a_whole_version(tmp_path: Path) -> None:
    directory = str(tmp_path / "payment")
    newest = 0
    chance = random.Random(7)
    for _ in range(KILLS):
        writer = subprocess.Popen(
            [sys.executable, "-m", "tests.agent.state_writer", directory, str(newest + 1)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        assert writer.stdout is not None
        said = writer.stdout.readline()  # it writes by now
        time.sleep(chance.uniform(0, 0.01))  # the moment is the point
        writer.kill()
        said += writer.stdout.read()
        writer.stdout.close()
        writer.wait()
        acknowledged = int(said.split()[-1])
        found = StateDirectory(directory).read("resources")
        assert found is not None
        newest = int(found.split()[0])
        assert found == content(newest)
        assert acknowledged <= newest <= acknowledged + 1


def test_what_a_dead_writer_left_beside_is_not_in_the_way(state: StateDirectory) -> None:
    state.write_now("resources", b"old")
    Path(state.path, "resources.new").write_bytes(b"half of somethi")
    assert state.read("resources") == b"old"
    state.write_now("resources", b"new")
    assert state.read("resources") == b"new"
    assert os.listdir(state.path) == ["resources"]


@pytest.mark.parametrize("cut", [0, 1, 20, 82, 83, 90])
def test_a_file_that_is_cut_off_is_refused(state: StateDirectory, cut: int) -> None:
    state.write_now("resources", b"twelve bytes")
    path = Path(state.path, "resources")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(StateError, match="damaged"):
        state.read("resources")


def test_every_changed_byte_is_noticed(state: StateDirectory) -> None:
    state.write_now("resources", b"twelve bytes")
    path = Path(state.path, "resources")
    good = path.read_bytes()
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(StateError, match="damaged"):
            state.read("resources")


def test_the_newest_of_what_waits_is_written(state: StateDirectory) -> None:
    for number in range(100):
        state.write("resources", str(number).encode())
        state.write("running", str(number).encode())
    assert state.finish(10)
    assert state.read("resources") == b"99"
    assert Path(state.path, "running").read_bytes() == b"99"
    assert state.read("running") == b"99"
    assert state.failure == ""


def test_a_failing_disk_is_said_and_forgotten_when_it_is_well(state: StateDirectory) -> None:
    os.mkdir(Path(state.path, "resources.new"))  # cannot be opened for writing
    state.write("resources", b"x")
    assert state.finish(10)
    assert state.failure == "resources: Is a directory"
    os.rmdir(Path(state.path, "resources.new"))
    state.write("resources", b"x")
    wait_for(lambda: state.failure == "")
    assert state.finish(10)
    assert state.read("resources") == b"x"


def test_files_and_directory_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        state = StateDirectory(str(tmp_path / "a" / "b"))
        state.write_now("identity", b"key")
    finally:
        os.umask(before)
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "a" / "b" / "identity").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_a_file_that_others_can_open_is_refused(state: StateDirectory, mode: int) -> None:
    state.write_now("identity", b"key")
    os.chmod(Path(state.path, "identity"), mode)
    with pytest.raises(StateError, match="must be 0600"):
        state.read("identity")


def test_a_directory_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(StateError, match="must be 0700"):
        StateDirectory(str(tmp_path / "open"))


def test_links_are_refused(state: StateDirectory, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StateError, match="not a directory"):
        StateDirectory(str(tmp_path / "link"))
    state.write_now("identity", b"key")
    os.rename(Path(state.path, "identity"), tmp_path / "moved")
    Path(state.path, "identity").symlink_to(tmp_path / "moved")
    with pytest.raises(StateError, match="symbolic links"):
        state.read("identity")
