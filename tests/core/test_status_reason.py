"""Why a sidecar is not in sync, as `meshfast status` says it in one column."""

from typing import Any

from meshfast.cli.status import REASON_CHARACTERS_MAX, reason_of


def held(state: str, *refused: tuple[str, str]) -> dict[str, Any]:
    return {"state": state, "refused": [{"name": name, "reason": why} for name, why in refused]}


def test_what_is_in_sync_needs_no_reason() -> None:
    assert reason_of({}) == reason_of({"cluster": held("SYNCED")}) == ""


def test_what_waits_is_named() -> None:
    types = {"cluster": held("STALE"), "endpoint": held("SYNCED"), "route": held("STALE")}
    assert reason_of(types) == "has not confirmed: cluster, route"


def test_a_refusal_goes_before_and_others_are_counted() -> None:
    types = {"cluster": held("STALE"), "route": held("NACK", ("a", "no\ncluster"), ("b", "too"))}
    assert reason_of(types) == "refuses route a: no cluster (and 1 more)"


def test_a_long_reason_is_cut() -> None:
    said = reason_of({"route": held("NACK", ("a", "x" * 1024))})
    assert said.endswith("x…")
    assert len(said) == len("refuses ") + REASON_CHARACTERS_MAX
