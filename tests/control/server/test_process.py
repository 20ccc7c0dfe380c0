"""`meshfast control` as a process: what it prints, how it stops, what it refuses."""

import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import pytest

from meshfast.cli.control import default_state_dir, split_address
from tests.control.server.conftest import free_port

COMMAND = [sys.executable, "-c", "from meshfast.cli import main; main()", "control"]
#: A defect where connections are taken.
DEFECT = """
from meshfast.control.admission import Admission
def enter(*_):
    raise ValueError("a defect")
Admission.enter = enter
"""
READY = "control plane ready: sidecars on "


class Running:
    """Control planes of one test; those that still run at its end are killed."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.processes: list[subprocess.Popen[str]] = []

    def start(
        self, *options: str, command: Sequence[str] = COMMAND
    ) -> tuple[subprocess.Popen[str], str]:
        """Start one and return it with its address."""
        process = subprocess.Popen(
            [*command, "--state-dir", str(self.state_dir), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith(READY), process.stderr and process.stderr.read()
        return process, line.removeprefix(READY).strip()

    def refused(self, *options: str) -> tuple[int, str]:
        """Run one that does not start; return exit code and what it says."""
        done = subprocess.run(
            [*COMMAND, "--state-dir", str(self.state_dir), *options],
            capture_output=True,
            text=True,
            timeout=30,
        )
        return done.returncode, done.stderr


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    started = Running(tmp_path / "state")
    yield started
    for process in started.processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_it_says_where_it_listens_and_ends_with_0_on_sigterm(running: Running) -> None:
    port = free_port()
    process, address = running.start("--address", f"127.0.0.1:{port}")
    assert address == f"127.0.0.1:{port}"
    with socket.create_connection(("127.0.0.1", port), timeout=10):
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert errors == ""


def test_a_defect_that_ends_a_part_of_it_ends_all_of_it_and_is_said(running: Running) -> None:
    program = DEFECT + COMMAND[2]
    command = [sys.executable, "-c", program, "control"]
    process, address = running.start("--address", "127.0.0.1:0", command=command)
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10):
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    lines = errors.splitlines()
    assert "CRITICAL meshfast.control.server accepting has ended unexpectedly" in lines[0]
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-2:] == [
        "ValueError: a defect",
        "the control plane cannot go on: accepting: ValueError('a defect')",
    ]


def test_a_default_that_is_taken_gives_way_and_a_given_address_does_not(
    running: Running, tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("127.0.0.1", 15012))
            taken.listen()
        except OSError:
            pass  # taken by somebody else, which is as good
        _, address = running.start()
        assert address != "127.0.0.1:15012"
        running.state_dir = tmp_path / "other"
        code, errors = running.refused("--address", "127.0.0.1:15012")
    assert code == 1
    assert errors.strip() == "cannot listen on 127.0.0.1:15012: Address already in use"


def test_a_second_one_on_the_same_state_is_refused(running: Running) -> None:
    running.start("--address", "127.0.0.1:0")
    code, errors = running.refused("--address", "127.0.0.1:0")
    assert code == 1
    assert "another control plane uses this store" in errors


def test_another_trust_domain_is_refused(running: Running) -> None:
    process, _ = running.start("--address", "127.0.0.1:0")
    process.terminate()
    process.wait(20)
    code, errors = running.refused("--address", "127.0.0.1:0", "--trust-domain", "other")
    assert code == 1
    assert "belongs to the trust domain 'cluster.local'" in errors


@pytest.mark.parametrize("ttl", ["9s", "25h"])
def test_a_certificate_lives_ten_seconds_to_a_day(running: Running, ttl: str) -> None:
    code, errors = running.refused("--cert-ttl", ttl)
    assert code == 2
    assert "10s to 24h" in errors or "duration" in errors


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--address", "0.0.0.0:0"), "give --advertise"),
        (("--address", "[::]:0"), "give --advertise"),
        (("--address", "15012"), "expected IP:PORT"),
        (("--advertise", "xyz"), "expected HOST:PORT"),
        (("--advertise", "host:0"), "expected HOST:PORT"),
        (("--debounce", "11s"), "10s at most"),
    ],
    ids=str,
)
def test_wrong_options_are_wrong_usage(
    running: Running, options: tuple[str, ...], expected: str
) -> None:
    code, errors = running.refused(*options)
    assert (code, expected in " ".join(errors.replace("│", " ").split())) == (2, True), errors


def test_every_address_is_listened_on_when_tokens_say_another(running: Running) -> None:
    _, address = running.start("--address", "0.0.0.0:0", "--advertise", "localhost:15012")
    assert address.startswith("0.0.0.0:")


def test_what_it_makes_is_private_and_it_dumps_no_core(running: Running) -> None:
    process, _ = running.start("--address", "127.0.0.1:0")
    for path in [running.state_dir, *running.state_dir.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path
    assert resource.prlimit(process.pid, resource.RLIMIT_CORE) == (0, 0)


def test_other_commands_do_not_load_the_library_of_certificates() -> None:
    program = (
        "import sys, contextlib\n"
        "sys.argv = ['meshfast', 'version']\n"
        "from meshfast.cli import main\n"
        "with contextlib.suppress(SystemExit): main()\n"
        "print([name for name in sys.modules if name.startswith('cryptography')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_addresses_are_split() -> None:
    assert split_address("127.0.0.1:15012") == ("127.0.0.1", 15012)
    assert split_address("[::1]:0") == ("::1", 0)
    for text in ("15012", ":15012", "::1:15012", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536"):
        with pytest.raises(click.BadParameter, match="expected IP:PORT"):
            split_address(text)


def test_the_state_outlives_reboots() -> None:
    assert default_state_dir({}, 0) == Path("/var/lib/meshfast/control")
    assert default_state_dir({"HOME": "/h"}, 1) == Path("/h/.local/state/meshfast/control")
    assert default_state_dir({"XDG_STATE_HOME": "/x"}, 0) == Path("/x/meshfast/control")
