"""Memory by process: idle, after load, with 1000 idle keep-alive clients; and CPU while idle.

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
    Chain,
    Contestant,
    idle_share,
    launched,
    origin_of,
    wait_until_quiet,
)

WORKERS = 2
LOAD_CLIENTS = 64
IDLE_CLIENTS = 1000
IDLE_WINDOW_S = 1.0


@dataclass(frozen=True)
class Memory:
    """PSS of one candidate in bytes, by "name/ordinal", at the three moments.

    alone: bytes of the whole tree after load, no page shared with strangers discounted.
    idle_cpu_share: of a core, while nobody asks anything.
    """

    label: str
    idle: Mapping[str, int]
    after_load: Mapping[str, int]
    alone: int
    idle_cpu_share: float
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
            ) as chain:
                results.append(three_moments(chain, seconds, expected))
    return results


def three_moments(chain: Chain, seconds: float, expected: bytes) -> Memory:
    """Read PSS idle, after load, and while idle clients are connected."""
    idle_cpu_share = idle_share(chain, IDLE_WINDOW_S)
    idle = pss(chain)
    run_wrk(chain.port, LOAD_CLIENTS, seconds, LOAD_CORE)
    wait_until_quiet(chain)
    after_load = pss(chain)
    alone = accounting.alone_bytes(chain.members())
    with idle_clients(chain.port, IDLE_CLIENTS, expected):
        wait_until_quiet(chain)
        with_idle_clients = pss(chain)
    check_body(chain.name, chain.port, expected)
    return Memory(
        label=chain.name,
        idle=idle,
        after_load=after_load,
        alone=alone,
        idle_cpu_share=idle_cpu_share,
        with_idle_clients=with_idle_clients,
    )


def pss(chain: Chain) -> dict[str, int]:
    """PSS by process in bytes."""
    sizes: dict[str, int] = {}
    counts: dict[str, int] = {}
    for pid in chain.members():
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
