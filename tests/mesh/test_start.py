"""Plan, supervisor, agent, control plane and application together; only the workers are a fake.

What `run` promises about order is seen here without traffic: identity and configuration before the
application, deregistration before its end, its exit code, a start from disk.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from meshfast.cli import sidecar as cli
from meshfast.discovery.token import JoinToken
from meshfast.policy import SlotAllocator
from meshfast.policy.document import encode_document
from meshfast.policy.sidecar import compose
from tests.core.test_sidecar_cli import GIVEN
from tests.mesh.harness import ROOT, SERVICE, Control, free_port, wait_until
from tests.supervisor.harness import FAKES, Mesh, is_alive

AGENT = """
import os
from pathlib import Path
def main(settings):
    from meshfast.agent.process import Agent
    from meshfast.agent.settings import Settings
    from tests.agent.fakes.agent_process import build, keys
    from tests.agent.fakes.recorded import RecordedSource
    source = RecordedSource(Path({state!r}), os.open("/dev/null", os.O_RDONLY))
    Agent(Settings(settings), source, bytes.decode, build, keys=keys()).run()
    os._exit(0)
def check(shared_memory_fd, snapshot_fd):
    assert os.pread(snapshot_fd, 1, 0) == b"{{"
"""


class Started(Mesh):
    """A sidecar as `run` would start it, but for its workers."""

    def __init__(self, folder: Path, token: JoinToken | None, **given: Any) -> None:
        folder.mkdir(exist_ok=True)
        self.app_port = given.pop("app_port", 0) or free_port()
        command = given.pop("command", None) or [
            sys.executable, "-c", SERVICE, str(self.app_port), "payment",
        ]  # fmt: skip
        plan = cli.make_plan(
            {
                **GIVEN,
                "service": "payment",
                "port": self.app_port,
                "instance": "payment",
                "state_dir": str(folder / "state"),
                "runtime_dir": str(folder / "run"),
                "workers": 1,
                "drain_ms": 5_000,
                "access_log": "off",
                **given,
            },
            frozenset(),
            {} if token is None else {"MESHFAST_TOKEN": token.text()},
            command=command,
        )
        cli.remember(plan)
        document = compose(plan.mesh.sidecar, {}, generation=1, allocator=SlotAllocator())
        settings = cli.settings(plan, {}, 0, 0)
        for name in ("shared_memory_fd", "snapshot_fd"):
            del settings[name]
        super().__init__(folder)
        self.settings.update(settings)
        self.settings["entry_points"] = {
            "path": [str(self.modules), str(FAKES), str(ROOT)],
            "worker": "worker_under_test",
            "agent": "mesh_agent_under_test",
        }
        self.snapshot = encode_document(document)
        self.environment["NO_PROXY"] = ""
        state = folder / "state.json"
        from tests.agent.fakes import recorded

        state.write_text(json.dumps(recorded.state()))
        path = self.modules / "mesh_agent_under_test.py"
        path.write_text(AGENT.format(state=str(state)))

    def app_pid(self) -> int:
        """The pid of the application, once it runs."""
        self.wait_for_text("meshfast: started")
        line = next(line for line in self.stderr.splitlines() if "meshfast: started" in line)
        pid = int(line.rpartition("(pid ")[2].rstrip(")"))
        self.seen.add(pid)
        return pid


@pytest.fixture
def started(tmp_path: Path, control: Control) -> Iterator[Started]:
    with Started(tmp_path / "sidecar", control.token("payment")) as one:
        yield one


def workloads(control: Control) -> list[Any]:
    return list(control.ask(workloads=True))


def test_the_application_starts_after_identity_and_configuration_and_is_registered(
    started: Started, control: Control
) -> None:
    pid = started.app_pid()
    before = started.stderr[: started.stderr.index("meshfast: started")]
    assert "certificate obtained" in before
    assert "control plane connected" in before
    wait_until(lambda: workloads(control), "it is registered")
    assert started.ask(name="outbound/127.0.0.1:15001")["identity"].startswith('{"version": 1')
    environment = dict(
        entry.partition("=")[::2] for entry in Path(f"/proc/{pid}/environ").read_text().split("\0")
    )
    assert environment["HTTP_PROXY"].endswith("@" + started.address("outbound/127.0.0.1:15001"))
    assert environment["MESHFAST_INSTANCE"] == "payment"
    assert "MESHFAST_TOKEN" not in environment


def test_the_registered_address_is_where_the_inbound_socket_really_listens(
    tmp_path: Path, control: Control
) -> None:
    # Somebody else who has the port already does as well.
    with contextlib.ExitStack() as taken:
        with contextlib.suppress(OSError):
            taken.enter_context(socket.create_server(("0.0.0.0", 15006)))
        with Started(tmp_path / "sidecar", control.token("payment")) as one:
            one.app_pid()
            wait_until(lambda: workloads(control), "it is registered")
            port = one.address("inbound/0.0.0.0:15006").rpartition(":")[2]
            assert port != "15006"
            assert f"127.0.0.1:{port}" in json.dumps(workloads(control))


def test_a_stop_deregisters_before_the_application_is_told(
    started: Started, control: Control
) -> None:
    pid = started.app_pid()
    wait_until(lambda: workloads(control), "it is registered")
    started.signal(signal.SIGTERM)
    assert started.wait() == 128 + signal.SIGTERM
    assert not is_alive(pid)
    wait_until(lambda: not workloads(control), "it is gone")
    assert not started.children()


def test_a_job_ends_with_its_code_within_a_second(tmp_path: Path, control: Control) -> None:
    job = Started(tmp_path / "job", control.token("payment"), command=["sh", "-c", "exit 5"])
    with job:
        job.wait_for_text("the application")
        ended_at = time.monotonic()
        assert job.wait() == 5
        assert time.monotonic() - ended_at < 1.0


def test_a_second_start_needs_neither_token_nor_control_plane_and_takes_two_seconds_at_most(
    tmp_path: Path, control: Control
) -> None:
    with Started(tmp_path / "sidecar", control.token("payment")) as first:
        first.app_pid()
        wait_until(lambda: workloads(control), "it is registered")
        first.wait_for_text("configuration applied")
        port = first.app_port
        first.signal(signal.SIGTERM)
        first.wait()
    control.kill()
    began = time.monotonic()
    with Started(tmp_path / "sidecar", None, app_port=port) as second:
        second.app_pid()
        assert time.monotonic() - began < 2.0
        control.start()
        second.wait_for_text("control plane connected")
        wait_until(lambda: workloads(control), "it is registered")


def test_a_second_start_listens_where_the_first_did_also_after_a_hot_restart(
    tmp_path: Path, control: Control
) -> None:
    hosts = {"outbound": "127.0.0.1", "inbound": "0.0.0.0", "metrics": "127.0.0.1"}
    with contextlib.ExitStack() as stack:
        given: dict[str, Any] = {}
        for part, host in hosts.items():
            taken = stack.enter_context(socket.create_server((host, free_port())))
            given[f"{part}_address"] = f"{host}:{taken.getsockname()[1]}"
        names = [f"{part}/{given[part + '_address']}" for part in ("outbound", "inbound")]
        names.append("metrics")
        with Started(tmp_path / "sidecar", control.token("payment"), **given) as first:
            first.app_pid()
            first.wait_for_text("configuration applied")
            before = [first.address(name) for name in names]
            assert not {*before} & {*given.values()}
            first.signal(signal.SIGUSR2)
            first.wait_for_text("all workers are of image 1")
            first.wait_for_text("control plane connected", times=2)
            first.signal(signal.SIGTERM)
            first.wait()
        control.kill()
        given["app_port"] = first.app_port
        with Started(tmp_path / "sidecar", None, **given) as second:
            second.app_pid()
            assert [second.address(name) for name in names] == before


def test_a_start_with_a_token_that_is_used_up_ends_with_one(
    tmp_path: Path, control: Control
) -> None:
    token = control.token("payment")
    with Started(tmp_path / "first", token, command=["true"]) as first:
        assert first.wait() == 0
    second = Started(tmp_path / "second", token).start()  # which may end before it serves
    try:
        assert second.wait() == 1
        assert "meshfast: stopping: joining was refused: token_used: " in second.stderr
        assert "meshfast: started" not in second.stderr
    finally:
        second.close()


def test_a_start_with_a_token_whose_account_was_edited_ends_with_one(
    tmp_path: Path, control: Control
) -> None:
    edited = replace(control.token("payment"), service_account="order")
    started = Started(tmp_path / "first", edited).start()  # which may end before it serves
    try:
        assert started.wait() == 1
        assert "meshfast: stopping: joining was refused: subject: " in started.stderr
    finally:
        started.close()


def test_a_new_control_plane_and_a_token_of_it_are_joined_with_the_old_state(
    tmp_path: Path, control: Control
) -> None:
    with Started(tmp_path / "sidecar", control.token("payment"), command=["true"]) as first:
        assert first.wait() == 0
    (tmp_path / "other").mkdir()
    other = Control(tmp_path / "other")
    try:
        token = other.token("payment")
        with Started(tmp_path / "sidecar", token, command=["true"]) as second:
            assert second.wait() == 0
            assert "certificate obtained" in second.stderr
    finally:
        other.close()


def test_a_killed_agent_is_replaced_and_the_application_runs_on(
    started: Started, control: Control
) -> None:
    pid = started.app_pid()
    wait_until(lambda: workloads(control), "it is registered")
    agent = next(
        int(child)
        for child in Path(f"/proc/{started.process.pid}/task/{started.process.pid}/children")
        .read_text()
        .split()
        if is_agent(int(child), started)
    )
    os.kill(agent, signal.SIGKILL)
    started.wait_for_text("control plane connected", times=2)
    assert is_alive(pid)
    assert started.stderr.count("meshfast: started") == 1
    assert started.stderr.count("certificate obtained") == 1
    wait_until(lambda: workloads(control), "it is still registered")


def is_agent(pid: int, started: Started) -> bool:
    """Tell the agent from workers and the application."""
    workers = {started.ask(name="outbound/127.0.0.1:15001")["pid"]}
    return pid not in workers and pid != started.app_pid()


def test_a_hot_restart_keeps_application_identity_and_registration(
    started: Started, control: Control
) -> None:
    pid = started.app_pid()
    wait_until(lambda: workloads(control), "it is registered")
    started.signal(signal.SIGUSR2)
    started.wait_for_text("all workers are of image 1")
    started.wait_for_text("control plane connected", times=2)
    assert is_alive(pid)
    assert started.stderr.count("certificate obtained") == 1
    assert started.ask(name="outbound/127.0.0.1:15001")["identity"]
    started.signal(signal.SIGTERM)
    assert started.wait() == 128 + signal.SIGTERM
