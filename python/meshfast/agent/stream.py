"""One discovery stream: TCP, TLS 1.3 and frames, on the agent's loop.

The server's certificate has to chain to the given roots (OpenSSL checks that) and to carry exactly
one URI, the SPIFFE id of the control plane (checked here).

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
import ssl
from contextlib import suppress

from meshfast.agent.loop import READ, WRITE
from meshfast.discovery.error import DiscoveryError
from meshfast.discovery.framer import Framer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from meshfast.agent.loop import Loop, Timer
    from meshfast.discovery.messages import Message

__all__ = ["Stream"]

OPEN_S_MAX = 10.0
READ_BYTES = 65536
READS_PER_TURN = 16


class _Refused(Exception):
    """The server is not the one that is expected."""


class Stream:
    """On its way to be open from `__init__` on; what is sent meanwhile is kept."""

    def __init__(
        self,
        loop: Loop,
        address: tuple[str, int],
        context: ssl.SSLContext,
        server_identity: str,
        on_open: Callable[[], None],
        on_message: Callable[[Message], None],
        on_end: Callable[[str], None],
    ) -> None:
        """Begin to connect to an IP address and port. `on_end` gets the reason, for an operator."""
        self._loop = loop
        self._context = context
        self._server_identity = server_identity
        self._on_open = on_open
        self._on_message = on_message
        self._on_end = on_end
        self._framer = Framer()
        self._unsent = bytearray()
        self._tls: ssl.SSLSocket | None = None
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
        if self._tls is not None and self._is_open:
            with suppress(OSError):
                self._flush(self._tls)
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
            if self._tls is None:
                self._tls = self._connected()
            if not self._is_open:
                self._tls.do_handshake()
                self._check_server(self._tls)
                self._begin()
            if ready & WRITE:
                self._flush(self._tls)
            if ready & READ:
                self._receive(self._tls)
            self._watch(READ | (WRITE if self._unsent else 0))
        except ssl.SSLWantReadError:
            self._watch(READ)
        except ssl.SSLWantWriteError:
            self._watch(WRITE)
        except ssl.SSLCertVerificationError as error:
            self._end(f"the certificate of the control plane is refused: {error.verify_message}")
        except (OSError, DiscoveryError, _Refused) as error:
            self._end(str(error))

    def _connected(self) -> ssl.SSLSocket:
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        tls = self._context.wrap_socket(self._socket, do_handshake_on_connect=False)
        self._socket = tls
        return tls

    def _check_server(self, tls: ssl.SSLSocket) -> None:
        given: Any = (tls.getpeercert() or {}).get("subjectAltName", ())
        names = [value for kind, value in given if kind == "URI"]
        if names != [self._server_identity]:
            raise _Refused(f"the server is {names}, not {self._server_identity}")

    def _begin(self) -> None:
        self._timer.cancel()
        self._is_open = True
        self._on_open()

    def _flush(self, tls: ssl.SSLSocket) -> None:
        while self._unsent:
            try:
                sent = tls.send(self._unsent)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            del self._unsent[:sent]

    def _receive(self, tls: ssl.SSLSocket) -> None:
        for _ in range(READS_PER_TURN):
            try:
                data = tls.recv(READ_BYTES)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            if not data:
                self._framer.finish()
                raise _Refused("the control plane closed the stream")
            self._framer.receive(data)
            while (message := self._framer.take()) is not None:
                self._on_message(message)
                if self._socket.fileno() < 0:  # the message led to `close`
                    return
        # What OpenSSL has decrypted already does not make the descriptor ready.
        if tls.pending():
            self._loop.call_later(0, lambda: self._on_ready(READ))

    def _on_timeout(self) -> None:
        self._end("no TLS connection in time")

    def _end(self, reason: str) -> None:
        if self._socket.fileno() >= 0:
            self.close()
            self._on_end(reason)
