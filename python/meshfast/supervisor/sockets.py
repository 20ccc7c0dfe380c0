"""Listening sockets: one per address, bound here, shared by the children that own them.

The supervisor keeps every socket open for its whole life, so connections that wait in the backlog
survive the death of any worker. What it refuses: host names (the caller resolves), an address that
is taken unless the settings allow a fallback, a path that is no socket.

Invariants
1. IPv6 sockets are IPv6 only: `[::]:80` and `0.0.0.0:80` are two sockets.
2. A Unix socket is unlinked only if the file is the one bound here.

Tests: tests/supervisor/test_sockets.py.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import time

from meshfast.supervisor.settings import SocketSettings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["BACKLOG", "BindError", "Listener", "bind", "bind_all"]

# The kernel cuts it to net.core.somaxconn, whose default is 4096 since Linux 5.4.
BACKLOG = 4096
# sun_path is 108 bytes with its terminator (unix(7)).
UNIX_PATH_BYTES_MAX = 107
# Workers orphaned by a killed supervisor close their listeners at once, on their next loop turn.
PREDECESSOR_S = 2.0
PREDECESSOR_TRY_S = 0.02

HINTS = {
    errno.EACCES: "ports below 1024 need root or CAP_NET_BIND_SERVICE",
    errno.EADDRINUSE: "another process listens there: see `ss -ltnp`, or choose another address",
    errno.EADDRNOTAVAIL: "no interface of this host has this address",
    errno.ENOENT: "the directory of the socket does not exist",
}


class BindError(Exception):
    """An address cannot be had; the text is `ERRNO: address: what the system said (hint)`."""

    def __init__(self, code: int, address: str, hint: str = "") -> None:
        """Make the text from the error number."""
        self.code = code
        text = f"{errno.errorcode.get(code, code)}: {address}: {os.strerror(code)}"
        hint = hint or HINTS.get(code, "")
        super().__init__(f"{text} ({hint})" if hint else text)


class Listener:
    """A bound and listening socket; `address` is where it really listens."""

    __slots__ = ("address", "fd", "inode", "name", "owner")

    def __init__(self, name: str, address: str, owner: str, fd: int, inode: list[int]) -> None:
        """Keep the fields; `inode` is [device, inode] of a Unix socket's file, else empty."""
        self.name = name
        self.address = address
        self.owner = owner
        self.fd = fd
        self.inode = inode

    def close(self) -> None:
        """Close it here and remove the file of a Unix socket if it is still ours."""
        os.close(self.fd)
        if not self.inode:
            return
        path = self.address.removeprefix("unix:")
        try:
            found = os.lstat(path)
            if [found.st_dev, found.st_ino] == self.inode:
                os.unlink(path)
        except OSError:
            return

    def to_document(self) -> dict[str, Any]:
        """Return the fields as JSON data; the constructor takes them back."""
        return {name: getattr(self, name) for name in self.__slots__}


def bind_all(entries: list[SocketSettings], has_predecessor: bool) -> list[Listener]:
    """Bind every socket, or raise the first `BindError` with nothing left open.

    The kept address of an entry comes first. After a predecessor that died uncleanly, an address
    that is taken is tried again for `PREDECESSOR_S`: its workers are about to let go.
    """
    give_up_at = time.monotonic() + (PREDECESSOR_S if has_predecessor else 0.0)
    listeners: list[Listener] = []
    try:
        for entry in entries:
            listeners.append(_bind_where_it_was(entry, give_up_at))
    except BindError:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def bind(entry: SocketSettings) -> Listener:
    """Bind and listen; with `fallback`, on a free port of the same host when this one is taken."""
    if entry.address.startswith("unix:"):
        return _bind_unix(entry)
    family, host, port = _split(entry.address)
    try:
        return _bind_tcp(entry, family, host, port)
    except BindError as error:
        if error.code != errno.EADDRINUSE or not entry.fallback:
            raise
        return _bind_tcp(entry, family, host, 0)


def _bind_where_it_was(entry: SocketSettings, give_up_at: float) -> Listener:
    """Bind the kept address if it can be had, else what the entry says."""
    if entry.kept:
        before = SocketSettings(entry.name, entry.kept, entry.owner, fallback=False)
        try:
            return _bind_until(before, give_up_at)
        except BindError:  # somebody else has it by now
            pass
    return _bind_until(entry, give_up_at)


def _bind_until(entry: SocketSettings, give_up_at: float) -> Listener:
    """Bind; while the address is taken, again until `give_up_at`."""
    while True:
        try:
            return bind(entry)
        except BindError as error:
            if error.code != errno.EADDRINUSE or time.monotonic() >= give_up_at:
                raise
        time.sleep(PREDECESSOR_TRY_S)


def _bind_tcp(
    entry: SocketSettings, family: socket.AddressFamily, host: str, port: int
) -> Listener:
    end = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            end.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        end.bind((host, port))
        end.listen(BACKLOG)
        bound = end.getsockname()[1]
    except OSError as error:
        end.close()
        raise BindError(error.errno or errno.EIO, entry.address) from None
    address = f"[{host}]:{bound}" if family == socket.AF_INET6 else f"{host}:{bound}"
    return Listener(entry.name, address, entry.owner, end.detach(), [])


def _bind_unix(entry: SocketSettings) -> Listener:
    path = entry.address.removeprefix("unix:")
    if not path.startswith("/") or len(os.fsencode(path)) > UNIX_PATH_BYTES_MAX:
        hint = f"a path of at most {UNIX_PATH_BYTES_MAX} bytes that begins with /"
        raise BindError(errno.EINVAL, entry.address, hint)
    end = socket.socket(
        socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    )
    try:
        _remove_stale(path, entry.address)
        end.bind(path)
        end.listen(BACKLOG)
        found = os.lstat(path)
    except OSError as error:
        end.close()
        raise BindError(error.errno or errno.EIO, entry.address) from None
    except BindError:
        end.close()
        raise
    inode = [found.st_dev, found.st_ino]
    return Listener(entry.name, entry.address, entry.owner, end.detach(), inode)


def _remove_stale(path: str, address: str) -> None:
    """Remove the file of a socket that nobody listens on; refuse one that is used or no socket."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise BindError(errno.EEXIST, address, "the path exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:  # its backlog is full: it is alive
            pass
    raise BindError(errno.EADDRINUSE, address)


def _split(address: str) -> tuple[socket.AddressFamily, str, int]:
    host, colon, port = address.rpartition(":")
    family = socket.AF_INET
    if host.startswith("[") and host.endswith("]"):
        family, host = socket.AF_INET6, host[1:-1]
    try:
        socket.inet_pton(family, host)
        if not colon or not port.isascii() or not port.isdigit() or int(port) > 65_535:
            raise ValueError(port)
    except (OSError, ValueError):
        hint = "expected ip:port, [ip6]:port or unix:/path"
        raise BindError(errno.EINVAL, address, hint) from None
    return family, host, int(port)
