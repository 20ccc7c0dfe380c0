"""JSON messages, with descriptors, over a SOCK_SEQPACKET pair: supervisor and workers.

One message is one packet of at most 64 KiB holding one JSON object. Sending never blocks: what the
peer does not take now is kept, in order, and sent when it does. While 64 messages are kept nothing
is read: a peer that asks and does not listen is not answered further.

Does not do: limiting what is said unasked; the publisher has one snapshot on its way at a time.

Tests: tests/agent/test_agent.py, test_resolver.py.
"""

from __future__ import annotations

import json
import os
import socket
from collections import deque

from meshfast.agent.loop import READ, WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from meshfast.agent.loop import Loop

    Message = dict[str, Any]

__all__ = ["MESSAGE_BYTES_MAX", "Channel"]

MESSAGE_BYTES_MAX = 65536
UNSENT_MAX = 64

_FDS_MAX = 8


class Channel:
    """One end of a pair. Closed by `close` or by the end of the peer, which is told once."""

    def __init__(
        self,
        loop: Loop,
        fd: int,
        on_message: Callable[[Message], None],
        on_end: Callable[[], None],
    ) -> None:
        """Own `fd` and begin to read."""
        self._loop = loop
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._on_message = on_message
        self._on_end = on_end
        self._unsent: deque[tuple[bytes, list[int]]] = deque()
        self._reading = True
        self._watch()

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send, now or as soon as the peer takes it; descriptors stay the caller's."""
        if self._socket.fileno() < 0:
            return
        data = json.dumps(message, separators=(",", ":")).encode()
        assert len(data) <= MESSAGE_BYTES_MAX, "a message fits into a packet"
        self._unsent.append((data, [os.dup(fd) for fd in fds]))
        self._flush()

    def pause(self, paused: bool) -> None:
        """Read no more, or again."""
        if self._reading == paused and self._socket.fileno() >= 0:
            self._reading = not paused
            self._watch()

    def close(self) -> None:
        """Close, without telling."""
        if self._socket.fileno() >= 0:
            self._loop.watch(self._socket.fileno(), 0, self._on_ready)
            self._socket.close()
            while self._unsent:
                self._close_fds(self._unsent.popleft()[1])

    def _watch(self) -> None:
        reading = self._reading and len(self._unsent) < UNSENT_MAX
        events = (READ if reading else 0) | (WRITE if self._unsent else 0)
        self._loop.watch(self._socket.fileno(), events, self._on_ready)

    def _on_ready(self, ready: int) -> None:
        if ready & WRITE:
            self._flush()
        if ready & READ:
            self._receive()

    def _flush(self) -> None:
        try:
            while self._unsent:
                data, fds = self._unsent[0]
                socket.send_fds(self._socket, [data], fds)
                self._unsent.popleft()
                self._close_fds(fds)
        except BlockingIOError:
            pass
        except OSError:
            return self._end()
        self._watch()

    def _receive(self) -> None:
        try:
            data, fds, flags, _ = socket.recv_fds(
                self._socket, MESSAGE_BYTES_MAX, _FDS_MAX, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            return self._end()
        self._close_fds(fds)  # nobody sends the agent descriptors in version 1
        if not data:
            return self._end()
        message = None if flags & socket.MSG_TRUNC else _decode(data)
        if message is not None:
            self._on_message(message)

    def _end(self) -> None:
        self.close()
        self._on_end()

    @staticmethod
    def _close_fds(fds: Sequence[int]) -> None:
        for fd in fds:
            os.close(fd)


def _decode(data: bytes) -> Message | None:
    """A packet that is no JSON object is skipped: the next one stands for itself."""
    try:
        message = json.loads(data)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None
