"""Checks of strings that are more than strings: names, hosts, addresses, durations.

Each check returns None, or what a valid value looks like, to follow "expected". They look at the
text alone: whether a host exists is for `meshfast.policy`.

Tests: tests/core/test_texts.py.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Iterable

__all__ = ["CHECKS", "CLAIM_CHECKS", "GRPC_STATUSES", "duration_ms", "is_address", "nearest_name"]

#: The statuses of gRPC; the position is the number.
GRPC_STATUSES = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)

_INSTANCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}", re.ASCII)
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)  # RFC 1123, section 2.1
_HOST_LABEL = re.compile(r"[a-zA-Z0-9_]([-a-zA-Z0-9_]{0,61}[a-zA-Z0-9_])?", re.ASCII)
_HOST_CHARS_MAX = 253  # RFC 1035, section 2.3.4, without the length bytes
_UNIX_PATH_BYTES_MAX = 107  # sun_path with its final NUL, unix(7)
_UNIX_PATH = f"unix:///PATH with a path of at most {_UNIX_PATH_BYTES_MAX} bytes"
_TOKEN = re.compile(r"[-!#$%&'*+.^_`|~0-9a-z]{1,256}", re.ASCII)  # RFC 9110, section 5.6.2
_FIELD_TOKEN = re.compile(r"[-!#$%&'*+.^_`|~0-9a-zA-Z]{1,256}", re.ASCII)
_FIELD_VALUE = re.compile(r"[!-~]([ \t!-~]*[!-~])?", re.ASCII)  # RFC 9110, section 5.5, in ASCII
_FIELD_VALUE_CHARS_MAX = 4096
_NAME_CHARS_MAX = 64  # of a name that is compared with others
# Kubernetes, "Labels and Selectors": a name or value, and before a name's slash a DNS subdomain.
_WORKLOAD_LABEL = re.compile(r"[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?", re.ASCII)
_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(h|ms|m|s|us|µs|ns)", re.ASCII)
_DURATION_CHARS_MAX = 32
_UNIT_MS = {
    "h": 3_600_000.0,
    "m": 60_000.0,
    "s": 1e3,
    "ms": 1.0,
    "us": 1e-3,
    "µs": 1e-3,
    "ns": 1e-6,
}
DURATION_MS_MAX = 24 * 3_600_000  # a timeout of a day is none


def duration_ms(text: str) -> int | None:
    """Read a duration as Go writes it (`1h30m`, `250ms`); whole milliseconds, None if it is none.

    Istio refuses durations below 1 ms; 0 stands for "off" and is accepted.
    """
    if len(text) > _DURATION_CHARS_MAX:
        return None
    position, total = 0, 0.0
    while position < len(text):
        part = _DURATION_PART.match(text, position)
        if part is None:
            return None
        total += float(part[1]) * _UNIT_MS[part[2]]
        position = part.end()
    if not text or 0 < total < 1 or total > DURATION_MS_MAX:
        return None
    return round(total)


def is_address(text: str) -> bool:
    """Tell whether the text is an IPv4 or IPv6 address, without brackets, port or zone."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def nearest_name(name: str, choices: Iterable[str]) -> list[str]:
    """Give the choice that the name was probably meant to be, in a list, or an empty list."""
    if len(name) > _NAME_CHARS_MAX:
        return []
    return difflib.get_close_matches(name, sorted(choices), n=1, cutoff=0.6)


def _is_host(text: str) -> bool:
    labels = text.removesuffix(".").split(".")
    return len(text) <= _HOST_CHARS_MAX and all(map(_HOST_LABEL.fullmatch, labels))


def _is_host_pattern(text: str) -> bool:
    return text == "*" or _is_host(text.removeprefix("*.")) or is_address(text)


def _address(text: str) -> str | None:
    return None if is_address(text) else "an IPv4 or IPv6 address, without a port"


def _duration(text: str) -> str | None:
    if duration_ms(text) is not None:
        return None
    return "a duration such as 10s, 1m30s, 1h or 250ms (0s or 1ms to 24h)"


def _endpoint_address(text: str) -> str | None:
    path = text.removeprefix("unix://")
    if path != text:
        fits = 1 < len(path.encode()) <= _UNIX_PATH_BYTES_MAX
        return None if path.startswith("/") and fits and "\0" not in path else _UNIX_PATH
    if is_address(text) or _is_host(text):
        return None
    return "an IP address, a host name, or unix:///PATH, without a port"


def _field_name(text: str) -> str | None:
    return None if _FIELD_TOKEN.fullmatch(text) else "a header name"


def _field_value(text: str) -> str | None:
    if len(text) <= _FIELD_VALUE_CHARS_MAX and _FIELD_VALUE.fullmatch(text):
        return None
    return f"1 to {_FIELD_VALUE_CHARS_MAX} characters of ASCII in one line, without outer spaces"


def _gateway_name(text: str) -> str | None:
    namespace, slash, name = text.rpartition("/")
    if _name(name) is None and (not slash or _LABEL.fullmatch(namespace)):
        return None
    return "NAME or NAMESPACE/NAME of a Gateway"


def _header_name(text: str) -> str | None:
    return None if _TOKEN.fullmatch(text) else "a header name in lower case"


def _host(text: str) -> str | None:
    return None if _is_host(text) else "a host name, without a wildcard or a port"


def _host_pattern(text: str) -> str | None:
    if _is_host_pattern(text):
        return None
    return "a host name, *.SUFFIX or *, without a port"


def _host_port(text: str) -> str | None:
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    is_right = is_address(host[1:-1]) and ":" in host if bracketed else _is_host(host)
    if is_right and port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536:
        return None
    return "HOST:PORT or [IP6]:PORT"


def _instance(text: str) -> str | None:
    """Judge a part of a key: no slash, and short enough for one beside a namespace of 63."""
    if _INSTANCE.fullmatch(text):
        return None
    return "at most 253 letters, digits, '.', '_' and '-', beginning with a letter or digit"


def _interval(text: str) -> str | None:
    return None if duration_ms(text) else "a duration such as 25ms, 1s or 1m30s (1ms to 24h)"


def _label(text: str) -> str | None:
    if _LABEL.fullmatch(text):
        return None
    return "at most 63 lower-case letters, digits and inner hyphens"


def _name(text: str) -> str | None:
    if len(text) <= _HOST_CHARS_MAX and all(map(_LABEL.fullmatch, text.split("."))):
        return None
    return "a name of lower-case letters, digits, and inner hyphens and dots"


def _peer_address(text: str) -> str | None:
    """Judge where a workload says that others reach it; loopback is right for a mesh of one host.

    169.254.0.0/16 and fe80::/10 differ from link to link (RFC 3927, RFC 4291 2.5.6), and cloud
    hosts have their metadata there.
    """
    if is_address(text):
        ip = ipaddress.ip_address(text)
        is_one_host = not (ip.is_unspecified or ip.is_multicast or ip.is_link_local)
        if is_one_host and text != "255.255.255.255":
            return None
    return "an IP address at which others reach this host, without a port"


def _server_host(text: str) -> str | None:
    namespace, slash, host = text.rpartition("/")
    scoped = not slash or namespace in ("*", ".") or _LABEL.fullmatch(namespace)
    if scoped and _is_host_pattern(host):
        return None
    return "HOST or NAMESPACE/HOST, where HOST is a host name, *.SUFFIX or *"


def _workload_label_key(text: str) -> str | None:
    prefix, slash, name = text.rpartition("/")
    if _WORKLOAD_LABEL.fullmatch(name) and (not slash or _name(prefix) is None):
        return None
    return "at most 63 letters, digits and inner '-', '_' and '.', after an optional DNS-NAME/"


def _workload_label_value(text: str) -> str | None:
    if not text or _WORKLOAD_LABEL.fullmatch(text):
        return None
    return "nothing, or at most 63 letters, digits and inner '-', '_' and '.'"


#: Of fields of resources.
CHECKS: dict[str, Callable[[str], str | None]] = {
    "address": _address,
    "duration": _duration,
    "endpoint_address": _endpoint_address,
    "field_name": _field_name,
    "field_value": _field_value,
    "gateway_name": _gateway_name,
    "header_name": _header_name,
    "host": _host,
    "host_pattern": _host_pattern,
    "interval": _interval,
    "label": _label,
    "name": _name,
    "server_host": _server_host,
}
#: Of what a workload says about itself and a token about its mesh: options, messages, records.
CLAIM_CHECKS: dict[str, Callable[[str], str | None]] = {
    "host_port": _host_port,
    "instance": _instance,
    "label_key": _workload_label_key,
    "label_value": _workload_label_value,
    "peer_address": _peer_address,
    "service": _label,
    "workload": _name,
}
