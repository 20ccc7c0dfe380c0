"""Behaviour of bench.report: unfavourable figures come first, and nothing is lost on the way."""

from __future__ import annotations

import io
import json

from rich.console import Console

from bench.cases import CASES
from bench.machine import machine_facts
from bench.measurement import Commands, Disturbance, Run, Upstream
from bench.memory import Memory
from bench.report import (
    Report,
    as_json,
    as_markdown,
    larger,
    print_report,
    remarks,
    report_case,
)

QUIET = Disturbance(foreign={0: 0.0, 1: 0.0}, steal={0: 0.0, 1: 0.0})
COSTS = {"relay": 10.0, "meshfast": 12.0, "nginx": 11.0, "haproxy": 13.0, "meshfast (again)": 12.0}


def runs(costs: dict[str, float], flags: tuple[str, ...] = (), opened: int = 0) -> list[Run]:
    """Three repetitions; each costs a little more than the one before, for everyone alike."""
    return [
        Run(
            label,
            n,
            rep,
            cost * (1 + rep / 100),
            {f"{label}/1": cost},
            9,
            9.0,
            Upstream(opened, 9),
            QUIET,
            1,
            flags,
        )
        for n in CASES[0].clients
        for rep in range(3)
        for label, cost in costs.items()
    ]


def report(costs: dict[str, float], flags: tuple[str, ...] = (), opened: int = 0) -> Report:
    control = ("meshfast (again)", "meshfast") if "meshfast" in costs else None
    commands = {"nginx": Commands("taskset nginx -c x", "least_conn;")}
    return Report(
        machine=machine_facts(),
        command="python -m bench --quick",
        settings={"seconds": 2.0},
        versions={"nginx": "nginx/1.22.1", "meshfast": "0.1.0"},
        absent={} if "meshfast" in costs else {"meshfast": "not built"},
        cases=[report_case(CASES[0], runs(costs, flags, opened), control, commands)],
        memory=[Memory("nginx", {"a/1": 1}, {"a/1": 2_000_000}, 3_000_000, 0.0, {"a/1": 9})],
    )


def test_ratios_are_pairs_and_repetitions_that_drift_together_do_not_widen_them() -> None:
    row = next(r for r in report(COSTS).cases[0].rows if r.label == "nginx")
    assert row.cpu_us.least < row.cpu_us.most
    assert row.to_relay is not None
    assert row.to_meshfast is not None
    assert round(row.to_relay.low, 9) == round(row.to_relay.high, 9) == 1.1
    assert round(row.to_meshfast.median, 6) == round(11 / 12, 6)


def test_a_cheaper_peer_and_a_missed_bar_are_said() -> None:
    said = "\n".join(remarks(report(COSTS)))
    assert "meshfast costs 1.20 [1.20, 1.20] of the relay, the bar is 1.15" in said
    assert "nginx is cheaper than meshfast, ratio 0.92" in said
    assert "haproxy" not in said


def test_a_relay_that_is_cheaper_is_no_news() -> None:
    said = "\n".join(remarks(report({"relay": 10.0, "meshfast": 11.0, "meshfast (again)": 11.0})))
    assert "relay is cheaper" not in said
    assert "the bar" not in said


def test_the_control_states_what_is_noise() -> None:
    said = "\n".join(remarks(report({**COSTS, "meshfast (again)": 12.6})))
    assert "the A/A control (meshfast twice) reads 1.05 [1.05, 1.05]" in said
    assert "differences below 5% are noise" in said


def test_flagged_runs_and_absent_candidates_are_said() -> None:
    said = "\n".join(remarks(report({"relay": 10.0}, flags=("steal on core 0: 9%",))))
    assert said.startswith("Absent: meshfast (not built).")
    assert "9 runs stayed flagged" in said


def test_a_peer_without_keep_alive_is_no_peer_at_its_best() -> None:
    assert not [
        said
        for said in remarks(report(COSTS, opened=128))
        if "64 clients: nginx" in said and "pool" in said
    ]
    said = "\n".join(remarks(report(COSTS, opened=5000)))
    assert "64 clients: nginx opened 5000 upstream connections in a run" in said


def test_memory_beyond_a_peer_or_a_bar_is_said() -> None:
    nginx = Memory("nginx", {}, {"nginx/1": 7_000_000}, 10_000_000, 0.0, {"nginx/1": 7_000_000})
    small = Memory("meshfast", {}, {"w/1": 8_000_000}, 9_000_000, 0.0, {"w/1": 8_500_000})
    large = Memory("meshfast", {}, {"w/1": 25_000_000}, 26_000_000, 0.0, {"w/1": 27_000_000})
    assert larger([nginx, small]) == []
    assert larger([nginx, large]) == [
        "Memory after load: meshfast 26.0 MB alone, nginx 10.0 MB.",
        "Memory after load: 25.0 MB, the bar is 24.",
        "Memory per idle client: 2000 bytes, the bar is 1024.",
    ]
    assert larger([nginx]) == []


def test_results_open_with_what_is_unfavourable() -> None:
    text = as_markdown(report(COSTS))
    assert text.index("First, what is unfavourable") < text.index(CASES[0].title)
    assert "nginx is cheaper than meshfast" in text
    for said in ("| nginx | nginx/1.22.1 |", "kernel: Linux", "python -m bench --quick", "commit:"):
        assert said in text
    assert "trace context" in text  # what nginx leaves out


def test_the_file_for_machines_holds_every_run_and_configuration() -> None:
    data = json.loads(as_json(report(COSTS)))
    case = data["cases"][0]
    assert len(case["runs"]) == 3 * len(COSTS) * len(CASES[0].clients)
    assert case["commands"]["nginx"] == {"command": "taskset nginx -c x", "config": "least_conn;"}
    assert case["case"]["topology"] == "plain"
    assert data["machine"]["kernel"].startswith("Linux")


def test_the_terminal_shows_every_row_and_remark() -> None:
    output = io.StringIO()
    print_report(report(COSTS), Console(file=output, width=160))
    text = output.getvalue()
    for label in COSTS:
        assert text.count(f" {label} ") >= len(CASES[0].clients)
    assert "nginx is cheaper than meshfast" in text
