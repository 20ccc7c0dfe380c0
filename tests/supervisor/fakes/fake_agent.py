"""An agent in Python that keeps the protocol and does what a test asks on its own socket.

It stands in for `meshfast.agent`. What the supervisor tells it is kept and shown by `heard`. Loaded
in a forked child of the supervisor, so it imports nothing of the tests.
"""

import contextlib
import json
import os
import select
import socket
from dataclasses import dataclass
from typing import Any, NoReturn


@dataclass
class Behaviour:
    """`boot_exit`: exit with this code at once. `is_stubborn`: does not end when told to stop.

    `is_cut_off`: cannot withdraw, as without a control plane that answers. `unreadable`: why it
    could not go on with what is shared.
    """

    boot_exit: int | None = None
    is_stubborn: bool = False
    is_cut_off: bool = False
    unreadable: str = ""


def check(shared_memory_fd: int, snapshot_fd: int, behaviour: Behaviour) -> None:
    """Tell before a hot restart whether this image could go on with what is shared."""
    os.fstat(shared_memory_fd)
    assert os.pread(snapshot_fd, 4096, 0).startswith(b"snapshot")
    if behaviour.unreadable:
        raise OSError(behaviour.unreadable)


class Agent:
    """The state of one process."""

    def __init__(self, settings: dict[str, Any], behaviour: Behaviour) -> None:
        self.settings = settings
        self.behaviour = behaviour
        self.control = socket.socket(fileno=settings["control_fd"])
        self.listener = socket.socket(fileno=settings["listeners"][0]["fd"])
        self.heard: list[dict[str, Any]] = []

    def run(self) -> NoReturn:
        """Serve until told to stop or left alone."""
        self.control.send(b'{"type": "ready"}')
        poller = select.poll()
        for end in (self.control, self.listener):
            end.setblocking(False)
            poller.register(end, select.POLLIN)
        while True:
            for fd, _ in poller.poll():
                if fd == self.control.fileno():
                    self.on_message()
                else:
                    self.on_connection()

    def on_message(self) -> None:
        """Keep what the supervisor says."""
        data = self.control.recv(65_536)
        if not data:
            os._exit(0)
        self.heard.append(json.loads(data))
        if self.heard[-1]["type"] == "drain" and not self.behaviour.is_cut_off:
            self.control.send(b'{"type": "withdrawn"}')
        if self.heard[-1]["type"] == "stop" and not self.behaviour.is_stubborn:
            os._exit(0)

    def on_connection(self) -> None:
        """Answer one line with one line."""
        connection, _ = self.listener.accept()
        connection.settimeout(10)
        with connection, contextlib.suppress(ConnectionError):
            line = connection.recv(4096).decode().split()
            if line:
                connection.sendall(json.dumps(self.obey(*line)).encode() + b"\n")

    def obey(self, command: str, *arguments: str) -> dict[str, Any]:
        """Do what a test asks and describe the result."""
        if command == "exit":
            os._exit(int(arguments[0]))
        if command == "bind":
            message = {"type": "bind", "name": arguments[0], "address": arguments[1]}
            self.control.send(json.dumps(message).encode())
        if command == "snapshot":
            self.publish(int(arguments[0]))
        if command == "identity":
            self.identify(int(arguments[0]))
        if command == "say":
            self.control.send(" ".join(arguments).encode())
        return {"pid": os.getpid(), "heard": self.heard, "settings": self.settings}

    def identify(self, serial: int) -> None:
        """Hand an identity over whose text is `identity N`."""
        fd = os.memfd_create("identity")
        os.write(fd, f"identity {serial}".encode())
        message = {"type": "identity", "serial": serial}
        socket.send_fds(self.control, [json.dumps(message).encode()], [fd])
        os.close(fd)

    def publish(self, generation: int) -> None:
        """Send a snapshot whose text is `snapshot N`."""
        fd = os.memfd_create("snapshot")
        os.write(fd, f"snapshot {generation}".encode())
        message = {"type": "snapshot", "generation": generation}
        socket.send_fds(self.control, [json.dumps(message).encode()], [fd])
        os.close(fd)


def main(settings: bytes, behaviour: Behaviour | None = None) -> NoReturn:
    """Be an agent."""
    behaviour = behaviour or Behaviour()
    if behaviour.boot_exit is not None:
        os._exit(behaviour.boot_exit)
    Agent(json.loads(settings), behaviour).run()
