"""Memory by process: idle, after load, and with 1000 idle keep-alive clients on top.

Each candidate runs alone with two workers (a sidecar's default). By process the unit is PSS, which
divides a shared page among all who map it, strangers included (a C library; the interpreter that
runs this bench). The total after load is therefore also given as if the tree were alone on the
machine, each page counted once.

Tests: bench/tests/test_memory.py.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from bench import accounting
from bench.cases import Case, body
from bench.load import GET, RESPONSE_S, check_body, exchange, run_wrk
from bench.measurement import (
    LOAD_CORE,
    PROXY_CORE,
    Contestant,
    launched,
    origin_of,
    wait_until_quiet,
)
from bench.processes import Running

WORKERS = 2
LOAD_CLIENTS = 64
IDLE_CLIENTS = 1000


@dataclass(frozen=True)
class Memory:
    """PSS of one candidate in bytes, by "name/ordinal", at the three moments.

    alone: bytes of the whole tree after load, no page shared with strangers discounted.
    """

    label: str
    idle: Mapping[str, int]
    after_load: Mapping[str, int]
    alone: int
    with_idle_clients: Mapping[str, int]

    @property
    def bytes_per_idle_client(self) -> float:
        """What each idle client added."""
        grown = sum(self.with_idle_clients.values()) - sum(self.after_load.values())
        return grown / IDLE_CLIENTS


def measure_memory(case: Case, contestants: Sequence[Contestant], seconds: float) -> list[Memory]:
    """Measure every contestant alone. Raises HarnessError, WrongResponseError."""
    expected = body(case.body_bytes)
    results = []
    with origin_of(case) as origin:
        for contestant in contestants:
            with launched(
                contestant,
                case.topology,
                core=PROXY_CORE,
                workers=WORKERS,
                origin_port=origin.port,
                expected_body=expected,
            ) as started:
                results.append(three_moments(started, seconds, expected))
    return results


def three_moments(started: Running, seconds: float, expected: bytes) -> Memory:
    """Read PSS idle, after load, and while idle clients are connected."""
    idle = pss(started)
    run_wrk(started.port, LOAD_CLIENTS, seconds, LOAD_CORE)
    wait_until_quiet(started)
    after_load = pss(started)
    alone = accounting.alone_bytes(started.members())
    with idle_clients(started.port, IDLE_CLIENTS, expected):
        wait_until_quiet(started)
        with_idle_clients = pss(started)
    check_body(started.name, started.port, expected)
    return Memory(started.name, idle, after_load, alone, with_idle_clients)


def pss(started: Running) -> dict[str, int]:
    """PSS by process in bytes."""
    sizes: dict[str, int] = {}
    counts: dict[str, int] = {}
    for pid in started.members():
        size = accounting.pss_bytes(pid)
        if size is not None:
            name = accounting.name(pid)
            counts[name] = counts.get(name, 0) + 1
            sizes[f"{name}/{counts[name]}"] = size
    return sizes


@contextmanager
def idle_clients(port: int, count: int, expected: bytes) -> Iterator[None]:
    """Hold connections that have each had one good response and stay open."""
    with ExitStack() as stack:
        for _ in range(count):
            client = socket.create_connection(("127.0.0.1", port), timeout=RESPONSE_S)
            stack.enter_context(client)
            exchange(f"port {port}", client, GET, expected)
        yield
