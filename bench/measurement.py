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

Tests: bench/tests/test_measurement.py.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import accounting
from bench.candidates import ORIGIN, PEERS, Candidate, Launch, find_binary, render
from bench.cases import Case, Topology, body
from bench.load import Load, check_body, run_wrk
from bench.processes import Running, free_port, running, wait_until

PROXY_CORE = 0
LOAD_CORE = 1
WARM_UP_S = 0.3
QUIET_SHARE_MAX = 0.01
QUIET_WINDOW_S = 0.2
QUIET_S = 20.0
STEAL_SHARE_MAX = 0.02


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
class Disturbance:
    """What ran beside us, by core, as a share of the run's time."""

    foreign: Mapping[int, float]
    steal: Mapping[int, float]


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
    disturbance: Disturbance
    attempts: int
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Commands:
    """What was executed, and the configuration it read, by label: the record for the report."""

    command: str
    config: str


@contextmanager
def launched(
    contestant: Contestant,
    topology: Topology,
    *,
    core: int,
    workers: int,
    origin_port: int,
    expected_body: bytes,
) -> Iterator[Running]:
    """Start a contestant for a topology and wait until it answers and is quiet."""
    launch = contestant.candidate.launches[topology]
    port = free_port()
    values = {
        "binary": contestant.binary,
        "listen_port": str(port),
        "origin_port": str(origin_port),
        "workers": str(workers),
        "body": expected_body.decode(),
        "body_bytes": str(len(expected_body)),
    }

    def arguments(directory: Path) -> Sequence[str]:
        return write_launch(launch, {**values, "directory": str(directory)}, directory)

    with running(
        contestant.label, arguments, port=port, core=core, expected_body=expected_body
    ) as started:
        wait_until_quiet(started)
        yield started


def write_launch(launch: Launch, values: Mapping[str, str], directory: Path) -> Sequence[str]:
    """Render a launch's configuration into the directory; return the arguments."""
    known = dict(values)
    if launch.config is not None:
        rendered = directory / launch.config
        rendered.write_text(render((PEERS / launch.config).read_text(), known))
        known["config"] = str(rendered)
    return [render(argument, known) for argument in launch.arguments]


def wait_until_quiet(started: Running) -> None:
    """Wait until a tree uses less than 1 % of a core, so that its start is not charged to a run."""

    def quiet() -> bool:
        before = accounting.run_time(started.members())
        time.sleep(QUIET_WINDOW_S)
        after = accounting.run_time(started.members())
        return accounting.spent(before, after).total_ns < QUIET_SHARE_MAX * QUIET_WINDOW_S * 1e9

    wait_until(f"{started.name} quiet after its start", QUIET_S, quiet)


def pin_self() -> None:
    """Keep this process off the proxy's core."""
    os.sched_setaffinity(0, {LOAD_CORE})


@contextmanager
def origin_of(case: Case) -> Iterator[Running]:
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


@dataclass
class Field:
    """The live processes of one case."""

    origin: Running
    contestants: dict[str, Running]
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


def recorded(started: Running) -> Commands:
    """Take down the command and the rendered configuration of a live process."""
    configs = sorted(
        path
        for path in started.directory.iterdir()
        if path.suffix in (".conf", ".cfg", ".yaml") and path.is_file()
    )
    return Commands(" ".join(started.command), "\n".join(path.read_text() for path in configs))


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
    return as_run(point, attempt, load, spent[point.label], disturbance, settings)


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
    spent: accounting.Spent,
    disturbance: Disturbance,
    settings: Settings,
) -> Run:
    """Divide, name the processes, and flag what disturbed the run."""
    return Run(
        label=point.label,
        clients=point.clients,
        repetition=point.repetition,
        cpu_us_per_request=spent.total_ns / 1e3 / load.requests,
        cpu_us_by_process=by_name(spent.by_pid, load.requests),
        requests=load.requests,
        requests_per_second=load.requests_per_second,
        disturbance=disturbance,
        attempts=attempt,
        flags=flags_of(spent, disturbance, settings.foreign_share_max),
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


def flags_of(
    spent: accounting.Spent, disturbance: Disturbance, foreign_share_max: float
) -> tuple[str, ...]:
    """Say what disturbed a run; nothing when nothing did."""
    flags = [
        f"foreign load on core {core}: {share:.0%}"
        for core, share in disturbance.foreign.items()
        if share > foreign_share_max
    ]
    flags += [
        f"steal on core {core}: {share:.0%}"
        for core, share in disturbance.steal.items()
        if share > STEAL_SHARE_MAX
    ]
    if spent.lost:
        flags.append(f"{len(spent.lost)} task(s) ended in the run")
    return tuple(flags)
