"""What a struct of `kinds` asks beyond the types of its fields: relations inside one resource.

A row of the tables gives findings, each an error or a warning, at a field under the struct, or at
a string of which more can be said than what was expected. What stands between resources is for
`meshfast.policy`.

A warning is about what is valid and will surprise: a fault for 0 % of the requests, a time for one
try that the time for all of them cuts short.

Tests: tests/core/test_relations.py, and the pairs of files in tests/core/refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

from meshfast.resources import istio, kinds
from meshfast.resources.texts import GRPC_STATUSES, duration_ms, nearest_name

__all__ = [
    "OWN_PREFIX",
    "RETRY_CONDITIONS",
    "TEXT_CHECKS",
    "UNTOUCHABLE",
    "Finding",
    "findings",
    "findings_in_text",
    "parts_per_million",
    "retry_conditions",
]

#: What `retryOn` may name: Envoy's conditions for HTTP, and for gRPC those in headers.
RETRY_CONDITIONS = (
    "5xx",
    "cancelled",
    "connect-failure",
    "deadline-exceeded",
    "gateway-error",
    "internal",
    "refused-stream",
    "reset",
    "reset-before-request",
    "resource-exhausted",
    "retriable-4xx",
    "unavailable",
)
_STATUS_CODES = "retriable-status-codes"  # says that the numbers beside it count; they do anyway
# What belongs to a hop (RFC 9110, section 7.6.1), decides framing or routing, or says who calls.
# `meshfast._core.HEADERS_NOT_EDITED` is the same table (tests/core/test_relations.py).
UNTOUCHABLE = frozenset(
    {
        "connection",
        "content-length",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-forwarded-client-cert",
    }
)
OWN_PREFIX = "x-meshfast-"
_PARTS_PER_PERCENT = 10_000  # of a million
_OFF_WITH_FAULT = "it is off on a route with a fault, as in Istio"


class Finding(NamedTuple):
    """One thing to say about a struct, at the field that `path` leads to."""

    message: str
    path: tuple[str | int, ...] = ()
    hint: str = ""
    is_warning: bool = False


def findings(value: Any, unread: Collection[str] = ()) -> Iterator[Finding]:
    """Look at a struct; `unread` are its fields that are not, or not all, what was written."""
    check = _CHECKS.get(type(value))
    if check is not None:
        yield from check(value, unread)


def findings_in_text(check: str, text: str) -> Iterator[Finding]:
    """Look at a string that stands where the schema names this check."""
    if check in TEXT_CHECKS:
        yield from TEXT_CHECKS[check](text)


def parts_per_million(percent: kinds.Percent) -> int:
    """Give a share as the data plane draws it."""
    return round(percent.value * _PARTS_PER_PERCENT)


def retry_conditions(retry_on: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Split `retryOn` into conditions and status codes; it has been checked."""
    words = [word.strip() for word in retry_on.split(",") if word.strip()]
    codes = tuple(dict.fromkeys(int(word) for word in words if word.isdigit()))
    conditions = dict.fromkeys(word for word in words if word in RETRY_CONDITIONS)
    return tuple(conditions), codes


def _string_match(match: kinds.StringMatch, _: Collection[str]) -> Iterator[Finding]:
    given = [name for name in ("exact", "prefix", "regex") if getattr(match, name) is not None]
    if len(given) > 1:
        yield Finding(f"only one of {' and '.join(given)} can be given")


def _match_request(match: kinds.HTTPMatchRequest, _: Collection[str]) -> Iterator[Finding]:
    for name in ("uri", "scheme", "method", "authority"):
        if getattr(match, name) == kinds.StringMatch():
            yield Finding(f"{name} needs one of exact, prefix and regex", (name,))


def _route(route: kinds.HTTPRoute, _: Collection[str]) -> Iterator[Finding]:
    retries = route.retries
    total = duration_ms(route.timeout or "0s") or 0
    if route.fault is not None:
        for name in ("timeout", "retries"):
            if getattr(route, name) is not None:
                yield Finding(f"{name} has no effect", (name,), _OFF_WITH_FAULT, True)
    elif retries is not None and 0 < total < (duration_ms(retries.per_try_timeout or "0s") or 0):
        message = f"is longer than the timeout of the route, {route.timeout}, which ends it"
        yield Finding(message, ("retries", "perTryTimeout"), "", True)


def _retry(retries: kinds.HTTPRetry, unread: Collection[str]) -> Iterator[Finding]:
    if retries.attempts == 0 and (unread or retries != kinds.HTTPRetry(attempts=0)):
        message = "attempts: 0 turns retries off, so the other fields have no effect"
        yield Finding(message, ("attempts",), "remove them, or allow an attempt")


def _retry_on(text: str) -> Iterator[Finding]:
    words = [word.strip() for word in text.split(",")] if text else []
    for word in words:
        if word.isascii() and word.isdigit():
            if len(word) != 3 or not 100 <= int(word) <= 599:
                yield Finding(f"{word[:64]} is no status code", (), "from 100 to 599")
        elif word in istio.RETRY_CONDITIONS:
            message = f"the condition {word!r} is valid in Istio, but not supported by meshfast yet"
            yield Finding(message)
        elif word not in (*RETRY_CONDITIONS, _STATUS_CODES):
            close = nearest_name(word, RETRY_CONDITIONS)
            listed = ", ".join((*RETRY_CONDITIONS, "and status codes"))
            hint = f"did you mean {close[0]!r}?" if close else f"known: {listed}"
            yield Finding(f"unknown condition {word[:64]!r}", (), hint)
    if _STATUS_CODES in words and not any(word.isdigit() for word in words):
        message = f"{_STATUS_CODES} has no effect without a status code"
        yield Finding(message, (), f"write it beside: {_STATUS_CODES},503", True)


def _fault(fault: kinds.HTTPFaultInjection, unread: Collection[str]) -> Iterator[Finding]:
    if fault.delay is None and fault.abort is None and not unread:
        yield Finding("a fault needs delay or abort, or both")


def _delay(delay: kinds.Delay, unread: Collection[str]) -> Iterator[Finding]:
    if "percentage" not in unread:
        yield from _no_percentage(delay.percentage, "delayed")


def _abort(abort: kinds.Abort, unread: Collection[str]) -> Iterator[Finding]:
    is_read = "http_status" not in unread and "grpc_status" not in unread
    if is_read and (abort.http_status is None) == (abort.grpc_status is None):
        yield Finding("an abort has one of httpStatus and grpcStatus")
    if "percentage" not in unread:
        yield from _no_percentage(abort.percentage, "aborted")


def _grpc_status(text: str) -> Iterator[Finding]:
    if text not in GRPC_STATUSES:
        close = nearest_name(text.upper(), GRPC_STATUSES)
        hint = f"did you mean {close[0]}?" if close else f"one of: {', '.join(GRPC_STATUSES)}"
        yield Finding(f"unknown status of gRPC {text[:64]!r}", (), hint)


def _load_balancer(settings: kinds.LoadBalancerSettings, _: Collection[str]) -> Iterator[Finding]:
    if settings.simple is kinds.Balancer.LEAST_CONN:
        message = "LEAST_CONN is taken for LEAST_REQUEST, which has replaced it in Istio"
        yield Finding(message, ("simple",), "write LEAST_REQUEST", True)


def _no_percentage(percentage: kinds.Percent | None, what: str) -> Iterator[Finding]:
    if percentage is None or percentage.value == 0:
        hint = "without a percentage it is 0 %; write percentage: {value: 100} for all of them"
        yield Finding(f"no request is {what}", (), hint, True)


def _percent(percent: kinds.Percent, _: Collection[str]) -> Iterator[Finding]:
    if percent.value > 0 and not parts_per_million(percent):
        message = f"{percent.value:g} % is less than one request in a million, so it would be none"
        yield Finding(message, ("value",), "the smallest share is 0.0001; 0 is none")


def _header_operations(operations: kinds.HeaderOperations, _: Collection[str]) -> Iterator[Finding]:
    for action in ("set", "add", "remove"):
        seen: set[str] = set()
        for position, written in enumerate(getattr(operations, action)):
            if written.lower() in seen:
                path = (action, position if action == "remove" else written)
                yield Finding(f"the header {written!r} occurs twice: names have no case", path)
            seen.add(written.lower())


def _field_name(text: str) -> Iterator[Finding]:
    name = text.lower().replace("_", "-")  # some servers read one as the other
    if name in UNTOUCHABLE or name.startswith(OWN_PREFIX):
        yield Finding(f"the header {text[:64]!r} belongs to the proxy: no rule changes it")


def _field_value(text: str) -> Iterator[Finding]:
    if "%" in text.replace("%%", ""):
        hint = "command operators such as %REQ(x)% are not supported; %% is one %"
        yield Finding("a single % is not taken as it is", (), hint)


_CHECKS: dict[type[Any], Callable[[Any, Collection[str]], Iterator[Finding]]] = {
    kinds.Abort: _abort,
    kinds.Delay: _delay,
    kinds.HTTPFaultInjection: _fault,
    kinds.HTTPMatchRequest: _match_request,
    kinds.HTTPRetry: _retry,
    kinds.HTTPRoute: _route,
    kinds.HeaderOperations: _header_operations,
    kinds.LoadBalancerSettings: _load_balancer,
    kinds.Percent: _percent,
    kinds.StringMatch: _string_match,
}

TEXT_CHECKS: dict[str, Callable[[str], Iterator[Finding]]] = {
    "field_name": _field_name,
    "field_value": _field_value,
    "grpc_status": _grpc_status,
    "retry_on": _retry_on,
}
