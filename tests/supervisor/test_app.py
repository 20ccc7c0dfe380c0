"""The rows of docs/deaths.md that are about the application, and the identity that workers show."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.supervisor.harness import HeldConnection, Mesh, connect, is_alive, wait_until

WEB: dict[str, Any] = {
    "name": "web",
    "address": "127.0.0.1:0",
    "owner": "worker",
    "fallback": False,
}
INBOUND: dict[str, Any] = {**WEB, "name": "inbound/127.0.0.1:0"}

# Writes what it sees to FILE; ends on SIGTERM with 7 and says so; `ask` and `exit` through a FIFO.
APP = """
import json, os, signal, sys, time
folder = sys.argv[1]
def on_term(*_):
    open(folder + "/term", "w").close()
    while os.path.exists(folder + "/hold"):
        time.sleep(0.005)
    os._exit(7)
signal.signal(signal.SIGTERM, on_term)
signal.signal(signal.SIGINT, lambda *_: open(folder + "/int", "w").close())
seen = {"pid": os.getpid(), "group": os.getpgid(0), "env": dict(os.environ),
        "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd"))}
with open(folder + "/new", "w") as file:
    json.dump(seen, file)
os.rename(folder + "/new", folder + "/seen")
while not os.path.exists(folder + "/exit"):
    time.sleep(0.005)
sys.exit(int(open(folder + "/exit").read()))
"""


class AppMesh(Mesh):
    """A mesh with the application above, or with another command."""

    def __init__(self, folder: Path, command: list[str] | None = None, **settings: Any) -> None:
        program = command or [sys.executable, "-c", APP, str(folder)]
        super().__init__(
            folder,
            sockets=[WEB, INBOUND],
            app={"command": program, "env": {"PROXY": "http://me@{web}", "PLAIN": "{other}"}},
            **settings,
        )

    def meshed(self) -> None:
        """Be an agent that has identity and configuration."""
        self.ask('say {"type":"meshed"}', "metrics")

    def app(self) -> dict[str, Any]:
        """What the application has seen, as soon as it runs."""
        path = self.folder / "seen"
        wait_until(path.exists, "the application runs")
        seen: dict[str, Any] = json.loads(path.read_text())
        self.seen.add(seen["pid"])
        return seen

    def touch(self, name: str, text: str = "") -> Path:
        """Make a file that the application looks for."""
        new = self.folder / f"{name}.new"
        new.write_text(text)
        return new.rename(self.folder / name)


def test_the_application_starts_when_the_agent_says_that_all_is_there(tmp_path: Path) -> None:
    with AppMesh(tmp_path) as mesh:
        mesh.ask("who", "metrics")
        assert not (tmp_path / "seen").exists()
        assert "started" not in mesh.stderr
        mesh.meshed()
        seen = mesh.app()
        assert seen["group"] == seen["pid"]
        assert seen["fds"] == [0, 1, 2, 3]  # 3 is the listing itself


# Becomes the command that follows, with every signal at its default or ignored and blocked.
WITH_SIGNALS = """
import os, signal, sys
is_usual = sys.argv[1] == "default"
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_DFL if is_usual else signal.SIG_IGN)
how = signal.SIG_UNBLOCK if is_usual else signal.SIG_BLOCK
signal.pthread_sigmask(how, signal.valid_signals())
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.parametrize("started_with", ["default", "ignored"])
def test_every_signal_is_at_its_default_for_it(tmp_path: Path, started_with: str) -> None:
    grep = ["sh", "-c", f"grep -E 'Sig(Ign|Blk)' /proc/self/status > {tmp_path}/signals"]
    mesh = AppMesh(tmp_path, grep)
    mesh.launcher = [sys.executable, "-I", "-c", WITH_SIGNALS, started_with]
    with mesh:
        mesh.meshed()
        assert mesh.wait() == 0
        masks = [int(word, 16) for word in (tmp_path / "signals").read_text().split()[1::2]]
        # 32 and 33 are the C library's own (nptl(7)): nobody sets them, anybody may inherit them.
        assert [mask & ~(0b11 << 31) for mask in masks] == [0, 0]


def test_its_environment_holds_the_address_where_a_socket_really_listens(tmp_path: Path) -> None:
    with AppMesh(tmp_path) as mesh:
        mesh.meshed()
        environment = mesh.app()["env"]
        assert environment["PROXY"] == f"http://me@{mesh.address()}"
        assert environment["PLAIN"] == "{other}"
        assert environment["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize("code", [0, 3, 255])
def test_its_exit_code_is_ours_and_everything_ends_within_a_second(
    tmp_path: Path, code: int
) -> None:
    with AppMesh(tmp_path) as mesh:
        mesh.meshed()
        mesh.app()
        ended_at = time.monotonic()
        mesh.touch("exit", str(code))
        assert mesh.wait() == code
        assert time.monotonic() - ended_at < 1.0
        assert not mesh.children()


def test_a_signal_that_kills_it_becomes_128_and_its_number(tmp_path: Path) -> None:
    with AppMesh(tmp_path) as mesh:
        mesh.meshed()
        os.kill(mesh.app()["pid"], signal.SIGKILL)
        assert mesh.wait() == 128 + signal.SIGKILL


def test_exchanges_are_finished_after_it_ended(tmp_path: Path) -> None:
    with AppMesh(tmp_path) as mesh:
        mesh.meshed()
        mesh.app()
        with HeldConnection(mesh) as held:
            mesh.touch("exit", "4")
            mesh.wait_for_text("draining")
            assert held.ask()["slot"] in (0, 1)
            assert mesh.process.poll() is None
        assert mesh.wait() == 4


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (["no-such-command-anywhere"], 127, "no-such-command-anywhere: command not found"),
        (["/etc/passwd"], 126, "/etc/passwd: cannot be executed: Permission denied"),
    ],
)
def test_a_command_that_cannot_be_executed_ends_like_a_shells(
    tmp_path: Path, command: list[str], code: int, message: str
) -> None:
    with AppMesh(tmp_path, command) as mesh:
        mesh.meshed()
        assert mesh.wait() == code
        assert message in mesh.stderr


def test_a_stop_quiets_inbound_before_the_application_is_told(tmp_path: Path) -> None:
    with AppMesh(tmp_path) as mesh:
        mesh.meshed()
        mesh.app()
        inbound = mesh.address(INBOUND["name"])
        with connect(inbound) as held:
            held.sendall(b"hold\n")
            assert held.recv(100) == b"{}\n"
            mesh.signal(signal.SIGTERM)
            mesh.wait_for_text("inbound exchanges have up to")
            wait_until(lambda: is_refused(inbound), "no more calls come in")
            assert mesh.heard()[-1]["type"] == "drain"
            held.sendall(b"hold who\n")
            assert b"slot" in held.recv(65_536)
            assert not (tmp_path / "term").exists()
        wait_until((tmp_path / "term").exists, "the application is told")
        assert mesh.wait() == 7


def test_calls_come_in_until_nobody_is_sent_here_any_more(tmp_path: Path) -> None:
    with AppMesh(tmp_path, agent="is_cut_off=True") as mesh:
        mesh.meshed()
        mesh.app()
        mesh.signal(signal.SIGTERM)
        mesh.wait_for_message({"type": "drain", "deadline_ms": 5_000})
        assert mesh.ask(name=INBOUND["name"])["slot"] in (0, 1)
        mesh.tell('say {"type":"withdrawn"}', "metrics")
        assert mesh.wait() == 7


def test_an_agent_that_cannot_withdraw_is_not_waited_for_long(tmp_path: Path) -> None:
    with AppMesh(tmp_path, agent="is_cut_off=True") as mesh:
        mesh.meshed()
        mesh.app()
        mesh.signal(signal.SIGTERM)
        assert mesh.wait(8) == 7


def test_a_sidecar_without_application_withdraws_before_it_drains(tmp_path: Path) -> None:
    with Mesh(tmp_path, agent="is_cut_off=True") as mesh:
        mesh.ask('say {"type":"meshed"}', "metrics")
        mesh.signal(signal.SIGTERM)
        mesh.wait_for_text("withdrawing from the mesh")
        assert mesh.ask()["slot"] in (0, 1)
        mesh.tell('say {"type":"withdrawn"}', "metrics")
        assert mesh.wait() == 0


def test_an_application_that_ends_while_the_sidecar_withdraws_ends_it(tmp_path: Path) -> None:
    with AppMesh(tmp_path, agent="is_cut_off=True") as mesh:
        mesh.meshed()
        mesh.app()
        mesh.signal(signal.SIGTERM)
        mesh.wait_for_text("withdrawing from the mesh")
        mesh.touch("exit", "6")
        assert mesh.wait() == 6


def test_outbound_stays_until_the_application_is_gone(tmp_path: Path) -> None:
    with AppMesh(tmp_path) as mesh:
        mesh.meshed()
        mesh.app()
        mesh.touch("hold")
        mesh.signal(signal.SIGTERM)
        wait_until((tmp_path / "term").exists, "the application is told")
        assert mesh.ask("who")["slot"] in (0, 1)
        (tmp_path / "hold").unlink()
        assert mesh.wait() == 7


def test_a_worker_that_dies_while_the_application_leaves_is_replaced(tmp_path: Path) -> None:
    with AppMesh(tmp_path) as mesh:
        mesh.meshed()
        mesh.app()
        before = mesh.workers()
        mesh.touch("hold")
        mesh.signal(signal.SIGTERM)
        wait_until((tmp_path / "term").exists, "the application is told")
        os.kill(before[0], signal.SIGKILL)
        wait_until(lambda: mesh.workers()[0] != before[0], "another worker on slot 0")
        (tmp_path / "hold").unlink()
        assert mesh.wait() == 7


def test_an_inbound_exchange_that_does_not_end_has_the_drain_time(tmp_path: Path) -> None:
    with AppMesh(tmp_path, drain_ms=300) as mesh:
        mesh.meshed()
        mesh.app()
        with connect(mesh.address(INBOUND["name"])) as held:
            held.sendall(b"hold\n")
            assert held.recv(100) == b"{}\n"
            mesh.signal(signal.SIGTERM)
            assert mesh.wait() == 7


def test_an_application_that_ignores_the_signal_is_killed_after_the_drain_time(
    tmp_path: Path,
) -> None:
    with AppMesh(tmp_path, drain_ms=300) as mesh:
        mesh.meshed()
        mesh.app()
        mesh.touch("hold")
        mesh.signal(signal.SIGTERM)
        assert mesh.wait() == 128 + signal.SIGKILL
        assert "is not gone in time and is killed" in mesh.stderr


def test_a_second_signal_ends_the_application_at_once(tmp_path: Path) -> None:
    with AppMesh(tmp_path) as mesh:
        mesh.meshed()
        pid = mesh.app()["pid"]
        mesh.touch("hold")
        mesh.signal(signal.SIGINT)
        wait_until((tmp_path / "term").exists, "the application is told")
        mesh.signal(signal.SIGINT)
        assert mesh.wait() == 128 + signal.SIGKILL
        assert not is_alive(pid)


def test_an_interrupt_of_the_terminal_reaches_the_supervisor_only(tmp_path: Path) -> None:
    with AppMesh(tmp_path) as mesh:
        mesh.meshed()
        seen = mesh.app()
        assert seen["group"] != os.getpgid(mesh.process.pid)
        mesh.signal(signal.SIGINT)
        assert mesh.wait() == 7
        assert not (tmp_path / "int").exists()


def test_what_the_application_started_gets_the_signal_too(tmp_path: Path) -> None:
    program = [sys.executable, "-c", APP, str(tmp_path)]
    shell = ["sh", "-c", '"$@"; exit $?', "sh", *program]
    with AppMesh(tmp_path, shell) as mesh:
        mesh.meshed()
        pid = mesh.app()["pid"]
        mesh.signal(signal.SIGTERM)
        wait_until((tmp_path / "term").exists, "the program below the shell is told")
        mesh.wait()
        wait_until(lambda: not is_alive(pid), "it is gone")


def test_a_dead_supervisor_does_not_leave_the_application_behind(tmp_path: Path) -> None:
    with AppMesh(tmp_path) as mesh:
        mesh.meshed()
        pid = mesh.app()["pid"]
        mesh.process.kill()
        wait_until((tmp_path / "term").exists, "the application gets SIGTERM")
        wait_until(lambda: not is_alive(pid), "it is gone")


def test_a_hot_restart_keeps_the_application(tmp_path: Path) -> None:
    with AppMesh(tmp_path) as mesh:
        mesh.meshed()
        pid = mesh.app()["pid"]
        mesh.signal(signal.SIGUSR2)
        mesh.wait_for_text("all workers are of image 1")
        assert is_alive(pid)
        assert mesh.stderr.count("started") == 1
        mesh.touch("exit", "5")
        assert mesh.wait() == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_before_the_application_started_is_not_taken_for_its_success(
    tmp_path: Path, number: signal.Signals
) -> None:
    with AppMesh(tmp_path) as mesh:
        mesh.signal(number)
        assert mesh.wait() == 128 + number
        assert "started" not in mesh.stderr


def test_a_failure_of_the_mesh_takes_the_application_with_it(tmp_path: Path) -> None:
    with AppMesh(tmp_path, workers=1) as mesh:
        mesh.meshed()
        pid = mesh.app()["pid"]
        mesh.worker_behaves("boot_exit=78")
        mesh.tell("exit 1")
        assert mesh.wait() == 1
        assert not is_alive(pid)
        assert (tmp_path / "term").exists()


def test_a_start_that_cannot_succeed_ends_with_one_and_its_reason(tmp_path: Path) -> None:
    with AppMesh(tmp_path) as mesh:
        mesh.tell('say {"type":"hopeless","reason":"token_used:"}', "metrics")
        assert mesh.wait() == 1
        assert "meshfast: stopping: token_used:" in mesh.stderr
        assert not (tmp_path / "seen").exists()


def test_what_is_in_the_mesh_goes_on_though_it_could_not_join_again(tmp_path: Path) -> None:
    with AppMesh(tmp_path) as mesh:
        mesh.meshed()
        mesh.app()
        mesh.ask('say {"type":"hopeless","reason":"token_used:"}', "metrics")
        mesh.ask("snapshot 7", "metrics")
        mesh.wait_for_message({"type": "applied", "generation": 7})
        mesh.touch("exit", "3")
        assert mesh.wait() == 3


def is_refused(address: str) -> bool:
    """Tell whether nobody listens there any more."""
    try:
        connect(address).close()
    except ConnectionRefusedError:
        return True
    return False


def test_an_identity_reaches_every_worker_and_the_agent_hears_of_it(tmp_path: Path) -> None:
    with Mesh(tmp_path) as mesh:
        mesh.ask("identity 1", "metrics")
        mesh.wait_for_message({"type": "identity_applied", "serial": 1})
        for _ in mesh.workers():
            assert mesh.ask()["identity"] == "identity 1"


def test_a_new_worker_and_a_new_agent_begin_with_the_newest_identity(tmp_path: Path) -> None:
    with Mesh(tmp_path, workers=1) as mesh:
        mesh.ask("identity 1", "metrics")
        mesh.ask("identity 2", "metrics")
        mesh.wait_for_message({"type": "identity_applied", "serial": 2})
        before = mesh.workers()
        mesh.tell("exit 1")
        wait_until(lambda: mesh.workers()[0] != before[0], "another worker")
        answer = mesh.ask()
        assert (answer["identity"], answer["settings"]["identity_serial"]) == ("identity 2", 2)
        mesh.tell("exit 1", "metrics")
        mesh.wait_for_message({"type": "identity_applied", "serial": 2})
        settings = mesh.ask("who", "metrics")["settings"]
        assert settings["identity_serial"] == 2
        assert type(settings["identity_fd"]) is int


def test_an_identity_outlives_a_hot_restart(tmp_path: Path) -> None:
    with Mesh(tmp_path, workers=1) as mesh:
        mesh.ask("identity 3", "metrics")
        mesh.wait_for_message({"type": "identity_applied", "serial": 3})
        mesh.signal(signal.SIGUSR2)
        mesh.wait_for_text("all workers are of image 1")
        assert mesh.ask()["identity"] == "identity 3"
        mesh.wait_for_message({"type": "identity_applied", "serial": 3})


def test_an_identity_that_is_not_newer_is_dropped(tmp_path: Path) -> None:
    with Mesh(tmp_path, workers=1) as mesh:
        mesh.ask("identity 2", "metrics")
        mesh.wait_for_message({"type": "identity_applied", "serial": 2})
        mesh.ask("identity 2", "metrics")
        mesh.wait_for_text("identity 2 is not newer than 2: dropped")


def test_an_identity_without_descriptor_breaks_the_protocol(tmp_path: Path) -> None:
    with Mesh(tmp_path, workers=1) as mesh:
        mesh.tell('say {"type":"identity","serial":1}', "metrics")
        mesh.wait_for_text("an identity is a serial and one descriptor")


def test_a_worker_without_answer_holds_the_identity_back(tmp_path: Path) -> None:
    with Mesh(tmp_path, workers=1) as mesh:
        worker = mesh.workers()[0]
        os.kill(worker, signal.SIGSTOP)
        mesh.ask("identity 1", "metrics")
        assert {"type": "identity_applied", "serial": 1} not in mesh.heard()
        os.kill(worker, signal.SIGCONT)
        mesh.wait_for_message({"type": "identity_applied", "serial": 1})
