"""What a measurement says, three ways: a table for the terminal, JSON for machines, RESULTS.md.

Everything is made from one `Report`, so the three cannot disagree. What speaks against meshfast or
against the measurement itself comes first in RESULTS.md, before the tables.

Tests: bench/tests/test_report.py.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bench.candidates import CANDIDATES
from bench.cases import Case
from bench.machine import Machine
from bench.measurement import Commands, Run
from bench.memory import IDLE_CLIENTS, WORKERS, Memory
from bench.ratios import Summary, pair_ratios, summarise

BASELINE = "relay"
SUBJECT = "meshfast"
AGAIN = " (again)"

# The bars a single hop is held to (ratio of CPU per request, meshfast / relay).
RELAY_RATIO_MUST = 1.15

# The bars of memory: PSS in bytes of a whole sidecar after load, and of one idle plain client.
MEMORY_MUST = 24_000_000
IDLE_CLIENT_MUST = 1024

# A pool opens at most one upstream connection per client in a run; one more covers a client that
# hung up. A proxy without keep-alive opens one per request, and would lose unfairly.
CONNECTIONS_PER_CLIENT_MAX = 2


@dataclass(frozen=True)
class Row:
    """One contestant at one number of clients. ratio fields are None where a side is absent."""

    label: str
    clients: int
    cpu_us: Summary
    to_relay: Summary | None
    to_meshfast: Summary | None
    requests_per_second: float
    cpu_us_by_process: Mapping[str, float]
    upstream_connections: float
    flagged: int
    repeated: int


@dataclass(frozen=True)
class CaseReport:
    """A case's rows and what was executed for it."""

    case: Case
    rows: Sequence[Row]
    control: tuple[str, str] | None
    control_ratios: Mapping[int, Summary]
    commands: Mapping[str, Commands]
    runs: Sequence[Run] = field(default_factory=tuple)


@dataclass(frozen=True)
class Report:
    """Everything that is known about one measurement."""

    machine: Machine
    command: str
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    absent: Mapping[str, str]
    cases: Sequence[CaseReport]
    memory: Sequence[Memory]


def report_case(
    case: Case,
    runs: Sequence[Run],
    control: tuple[str, str] | None,
    commands: Mapping[str, Commands],
) -> CaseReport:
    """Summarise the runs of a case."""
    labels = list(dict.fromkeys(run.label for run in runs))
    rows = []
    control_ratios = {}
    for clients in case.clients:
        by_label = {
            label: [run for run in runs if run.label == label and run.clients == clients]
            for label in labels
        }
        rows += [row(label, clients, by_label) for label in labels]
        if control is not None:
            control_ratios[clients] = pair_ratios(*(cpu(by_label[label]) for label in control))
    return CaseReport(case, rows, control, control_ratios, commands, runs)


def cpu(runs: Sequence[Run]) -> list[float]:
    """CPU per request of each repetition, in its order."""
    return [run.cpu_us_per_request for run in runs]


def row(label: str, clients: int, by_label: Mapping[str, Sequence[Run]]) -> Row:
    """Summarise one contestant at one number of clients."""
    runs = by_label[label]
    own = cpu(runs)
    processes = runs[0].cpu_us_by_process
    return Row(
        label=label,
        clients=clients,
        cpu_us=summarise(own),
        to_relay=(
            pair_ratios(own, cpu(by_label[BASELINE]))
            if BASELINE in by_label and label != BASELINE
            else None
        ),
        to_meshfast=(
            pair_ratios(own, cpu(by_label[SUBJECT]))
            if SUBJECT in by_label and label != SUBJECT
            else None
        ),
        requests_per_second=summarise([run.requests_per_second for run in runs]).median,
        cpu_us_by_process={
            name: summarise([run.cpu_us_by_process.get(name, 0.0) for run in runs]).median
            for name in processes
        },
        upstream_connections=summarise([run.upstream.connections for run in runs]).median,
        flagged=sum(1 for run in runs if run.flags),
        repeated=sum(run.attempts - 1 for run in runs),
    )


# --- terminal ------------------------------------------------------------------------------------

COLUMNS = (
    "candidate",
    "clients",
    "CPU us/request [95 %]",
    "min-max",
    "/ relay",
    "/ meshfast",
    "requests/s",
    "flagged",
)


def cells(row: Row) -> tuple[str, ...]:
    """Render a row in the order of COLUMNS."""
    return (
        row.label,
        str(row.clients),
        str(row.cpu_us),
        f"{row.cpu_us.least:.1f}-{row.cpu_us.most:.1f}",
        str(row.to_relay) if row.to_relay else "-",
        str(row.to_meshfast) if row.to_meshfast else "-",
        f"{row.requests_per_second:,.0f}",
        f"{row.flagged} of {row.cpu_us.count}",
    )


MEMORY_COLUMNS = (
    "candidate",
    "idle MB",
    "after load MB",
    f"+{IDLE_CLIENTS} idle MB",
    "per idle client",
    "after load, alone MB",
    "idle CPU us/s",
    "by process, after load",
)


def memory_cells(memory: Memory) -> tuple[str, ...]:
    """Render memory in the order of MEMORY_COLUMNS."""
    return (
        memory.label,
        *(
            f"{sum(moment.values()) / 1e6:.1f}"
            for moment in (memory.idle, memory.after_load, memory.with_idle_clients)
        ),
        f"{memory.bytes_per_idle_client / 1024:.2f} KiB",
        f"{memory.alone / 1e6:.1f}",
        f"{memory.idle_cpu_share * 1e6:,.0f}",
        ", ".join(f"{name} {size / 1e6:.1f}" for name, size in memory.after_load.items()),
    )


def print_report(report: Report, console: Console) -> None:
    """Print tables and remarks."""
    for case in report.cases:
        table = Table(*COLUMNS, title=case.case.title, box=box.SIMPLE)
        for row in case.rows:
            table.add_row(*cells(row))
        console.print(table)
    if report.memory:
        table = Table(*MEMORY_COLUMNS, title=f"PSS, {WORKERS} workers", box=box.SIMPLE)
        for memory in report.memory:
            table.add_row(*memory_cells(memory))
        console.print(table)
    for remark in remarks(report):
        console.print(f"- {remark}", markup=False, highlight=False, soft_wrap=True)


# --- remarks -------------------------------------------------------------------------------------


def remarks(report: Report) -> list[str]:
    """Say what speaks against meshfast and against the measurement, worst news first."""
    found = [f"Absent: {name} ({reason})." for name, reason in report.absent.items()]
    for case in report.cases:
        found += behind(case) + doubts(case)
    return found + larger(report.memory)


def behind(case: CaseReport) -> list[str]:
    """List where meshfast costs more than a peer or than its own bar."""
    found = []
    for row in case.rows:
        at = f"{case.case.name}, {row.clients} clients"
        if row.label == SUBJECT and row.to_relay and row.to_relay.median > RELAY_RATIO_MUST:
            found.append(
                f"{at}: meshfast costs {row.to_relay} of the relay, the bar is {RELAY_RATIO_MUST}."
            )
        peer = row.to_meshfast
        if peer and not row.label.startswith((BASELINE, SUBJECT)) and peer.low < 1:
            verdict = "is cheaper than" if peer.high < 1 else "cannot be told from"
            found.append(f"{at}: {row.label} {verdict} meshfast, ratio {peer}.")
    return found


def larger(memory: Sequence[Memory]) -> list[str]:
    """List where meshfast needs more memory than a peer or than its own bars."""
    subject = next((m for m in memory if m.label == SUBJECT), None)
    if subject is None:
        return []
    size = sum(subject.after_load.values())
    found = [
        f"Memory after load: meshfast {subject.alone / 1e6:.1f} MB alone, "
        f"{peer.label} {peer.alone / 1e6:.1f} MB."
        for peer in memory
        if peer.label not in (SUBJECT, BASELINE) and peer.alone < subject.alone
    ]
    if size > MEMORY_MUST:
        found.append(f"Memory after load: {size / 1e6:.1f} MB, the bar is {MEMORY_MUST / 1e6:.0f}.")
    if subject.bytes_per_idle_client > IDLE_CLIENT_MUST:
        found.append(
            f"Memory per idle client: {subject.bytes_per_idle_client:.0f} bytes, "
            f"the bar is {IDLE_CLIENT_MUST}."
        )
    return found


def doubts(case: CaseReport) -> list[str]:
    """List what limits the measurement: lost keep-alive, the A/A control, flagged runs."""
    found = [
        f"{case.case.name}, {row.clients} clients: {row.label} opened "
        f"{row.upstream_connections:.0f} upstream connections in a run: its pool does not hold."
        for row in case.rows
        if row.upstream_connections > CONNECTIONS_PER_CLIENT_MAX * row.clients
    ]
    for clients, ratio in case.control_ratios.items():
        assert case.control is not None
        found.append(
            f"{case.case.name}, {clients} clients: the A/A control ({case.control[1]} twice) reads "
            f"{ratio}; differences below {max(1 - ratio.low, ratio.high - 1):.0%} are noise."
        )
    flagged = sum(row.flagged for row in case.rows)
    if flagged:
        repeated = sum(row.repeated for row in case.rows)
        found.append(
            f"{case.case.name}: {flagged} runs stayed flagged for foreign load, steal or ended "
            f"tasks after {repeated} repetitions: do not quote digits of this measurement."
        )
    return found


# --- files ---------------------------------------------------------------------------------------


def as_json(report: Report) -> str:
    """Serialise everything, every run included."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, Mapping):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value if isinstance(value, int | float | str | None) else str(value.value)

    return json.dumps(plain(report), indent=1) + "\n"


def as_markdown(report: Report) -> str:
    """Write RESULTS.md."""
    parts = [
        "# Measurements",
        "Written by `make bench`; do not edit. Ratios count, digits do not: they belong to one "
        "machine and one hour. CPU is the scheduler's run time of every process of a candidate, in "
        "microseconds per completed request; the candidate has one core, the origin and the "
        "generator the other. `/ relay`: what a candidate costs beside a relay that parses "
        "nothing. `/ meshfast`: above 1, meshfast is cheaper.",
        "## First, what is unfavourable",
        "\n".join(f"- {remark}" for remark in remarks(report)) or "Nothing.",
    ]
    for case in report.cases:
        parts += [f"## {case.case.title}", markdown_table(COLUMNS, map(cells, case.rows))]
    if report.memory:
        parts += [
            f"## Memory: PSS of all processes, {WORKERS} workers (the relay has one thread)",
            "Alone: as if nothing else on the machine shared a page with it.",
            markdown_table(MEMORY_COLUMNS, map(memory_cells, report.memory)),
        ]
    parts += [candidates_section(report), machine_section(report), commands_section(report)]
    return "\n\n".join(parts) + "\n"


def markdown_table(columns: Sequence[str], rows: Any) -> str:
    """Render a table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def candidates_section(report: Report) -> str:
    """Say what each candidate is, how it is set, and what it does not do."""
    rows = [
        (c.name, report.versions[c.name], c.setting, c.leaves_out)
        for c in CANDIDATES
        if c.name in report.versions
    ]
    columns = ("candidate", "version", "setting", "does not do here")
    return "## Candidates\n\n" + markdown_table(columns, rows)


def machine_section(report: Report) -> str:
    """State machine, settings and command."""
    facts = {**dataclasses.asdict(report.machine), **report.settings}
    lines = [f"- {name.replace('_', ' ')}: {value}" for name, value in facts.items()]
    named = {candidate.name for candidate in CANDIDATES}
    lines += [f"- {name}: {v}" for name, v in report.versions.items() if name not in named]
    return "\n".join(["## Machine and settings", "", *lines, "", f"    {report.command}"])


def commands_section(report: Report) -> str:
    """Print the commands; the configurations are in bench/peers and, rendered, in the JSON."""
    blocks = ["## Commands", "Rendered configurations are in the JSON under `commands`."]
    for case in report.cases:
        lines = [f"    {label}: {item.command}" for label, item in case.commands.items()]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)
