"""What an operator is shown of a sidecar: who it is, what it holds, what it refused and why.

The words are those of `istioctl proxy-status`: SYNCED, STALE (something was sent or waits and is
not confirmed), and NACK (the sidecar keeps an older version of something, with the reason).

Tests: tests/control/push/test_status.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from meshfast.discovery import Problem, Revision

__all__ = ["Refused", "SidecarStatus", "State", "TypeStatus", "overall"]

State = Literal["NACK", "STALE", "SYNCED"]
#: The worst first.
_ORDER: tuple[State, ...] = ("NACK", "STALE", "SYNCED")


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """A resource that the sidecar does not take, in its own words."""

    name: str
    reason: str


class TypeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How far a sidecar is with one type of resources; `revision` is the last it confirmed."""

    state: State
    revision: str
    refused: tuple[Refused, ...] = ()


class SidecarStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One sidecar. Times are in seconds since 1970.

    `revision` is the newest of which it holds everything; `generation` the snapshot that all its
    workers run, `detail` what it says about itself.
    """

    instance: str
    workload: str
    namespace: str
    identity: str
    address: str
    connected: bool
    connected_s: float
    last_seen_s: float
    certificate_expires_s: float
    state: State
    revision: str
    generation: int
    types: Mapping[str, TypeStatus]
    data_plane: str = ""
    detail: str = ""


def overall(types: Mapping[str, TypeStatus]) -> State:
    """Sum up: the worst of all types; a sidecar that has subscribed to nothing yet is STALE."""
    if not types:
        return "STALE"
    return min((one.state for one in types.values()), key=_ORDER.index)


def refused(problems: Mapping[str, Problem]) -> tuple[Refused, ...]:
    """Turn what a session remembers into what is shown."""
    return tuple(
        Refused(name=name, reason=problem.reason) for name, problem in sorted(problems.items())
    )


def text(revision: Revision | None) -> str:
    """Render a revision; empty when there is none."""
    return "" if revision is None else str(revision)
