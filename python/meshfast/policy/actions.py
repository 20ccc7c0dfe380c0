"""What a route does besides choosing a destination: retries, faults, changes of headers.

Defaults for what is not written are Istio's, from `HTTPRetry` and `HTTPFaultInjection` of its
`networking/v1/virtual_service.proto`.

Does not do: judging, which `meshfast.resources.relations` has done.

Tests: tests/core/test_golden.py, test_actions.py.
"""

from __future__ import annotations

from msgspec import UNSET, UnsetType

from meshfast.policy.document import Abort, Delay, Fault, Header, HeaderEdits, Retry
from meshfast.resources import kinds
from meshfast.resources.relations import parts_per_million, retry_conditions
from meshfast.resources.texts import GRPC_STATUSES, duration_ms

__all__ = ["fault", "header_edits", "in_turn", "retry"]

BACKOFF_MS = 25
_DEFAULT_CONDITIONS = ("connect-failure", "refused-stream", "unavailable", "cancelled")
# What a call that is none of gRPC sees of a status of gRPC, in the order of the statuses: the
# mapping in `google/rpc/code.proto`, which Envoy follows.
_HTTP_STATUSES = (
    200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401,
)  # fmt: skip


def retry(retries: kinds.HTTPRetry | None) -> Retry | UnsetType:
    """Write out what a rule says about retries; unset leaves the default of the mesh."""
    if retries is None:
        return UNSET
    conditions, statuses = retry_conditions(retries.retry_on)
    return Retry(
        attempts=retries.attempts,
        per_try_timeout_ms=_ms(retries.per_try_timeout, 0),
        on=conditions if retries.retry_on else _DEFAULT_CONDITIONS,
        statuses=statuses,
        backoff_ms=_ms(retries.backoff, BACKOFF_MS),
        avoid_tried=retries.retry_ignore_previous_hosts,
    )


def fault(injection: kinds.HTTPFaultInjection | None) -> Fault | UnsetType:
    """Write out the faults of a rule."""
    if injection is None:
        return UNSET
    delay, abort = injection.delay, injection.abort
    return Fault(
        delay=None
        if delay is None
        else Delay(fixed_ms=_ms(delay.fixed_delay, 0), parts_per_million=_parts(delay.percentage)),
        abort=None if abort is None else _abort(abort),
    )


def header_edits(operations: kinds.HeaderOperations | None) -> HeaderEdits | UnsetType:
    """Write out changes of headers; unset when there is none."""
    if operations is None or operations == kinds.HeaderOperations():
        return UNSET
    return HeaderEdits(
        set=_headers(operations.set),
        add=_headers(operations.add),
        remove=operations.remove,
    )


def in_turn(
    first: HeaderEdits | UnsetType, then: HeaderEdits | UnsetType
) -> HeaderEdits | UnsetType:
    """Join two changes to one that does what Envoy does with both lists on one route.

    All removals come before all else, so what `first` sets stays although `then` removes it; what
    `then` sets replaces what `first` has set and added.
    """
    if first is UNSET or then is UNSET:
        return then if first is UNSET else first
    replaced = {header.name.lower() for header in then.set}
    return HeaderEdits(
        set=(*_without(replaced, first.set), *then.set),
        add=(*_without(replaced, first.add), *then.add),
        remove=tuple({name.lower(): name for name in (*first.remove, *then.remove)}.values()),
    )


def _without(names: set[str], headers: tuple[Header, ...]) -> tuple[Header, ...]:
    return tuple(header for header in headers if header.name.lower() not in names)


def _abort(abort: kinds.Abort) -> Abort:
    number = None if abort.grpc_status is None else GRPC_STATUSES.index(abort.grpc_status)
    status = abort.http_status if number is None else _HTTP_STATUSES[number]
    assert status is not None, "an abort has one of both statuses"
    return Abort(status=status, grpc_status=number, parts_per_million=_parts(abort.percentage))


def _headers(written: dict[str, str]) -> tuple[Header, ...]:
    """Write `%%` as the `%` that it stands for."""
    return tuple(
        Header(name=name, value=value.replace("%%", "%")) for name, value in written.items()
    )


def _parts(percentage: kinds.Percent | None) -> int:
    return 0 if percentage is None else parts_per_million(percentage)


def _ms(duration: str | None, default: int) -> int:
    return default if duration is None else duration_ms(duration) or 0
