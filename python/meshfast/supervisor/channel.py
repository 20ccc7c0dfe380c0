"""Control channels: one JSON object per SOCK_SEQPACKET message, descriptors by SCM_RIGHTS.

A channel is a descriptor and nothing else: no buffer here, so nothing is lost when the supervisor
re-executes itself, and no socket object that could close a number somebody else has by then.
Neither side ever blocks. A message is taken whole or refused; a peer that sends anything else is at
fault and its child is replaced.

Tests: tests/supervisor/test_channel.py.
"""

from __future__ import annotations

import array
import json
import os
import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    Message = dict[str, Any]

__all__ = ["MESSAGE_BYTES_MAX", "Channel", "ChannelError", "Closed", "forward", "pair"]

MESSAGE_BYTES_MAX = 65_536
# One descriptor per message is the protocol; room for more so that they arrive and can be closed.
FDS_MAX = 8


class ChannelError(Exception):
    """The peer sent something that is not a message of the protocol."""


class Closed(Exception):
    """The peer closed its end or died."""


class Channel:
    """The supervisor's end of a control channel."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        """Use an open descriptor; whoever made it closes it."""
        self.fd = fd

    def send(self, message: Message, fds: Iterable[int] = ()) -> bool:
        """Send one message; False when the peer is gone or does not read."""
        return _send(self.fd, json.dumps(message).encode(), fds)

    def receive(self) -> tuple[Message, list[int]] | None:
        """Return the next message and its descriptors, or None when none is waiting.

        The descriptors belong to the caller. Raises `Closed` and `ChannelError`.
        """
        taken = _receive(self.fd)
        if taken is None:
            return None
        data, fds, is_whole = taken
        if not data and not fds:
            raise Closed
        try:
            message = json.loads(data) if is_whole else None
        except ValueError:
            message = None
        if type(message) is not dict or type(message.get("type")) is not str:
            close_all(fds)
            raise ChannelError(f"not a message: {data[:80]!r}")
        return message, fds


def pair() -> tuple[int, int]:
    """Return the two ends of a new channel: non-blocking, close-on-exec."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
    return ends[0].detach(), ends[1].detach()


def forward(source: int, targets: list[int]) -> bool:
    """Move one waiting message, descriptors included, to the first of *targets* that takes it.

    False when none was waiting. A message that nobody takes is dropped and its descriptors closed.
    """
    taken = _receive(source)
    if taken is None:
        return False
    data, fds, _ = taken
    any(_send(target, data, fds) for target in targets)
    close_all(fds)
    return True


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors that came with a message nobody wants."""
    for fd in fds:
        os.close(fd)


def _send(fd: int, data: bytes, fds: Iterable[int]) -> bool:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    end = _socket(fd)
    try:
        end.sendmsg([data], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except OSError:
        return False
    finally:
        end.detach()
    return True


def _receive(fd: int) -> tuple[bytes, list[int], bool] | None:
    end = _socket(fd)
    try:
        data, ancillary, flags, _ = end.recvmsg(
            MESSAGE_BYTES_MAX,
            socket.CMSG_SPACE(FDS_MAX * array.array("i").itemsize),
            socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC,
        )
    except BlockingIOError:
        return None
    except ConnectionError:
        return b"", [], True
    finally:
        end.detach()
    fds = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, list(fds), not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)


def _socket(fd: int) -> socket.socket:
    """Lend a socket object to one call; `detach` it afterwards."""
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=fd)
