"""What is measured, as data.

A case is a row: a topology (which processes stand between client and origin, looked up in
`candidates`), the body the origin answers with, and the numbers of clients. A new case is a new
row; a new topology is a row here and a column there.

Tests: bench/tests/test_candidates.py (every case has candidates that can run it).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Topology(Enum):
    """What stands between the client and the origin."""

    PLAIN = "plain"  # client -HTTP/1.1-> proxy -HTTP/1.1-> origin


@dataclass(frozen=True)
class Case:
    """One row of the report. clients are keep-alive connections of a closed loop."""

    name: str
    title: str
    topology: Topology
    body_bytes: int
    clients: tuple[int, ...]


CASES: tuple[Case, ...] = (
    Case(
        name="h1-keepalive",
        title="HTTP/1.1 keep-alive, one hop, 128-byte body",
        topology=Topology.PLAIN,
        body_bytes=128,
        clients=(1, 16, 64),
    ),
)


def body(body_bytes: int) -> bytes:
    """Make the body the origin answers with: printable, not constant, no quoting needed."""
    alphabet = b"abcdefghijklmnopqrstuvwxyz0123456789"
    return bytes(alphabet[i * 7 % len(alphabet)] for i in range(body_bytes))
