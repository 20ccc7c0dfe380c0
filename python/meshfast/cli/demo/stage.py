"""The demo's processes: a control plane and five workloads, started as a user would start them.

    meshfast control
    meshfast run --service order --port … --label version=v1 -- python -I service.py order v1 …

Everything lies in one folder: the state of the control plane and of the sidecars, a log for every
process. Ports are free ones of the loopback interface.

Invariants:
1. Each process leads a group of its own, so that Ctrl-C reaches the demo alone, which ends them in
   order: the load, then the services, which have no requests any more, and the control plane.
2. After `close` none of them runs, whatever state they were in. Without it the sweeper ends them,
   by the mark that they and all below them have in their environment.
3. A process that ends or does not come up in time is an error that shows the end of its log.

Tests: tests/demo/test_stage.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from meshfast.cli.demo import service
from meshfast.cli.demo.interrupts import Interrupts
from meshfast.cli.demo.load import CHAIN, SPLIT, Sample
from meshfast.cli.demo.sweeper import MARK
from meshfast.cli.operator import OperatorApi
from meshfast.errors import MeshfastError

__all__ = [
    "VERSIONS",
    "DemoError",
    "Sidecar",
    "Stage",
    "descendants",
    "reserved_port",
    "wait_until",
]

READY_S = 30.0
STOP_S = 10.0
DRAIN = "3s"
ANSWER_S = 20.0
LOG_LINES = 15
CONTROL = "control"
LOAD = "load"
VERSIONS = ("v1", "v2")
#: The port that callers name, which may be left out of a URL.
SERVICE_PORT = 80
LISTENING = re.compile(r"listening on (\S+)(?: instead of \S+)? \(metrics\)")

T = TypeVar("T")


class DemoError(MeshfastError):
    """The demo could not be set up, or lost one of its processes."""


@dataclass(frozen=True)
class Sidecar:
    """A running `meshfast run`: its name, and the pid of its supervisor."""

    name: str
    pid: int
    metrics: str


class Stage:
    """The mesh of the demo. `start` brings it up, `close` ends all of it, from any state.

    `sidecars` are those that were started, callers before those that they call.
    """

    def __init__(self, folder: Path, meshfast: Path, interrupts: Interrupts) -> None:
        """Start nothing yet. `meshfast` is the command of this installation."""
        self._folder = folder
        self._meshfast = meshfast
        self._interrupts = interrupts
        self._state_dir = folder / CONTROL
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._reserved: list[socket.socket] = []
        self._load_port = 0
        self.sidecars: list[Sidecar] = []
        self.operator = OperatorApi(self._state_dir)

    def start(self, rate: float, *, zipkin_address: str) -> None:
        """Bring up everything but the requests. Raises DemoError."""
        state = ["--state-dir", str(self._state_dir)]
        self._start(CONTROL, [str(self._meshfast), "control", "--address", "127.0.0.1:0", *state])
        self._until(CONTROL, lambda: "control plane ready" in self.log(CONTROL), "it to be ready")
        tracing = ["--zipkin-address", zipkin_address] if zipkin_address else []
        for name, version, next_url in _services():
            port = self._reserve()
            program = [sys.executable, "-I", service.__file__, name, version, str(port)]
            options = [*tracing, "--label", f"version={version}"]
            self._run(f"{name}-{version}", name, port, options, [*program, *next_url])
        self._load_port = self._reserve()
        program = [sys.executable, "-I", "-m", "meshfast.cli.demo.load", str(self._load_port)]
        target = [f"http://{CHAIN[0]}", str(rate)]
        self._run(LOAD, LOAD, self._load_port, tracing, [*program, *target])
        self._until(LOAD, self._is_whole, "the mesh to be in sync")
        self.sidecars = [
            Sidecar(name, process.pid, LISTENING.findall(self.log(name))[-1])
            for name, process in reversed(self._processes.items())
            if name != CONTROL
        ]

    def load(self, command: str) -> Sample:
        """Tell the load to `start`, `take` or `stop`; return the sample, an empty one at first."""
        url = f"http://127.0.0.1:{self._load_port}/{command}"
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(urllib.request.Request(url, method="POST"), timeout=ANSWER_S) as got:
                text = got.read()
        except OSError as error:
            raise DemoError(f"the load does not answer: {error}\n{self._tail(LOAD)}") from None
        return Sample.of_json(text) if text else Sample()

    def command(self, *words: str) -> Any:
        """Run a command of an operator; return what it answers. Raises DemoError."""
        try:
            done = subprocess.run(
                [str(self._meshfast), *words, "--state-dir", str(self._state_dir), "-o", "json"],
                env=self._environment(),
                capture_output=True,
                text=True,
                timeout=ANSWER_S,
            )
        except subprocess.TimeoutExpired as error:
            raise DemoError(str(error)) from None
        if done.returncode:
            raise DemoError(f"meshfast {' '.join(words)} failed:\n{done.stderr.strip()}")
        return json.loads(done.stdout)

    def kill_control(self) -> None:
        """SIGKILL the control plane."""
        self._processes[CONTROL].kill()
        self._processes.pop(CONTROL).wait()

    def check(self) -> None:
        """Raise DemoError when a process has ended that should run."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise DemoError(
                    f"{name} has ended with {process.returncode}; the end of its log:\n"
                    + self._tail(name)
                )

    def log(self, name: str) -> str:
        """What a process has said so far."""
        return (self._folder / f"{name}.log").read_text(errors="replace")

    def close(self) -> None:
        """End everything: the load first, the control plane last; by force what does not end.

        No signal disturbs it any more.
        """
        self._interrupts.hold()
        last = [self._processes.pop(name, None) for name in (LOAD, CONTROL)]
        for together in ([last[0]], [*self._processes.values()], [last[1]]):
            _end([process for process in together if process is not None])
        self._processes.clear()
        for held in self._reserved:
            held.close()

    def _run(
        self, name: str, of: str, port: int, options: Sequence[str], program: Sequence[str]
    ) -> None:
        token = self.operator.ask("POST", "tokens", body={"service": of})["text"]
        addresses = (f"--{kind}-address" for kind in ("inbound", "outbound", "metrics"))
        command = [str(self._meshfast), "run", "--service", of, "--instance", name]
        command += ["--port", str(port), "--service-port", str(SERVICE_PORT)]
        command += [word for option in addresses for word in (option, "127.0.0.1:0")]
        command += ["--address", "127.0.0.1", "--drain-time", DRAIN]
        command += ["--state-dir", str(self._folder / "sidecars")]
        command += ["--runtime-dir", str(self._folder / "run")]
        self._start(name, [*command, *options, "--", *program], {"MESHFAST_TOKEN": token})

    def _reserve(self) -> int:
        self._reserved.append(reserved_port())
        return int(self._reserved[-1].getsockname()[1])

    def _start(self, name: str, command: Sequence[str], more: Mapping[str, str] = {}) -> None:
        with (self._folder / f"{name}.log").open("ab") as log, self._interrupts.held():
            self._processes[name] = subprocess.Popen(
                command,
                env={**self._environment(), **more},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )

    def _environment(self) -> dict[str, str]:
        """Give the demo's without proxies and what is for other commands of ours; with the mark."""
        inherited = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith("MESHFAST_") and not key.lower().endswith("_proxy")
        }
        return {**inherited, MARK: str(self._folder)}

    def _is_whole(self) -> bool:
        """Tell whether every service is healthy and every sidecar in sync."""
        mesh: dict[str, Any] = self.operator.ask("GET", "status")
        healthy = sum(one["healthy"] for one in mesh["services"])
        expected = len(self._processes) - 1
        return (
            healthy == expected
            and len(mesh["sidecars"]) == expected
            and all(
                (one["state"], one["revision"]) == ("SYNCED", mesh["revision"])
                for one in mesh["sidecars"]
            )
        )

    def _until(self, name: str, condition: Callable[[], bool], what: str) -> None:
        def met() -> bool:
            self.check()
            return condition()

        try:
            wait_until(met, what, READY_S)
        except TimeoutError as error:
            raise DemoError(f"{error}; the end of the log of {name}:\n{self._tail(name)}") from None

    def _tail(self, name: str) -> str:
        return "\n".join(self.log(name).splitlines()[-LOG_LINES:])


def wait_until(condition: Callable[[], T], what: str, seconds: float, pause_s: float = 0.02) -> T:
    """Return the first true value. Raises TimeoutError."""
    give_up_s = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > give_up_s:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(pause_s)
    return value


def reserved_port() -> socket.socket:
    """Bind a free port of the loopback interface for one program, which has to set SO_REUSEADDR.

    While the socket is open the kernel gives the port to nobody who asks for any; since it never
    listens, the program can (Linux, net/ipv4/inet_connection_sock.c, inet_csk_bind_conflict).
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held


def descendants(pid: int) -> list[int]:
    """Give the processes below one that live now, parents before their children."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name of a process stands in parentheses and may hold some itself (proc(5)).
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found = children.get(pid, [])
    for one in found:
        found.extend(children.get(one, []))
    return found


def _services() -> Iterator[tuple[str, str, list[str]]]:
    """Name, version and the URL of the next service; those that are called before their callers."""
    for place in reversed(range(len(CHAIN))):
        name = CHAIN[place]
        next_url = [f"http://{one}" for one in CHAIN[place + 1 : place + 2]]
        for version in VERSIONS if name == SPLIT else VERSIONS[:1]:
            yield name, version, next_url


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """SIGTERM to all, and SIGKILL to all of what does not end by that."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    give_up_s = time.monotonic() + STOP_S
    for process in processes:
        try:
            process.wait(max(0.0, give_up_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            below = descendants(process.pid)
            process.kill()
            process.wait()
            for pid in below:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
