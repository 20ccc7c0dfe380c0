"""A supervisor for one agent: the sockets, memory files and messages, and nothing of the rest."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tests.agent.fakes import recorded

ROOT = Path(__file__).parents[2]
FAKES = Path(__file__).parent / "fakes"
DEADLINE_S = 10.0
RING_PIECE_BYTES = 4096  # PIPE_BUF: written whole, or not at all

T = TypeVar("T")

REAL = """
import os, sys
from meshfast.agent import main
main(os.pread(int(sys.argv[1]), 65536, 0))
"""

DOCUMENT: dict[str, Any] = {
    "version": 1,
    "generation": 1,
    "workload": {
        "name": "edge",
        "namespace": "default",
        "app": "edge",
        "revision": "latest",
        "principal": "",
    },
    "listeners": [],
    "clusters": [],
}


def wait_for(what: Callable[[], T | None], seconds: float = DEADLINE_S) -> T:
    """Wait until `what()` is true, and return it."""
    deadline = time.monotonic() + seconds
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what} did not become true within {seconds} s"
        time.sleep(0.005)


class Supervised:
    """An agent process and the other ends of everything it holds."""

    def __init__(
        self, directory: Path, *, stdout: int | None = None, real: bool = False, **agent: Any
    ) -> None:
        """Start it: on a recorded source, or (`real`) on shared memory, as the supervisor does."""
        self.directory = directory
        self.record()
        self.names({})
        self.control, control = _pair()
        self.worker, resolver = _pair()
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listening.getsockname()[1]
        ring_out, self.ring = os.pipe()
        os.set_blocking(self.ring, False)
        document = agent.pop("document", DOCUMENT)
        blob = json.dumps(document).encode()
        kept = {
            "control_fd": control.fileno(),
            "shared_memory_fd": _shared_memory() if real else _memory(b""),
            "snapshot_fd": _memory(_snapshot(blob) if real else blob),
        }
        settings = {
            "version": 1,
            "generation": document["generation"],
            "log_level": "info",
            "listeners": [
                {
                    "name": "metrics",
                    "address": f"127.0.0.1:{self.port}",
                    "fd": self.listening.fileno(),
                }
            ],
            "bound": [
                {"name": one["name"], "address": one["name"].partition("/")[2]}
                for one in document["listeners"]
            ],
            "resolvers": [{"slot": 0, "fd": resolver.fileno()}],
            "agent": {"access_log": "off", "version": "1.2.3"} | agent,
        } | kept
        settings_fd = _memory(json.dumps(settings).encode())
        fds = [*kept.values(), settings_fd, ring_out, resolver.fileno(), self.listening.fileno()]
        program = [sys.executable, "-m", "tests.agent.fakes.agent_process", str(directory)]
        program += [str(settings_fd), str(ring_out), str(FAKES / "compiler_process.py")]
        if real:
            program = [sys.executable, "-c", REAL, str(settings_fd)]
        self.log = directory / "stderr.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                program,
                cwd=ROOT,
                pass_fds=fds,
                stdout=stdout,
                stderr=log,
            )
        for fd in (*kept.values(), settings_fd, ring_out):
            if fd != control.fileno():
                os.close(fd)
        control.close()
        resolver.close()
        assert self.receive() == {"type": "ready"}

    # files the agent reads

    def record(self, **changes: Any) -> None:
        """Change the recording."""
        self._replace("state.json", recorded.state(**changes))

    def names(self, names: dict[str, Any]) -> None:
        """Change what host names resolve to."""
        self._replace("names.json", names)

    def _replace(self, name: str, content: Any) -> None:
        new = self.directory / f"{name}.new"
        new.write_text(json.dumps(content))
        new.rename(self.directory / name)

    def log_lines(self, lines: bytes) -> None:
        """Be a worker that writes access-log lines; BlockingIOError when the ring is full."""
        for start in range(0, len(lines), RING_PIECE_BYTES):
            piece = lines[start : start + RING_PIECE_BYTES]
            assert os.write(self.ring, piece) == len(piece)

    # messages

    def send(self, **message: Any) -> None:
        """Say something on the control channel."""
        self.control.send(json.dumps(message).encode())

    def receive(self) -> dict[str, Any]:
        """Hear the next message on the control channel, without descriptors."""
        message, fds = self.receive_with_fds()
        assert not fds
        return message

    def receive_with_fds(self) -> tuple[dict[str, Any], list[int]]:
        """Hear the next message on the control channel."""
        data, fds, _, _ = socket.recv_fds(self.control, 65536, 4)
        assert data, f"the agent is gone: {self.log.read_text()}"
        return json.loads(data), fds

    def ask(self, number: int, host: str) -> None:
        """Be a worker that asks for addresses."""
        question = {"type": "resolve", "id": number, "host": host}
        self.worker.send(json.dumps(question).encode())

    def answer(self) -> dict[str, Any]:
        """Be a worker that hears an answer."""
        answer: dict[str, Any] = json.loads(self.worker.recv(65536))
        return answer

    def events(self, event: str) -> list[dict[str, Any]]:
        """The agent's own log lines of one event so far."""
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [entry for line in lines if (entry := json.loads(line))["event"] == event]

    # HTTP

    def request(self, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """GET a path: status, headers in lower case, body."""
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return self.exchange(f"GET {path} HTTP/1.1\r\nHost: agent\r\n{lines}\r\n".encode())

    def exchange(self, data: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send bytes, read to the end, take the response apart."""
        with self.connect() as client:
            client.sendall(data)
            return response(_read_all(client))

    def connect(self) -> socket.socket:
        """A connection to the metrics socket."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_S)

    def scrape(self) -> str:
        """The text of /metrics."""
        status, _, body = self.request("/metrics")
        assert status == 200
        return body.decode()

    # endings

    def wait(self) -> int:
        """The agent's exit code."""
        return self.process.wait(timeout=DEADLINE_S)

    def stop(self) -> int:
        """Tell it to stop, and return its exit code."""
        self.send(type="stop")
        return self.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def close(self) -> None:
        """End what is still there."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for one in (self.control, self.worker, self.listening):
            one.close()
        os.close(self.ring)


def response(data: bytes) -> tuple[int, dict[str, str], bytes]:
    """Take a response apart, chunks put together."""
    head, _, body = data.partition(b"\r\n\r\n")
    status_line, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        body = _unchunked(body)
    return int(status_line.split()[1]), headers, body


def _unchunked(data: bytes) -> bytes:
    pieces: list[bytes] = []
    at = 0
    while True:
        end = data.index(b"\r\n", at)
        start, stop = end + 2, end + 2 + int(data[at:end], 16)
        assert data[stop : stop + 2] == b"\r\n"
        if start == stop:
            assert stop + 2 == len(data)
            return b"".join(pieces)
        pieces.append(data[start:stop])
        at = stop + 2


def _read_all(client: socket.socket) -> bytes:
    pieces = []
    while piece := client.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def _pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(DEADLINE_S)
    return ours, theirs


def _shared_memory() -> int:
    from meshfast import _core

    memory = _core.SharedMemory.create(4)
    return os.dup(memory.fileno())


def _snapshot(document: bytes) -> bytes:
    from meshfast import _core

    return _core.Snapshot.build(document)


def _memory(data: bytes) -> int:
    fd = os.memfd_create("agent-test")
    os.write(fd, data)
    return fd
