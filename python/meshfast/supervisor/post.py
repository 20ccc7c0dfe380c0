"""What workers and the agent have in common: hearing a child, and closing its channel.

Tests: tests/supervisor/test_protocol.py.
"""

from __future__ import annotations

import os
from time import monotonic

from meshfast.supervisor import channel
from meshfast.supervisor.children import DRAINING, Child
from meshfast.supervisor.loop import Loop
from meshfast.supervisor.report import fail

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    # Returns False for descriptors it does not keep or a message it does not understand.
    Handler = Callable[[Child, dict[str, Any], list[int]], None]

__all__ = ["hang_up", "hear", "listen_to"]

EXIT_S = 0.2


def listen_to(child: Child, loop: Loop, handlers: dict[str, Handler]) -> None:
    """Hear the child's messages from now on; *handlers* maps a message's type to its handler."""
    loop.watch(child.fd, lambda: hear(child, loop, handlers))


def hear(child: Child, loop: Loop, handlers: dict[str, Handler]) -> None:
    """Take every waiting message. A child that breaks the protocol or hangs up is killed.

    One that is draining may hang up: it has said everything and is about to exit.
    """
    while child.fd >= 0:
        try:
            taken = channel.Channel(child.fd).receive()
            if taken is None:
                return
            message, fds = taken
            handler = handlers.get(message["type"])
            if handler is None:
                channel.close_all(fds)
                raise channel.ChannelError(f"unknown message {message['type'][:40]!r}")
            handler(child, message, fds)
        except channel.Closed:
            hang_up(child, loop)
            if child.phase != DRAINING:
                # Most likely it is about to exit, and its exit code says more than our kill would.
                child.kill_at = monotonic() + EXIT_S
        except channel.ChannelError as error:
            fail(f"{child.name} (pid {child.pid}) broke the protocol and is replaced: {error}")
            hang_up(child, loop)
            child.kill()


def hang_up(child: Child, loop: Loop) -> None:
    """Close the channel of a child, once."""
    if child.fd >= 0:
        loop.forget(child.fd)
        os.close(child.fd)
        child.fd = -1
