"""Repetitions in turns: every contestant once per repetition, in an order that rotates.

All contestants of a case are alive at once, pinned to the proxy core, and one at a time is loaded;
the origin, the generator and this process share the load core. The figure is CPU time of the
contestant's whole process tree divided by completed requests. Throughput is noted, not claimed: the
load core is the bottleneck, and that is intended.

A run is flagged when something else ran beside it (another process or the hypervisor took more than
a share of either core) or when a task of the contestant ended in it; a flagged run is repeated at
once, up to a limit, and what is still flagged then stays in the sample and is reported as such.

Invariants:
1. Every contestant has the same number of runs per number of clients, one in each repetition.
2. A wrong response ends the measurement; no figure is made from a run that held one.
3. Every response that is counted came from the origin: it counts too, and the counts are compared.

Tests: bench/tests/test_measurement.py.
"""

from __future__ import annotations

import functools
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import accounting
from bench.candidates import BENCH, ORIGIN, PEERS, Candidate, Launch, find_binary, render
from bench.cases import Case, Topology, body
from bench.load import Load, check_body, run_wrk
from bench.processes import (
    HarnessError,
    Running,
    WrongResponseError,
    fetch,
    free_port,
    running,
)

PROXY_CORE = 0
LOAD_CORE = 1
WARM_UP_S = 0.3
QUIET_SHARE_MAX = 0.01
QUIET_WINDOW_S = 0.2
QUIET_S = 5.0
STEAL_SHARE_MAX = 0.02
ROOT = BENCH.parent
CONFIG_SUFFIXES = (".cfg", ".conf", ".yaml")


@dataclass(frozen=True)
class Contestant:
    """A candidate under a name of its own: the A/A control is one candidate under two names."""

    label: str
    candidate: Candidate
    binary: str


@dataclass(frozen=True)
class Settings:
    """How much is measured. Shares are of one core over one run."""

    seconds: float
    repetitions: int
    retries: int
    workers: int
    foreign_share_max: float


@dataclass(frozen=True)
class Upstream:
    """What reached the origin: connections it accepted, requests it answered."""

    connections: int
    requests: int

    def __sub__(self, earlier: Upstream) -> Upstream:
        """What came between two readings; the first reading is itself a connection and request."""
        return Upstream(
            self.connections - earlier.connections - 1, self.requests - earlier.requests - 1
        )


@dataclass(frozen=True)
class Disturbance:
    """What ran beside us, by core, as a share of the run's time."""

    foreign: Mapping[int, float]
    steal: Mapping[int, float]


@dataclass(frozen=True)
class Observed:
    """What the kernel and the origin said about one run."""

    spent: accounting.Spent
    disturbance: Disturbance
    upstream: Upstream


@dataclass(frozen=True)
class Point:
    """Which run it is: who, under how many clients, in which repetition."""

    label: str
    clients: int
    repetition: int


@dataclass(frozen=True)
class Run:
    """One contestant under one load. flags is empty for an undisturbed run."""

    label: str
    clients: int
    repetition: int
    cpu_us_per_request: float
    cpu_us_by_process: Mapping[str, float]
    requests: int
    requests_per_second: float
    upstream: Upstream
    disturbance: Disturbance
    attempts: int
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Commands:
    """What was executed, and the configuration it read, by label: the record for the report."""

    command: str
    config: str


@dataclass(frozen=True)
class Chain:
    """A contestant at work: its process trees from the origin to the client, and its door."""

    name: str
    hops: tuple[Running, ...]

    @property
    def port(self) -> int:
        """Where clients connect."""
        return self.hops[-1].port

    def members(self) -> list[int]:
        """List the processes of all hops."""
        return [pid for hop in self.hops for pid in hop.members()]


@contextmanager
def launched(
    contestant: Contestant,
    topology: Topology,
    *,
    core: int,
    workers: int,
    origin_port: int,
    expected_body: bytes,
) -> Iterator[Chain]:
    """Start a contestant for a topology, hop by hop, and wait until it answers and is quiet."""
    with ExitStack() as stack:
        hops: list[Running] = []
        for launch in contestant.candidate.launches[topology]:
            values = {
                "binary": contestant.binary,
                "body": expected_body.decode(),
                "body_bytes": str(len(expected_body)),
                "listen_port": str(free_port()),
                "upstream_port": str(hops[-1].port if hops else origin_port),
                "workers": str(workers),
            }
            hop = running(
                contestant.label,
                functools.partial(write_launch, launch, values),
                port=int(values["listen_port"]),
                core=core,
                expected_body=expected_body if launch.plain else None,
            )
            hops.append(stack.enter_context(hop))
        chain = Chain(contestant.label, tuple(hops))
        wait_until_quiet(chain)
        yield chain


def write_launch(launch: Launch, values: Mapping[str, str], directory: Path) -> Sequence[str]:
    """Render a launch's configuration into the directory; return the arguments."""
    known = {**values, "directory": str(directory)}
    if launch.config is not None:
        rendered = directory / launch.config
        rendered.write_text(render((PEERS / launch.config).read_text(), known))
        known["config"] = str(rendered)
    return [render(argument, known) for argument in launch.arguments]


def idle_share(chain: Chain, window_s: float) -> float:
    """Measure how much of a core a chain uses while nobody asks anything of it."""
    before = accounting.run_time(chain.members())
    began = time.monotonic_ns()
    time.sleep(window_s)
    after = accounting.run_time(chain.members())
    return accounting.spent(before, after).total_ns / (time.monotonic_ns() - began)


def wait_until_quiet(chain: Chain) -> None:
    """Wait until a chain uses less than 1 % of a core, so that its start is not charged to a run.

    One that never gets quiet is measured all the same: what it does while idle is its cost too.
    """
    deadline = time.monotonic() + QUIET_S
    while idle_share(chain, QUIET_WINDOW_S) > QUIET_SHARE_MAX and time.monotonic() < deadline:
        continue


def pin_self() -> None:
    """Keep this process off the proxy's core."""
    os.sched_setaffinity(0, {LOAD_CORE})


@contextmanager
def origin_of(case: Case) -> Iterator[Chain]:
    """Start the origin of a case on the load core."""
    origin = Contestant("origin", ORIGIN, find_binary(ORIGIN))
    with launched(
        origin,
        Topology.PLAIN,
        core=LOAD_CORE,
        workers=1,
        origin_port=0,
        expected_body=body(case.body_bytes),
    ) as started:
        yield started


@dataclass(frozen=True)
class Field:
    """The live processes of one case."""

    origin: Chain
    contestants: Mapping[str, Chain]
    expected_body: bytes


def measure_case(
    case: Case,
    contestants: Sequence[Contestant],
    settings: Settings,
    on_run: Callable[[Run], None],
) -> tuple[list[Run], dict[str, Commands]]:
    """Measure a case; on_run hears of each kept run. Raises HarnessError, WrongResponseError."""
    runs: list[Run] = []
    with ExitStack() as stack:
        origin = stack.enter_context(origin_of(case))
        expected = body(case.body_bytes)
        live = {
            contestant.label: stack.enter_context(
                launched(
                    contestant,
                    case.topology,
                    core=PROXY_CORE,
                    workers=settings.workers,
                    origin_port=origin.port,
                    expected_body=expected,
                )
            )
            for contestant in contestants
        }
        field = Field(origin, live, expected)
        commands = {label: recorded(started) for label, started in live.items()}
        commands["origin"] = recorded(origin)
        for clients in case.clients:
            for started in live.values():
                run_wrk(started.port, clients, WARM_UP_S, LOAD_CORE)
            for repetition in range(settings.repetitions):
                for label in rotated(list(live), repetition):
                    run = measure_undisturbed(field, Point(label, clients, repetition), settings)
                    on_run(run)
                    runs.append(run)
        for label, started in live.items():
            check_body(label, started.port, expected)
    return runs, commands


def rotated(labels: Sequence[str], by: int) -> list[str]:
    """Rotate an order, so that no contestant always follows the same one."""
    start = by % len(labels)
    return [*labels[start:], *labels[:start]]


def recorded(chain: Chain) -> Commands:
    """Take down the commands, relative to the repository, and the rendered configurations."""
    configs = [
        path.read_text()
        for hop in chain.hops
        for path in sorted(hop.directory.iterdir())
        if path.suffix in CONFIG_SUFFIXES
    ]
    commands = [" ".join(hop.command).replace(f"{ROOT}/", "") for hop in chain.hops]
    return Commands("\n".join(commands), "\n".join(configs))


def measure_undisturbed(field: Field, point: Point, settings: Settings) -> Run:
    """Measure once, again while flagged, at most 1 + retries times; return the last."""
    for attempt in range(1, settings.retries + 2):
        run = measure_once(field, point, attempt, settings)
        if not run.flags:
            break
    return run


def measure_once(field: Field, point: Point, attempt: int, settings: Settings) -> Run:
    """Load one contestant and account for every process that ran meanwhile."""
    trees = {**field.contestants, "origin": field.origin}
    served_before = served_by(field.origin)
    began = time.monotonic_ns()
    own_before = time.process_time_ns()
    cores_before = accounting.core_times()
    before = {name: accounting.run_time(tree.members()) for name, tree in trees.items()}
    load = run_wrk(field.contestants[point.label].port, point.clients, settings.seconds, LOAD_CORE)
    after = {name: accounting.run_time(tree.members()) for name, tree in trees.items()}
    cores_after = accounting.core_times()
    own_ns = time.process_time_ns() - own_before
    window_ns = time.monotonic_ns() - began

    spent = {name: accounting.spent(before[name], after[name]) for name in trees}
    ours = {
        PROXY_CORE: sum(spent[name].total_ns for name in field.contestants),
        LOAD_CORE: spent["origin"].total_ns + load.cpu_ns + own_ns,
    }
    disturbance = disturbance_of(cores_before, cores_after, ours, window_ns)
    upstream = served_by(field.origin) - served_before
    check_forwarded(point.label, load, upstream)
    observed = Observed(spent[point.label], disturbance, upstream)
    return as_run(point, attempt, load, observed, settings)


def served_by(origin: Chain) -> Upstream:
    """Ask the origin what it has served, this question not included. Raises HarnessError."""
    status, text = fetch(origin.port, "/origin-status")
    counts = re.search(rb"requests\n (\d+) (\d+) (\d+)", text)
    if status != 200 or counts is None:
        raise HarnessError(f"the origin's status reads {status} {text!r}")
    return Upstream(connections=int(counts[1]) - 1, requests=int(counts[3]) - 1)


def check_forwarded(label: str, load: Load, upstream: Upstream) -> None:
    """Raise WrongResponseError when a response that was counted never came from the origin."""
    if upstream.requests < load.requests:
        raise WrongResponseError(
            f"{label} answered {load.requests} requests, the origin {upstream.requests} of them"
        )


def disturbance_of(
    before: Sequence[accounting.CoreTime],
    after: Sequence[accounting.CoreTime],
    ours: Mapping[int, int],
    window_ns: int,
) -> Disturbance:
    """Subtract what was ours (nanoseconds by core) from what each core did."""
    cores = sorted(ours)
    return Disturbance(
        foreign={
            core: max(0.0, (after[core].busy_ns - before[core].busy_ns - ours[core]) / window_ns)
            for core in cores
        },
        steal={core: (after[core].steal_ns - before[core].steal_ns) / window_ns for core in cores},
    )


def as_run(
    point: Point,
    attempt: int,
    load: Load,
    observed: Observed,
    settings: Settings,
) -> Run:
    """Divide, name the processes, and flag what disturbed the run."""
    return Run(
        label=point.label,
        clients=point.clients,
        repetition=point.repetition,
        cpu_us_per_request=observed.spent.total_ns / 1e3 / load.requests,
        cpu_us_by_process=by_name(observed.spent.by_pid, load.requests),
        requests=load.requests,
        requests_per_second=load.requests_per_second,
        upstream=observed.upstream,
        disturbance=observed.disturbance,
        attempts=attempt,
        flags=flags_of(observed, settings.foreign_share_max),
    )


def by_name(by_pid: Mapping[int, int], requests: int) -> dict[str, float]:
    """Microseconds per request by process, as "name/ordinal" in the order of process ids."""
    named: dict[str, float] = {}
    counts: dict[str, int] = {}
    for pid, ns in sorted(by_pid.items()):
        name = accounting.name(pid)
        counts[name] = counts.get(name, 0) + 1
        named[f"{name}/{counts[name]}"] = ns / 1e3 / requests
    return named


def flags_of(observed: Observed, foreign_share_max: float) -> tuple[str, ...]:
    """Say what disturbed a run; nothing when nothing did."""
    flags = [
        f"foreign load on core {core}: {share:.0%}"
        for core, share in observed.disturbance.foreign.items()
        if share > foreign_share_max
    ]
    flags += [
        f"steal on core {core}: {share:.0%}"
        for core, share in observed.disturbance.steal.items()
        if share > STEAL_SHARE_MAX
    ]
    if observed.spent.lost:
        flags.append(f"{len(observed.spent.lost)} task(s) ended in the run")
    return tuple(flags)
