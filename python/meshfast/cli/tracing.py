"""The two options of tracing, which `proxy`, `run` and `sidecar` share.

Tests: tests/core/test_tracing_options.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import rich_click as click

from meshfast.errors import UsageError
from meshfast.resources.texts import CHECKS, is_address

__all__ = ["DEFAULT_SAMPLING_PPM", "sampling_ppm", "tracing_options"]

DEFAULT_SAMPLING_PPM = 10_000  # 1 %, Istio's default of meshConfig.defaultConfig.tracing.sampling

_ADDRESS = re.compile(
    r"(?:\[(?P<ip6>[^\]]+)\]|(?P<host>[^:\[\]/]+)):(?P<port>[0-9]{1,5})", re.ASCII
)
_PERCENT = re.compile(r"(?P<whole>[0-9]{1,3})(?:\.(?P<hundredths>[0-9]{1,2}))?", re.ASCII)

Command = TypeVar("Command", bound=Callable[..., Any])


class ZipkinAddress(click.ParamType[str]):
    """`HOST:PORT` of a Zipkin server, or of what takes Zipkin's spans."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Give the text back as it is."""
        found = _ADDRESS.fullmatch(value)
        if found is None or not _is_host(found) or not 1 <= int(found["port"]) <= 65535:
            hint = "without http:// and path" if "/" in value else "as 127.0.0.1:9411"
            self.fail(f"expected HOST:PORT, {hint}, got {value!r}", param, ctx)
        return value


class Percent(click.ParamType[int]):
    """A share from 0 to 100 in steps of 0.01, in parts per million."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read `12.5`; a whole number is one that was read already."""
        if isinstance(value, int):
            return value
        found = _PERCENT.fullmatch(value)
        hundredths = (found["hundredths"] or "").ljust(2, "0") if found else ""
        parts = (int(found["whole"]) * 100 + int(hundredths)) * 100 if found else -1
        if not 0 <= parts <= 1_000_000:
            hint = "a number without %" if "%" in value else "0 to 100 in steps of 0.01"
            self.fail(f"expected PERCENT, {hint}, got {value!r}", param, ctx)
        return parts


def tracing_options(command: Command) -> Command:
    """Give a command both options."""
    address = click.option(
        "--zipkin-address",
        metavar="HOST:PORT",
        type=ZipkinAddress(),
        help="Record spans and post them to this Zipkin server.",
    )
    sampling = click.option(
        "--trace-sampling",
        metavar="PERCENT",
        type=Percent(),
        help="With --zipkin-address: how many of the traces that begin here are recorded.  "
        "[default: 1]",
    )
    return address(sampling(command))


def sampling_ppm(zipkin_address: str | None, trace_sampling: int | None) -> int:
    """Give the share in parts per million. Raises UsageError for a share of nothing."""
    if trace_sampling is None:
        return DEFAULT_SAMPLING_PPM if zipkin_address is not None else 0
    if zipkin_address is None:
        raise UsageError("--trace-sampling: no spans are recorded (give --zipkin-address too)")
    return trace_sampling


def _is_host(found: re.Match[str]) -> bool:
    if found["ip6"] is not None:
        return is_address(found["ip6"]) and ":" in found["ip6"]
    return CHECKS["endpoint_address"](found["host"]) is None
