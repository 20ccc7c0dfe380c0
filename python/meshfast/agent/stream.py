"""One discovery stream: TCP, TLS 1.3 and frames, on the agent's loop.

TLS is rustls in the extension, which has the roots and the name that the server must have; the
socket is here. The standard library's would cost 3 MB.

Does not do: reconnecting, looking names up, the dialogue (link).

Invariants:
1. `on_end` is called once, unless `close` came first; nothing is called after either.
2. Connecting and the handshake take 10 s at most.
3. A peer that sends without pause does not keep the loop: `READS_PER_TURN` reads, then others.

Tests: tests/agent/test_mesh.py.
"""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress

from meshfast.agent.loop import READ, WRITE
from meshfast.discovery.error import DiscoveryError
from meshfast.discovery.framer import Framer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from meshfast._core import TlsClient
    from meshfast.agent.loop import Loop, Timer
    from meshfast.discovery.messages import Message

__all__ = ["Stream"]

OPEN_S_MAX = 10.0
READ_BYTES = 65536
READS_PER_TURN = 16
SEAL_BYTES = 65536  # at a time, so that what the socket does not take is not sealed


class _Refused(Exception):
    """The server is not the one that is expected."""


class Stream:
    """On its way to be open from `__init__` on; what is sent meanwhile is kept."""

    def __init__(
        self,
        loop: Loop,
        address: tuple[str, int],
        tls: TlsClient,
        on_open: Callable[[], None],
        on_message: Callable[[Message], None],
        on_end: Callable[[str], None],
    ) -> None:
        """Begin to connect to an IP address and port. `on_end` gets the reason, for an operator."""
        self._loop = loop
        self._tls = tls
        self._on_open = on_open
        self._on_message = on_message
        self._on_end = on_end
        self._framer = Framer()
        self._unsent = bytearray()
        self._records = bytearray()
        self._is_connected = False
        self._is_open = False
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._timer: Timer = loop.call_later(OPEN_S_MAX, self._on_timeout)
        code = self._socket.connect_ex(address)
        if code in (0, errno.EINPROGRESS):
            self._watch(WRITE)
        else:
            loop.call_later(0, lambda: self._end(os.strerror(code)))

    @property
    def local_address(self) -> str:
        """The IP address that this host has on the way to the control plane."""
        return str(self._socket.getsockname()[0])

    def send(self, message: Message) -> None:
        """Queue a message; what is queued in one turn of the loop goes out together, in the next.

        Nobody is called back from here.
        """
        if self._socket.fileno() < 0:
            return
        self._unsent += self._framer.encode(message)
        if self._is_open:
            self._watch(READ | WRITE)

    def finish(self) -> None:
        """Send what the peer takes at once, and close."""
        if self._is_open:
            with suppress(OSError):
                self._flush()
        self.close()

    def close(self) -> None:
        """Close, without calling anybody."""
        self._timer.cancel()
        if self._socket.fileno() >= 0:
            self._loop.watch(self._socket.fileno(), 0, self._on_ready)
            self._socket.close()

    def _watch(self, events: int) -> None:
        if self._socket.fileno() >= 0:
            self._loop.watch(self._socket.fileno(), events, self._on_ready)

    def _on_ready(self, ready: int) -> None:
        try:
            if not self._is_connected:
                self._check_connected()
            if ready & READ:
                self._receive()
            if self._socket.fileno() < 0:  # a message led to `close`
                return
            self._flush()
            self._watch(READ | (WRITE if self._records else 0))
        except (OSError, DiscoveryError, _Refused) as error:
            self._end(str(error))

    def _check_connected(self) -> None:
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        self._is_connected = True

    def _flush(self) -> None:
        while True:
            if not self._records:
                if self._is_open and self._unsent:
                    self._tls.send(bytes(self._unsent[:SEAL_BYTES]))
                    del self._unsent[:SEAL_BYTES]
                self._records += self._tls.records()
            if not self._records:
                return
            try:
                sent = self._socket.send(self._records)
            except BlockingIOError:
                return
            del self._records[:sent]

    def _receive(self) -> None:
        for _ in range(READS_PER_TURN):
            try:
                data = self._socket.recv(READ_BYTES)
            except BlockingIOError:
                return
            self._framer.receive(self._opened(data))
            if not self._is_open and self._tls.is_open:
                self._timer.cancel()
                self._is_open = True
                self._on_open()
            # `on_open` and every message may lead to `close`.
            while self._socket.fileno() >= 0 and (message := self._framer.take()) is not None:
                self._on_message(message)
            if self._socket.fileno() < 0:
                return
            if not data or self._tls.is_ended:
                self._framer.finish()
                raise _Refused("the control plane closed the stream")

    def _opened(self, data: bytes) -> bytes:
        try:
            return self._tls.receive(data)
        except ConnectionError:
            with suppress(OSError):
                # The alert that says why, unless it is the server who has refused us.
                self._socket.send(self._tls.records())
            raise

    def _on_timeout(self) -> None:
        self._end("no TLS connection in time")

    def _end(self, reason: str) -> None:
        if self._socket.fileno() >= 0:
            self.close()
            self._on_end(reason)
