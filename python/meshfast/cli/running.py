"""Where a sidecar listens: the file `running` of its state, for `check` and the next start.

Callers keep the inbound address of a sidecar, scrape configurations and proxy variables the others.
So a default that gave way to a free port is tried there first at the next start: the control plane,
which would tell callers of another port, may be gone meanwhile.

Does not do: writing (the agent does, at each start), binding (the supervisor).

Tests: tests/core/test_running.py.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Container, Mapping

import msgspec

from meshfast.agent.mesh import RUNNING
from meshfast.agent.state import StateDirectory, StateError

__all__ = ["Running", "kept_addresses"]

# Below, binding takes a privilege that an earlier start may have had and this one has not.
PORT_MIN, PORT_MAX = 1024, 65535
_ADDRESS = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[0-9.]+):(?P<port>[0-9]{1,5})")


class Running(msgspec.Struct, frozen=True):
    """The file `running` of a state directory; `port` is the application's."""

    port: int
    outbound: str
    inbound: str
    metrics: str
    upstreams: tuple[str, ...] = ()


def kept_addresses(
    state: StateDirectory, defaults: Mapping[str, str], reserved: Container[str]
) -> dict[str, str]:
    """Map each part of `defaults` (as `inbound`) to where the last start listened.

    Left out are addresses of another host than the default's, ports that need a privilege, and the
    ports in `reserved`, which this start or its application needs for something else. A file
    that cannot be used is said on stderr, and is no reason not to start.
    """
    try:
        data = state.read(RUNNING)
        if data is None:
            return {}
        last = msgspec.json.decode(data, type=Running)
        found = {part: _parsed(getattr(last, part)) for part in defaults}
    except (StateError, msgspec.DecodeError, ValueError) as error:
        path = f"{state.path}/{RUNNING}"
        print(
            f"meshfast: where the last start listened is not used: {path}: {error}",
            file=sys.stderr,
            flush=True,
        )
        return {}
    return {
        part: f"{host}:{port}"
        for part, (host, port) in found.items()
        if host == defaults[part].rpartition(":")[0]
        and port >= PORT_MIN
        and str(port) not in reserved
    }


def _parsed(address: str) -> tuple[str, int]:
    found = _ADDRESS.fullmatch(address)
    if found is None or int(found["port"]) > PORT_MAX:
        raise ValueError(f"expected IP:PORT, got {address!r}")
    return found["host"], int(found["port"])
