"""A supervisor under test: a real process with fake workers, a fake agent and loopback sockets.

`Mesh` starts it as the CLI would (`python -I -m meshfast.supervisor`) and ends it with everything
it left behind. `wait_until` is the only way to wait: for a condition, with a deadline. `Load`
connects all the time and counts what its clients saw.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

FAKES = Path(__file__).parent / "fakes"
# Correctness deadlines carry slack for a busy machine of two cores.
DEADLINE_S = 20.0
LISTENING = re.compile(r"listening on (\S+)(?: instead of \S+)? \((\S+)\)")
T = TypeVar("T")


def wait_until(condition: Callable[[], T], what: str, deadline_s: float = DEADLINE_S) -> T:
    """Return the first true value of *condition*; fail when there is none in time."""
    give_up_at = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > give_up_at:
            raise AssertionError(f"not in {deadline_s} s: {what}")
        time.sleep(0.005)


def ask(address: str, line: str, timeout_s: float = DEADLINE_S) -> dict[str, Any]:
    """Connect, send one line and return the JSON of the answer; raises what the socket raises."""
    with connect(address, timeout_s) as end:
        end.sendall(line.encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            data = end.recv(65_536)
            if not data:
                raise ConnectionResetError("closed without an answer")
            answer += data
    return dict(json.loads(answer))


def connect(address: str, timeout_s: float = DEADLINE_S) -> socket.socket:
    """Connect to `ip:port`, `[ip6]:port` or `unix:/path`."""
    if address.startswith("unix:"):
        end = socket.socket(socket.AF_UNIX)
        end.settimeout(timeout_s)
        end.connect(address.removeprefix("unix:"))
        return end
    host, _, port = address.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout_s)


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        return status_field(pid, "State") not in ("X", "Z")
    except (FileNotFoundError, ProcessLookupError):
        return False


def status_field(pid: int, name: str) -> str:
    """Return one field of /proc/PID/status."""
    with open(f"/proc/{pid}/status") as status:
        return next(line.split()[1] for line in status if line.startswith(f"{name}:"))


class Mesh:
    """One supervisor and its children; use it as a context manager.

    *worker* and *agent* are arguments of the fakes' `Behaviour`, as Python text.
    """

    def __init__(
        self,
        folder: Path,
        workers: int = 2,
        drain_ms: int = 5_000,
        worker: str = "",
        agent: str = "",
        sockets: list[dict[str, Any]] | None = None,
        **settings: Any,
    ) -> None:
        self.folder = folder
        self.modules = folder / "modules"
        self.modules.mkdir(exist_ok=True)
        self.worker_behaves(worker)
        self.agent_behaves(agent)
        web = {"name": "web", "address": "127.0.0.1:0", "owner": "worker", "fallback": False}
        metrics = {"name": "metrics", "address": "127.0.0.1:0", "owner": "agent", "fallback": True}
        self.settings: dict[str, Any] = {
            "version": 1,
            "instance": "default",
            "runtime_dir": str(folder / "run"),
            "workers": workers,
            "drain_ms": drain_ms,
            "sockets": [*([web] if sockets is None else sockets), metrics],
            "generation": 1,
            "agent": {"kind": "fake"},
            "app": None,
            "log_level": "info",
            "entry_points": {
                "path": [str(self.modules), str(FAKES)],
                "worker": "worker_under_test",
                "agent": "agent_under_test",
            },
            **settings,
        }
        self.snapshot = b"snapshot 1"
        self.stderr_path = folder / "stderr"
        self.environment: dict[str, str] = {}
        self.launcher: list[str] = []  # what executes the supervisor, if anything
        self.seen: set[int] = set()

    def worker_behaves(self, behaviour: str) -> None:
        """Change how the workers forked from now on behave."""
        self._write_module("worker", behaviour)

    def agent_behaves(self, behaviour: str) -> None:
        """Change how the agents forked from now on behave."""
        self._write_module("agent", behaviour)

    def _write_module(self, kind: str, behaviour: str) -> None:
        path = self.modules / f"{kind}_under_test.py"
        new = path.with_suffix(".new")
        text = (
            f"import sys\nimport fake_{kind}\n\n\ndef main(settings):\n"
            f"    fake_{kind}.main(settings, fake_{kind}.Behaviour({behaviour}))\n"
        )
        if kind == "agent":
            text += (
                "\n\ndef check(shared_memory_fd, snapshot_fd):\n"
                f"    behaviour = fake_agent.Behaviour({behaviour})\n"
                "    fake_agent.check(shared_memory_fd, snapshot_fd, behaviour)\n"
            )
        new.write_text(text)
        new.replace(path)
        # A cached compilation of the same second and size would be taken for the new text.
        for cached in self.modules.glob(f"__pycache__/{kind}_*"):
            cached.unlink()

    def start(self) -> Self:
        """Start the supervisor without waiting for anything."""
        shared_memory_fd = os.memfd_create("shared-memory")
        snapshot_fd = os.memfd_create("snapshot")
        os.write(snapshot_fd, self.snapshot)
        given = {"shared_memory_fd": shared_memory_fd, "snapshot_fd": snapshot_fd}
        path = self.folder / "settings.json"
        path.write_text(json.dumps({**given, **self.settings}))
        with self.stderr_path.open("wb") as stderr:
            self.process = subprocess.Popen(
                [
                    *self.launcher,
                    sys.executable,
                    "-I",
                    "-m",
                    "meshfast.supervisor",
                    "--settings",
                    str(path),
                ],
                stderr=stderr,
                stdin=subprocess.DEVNULL,
                pass_fds=(shared_memory_fd, snapshot_fd),
                env={**os.environ, **self.environment},
            )
        os.close(shared_memory_fd)
        os.close(snapshot_fd)
        return self

    def __enter__(self) -> Self:
        """Start and wait until the mesh serves."""
        self.start()
        try:
            self.wait_for_text("serving with")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End everything; show what the supervisor said when the test failed."""
        if error is not None:
            print(self.stderr)
        self.close()

    def close(self) -> None:
        """Kill the supervisor and every process that it ever had."""
        self.children()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pid in self.seen:
            with contextlib.suppress(ProcessLookupError):
                if is_alive(pid) and self._is_ours(pid):
                    os.kill(pid, signal.SIGKILL)

    def _is_ours(self, pid: int) -> bool:
        command = Path(f"/proc/{pid}/cmdline")
        return b"meshfast.supervisor" in (command.read_bytes() if command.exists() else b"")

    @property
    def stderr(self) -> str:
        """Return what the supervisor and its children said so far."""
        return self.stderr_path.read_text()

    def wait_for_text(self, text: str, times: int = 1, deadline_s: float = DEADLINE_S) -> None:
        """Wait until stderr holds *text*; fail at once when the supervisor has ended without it."""

        def is_said() -> bool:
            has_ended = self.process.poll() is not None
            if self.stderr.count(text) >= times:
                return True
            assert not has_ended, f"ended without {text!r}:\n{self.stderr}"
            return False

        wait_until(is_said, f"{text!r} in:\n{self.stderr}", deadline_s)

    def address(self, name: str = "web") -> str:
        """Return where a socket really listens."""
        return str({name: at for at, name in LISTENING.findall(self.stderr)}[name])

    def ask(self, line: str = "who", name: str = "web") -> dict[str, Any]:
        """Ask a worker, or the agent with ``name="metrics"``."""
        return ask(self.address(name), line)

    def tell(self, line: str, name: str = "web") -> None:
        """Send a line to a child that may not live long enough to answer."""
        with contextlib.suppress(ConnectionError):
            self.ask(line, name)

    def heard(self) -> list[dict[str, Any]]:
        """Return what the supervisor has told the agent."""
        return list(self.ask("heard", "metrics")["heard"])

    def wait_for_message(self, message: dict[str, Any]) -> None:
        """Wait until the supervisor has told the agent something."""
        wait_until(lambda: message in self.heard(), f"the agent hears {message}")

    def children(self) -> list[int]:
        """Return the living children of the supervisor, oldest first."""
        try:
            text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return []
        found = sorted(pid for pid in map(int, text.split()) if is_alive(pid))
        self.seen.update(found)
        return found

    def workers(self) -> dict[int, int]:
        """Return slot → pid, found by asking until every worker of the settings has answered."""
        found: dict[int, int] = {}

        def has_all() -> bool:
            answer = self.ask()
            found[answer["slot"]] = answer["pid"]
            for slot, pid in list(found.items()):
                if not is_alive(pid):
                    del found[slot]
            return len(found) == int(self.settings["workers"])

        wait_until(has_all, f"{self.settings['workers']} workers answer")
        self.seen.update(found.values())
        return found

    def signal(self, number: signal.Signals) -> None:
        """Signal the supervisor."""
        self.process.send_signal(number)

    def wait(self, deadline_s: float = DEADLINE_S) -> int:
        """Wait for the end and return the exit code."""
        return self.process.wait(deadline_s)


class HeldConnection:
    """A connection that a worker has accepted and keeps open until the block ends."""

    def __init__(self, mesh: Mesh) -> None:
        self._end = connect(mesh.address())
        self._lines = self._end.makefile()
        self._end.sendall(b"hold\n")
        assert self._lines.readline() == "{}\n"

    def ask(self) -> dict[str, Any]:
        """Ask the worker that has it; the connection stays usable."""
        self._end.sendall(b"hold who\n")
        return dict(json.loads(self._lines.readline()))

    def __enter__(self) -> "HeldConnection":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection; a draining worker that waited for it ends."""
        self._lines.close()
        self._end.close()


class Stopped:
    """Keep a process stopped within a block; it may die meanwhile."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def __enter__(self) -> None:
        """Stop it."""
        os.kill(self.pid, signal.SIGSTOP)

    def __exit__(self, *_: object) -> None:
        """Let it go on."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)


class Load:
    """Clients that connect, ask and close, over and over; `seen` counts the outcomes.

    `refused`: the connect was refused. `hung`: no answer within *hang_s*. `cut`: connected, then
    closed without an answer, as when the worker that had accepted was killed. `answered`.
    """

    def __init__(self, address: str, clients: int = 3, hang_s: float = 5.0) -> None:
        self.address = address
        self.hang_s = hang_s
        self.seen: Counter[str] = Counter()
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def __enter__(self) -> "Load":
        """Start the clients and wait for the first answer."""
        for thread in self._threads:
            thread.start()
        wait_until(lambda: self.seen["answered"], "the load is answered")
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the clients."""
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._is_over.is_set():
            self.seen[self._outcome()] += 1

    def _outcome(self) -> str:
        try:
            ask(self.address, "who", self.hang_s)
        except ConnectionRefusedError:
            return "refused"
        except TimeoutError:
            return "hung"
        except (ConnectionError, ValueError):
            return "cut"
        return "answered"
