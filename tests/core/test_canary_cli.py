"""meshfast canary, against an operator API that answers as it is told."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner, Result

from meshfast.cli import app
from meshfast.cli import canary as command
from meshfast.cli.operator import ChangedError, difference
from meshfast.errors import Problem

RULE: dict[str, Any] = {
    "apiVersion": "networking.istio.io/v1",
    "kind": "VirtualService",
    "metadata": {"name": "payment"},
    "spec": {
        "hosts": ["payment"],
        "http": [
            {
                "route": [
                    {"destination": {"host": "payment", "subset": "v1"}, "weight": 90},
                    {"destination": {"host": "payment", "subset": "v2"}, "weight": 10},
                ]
            }
        ],
    },
}


VERSIONS: dict[str, Any] = {
    "apiVersion": "networking.istio.io/v1",
    "kind": "DestinationRule",
    "metadata": {"name": "payment"},
    "spec": {"host": "payment", "subsets": [{"name": "v1"}, {"name": "v2"}]},
}


class Changing:
    """An API whose rule somebody else changes `times` before a write comes through."""

    times: ClassVar[int] = 0
    seen: ClassVar[list[Any]] = []
    now_s: ClassVar[float] = 0.0
    stored: ClassVar[list[Any]] = [RULE, VERSIONS]

    def __init__(self, _: object) -> None:
        pass

    @classmethod
    def sleep(cls, seconds: float) -> None:
        """Let the time pass that somebody waits, and what a try takes."""
        cls.now_s += seconds + 0.02

    def ask(self, method: str, *path: str, body: Any = None) -> Any:
        if (method, path) == ("GET", ("status",)):
            names = {"namespace": "default", "service": "payment"}
            workloads = [{**names, "labels": {"version": version}} for version in ("v1", "v2")]
            service = {"namespace": "default", "name": "payment", "revision": "abc"}
            return {
                "services": [{**service, "namespace": "other", "revision": "no"}, service],
                "workloads": [{"workload": one} for one in workloads],
            }
        if method == "GET":
            assert path == ("resources",)
            revision = f"1-{len(self.seen)}"
            return [
                {"kind": one["kind"], "namespace": "default", "name": "payment",
                 "revision": revision, "document": one}
                for one in self.stored
            ]  # fmt: skip
        assert (method, path) == ("PUT", ("resources",))
        self.seen.append(body)
        if len(self.seen) <= self.times:
            raise ChangedError([Problem("was changed meanwhile")])
        return {"revision": "1-9", "changes": [], "warnings": []}


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> type[Changing]:
    monkeypatch.setattr(Changing, "seen", [])
    monkeypatch.setattr(Changing, "now_s", 0.0)
    monkeypatch.setattr(command, "OperatorApi", Changing)
    monkeypatch.setattr("time.monotonic", lambda: Changing.now_s)
    monkeypatch.setattr("time.sleep", Changing.sleep)
    return Changing


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["canary", *words])


def test_a_change_of_somebody_else_is_read_before_the_next_try(
    api: type[Changing], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "times", 2)
    done = run("rollback", "payment", "-o", "json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["weights"] == {"v1": 100, "v2": 0}
    assert [one["expected"][0]["revision"] for one in api.seen] == ["1-0", "1-1", "1-2"]


def test_who_is_always_overtaken_is_told_so(
    api: type[Changing], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "times", 1000)
    done = run("rollback", "payment")
    assert isinstance(done.exception, ChangedError)
    assert "run the command again" in str(done.exception)
    assert 10 < len(api.seen) < 500
    assert api.now_s <= command.DEADLINE_S + 0.02


def test_tries_are_further_and_further_apart_and_never_in_step(
    api: type[Changing], monkeypatch: pytest.MonkeyPatch
) -> None:
    bounds: list[float] = []

    def drawn(low: float, high: float) -> float:
        assert low == 0
        bounds.append(high)
        return high

    monkeypatch.setattr("random.uniform", drawn)
    monkeypatch.setattr(api, "times", 7)
    assert run("rollback", "payment").exit_code == 0
    assert bounds == [0.02, 0.04, 0.08, 0.16, 0.32, 0.5, 0.5]


def test_what_a_share_was_decided_from_is_guarded_too(api: type[Changing]) -> None:
    assert run("set", "payment", "v2=20").exit_code == 0
    expected = [(one["kind"], one["revision"]) for one in api.seen[0]["expected"]]
    assert expected == [("VirtualService", "1-0"), ("DestinationRule", "1-0")]


def test_a_rule_that_is_made_of_labels_is_written_while_the_workloads_are_those(
    api: type[Changing], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "stored", [RULE])
    assert run("set", "payment", "v2=20").exit_code == 0
    expected = [(one["kind"], one["revision"]) for one in api.seen[0]["expected"]]
    assert expected == [("DestinationRule", ""), ("VirtualService", "1-0"), ("Service", "abc")]


@pytest.mark.parametrize("share", ["v2", "=10", "v2=", "v2=101", "v2=-1", "v2=1.5", "v2=9999999"])
def test_a_share_is_a_subset_and_a_whole_number_of_per_cent(
    api: type[Changing], share: str
) -> None:
    done = run("set", "payment", share)
    assert done.exit_code == 2
    assert "expected SUBSET=PERCENT" in done.output
    assert api.seen == []


def test_a_subset_is_given_once(api: type[Changing]) -> None:
    done = run("set", "payment", "v2=1", "v2=2%")
    assert done.exit_code == 2
    assert "a subset is given twice" in done.output


@pytest.mark.parametrize("terminal", [True, False])
def test_a_difference_has_colours_on_a_terminal_only(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    name = {"kind": "VirtualService", "namespace": "default", "name": "payment"}
    lines = difference([{**name, "before": {"weight": 10}, "after": {"weight": 0}}]).splitlines()
    assert ("\x1b[31m-weight: 10\x1b[0m" in lines) == terminal
    assert ("-weight: 10" in lines) == (not terminal)
