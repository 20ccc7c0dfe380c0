"""Starting: what is said, when the mesh counts as ready, and how a start fails (docs/deaths.md)."""

import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.supervisor.harness import Mesh, is_alive, status_field, wait_until

# Each of these costs 0.3 to 2.6 MB in the supervisor and in every child.
COSTLY = ("argparse", "asyncio", "ctypes", "dataclasses", "logging", "threading", "typing")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-m", "meshfast.supervisor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


def test_tells_one_line_per_socket(serving_mesh: Callable[..., Mesh], tmp_path: Path) -> None:
    web = {"name": "web", "address": "127.0.0.1:0", "owner": "worker", "fallback": False}
    local = {
        "name": "local",
        "address": f"unix:{tmp_path}/socket",
        "owner": "worker",
        "fallback": False,
    }
    mesh = serving_mesh(sockets=[web, local])
    lines = [line for line in mesh.stderr.splitlines() if "listening on" in line]
    assert len(lines) == 3
    assert lines[0].startswith("meshfast: listening on 127.0.0.1:")
    assert lines[0].endswith("instead of 127.0.0.1:0 (web)")
    assert lines[1] == f"meshfast: listening on unix:{tmp_path}/socket (local)"
    assert mesh.ask(name="local")["slot"] in (0, 1)


def test_tells_which_address_a_socket_has_missed(serving_mesh: Callable[..., Mesh]) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        kept, taken, default = (f"127.0.0.1:{one.getsockname()[1]}" for one in servers)
        servers[0].close()
        again = {"address": default, "owner": "worker", "fallback": True}
        sockets = [
            {**again, "name": "kept", "kept": kept},
            {**again, "name": "lost", "kept": taken},
            {**again, "name": "new"},
        ]
        mesh = serving_mesh(sockets=sockets)
    lines = [line for line in mesh.stderr.splitlines() if "listening on" in line]
    assert lines[0] == f"meshfast: listening on {kept} instead of {default} (kept)"
    assert lines[1].endswith(f" instead of {taken} (lost)")
    assert lines[2].endswith(f" instead of {default} (new)")


def test_an_explicit_address_that_is_taken_ends_the_start_with_a_hint(
    started_mesh: Callable[..., Mesh],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        web = {"name": "web", "address": address, "owner": "worker", "fallback": False}
        mesh = started_mesh(sockets=[web])
        assert mesh.wait() == 1
    assert f"EADDRINUSE: {address}: Address already in use (another process" in mesh.stderr


def test_is_ready_only_when_every_worker_and_the_agent_are(
    started_mesh: Callable[..., Mesh], tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    mesh = started_mesh(worker=f"gate={str(gate)!r}")
    wait_until(lambda: mesh.stderr.count("waits at the gate") == 2, "both workers boot")
    assert mesh.heard() == []
    assert "serving" not in mesh.stderr
    gate.touch()
    mesh.wait_for_text("serving with 2 workers")
    mesh.wait_for_message({"type": "serving"})


def test_tells_the_service_manager_when_it_is_ready_and_when_it_stops(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        mesh = Mesh(tmp_path)
        mesh.environment["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        with mesh:
            assert manager.recv(64) == b"READY=1"
            mesh.signal(signal.SIGTERM)
            assert manager.recv(64) == b"STOPPING=1"
            assert mesh.wait() == 0


@pytest.mark.parametrize("kind", ["worker", "agent"])
def test_exit_code_78_of_a_child_stops_everything(
    started_mesh: Callable[..., Mesh], kind: str
) -> None:
    mesh = started_mesh(workers=1, **{kind: "boot_exit=78"})
    assert mesh.wait() == 1
    name = "worker 0" if kind == "worker" else "the agent"
    assert f"stopping: {name} cannot start; what it said is above" in mesh.stderr
    assert mesh.children() == []


@pytest.mark.parametrize("kind", ["worker", "agent"])
def test_three_deaths_before_the_first_ready_stop_everything(
    started_mesh: Callable[..., Mesh], kind: str
) -> None:
    mesh = started_mesh(workers=1, **{kind: "boot_exit=9"})
    assert mesh.wait() == 1
    name = "worker 0" if kind == "worker" else "agent"
    assert mesh.stderr.count(f"meshfast: {name} (pid") == 3
    assert "cannot start; what it said is above" in mesh.stderr


def test_a_room_that_does_not_load_stops_everything_and_is_named(
    started_mesh: Callable[..., Mesh],
) -> None:
    entry_points = {"path": [], "worker": "meshfast.no_such_room", "agent": "meshfast.agent"}
    mesh = started_mesh(entry_points=entry_points)
    assert mesh.wait() == 1
    assert "ModuleNotFoundError: No module named 'meshfast.no_such_room'" in mesh.stderr


def test_a_child_that_raises_is_a_crash_and_shows_where(
    started_mesh: Callable[..., Mesh],
) -> None:
    mesh = started_mesh(workers=1, worker="no_such_behaviour=1")
    assert mesh.wait() == 1
    assert "Traceback" in mesh.stderr
    assert mesh.stderr.count("died: exit code 70") == 3


def test_orphans_of_its_children_become_its_own(serving_mesh: Callable[..., Mesh]) -> None:
    mesh = serving_mesh()
    orphan = mesh.ask("orphan")["pid"]
    mesh.seen.add(orphan)
    assert int(status_field(orphan, "PPid")) == mesh.process.pid
    subprocess.run(["kill", "-KILL", str(orphan)], check=True)
    wait_until(lambda: not Path(f"/proc/{orphan}").exists(), "the orphan is reaped")
    assert not is_alive(orphan)


@pytest.mark.parametrize("arguments", [(), ("--settings-fd",), ("--settings-fd", "x"), ("--help",)])
def test_a_wrong_command_line_ends_with_2(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert "usage: python -I -m meshfast.supervisor" in done.stderr


def test_wrong_settings_end_with_1_and_name_the_field(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text("{}")
    done = run("--settings", str(path))
    assert done.returncode == 1
    assert done.stderr == "meshfast: settings: version is missing\n"


def test_a_descriptor_that_is_not_open_ends_with_1(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path, shared_memory_fd=1000)
    mesh.start()
    assert mesh.wait() == 1
    assert "Bad file descriptor" in mesh.stderr


def test_the_supervisor_loads_none_of_the_costly_modules() -> None:
    program = "import sys, meshfast.supervisor.__main__; print(*sorted(sys.modules))"
    # -S: what the site configuration of this machine loads is not ours.
    paths = f"import sys; sys.path[:0] = {sys.path!r}; "
    command = [sys.executable, "-I", "-S", "-c", paths + program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert "meshfast.supervisor.supervisor" in loaded
    assert [name for name in loaded if name in COSTLY] == []
