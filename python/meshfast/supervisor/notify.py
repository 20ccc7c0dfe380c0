"""The service manager's notification socket, sd_notify(3): READY=1, STOPPING=1.

Silent without NOTIFY_SOCKET, and when nobody listens: a mesh does not stop because its service
manager went away. Tests: tests/supervisor/test_boot.py.
"""

from __future__ import annotations

import os
import socket

__all__ = ["notify"]


def notify(state: str) -> None:
    """Send one assignment, as `READY=1`, to the service manager if there is one."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as end:
        try:
            end.sendto(state.encode(), address)
        except OSError:
            return
