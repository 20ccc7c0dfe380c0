"""The acts of the demo, one after the other under steady load, each measured.

    baseline     subsets and v1 100 / v2 0
    canary       the VirtualService of `policy.CANARY`, word for word
    trace        one that joins all services, read back from where the sidecars sent it
    convergence  applies in a row; each from the request to the acknowledgement of every sidecar
    rollback     the canary taken back by `meshfast canary rollback`
    control      the control plane killed with SIGKILL; the requests go on to the end

A change counts as made when the control plane says of every sidecar that it holds the change's
revision. What is measured of an act are the requests that begin after that.

Tests: tests/demo/test_demo.py; the judgement in tests/demo/test_verdict.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from meshfast.cli.demo import policy
from meshfast.cli.demo.hops import hops_of, scrape
from meshfast.cli.demo.load import CHAIN, SPLIT, Sample
from meshfast.cli.demo.memory import pss_kb
from meshfast.cli.demo.spans import Trace, read_trace
from meshfast.cli.demo.stage import DemoError, Stage, wait_until
from meshfast.cli.demo.verdict import CANARY_SHARE, Measured, problems
from meshfast.errors import Problem

__all__ = ["ACTS", "APPLIES", "RATE", "Act", "Progress", "Screen", "play"]

#: Requests a second: enough for a share of 10 % ± 3 to be no matter of luck, and far from what two
#: cores can bear.
RATE = 250.0
#: Applies of a run of 20 s; a shorter one has fewer.
APPLIES = 25
APPLIES_MIN = 5
FULL_S = 20.0
BASELINE_PART, CANARY_PART = 0.1, 0.4
ROLLBACK_REQUESTS = 200
CONTROL_DOWN_S_MIN = 2.0
TICK_S = 0.5
POLL_S = 0.005
ACKNOWLEDGED_S = 20.0
#: Sidecars send their spans in batches, Zipkin indexes them in the background.
TRACE_S = 15.0
#: Whose memory is shown.
SHOWN_SIDECAR = "payment-service-v1"

#: Name of the checks in `verdict`, and title.
ACTS = (
    ("baseline", "subsets, all to v1"),
    ("canary", "the canary applied: 10 % to v2"),
    ("trace", "a trace joins all services"),
    ("convergence", "applies until every sidecar acks"),
    ("rollback", "the canary rolled back"),
    ("control", "the control plane killed"),
)


@dataclass
class Act:
    """One act as it is shown; `state` is waiting, running, done or failed."""

    name: str
    title: str
    state: str = "waiting"
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


@dataclass
class Progress:
    """What there is to show at a moment. `recent` is of the last tick, `wanted` the share set."""

    acts: list[Act]
    measured: Measured
    recent: Sample = field(default_factory=Sample)
    wanted: float = 0.0


class Screen(Protocol):
    """Where progress is shown."""

    def show(self, progress: Progress) -> None:
        """Show it as it is now; called a few times a second and after every act."""


def play(stage: Stage, collector: str, duration_s: float, screen: Screen) -> Measured:
    """Send load for about `duration_s` and play all acts.

    `collector` is where spans are read from, `HOST:PORT`. Raises DemoError.
    """
    return _Play(stage, collector, duration_s, screen).all_acts()


class _Play:
    def __init__(self, stage: Stage, collector: str, duration_s: float, screen: Screen) -> None:
        self._stage = stage
        self._collector = collector
        self._duration_s = duration_s
        self._screen = screen
        self._measured = Measured()
        self._progress = Progress([Act(*one) for one in ACTS], self._measured)
        self._began_s = self._ticked_s = self._began_wall_s = 0.0

    def all_acts(self) -> Measured:
        """Play them in order; the load begins when the first policy is in force."""
        measured, stage = self._measured, self._stage
        plays = {
            "baseline": self._baseline,
            "canary": self._canary,
            "trace": self._trace,
            "convergence": self._convergence,
            "rollback": self._rollback,
            "control": self._control,
        }
        self._apply(policy.SUBSETS, policy.weights(100, 0))
        stage.load("start")
        self._began_wall_s = time.time()
        self._began_s = self._ticked_s = time.monotonic()
        for act in self._progress.acts:
            with self._playing(act):
                act.notes = plays[act.name]()
        measured.whole.add(stage.load("stop"))
        measured.duration_s = time.monotonic() - self._began_s
        measured.hops = []
        self._look_at_hops(measured.duration_s)
        [shown] = [one for one in stage.sidecars if one.name == SHOWN_SIDECAR]
        measured.pss_kb = pss_kb(shown.pid)
        self._screen.show(self._progress)
        return measured

    def _baseline(self) -> list[str]:
        self._settle()
        self._pass(self._duration_s * BASELINE_PART, self._measured.baseline)
        return [f"v2 {self._measured.baseline.share('v2'):.1%}"]

    def _canary(self) -> list[str]:
        applied = self._apply(policy.CANARY)
        self._measured.warnings = [str(Problem(**one)) for one in applied["warnings"]]
        self._progress.wanted = CANARY_SHARE
        self._settle()
        sample = self._measured.canary
        self._pass(self._duration_s * CANARY_PART, sample)
        warnings = (f"warning: {one}" for one in self._measured.warnings)
        return [f"v2 {sample.share('v2'):.1%} of {sample.requests}", *warnings]

    def _trace(self) -> list[str]:
        give_up_s = time.monotonic() + TRACE_S
        while (found := self._joined()) is None and time.monotonic() < give_up_s:
            self._pass(TICK_S)
        self._measured.trace = found
        return [f"{found.spans} spans, {found.duration_ms:.1f} ms"] if found is not None else []

    def _convergence(self) -> list[str]:
        times_ms = self._measured.convergence_ms
        count = round(APPLIES * min(1.0, self._duration_s / FULL_S))
        for number in range(max(APPLIES_MIN, count)):
            v2 = (20, 10)[number % 2]
            self._progress.wanted = v2 / 100
            began_s = time.monotonic()
            self._apply(policy.weights(100 - v2, v2))
            times_ms.append(round((time.monotonic() - began_s) * 1000, 1))
            if time.monotonic() - self._ticked_s > TICK_S:
                self._tick()
        median = sorted(times_ms)[len(times_ms) // 2]
        return [f"worst of {len(times_ms)}: {max(times_ms):.0f} ms, median {median:.0f} ms"]

    def _rollback(self) -> list[str]:
        before = self._progress.wanted
        answer = self._stage.command("canary", "rollback", SPLIT)
        self._until_acknowledged(answer["revision"])
        self._progress.wanted = 0.0
        self._settle()
        self._pass(ROLLBACK_REQUESTS / RATE, self._measured.rollback)
        sample = self._measured.rollback
        return [f"v2 from {before:.0%} to {sample.share('v2'):.1%} of {sample.requests}"]

    def _control(self) -> list[str]:
        self._settle()
        self._stage.kill_control()
        left_s = self._began_s + self._duration_s - time.monotonic()
        sample = self._measured.control_down
        self._pass(max(CONTROL_DOWN_S_MIN, left_s), sample)
        return [f"{sample.errors} errors of {sample.requests}"]

    @contextmanager
    def _playing(self, act: Act) -> Iterator[None]:
        """Show an act while it is played, then as done or failed with what is wrong."""
        act.state, began_s = "running", time.monotonic()
        self._screen.show(self._progress)
        yield
        act.seconds = time.monotonic() - began_s
        wrong = problems(self._measured, act.name)
        act.state = "failed" if wrong else "done"
        act.notes = wrong or act.notes
        self._screen.show(self._progress)

    def _apply(self, *texts: str) -> dict[str, Any]:
        """Apply documents; return the answer once every sidecar holds them."""
        body = {"texts": [{"file": "demo.yaml", "text": text} for text in texts]}
        applied: dict[str, Any] = self._stage.operator.ask("PUT", "resources", body=body)
        self._until_acknowledged(applied["revision"])
        return applied

    def _until_acknowledged(self, revision: str) -> None:
        wanted = _order(revision)

        def everywhere() -> bool:
            self._stage.check()
            holding = [
                one
                for one in self._stage.operator.ask("GET", "status")["sidecars"]
                if one["state"] == "SYNCED" and _order(one["revision"]) >= wanted
            ]
            return len(holding) == len(self._stage.sidecars)

        try:
            wait_until(everywhere, f"revision {revision}", ACKNOWLEDGED_S, POLL_S)
        except TimeoutError as error:
            raise DemoError(f"not every sidecar has it: {error}") from None

    def _settle(self) -> None:
        """Count what began before now, so that the next sample is of after a change."""
        self._measured.whole.add(self._stage.load("take"))

    def _pass(self, seconds: float, into: Sample | None = None) -> None:
        """Let time pass; count the requests that begin in it in `into` as well."""
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            time.sleep(min(TICK_S, left_s))
            self._tick(into)

    def _tick(self, into: Sample | None = None) -> None:
        self._stage.check()
        sample = self._stage.load("take")
        self._measured.whole.add(sample)
        if into is not None:
            into.add(sample)
        now_s = time.monotonic()
        self._look_at_hops(now_s - self._ticked_s)
        self._ticked_s = now_s
        self._progress.recent = sample
        self._screen.show(self._progress)

    def _look_at_hops(self, seconds: float) -> None:
        """Read the hops; their rates are those of the seconds since the last reading."""
        before = {hop.key: hop.requests for hop in self._measured.hops}
        try:
            series = scrape(one.metrics for one in self._stage.sidecars)
        except OSError as error:
            raise DemoError(f"a sidecar shows no metrics: {error}") from None
        self._measured.hops = hops_of(series, CHAIN)
        for hop in self._measured.hops:
            hop.rate = (hop.requests - before.get(hop.key, 0)) / seconds

    def _joined(self) -> Trace | None:
        try:
            return read_trace(self._collector, CHAIN, self._began_wall_s)
        except (OSError, ValueError) as error:
            raise DemoError(f"no traces from http://{self._collector}: {error}") from None


def _order(revision: str) -> tuple[int, ...]:
    """Make revisions comparable: `EPOCH-N`, both numbers."""
    return tuple(int(part) for part in revision.split("-")) if revision else ()
