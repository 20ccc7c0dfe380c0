"""meshfast.policy.actions: what the golden documents do not show."""

from __future__ import annotations

import msgspec
import pytest
from msgspec import UNSET, UnsetType

from meshfast.policy.actions import fault, header_edits, in_turn
from meshfast.policy.document import Header, HeaderEdits
from meshfast.resources import kinds
from meshfast.resources.texts import GRPC_STATUSES

EVERY_STATUS = {
    "OK": 200,
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
    "UNAUTHENTICATED": 401,
}


@pytest.mark.parametrize(("name", "status"), EVERY_STATUS.items())
def test_a_status_of_grpc_has_its_number_and_one_of_http(name: str, status: int) -> None:
    made = fault(kinds.HTTPFaultInjection(abort=kinds.Abort(grpc_status=name)))
    assert made
    assert made.abort is not None
    assert (made.abort.status, made.abort.grpc_status) == (status, list(EVERY_STATUS).index(name))


def test_every_status_of_grpc_is_covered() -> None:
    assert tuple(EVERY_STATUS) == GRPC_STATUSES


@pytest.mark.parametrize(("percent", "parts"), [(0.0, 0), (100.0, 1_000_000), (0.0001, 1)])
def test_a_share_is_counted_in_parts_of_a_million(percent: float, parts: int) -> None:
    delay = kinds.Delay(fixed_delay="1s", percentage=kinds.Percent(value=percent))
    made = fault(kinds.HTTPFaultInjection(delay=delay))
    assert made
    assert made.delay is not None
    assert made.delay.parts_per_million == parts


@pytest.mark.parametrize("operations", [None, kinds.HeaderOperations()])
def test_no_change_of_headers_is_left_out(operations: kinds.HeaderOperations | None) -> None:
    assert header_edits(operations) is UNSET


def header(name: str, value: str) -> Header:
    return Header(name=name, value=value)


def edits(**written: object) -> HeaderEdits | UnsetType:
    return header_edits(msgspec.convert(written, kinds.HeaderOperations))


def test_of_two_changes_in_turn_the_later_has_the_last_word() -> None:
    first = edits(set={"x-a": "1", "x-b": "1"}, add={"X-C": "1", "x-d": "1"}, remove=["cookie"])
    then = edits(set={"X-A": "2", "x-c": "2"}, add={"x-d": "2"}, remove=["Cookie", "x-b"])
    assert in_turn(first, then) == HeaderEdits(
        set=(header("x-b", "1"), header("X-A", "2"), header("x-c", "2")),
        add=(header("x-d", "1"), header("x-d", "2")),
        remove=("Cookie", "x-b"),
    )


def test_a_change_and_none_in_turn_is_the_change() -> None:
    some = edits(remove=["cookie"])
    assert in_turn(some, UNSET) == in_turn(UNSET, some) == some
    assert in_turn(UNSET, UNSET) is UNSET
