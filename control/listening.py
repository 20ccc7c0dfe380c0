"""The sockets of the control stream: every address that a host or name stands for, at one port.

`::` is IPv6 only, like the listeners of a proxy (supervisor/sockets.py) and Envoy's without
`ipv4_compat`: `0.0.0.0` is what stands for all of IPv4. A name is listened on at each of its
addresses that this host has.

Does not do: accept.

Invariant: all sockets have the same port, also when any free one was asked for; on an error none is
left open.

Tests: tests/control/server/test_listening.py.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from typing import Any, Final

__all__ = ["listen"]

BACKLOG: Final = 1024
#: A port that is free at one address may be taken at another.
FREE_PORTS_MAX: Final = 16
#: The name has an address that this host has not, or of a family that it does not speak.
NOT_OURS: Final = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})

log = logging.getLogger(__name__)


async def listen(host: str, port: int) -> list[socket.socket]:
    """Listen at all addresses of a host; port 0 is one that is free at each of them.

    Raises `OSError` when an address is taken, or none is of this host.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses: list[tuple[int, Any]]
    addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    for _ in range(FREE_PORTS_MAX - 1):
        try:
            return _listeners(addresses, port)
        except OSError as error:
            if port or error.errno != errno.EADDRINUSE:
                raise
    return _listeners(addresses, port)


def _listeners(addresses: list[tuple[int, Any]], port: int) -> list[socket.socket]:
    listeners: list[socket.socket] = []
    absent: OSError | None = None
    try:
        for family, address in addresses:
            try:
                listeners.append(_listener(family, (address[0], port, *address[2:])))
            except OSError as error:
                if error.errno not in NOT_OURS:
                    raise
                log.warning("not listening on %s: %s", address[0], error.strerror)
                absent = error
                continue
            port = listeners[0].getsockname()[1]
    except OSError:
        for listener in listeners:
            listener.close()
        raise
    if absent is not None and not listeners:
        raise absent
    return listeners


def _listener(family: int, address: Any) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.setblocking(False)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener
