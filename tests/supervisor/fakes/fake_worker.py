"""A worker in Python that keeps the protocol of the control channel and answers on its listeners.

It stands in for `meshfast.worker` in the tests of the supervisor. Every connection sends one line
and gets one line of JSON back; `hold` keeps the connection until its client closes it, which is
what a drain waits for. `Behaviour` is how a test makes it misbehave. Loaded in a forked child of
the supervisor, so it imports nothing of the tests.
"""

import contextlib
import json
import os
import select
import signal
import socket
import time
from dataclasses import dataclass
from typing import Any, NoReturn


@dataclass
class Behaviour:
    """What a test asks of the worker.

    `boot_exit`: exit with this code instead of becoming ready. `is_deaf`: never reads its channel.
    `is_stubborn`: does not end when drained. `gate`: becomes ready once this file exists.
    """

    boot_exit: int | None = None
    is_deaf: bool = False
    is_stubborn: bool = False
    gate: str = ""


class Worker:
    """The state of one process; everything is level-triggered."""

    def __init__(self, settings: dict[str, Any], behaviour: Behaviour) -> None:
        self.settings = settings
        self.behaviour = behaviour
        self.slot = settings["slot"]
        self.generation = settings["generation"]
        self.snapshot = os.pread(settings["snapshot_fd"], 4096, 0).decode()
        self.identity = (
            os.pread(settings["identity_fd"], 4096, 0).decode() if "identity_fd" in settings else ""
        )
        self.is_quieting = False
        self.inbound: set[int] = set()  # accepted from others, as file descriptors
        self.control = socket.socket(fileno=settings["control_fd"])
        self.inbox = socket.socket(fileno=settings["inbox_fd"])
        self.listeners = {
            entry["fd"]: socket.socket(fileno=entry["fd"]) for entry in settings["listeners"]
        }
        self.connections: dict[int, socket.socket] = {}
        self.is_draining = False
        self.poller = select.poll()
        watched = [self.inbox, *self.listeners.values()]
        for end in watched if behaviour.is_deaf else [self.control, *watched]:
            end.setblocking(False)
            self.poller.register(end, select.POLLIN)

    def run(self) -> NoReturn:
        """Serve until drained."""
        self.control.send(b'{"type": "ready"}')
        while True:
            for fd, _ in self.poller.poll():
                self.on_readable(fd)
            if self.is_draining and not self.connections and not self.behaviour.is_stubborn:
                with contextlib.suppress(OSError):
                    self.control.send(b'{"type": "drained"}')
                os._exit(0)

    def on_readable(self, fd: int) -> None:
        """Do what one descriptor asks for."""
        if fd == self.control.fileno():
            self.on_command()
        elif fd == self.inbox.fileno():
            self.on_inbox()
        elif fd in self.listeners:
            self.accept(self.listeners[fd], fd)
        elif fd in self.connections:
            self.answer(self.connections[fd])

    def on_inbox(self) -> None:
        """Take one handed-over connection; its end of file means that nobody is left to send."""
        with contextlib.suppress(BlockingIOError):
            data, fds, _, _ = socket.recv_fds(self.inbox, 64, 1)
            if data:
                self.take(socket.socket(fileno=fds[0]))
            else:
                self.poller.unregister(self.inbox)

    def accept(self, listener: socket.socket, fd: int) -> None:
        """Accept one connection, if another worker was not faster."""
        with contextlib.suppress(BlockingIOError):
            connection = listener.accept()[0]
            self.take(connection)
            names = {one["fd"]: one["name"] for one in self.settings["listeners"]}
            if names.get(fd, "").startswith("inbound/"):
                self.inbound.add(connection.fileno())

    def take(self, connection: socket.socket) -> None:
        """Serve an accepted connection."""
        connection.setblocking(False)
        self.connections[connection.fileno()] = connection
        self.poller.register(connection, select.POLLIN)

    def drop(self, connection: socket.socket) -> None:
        """Forget a connection and close it."""
        self.poller.unregister(connection)
        del self.connections[connection.fileno()]
        self.inbound.discard(connection.fileno())
        connection.close()
        self.tell_when_quiet()

    def on_command(self) -> None:
        """Take one message of the supervisor; its end of file is a drain without a deadline."""
        data, fds, _, _ = socket.recv_fds(self.control, 65_536, 4)
        message = json.loads(data) if data else {"type": "eof"}
        if message["type"] == "snapshot":
            self.generation = message["generation"]
            self.snapshot = os.pread(fds[0], 4096, 0).decode()
            os.close(fds[0])
            answer = {"type": "applied", "generation": self.generation}
            self.control.send(json.dumps(answer).encode())
        elif message["type"] == "identity":
            self.identity = os.pread(fds[0], 4096, 0).decode()
            os.close(fds[0])
            answer = {"type": "identity_applied", "serial": message["serial"]}
            self.control.send(json.dumps(answer).encode())
        elif message["type"] == "drain_inbound":
            self.drain_inbound()
        elif message["type"] == "listener":
            self.listeners[fds[0]] = socket.socket(fileno=fds[0])
            self.poller.register(fds[0], select.POLLIN)
        elif message["type"] in ("drain", "eof"):
            self.drain()

    def drain_inbound(self) -> None:
        """Accept no more from others; answer once what was accepted is finished."""
        self.is_quieting = True
        for entry in self.settings["listeners"]:
            if entry["name"].startswith("inbound/"):
                self.poller.unregister(entry["fd"])
                self.listeners.pop(entry["fd"]).close()
        self.tell_when_quiet()

    def tell_when_quiet(self) -> None:
        """Say once that no inbound connection is left."""
        if self.is_quieting and not self.inbound:
            self.is_quieting = False
            self.control.send(b'{"type": "inbound_drained"}')

    def drain(self) -> None:
        """Serve what is in the backlogs and the inbox, then accept no more."""
        self.is_draining = True
        self.poller.unregister(self.control)
        for listener in self.listeners.values():
            with contextlib.suppress(BlockingIOError):
                while True:
                    self.take(listener.accept()[0])
            self.poller.unregister(listener)
            listener.close()
        self.listeners.clear()

    def answer(self, connection: socket.socket) -> None:
        """Answer one line, and close unless it says `hold`."""
        try:
            line = connection.recv(4096).decode().split()
        except ConnectionError:
            line = []
        if line and line[0] == "hold":
            answer = self.describe() if line[1:] else {}
            connection.sendall(json.dumps(answer).encode() + b"\n")
            return
        if line and line[0] == "hand-over":
            self.hand_over(connection, int(line[1]))
        elif line:
            connection.sendall(json.dumps(self.obey(*line)).encode() + b"\n")
        self.drop(connection)

    def obey(self, command: str, *arguments: str) -> dict[str, Any]:
        """Do what a test asks and describe the result."""
        if command == "exit":
            os._exit(int(arguments[0]))
        if command == "hang-up":
            self.poller.unregister(self.control)
            self.control.close()
        if command == "say":
            self.control.send(" ".join(arguments).encode())
        if command == "orphan":
            return {"pid": make_an_orphan()}
        return self.describe()

    def hand_over(self, connection: socket.socket, slot: int) -> None:
        """Send a connection into the inbox of *slot*, then tell its client."""
        outboxes = {entry["slot"]: entry["fd"] for entry in self.settings["outboxes"]}
        with socket.socket(fileno=os.dup(outboxes[slot])) as outbox:
            socket.send_fds(outbox, [b"connection"], [connection.fileno()])
        connection.sendall(b"{}\n")

    def describe(self) -> dict[str, Any]:
        """Return what the tests compare."""
        ignored = int(status_field("self", "SigIgn"), 16)
        return {
            "slot": self.slot,
            "pid": os.getpid(),
            "generation": self.generation,
            "snapshot": self.snapshot,
            "identity": self.identity,
            "group": os.getpgid(0),
            "blocked": int(status_field("self", "SigBlk"), 16),
            "ignores_term": bool(ignored & 1 << signal.SIGTERM - 1),
            "fds": open_descriptors(),
            "settings": self.settings,
        }


def open_descriptors() -> list[int]:
    """Return the descriptors of this process, without those of its connections."""
    fds = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            os.fstat(int(name))
            fds.append(int(name))
    return sorted(fds)


def status_field(pid: str, name: str) -> str:
    """Return one field of /proc/PID/status."""
    with open(f"/proc/{pid}/status") as status:
        return next(line.split()[1] for line in status if line.startswith(f"{name}:"))


def make_an_orphan() -> int:
    """Start a grandchild whose parent ends at once; return its pid."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        orphan = os.fork()
        if orphan == 0:
            time.sleep(60)
            os._exit(0)
        os.write(writing, str(orphan).encode())
        os._exit(0)
    os.waitpid(child, 0)
    return int(os.read(reading, 32))


def main(settings: bytes, behaviour: Behaviour | None = None) -> NoReturn:
    """Be a worker."""
    behaviour = behaviour or Behaviour()
    if behaviour.boot_exit is not None:
        os.write(2, f"fake worker: exits with {behaviour.boot_exit}\n".encode())
        os._exit(behaviour.boot_exit)
    worker = Worker(json.loads(settings), behaviour)
    if behaviour.gate:
        os.write(2, b"fake worker: waits at the gate\n")
    while behaviour.gate and not os.path.exists(behaviour.gate):
        time.sleep(0.01)
    worker.run()
