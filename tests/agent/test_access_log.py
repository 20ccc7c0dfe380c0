"""Access-log lines on their way out: every kind of output, full, blocked, gone and reopened."""

import contextlib
import json
import os
import re
import resource
import signal
import socket
import stat
from pathlib import Path

import pytest

from tests.agent.conftest import Start
from tests.agent.harness import Supervised, wait_for


def lines(first: int, count: int, width: int = 0) -> bytes:
    return b"".join(
        json.dumps({"n": number, "pad": "x" * width}).encode() + b"\n"
        for number in range(first, first + count)
    )


def numbers(data: bytes) -> list[int]:
    """Every line must be whole: half a line is no JSON."""
    assert not data or data.endswith(b"\n")
    return [json.loads(line)["n"] for line in data.splitlines()]


def dropped(agent: Supervised) -> int:
    match = re.search(r"^meshfast_access_log_dropped_total (\d+)$", agent.scrape(), re.MULTILINE)
    assert match
    return int(match[1])


def test_lines_reach_a_file_that_only_its_owner_reads(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    agent = start(access_log=str(path))
    agent.log_lines(lines(0, 3))
    wait_for(lambda: numbers(path.read_bytes()) == [0, 1, 2])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_lines_are_appended_to_what_is_there(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    path.write_bytes(lines(0, 1))
    agent = start(access_log=str(path))
    agent.log_lines(lines(1, 1))
    wait_for(lambda: numbers(path.read_bytes()) == [0, 1])


@pytest.mark.parametrize("kind", ["pipe", "socket", "file"])
def test_lines_reach_standard_output_of_every_kind(start: Start, tmp_path: Path, kind: str) -> None:
    reading, writing = open_output(kind, tmp_path)
    agent = start(access_log="/dev/stdout", stdout=writing)
    agent.log_lines(lines(0, 50))
    received = bytearray()

    def arrived() -> bool:
        received.extend(read_now(reading))
        return received.count(b"\n") == 50

    wait_for(arrived)
    assert numbers(bytes(received)) == list(range(50))
    assert os.get_blocking(writing), "others who write there must not be surprised"
    os.close(reading)
    os.close(writing)


def open_output(kind: str, directory: Path) -> tuple[int, int]:
    if kind == "pipe":
        return os.pipe()
    if kind == "socket":
        ours, theirs = socket.socketpair()
        return ours.detach(), theirs.detach()
    path = directory / "stdout"
    writing = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    return os.open(path, os.O_RDONLY), writing


def read_now(fd: int, limit: int = 1 << 20) -> bytes:
    os.set_blocking(fd, False)
    try:
        return os.read(fd, limit)
    except BlockingIOError:
        return b""


def test_off_drains_and_throws_away(start: Start) -> None:
    agent = start(access_log="off")
    for _ in range(100):
        wait_for(lambda: write_if_there_is_room(agent, lines(0, 15, width=200)))
    assert dropped(agent) == 0


def write_if_there_is_room(agent: Supervised, data: bytes) -> bool:
    try:
        agent.log_lines(data)
    except BlockingIOError:
        return False
    return True


def test_a_full_disk_drops_and_counts(start: Start) -> None:
    agent = start(access_log="/dev/full")
    agent.log_lines(lines(0, 40))
    wait_for(lambda: dropped(agent) == 40)
    (event,) = agent.events("access log lines are dropped")
    assert event["error"] == "No space left on device"
    agent.log_lines(lines(0, 2))
    wait_for(lambda: dropped(agent) == 42)
    assert len(agent.events("access log lines are dropped")) == 1
    assert agent.request("/healthz/live")[0] == 200


def test_after_a_full_disk_the_file_is_clean_and_goes_on(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    agent = start(access_log=str(path))
    soft, hard = resource.prlimit(agent.process.pid, resource.RLIMIT_FSIZE)
    agent.log_lines(lines(0, 10))
    wait_for(lambda: len(numbers(path.read_bytes())) == 10)
    # The limit lies in the middle of a line: the write is short, and the next one fails.
    resource.prlimit(agent.process.pid, resource.RLIMIT_FSIZE, (path.stat().st_size + 25, hard))
    agent.log_lines(lines(10, 10))
    wait_for(lambda: dropped(agent) == 8)
    resource.prlimit(agent.process.pid, resource.RLIMIT_FSIZE, (soft, hard))
    agent.log_lines(lines(20, 5))
    wait_for(lambda: path.read_bytes().endswith(lines(24, 1)))
    assert numbers(path.read_bytes()) == [*range(12), *range(20, 25)]
    assert agent.events("access log is written again")[0]["dropped_total"] == 8


def test_a_blocked_pipe_holds_up_nothing_and_lines_stay_whole(start: Start) -> None:
    reading, writing = os.pipe()
    agent = start(access_log="/dev/stdout", stdout=writing)
    os.close(writing)
    sent = 0

    def flooded() -> bool:
        nonlocal sent
        if write_if_there_is_room(agent, lines(sent, 7, width=500)):
            sent += 7
        return sent > 0 and dropped(agent) > 0

    wait_for(flooded)
    assert agent.events("access log lines are dropped")[0]["error"] == "the output takes nothing"
    assert agent.request("/healthz/live")[0] == 200
    received = bytearray()

    def arrived() -> bool:
        received.extend(read_now(reading))
        done = received.count(b"\n") + dropped(agent) == sent
        return done and bool(agent.events("access log is written again"))

    wait_for(arrived)
    got = numbers(bytes(received))
    assert got == sorted(set(got))
    os.close(reading)


def test_lines_of_two_writers_to_a_pipe_do_not_mix(start: Start) -> None:
    reading, writing = os.pipe()
    agent = start(access_log="/dev/stdout", stdout=writing)
    # The other writer gets a description of its own, so that it may be told not to block.
    other = os.open(f"/proc/self/fd/{writing}", os.O_WRONLY | os.O_NONBLOCK)
    agent.log_lines(lines(0, 60, width=500))
    received = bytearray()
    sent, written = 60, 0

    def enough() -> bool:
        nonlocal sent, written
        received.extend(read_now(reading, 3000))
        if write_if_there_is_room(agent, lines(sent, 7, width=500)):
            sent += 7
        with contextlib.suppress(BlockingIOError):
            written += os.write(other, b'{"n":-1}\n')
        return written > 900 and sent > 1000

    wait_for(enough)
    whole = bytes(received[: received.rindex(b"\n") + 1])
    assert {-1, 0, 300} <= set(numbers(whole))
    for fd in (reading, writing, other):
        os.close(fd)


def test_a_reader_that_went_away_drops_and_counts(start: Start) -> None:
    reading, writing = os.pipe()
    agent = start(access_log="/dev/stdout", stdout=writing)
    os.close(writing)
    os.close(reading)
    agent.log_lines(lines(0, 3))
    wait_for(lambda: dropped(agent) == 3)
    assert agent.request("/healthz/live")[0] == 200


@pytest.mark.parametrize("way", ["message", "signal"])
def test_reopens_after_rotation_without_losing_a_line(
    start: Start, tmp_path: Path, way: str
) -> None:
    path, rotated = tmp_path / "access.log", tmp_path / "access.log.1"
    agent = start(access_log=str(path))
    agent.log_lines(lines(0, 5))
    wait_for(lambda: len(numbers(path.read_bytes())) == 5)
    path.rename(rotated)
    agent.log_lines(lines(5, 5))
    wait_for(lambda: len(numbers(rotated.read_bytes())) == 10)
    if way == "message":
        agent.send(type="reopen")
    else:
        agent.signal(signal.SIGUSR1)
    wait_for(path.exists)
    agent.log_lines(lines(10, 5))
    wait_for(lambda: path.read_bytes().count(b"\n") == 5)
    assert numbers(rotated.read_bytes() + path.read_bytes()) == list(range(15))


def test_a_file_that_cannot_be_reopened_leaves_the_old_one(start: Start, tmp_path: Path) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    agent = start(access_log=str(directory / "access.log"))
    directory.rename(tmp_path / "moved")
    agent.send(type="reopen")
    wait_for(lambda: agent.events("access log cannot be opened"))
    agent.log_lines(lines(0, 1))
    wait_for(lambda: numbers((tmp_path / "moved" / "access.log").read_bytes()) == [0])


def test_a_file_that_cannot_be_opened_at_start_is_opened_later(
    start: Start, tmp_path: Path
) -> None:
    directory = tmp_path / "logs"
    agent = start(access_log=str(directory / "access.log"))
    agent.log_lines(lines(0, 2))
    wait_for(lambda: dropped(agent) == 2)
    directory.mkdir()
    agent.log_lines(lines(2, 1))
    wait_for((directory / "access.log").exists)
    wait_for(lambda: numbers((directory / "access.log").read_bytes()) == [2])


@pytest.mark.parametrize("way", ["stop", "supervisor_gone"])
def test_the_last_lines_are_out_before_the_end(start: Start, tmp_path: Path, way: str) -> None:
    path = tmp_path / "access.log"
    agent = start(access_log=str(path))
    agent.log_lines(lines(0, 300))
    if way == "stop":
        agent.send(type="stop")
    else:
        agent.control.close()
    assert agent.wait() == 0
    assert numbers(path.read_bytes()) == list(range(300))


def test_an_output_that_blocks_does_not_hold_up_the_end(start: Start) -> None:
    reading, writing = os.pipe()
    agent = start(access_log="/dev/stdout", stdout=writing)
    wait_for(lambda: not write_if_there_is_room(agent, lines(0, 7, width=500)))
    assert agent.stop() == 0
    os.close(reading)
    os.close(writing)
