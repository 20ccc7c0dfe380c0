"""Whether the application's port accepts: a TCP connect to loopback, every second, closed at once.

While it refuses it is asked ten times a second, so that it is called as soon as it serves (again).
A connect that takes longer than a second counts as refused. At the first success it also
says where the application listens: beyond loopback it can be reached beside the sidecar.

Does not do: HTTP checks, thresholds.

Tests: tests/agent/test_health.py.
"""

from __future__ import annotations

import errno
import socket

from meshfast.agent.loop import WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from meshfast.agent.loop import Loop, Timer

__all__ = ["AppHealth", "listening_addresses", "network_order"]

EVERY_S = 1.0
EVERY_WHILE_REFUSED_S = 0.1
PATIENCE_S = 1.0

# Where nobody listens, a connect to a port of the ephemeral range can meet itself (RFC 9293 3.5,
# simultaneous open) and would keep the application from binding. From another address it cannot.
ASKING_ADDRESS = "127.0.0.2"

LISTEN = "0A"  # include/net/tcp_states.h


class AppHealth:
    """`healthy` is the last answer; `on_change` hears the first one and every change."""

    def __init__(self, loop: Loop, port: int, on_change: Callable[[bool], None]) -> None:
        """Ask from `start` on."""
        self.healthy = False
        self.is_known = False  # it has answered, one way or the other
        self.seen = False  # it has accepted once
        self._loop = loop
        self._port = port
        self._on_change = on_change
        self._timer: Timer | None = None
        self._stopped = False

    def start(self) -> None:
        """Ask now, and again and again."""
        end = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        end.bind((ASKING_ADDRESS, 0))
        code = end.connect_ex(("127.0.0.1", self._port))
        if code == errno.EINPROGRESS:
            self._timer = self._loop.call_later(PATIENCE_S, lambda: self._on_answer(end, 1))
            self._loop.watch(end.fileno(), WRITE, lambda _: self._on_answer(end, None))
        else:
            self._on_answer(end, code)

    def stop(self) -> None:
        """Ask no more."""
        self._stopped = True

    def _on_answer(self, end: socket.socket, code: int | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if code is None:
            code = end.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._loop.watch(end.fileno(), 0, lambda _: None)
        end.close()
        if self._stopped:
            return
        healthy = code == 0
        self.seen = self.seen or healthy
        every_s = EVERY_S if healthy else EVERY_WHILE_REFUSED_S
        self._timer = self._loop.call_later(every_s, self.start)
        if healthy != self.healthy or not self.is_known:
            self.healthy, self.is_known = healthy, True
            self._on_change(healthy)


def listening_addresses(port: int, proc: str = "/proc/net") -> list[str]:
    """Say on which addresses something listens on a port of this network namespace."""
    found = []
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        try:
            with open(f"{proc}/{name}", encoding="ascii") as file:
                lines = file.readlines()[1:]
        except OSError:
            continue
        for line in lines:
            _, local, _, state, *_ = line.split()
            address, _, at = local.partition(":")
            if state == LISTEN and int(at, 16) == port:
                found.append(socket.inet_ntop(family, network_order(address)))
    return found


def network_order(text: str) -> bytes:
    """The kernel prints 32-bit words in the order of the host."""
    words = (bytes.fromhex(text[start : start + 8]) for start in range(0, len(text), 8))
    return b"".join(word[::-1] for word in words)
