"""What the demo shows: everything in 80 columns and 24 lines, failures by name."""

from __future__ import annotations

import io

from rich.console import Console

from meshfast.cli.demo.screen import LiveScreen, PlainScreen, ending
from meshfast.cli.demo.story import ACTS, Act, Progress
from tests.demo.test_verdict import good, sample


def progress() -> Progress:
    """The demo near its end: every act has its longest text."""
    acts = [Act(*one, state="done", seconds=12.3) for one in ACTS]
    notes = (
        "v2 0.0%",
        "v2 10.0% of 12000",
        "7 spans, 12.5 ms",
        "worst of 25: 1000 ms, median 120 ms",
        "v2 from 10% to 0.0% of 250",
        "0 errors of 12000",
    )
    for act, note in zip(acts, notes, strict=True):
        act.notes = [note]
    measured = good()
    measured.hops.append(measured.hops[-1])
    return Progress(acts, measured, recent=sample(90, 10), wanted=0.1)


def shown(screen: type[LiveScreen] | type[PlainScreen], *states: Progress) -> list[str]:
    """The lines after some states, on a terminal of 80 columns without colours."""
    is_terminal = screen is LiveScreen
    out = io.StringIO()
    console = Console(
        file=out,
        width=80,
        height=24,
        force_terminal=is_terminal,
        color_system=None,
        legacy_windows=False,
    )
    with screen(console) as one:
        for state in states:
            one.show(state)
    text = out.getvalue()
    return text.rpartition("\x1b[2K")[2].splitlines() if is_terminal else text.splitlines()


def test_the_picture_fits_a_terminal_of_80_columns_and_24_lines() -> None:
    lines = shown(LiveScreen, progress())
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for act in progress().acts:
        assert f"✓ {act.title}" in text
        assert act.notes[0] in text
    assert "order → payment-service v1" in text
    assert "spiffe://cluster.local/ns/default/sa/order → …/payment-service" in text
    assert "v2 10.0%, set 10%" in text
    assert "100 requests" not in text
    assert "5000 requests, 0 errors" in text


def test_a_hop_that_is_not_mutual_tls_says_no() -> None:
    state = progress()
    state.measured.hops[0].arrived_mutual_tls = 0
    [line] = [line for line in shown(LiveScreen, state) if "load → order" in line]
    assert line.endswith("  NO")


def test_percentiles_of_hops_are_shown_as_the_estimates_that_they_are() -> None:
    state = progress()
    # Calls of 2 ms: what a histogram knows is that they took 1 to 5 ms.
    for hop in state.measured.hops:
        hop.buckets = {1.0: 0.0, 5.0: 100.0, float("inf"): 100.0}
    state.recent.latencies_ms = [2.0] * 100
    lines = shown(LiveScreen, state)
    assert lines[0].split() == ["hop", "req/s", "errors", "~p50", "ms", "~p95", "~p99", "mTLS"]
    [first] = [line for line in lines if line.startswith("load → order")]
    assert first.split()[-4] == "3.0", "more than the whole chain"
    assert "~ estimated within Istio's buckets: may exceed the chain's, which are exact" in lines
    assert any("p50/p95/p99 2.0/2.0/2.0 ms" in line for line in lines)


def test_a_pipe_gets_a_line_for_each_act_once_when_it_has_ended() -> None:
    state = progress()
    waiting, ended = Progress([Act("trace", "a trace")], state.measured), state
    lines = shown(PlainScreen, waiting, ended, ended)
    assert len(lines) == len(ACTS)
    assert lines[1] == "ok     the canary applied: 10 % to v2    12.3 s  v2 10.0% of 12000"


def test_what_is_wrong_and_what_else_there_is_to_say_follow_the_line_of_an_act() -> None:
    failed = Act("canary", "the canary", "failed", 1.0, ["v2 got 20%", "no warning"])
    done = Act("canary", "the canary", "done", 1.0, ["v2 10%", "warning: no hosts"])
    lines = shown(PlainScreen, Progress([failed, done], good()))
    assert lines[0].split() == ["FAILED", "the", "canary", "1.0", "s"]
    assert lines[1:3] == ["    v2 got 20%", "    no warning"]
    assert lines[3].endswith("v2 10%")
    assert lines[4:] == ["    warning: no hosts"]


def test_the_end_says_what_happened_or_what_did_not() -> None:
    measured = good()
    measured.pss_kb = {"agent": 3, "worker/1": 4, "total": 7}
    measured.whole.latencies_ms = [1.0, 2.0, 3.0]
    lines = str(ending(measured, with_hops=True)).splitlines()
    assert lines[-3:] == [
        "trace 1f: order → payment-service → inventory",
        "memory of a sidecar, PSS in kB: agent 3, worker/1 4; together 7",
        "ok: 5000 requests, 0 errors; the canary got 10.0%, and 0% once taken back",
    ]
    assert sum("mTLS" in line for line in lines) == 1
    assert "the whole chain: p50/p95/p99 2.0/3.0/3.0 ms" in lines
    assert "mTLS" not in str(ending(measured, with_hops=False))
    measured.convergence_ms.clear()
    lines = str(ending(measured, with_hops=False)).splitlines()
    assert lines[-2:] == ["failed:", "  no apply was measured"]
