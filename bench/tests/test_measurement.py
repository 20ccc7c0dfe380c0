"""Behaviour of bench.measurement: order, flags, repetition of disturbed runs."""

from __future__ import annotations

import dataclasses
import os

import pytest

from bench import measurement
from bench.accounting import CoreTime, Spent, Task
from bench.load import Load
from bench.measurement import Chain, Disturbance, Field, Observed, Point, Run, Settings, Upstream
from bench.processes import WrongResponseError

SETTINGS = Settings(seconds=1, repetitions=3, retries=2, workers=1, foreign_share_max=0.05)
POINT = Point("relay", 16, 0)
QUIET = Disturbance(foreign={0: 0.01, 1: 0.01}, steal={0: 0.0, 1: 0.0})
UPSTREAM = Upstream(connections=16, requests=1000)
FIELD = Field(Chain("origin", ()), {}, b"")


def run(flags: tuple[str, ...] = (), attempts: int = 1) -> Run:
    return Run("relay", 16, 0, 20.0, {}, 1000, 1000.0, UPSTREAM, QUIET, attempts, flags)


def test_each_contestant_comes_first_in_turn() -> None:
    orders = [measurement.rotated(["a", "b", "c"], by) for by in range(4)]
    assert orders == [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"], ["a", "b", "c"]]


def test_cost_is_the_whole_tree_divided_by_requests() -> None:
    load = Load(requests=1000, seconds=1, socket_errors=0, not_2xx=0, cpu_ns=0)
    me = os.getpid()
    spent = Spent({me: 18_000_000, 999_999_999: 2_000_000}, ())
    found = measurement.as_run(POINT, 1, load, Observed(spent, QUIET, UPSTREAM), SETTINGS)
    assert found.cpu_us_per_request == pytest.approx(20.0)
    assert sorted(found.cpu_us_by_process.values()) == pytest.approx([2.0, 18.0])
    assert "?/1" in found.cpu_us_by_process
    assert found.flags == ()


def test_what_a_core_did_beyond_ours_is_foreign() -> None:
    before = [CoreTime(1_000, 0), CoreTime(5_000, 10)]
    after = [CoreTime(1_900, 0), CoreTime(5_400, 60)]
    found = measurement.disturbance_of(before, after, {0: 700, 1: 450}, 1_000)
    assert found.foreign == pytest.approx({0: 0.2, 1: 0.0})
    assert found.steal == pytest.approx({0: 0.0, 1: 0.05})


@pytest.mark.parametrize(
    ("spent", "disturbance", "flag"),
    [
        (
            Spent({1: 1}, ()),
            dataclasses.replace(QUIET, foreign={0: 0.12, 1: 0.0}),
            "foreign load on core 0: 12%",
        ),
        (
            Spent({1: 1}, ()),
            dataclasses.replace(QUIET, steal={0: 0.0, 1: 0.03}),
            "steal on core 1: 3%",
        ),
        (Spent({1: 1}, (Task(1, 2),)), QUIET, "1 task(s) ended in the run"),
    ],
)
def test_a_disturbed_run_is_flagged(spent: Spent, disturbance: Disturbance, flag: str) -> None:
    assert measurement.flags_of(Observed(spent, disturbance, UPSTREAM), 0.05) == (flag,)


def test_readings_of_the_origin_leave_the_readings_out() -> None:
    # The later reading counts 16 connections of the candidate and the earlier reading's own.
    later = Upstream(connections=30 + 16 + 1, requests=500 + 1000 + 1)
    assert later - Upstream(connections=30, requests=500) == UPSTREAM


def test_an_answer_that_the_origin_never_gave_ends_the_measurement() -> None:
    load = Load(requests=1001, seconds=1, socket_errors=0, not_2xx=0, cpu_ns=0)
    with pytest.raises(WrongResponseError, match="answered 1001 requests, the origin 1000"):
        measurement.check_forwarded("proxy", load, UPSTREAM)
    measurement.check_forwarded("proxy", dataclasses.replace(load, requests=1000), UPSTREAM)


def test_a_flagged_run_is_repeated_until_it_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    def once(field: Field, point: Point, attempt: int, settings: Settings) -> Run:
        return run((), attempt) if attempt == 2 else run(("steal",), attempt)

    monkeypatch.setattr(measurement, "measure_once", once)
    found = measurement.measure_undisturbed(FIELD, POINT, SETTINGS)
    assert (found.attempts, found.flags) == (2, ())


def test_a_run_that_stays_flagged_is_kept_with_its_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    def once(field: Field, point: Point, attempt: int, settings: Settings) -> Run:
        return run(("steal",), attempt)

    monkeypatch.setattr(measurement, "measure_once", once)
    found = measurement.measure_undisturbed(FIELD, POINT, SETTINGS)
    assert (found.attempts, found.flags) == (1 + SETTINGS.retries, ("steal",))
