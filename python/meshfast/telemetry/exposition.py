"""Writes metric families in Prometheus' text format 0.0.4 or in OpenMetrics 1.0.

The writer gives pieces of some kilobytes, one series at a time, so that a scrape of any size needs
the memory of one piece and can be interleaved with other work. Why not prometheus-client: see
`meshfast.telemetry`, with figures.

Does not do: exemplars, timestamps, compression, the protobuf format.

Invariants:
1. `le` is written as OpenMetrics asks (`1.0`, not `1`) in both formats: a series does not change
   its identity with the format that a scraper prefers.
2. Label names are ours or Istio's and are not escaped; label values always are.
3. OpenMetrics ends with `# EOF`, so that a scraper sees when an answer was cut.

Tests: tests/agent/test_exposition.py, against the parsers and the writer of prometheus-client.
"""

from __future__ import annotations

from meshfast.telemetry.families import BUCKETS, COUNTER, HISTOGRAM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from meshfast.telemetry.families import Family, Labels, Value

__all__ = ["BOUNDS", "OPENMETRICS", "TEXT", "negotiate", "write"]

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
TEXT = "text/plain; version=0.0.4; charset=utf-8"

_INFINITY = float("inf")


def negotiate(accept: str) -> str:
    """Choose `OPENMETRICS` or `TEXT` for the value of an Accept header (RFC 9110 section 12.5.1).

    The highest weight wins, OpenMetrics when equal. `TEXT` also when neither is acceptable: a body
    that can be read tells an operator more than 406.
    """
    weights = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for part in accept.lower().split(","):
        media, *parameters = (piece.strip() for piece in part.split(";"))
        values = dict(parameter.partition("=")[::2] for parameter in parameters)
        if media not in weights or values.get("version", "1.0.0") not in _VERSIONS[media]:
            continue
        weights[media] = max(weights[media], _weight(values.get("q", "1")))
    openmetrics, text = weights.values()
    return OPENMETRICS if openmetrics > 0 and openmetrics >= text else TEXT


# What a scraper may ask for and understands when it gets ours. 1.0.0 of text/plain is 0.0.4 with
# more characters allowed in names, none of which we use.
_VERSIONS = {
    "application/openmetrics-text": ("0.0.1", "1.0.0"),
    "text/plain": ("0.0.4", "1.0.0"),
}


def _weight(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def write(families: Iterable[Family], content_type: str) -> Iterator[bytes]:
    """Write the families, piece by piece; the end is only reached when every piece was taken."""
    openmetrics = content_type == OPENMETRICS
    for family in families:
        yield _header(family, openmetrics)
        lines = _histogram if family.kind == HISTOGRAM else _number
        for labels, value in family.samples:
            yield lines(family.name, labels, value).encode()
    if openmetrics:
        yield b"# EOF\n"


def _header(family: Family, openmetrics: bool) -> bytes:
    name = family.name
    if openmetrics and family.kind == COUNTER:
        name = name.removesuffix("_total")  # there the suffix belongs to the sample
    return f"# HELP {name} {family.help}\n# TYPE {name} {family.kind}\n".encode()


def _number(name: str, labels: Labels, value: Value) -> str:
    text = _labels(labels)
    return f"{name}{{{text}}} {value}\n" if text else f"{name} {value}\n"


def _histogram(name: str, labels: Labels, value: Value) -> str:
    assert not isinstance(value, (int, float)), "a histogram's samples are histograms"
    text = _labels(labels)
    start = f'{name}_bucket{{{text}{"," if text else ""}le="'
    count = 0
    lines = []
    for bound, samples in zip(BOUNDS, value.buckets, strict=True):
        count += samples
        lines.append(f'{start}{bound}"}} {count}\n')
    lines.append(f"{name}_count{{{text}}} {count}\n{name}_sum{{{text}}} {value.sum}\n")
    return "".join(lines)


def _bound(bound: float) -> str:
    """OpenMetrics' canonical numbers: `1.0`, `3.6e+06`, `+Inf`."""
    if bound == _INFINITY:
        return "+Inf"
    if bound < 1e6:
        return repr(bound)
    mantissa, _, exponent = f"{bound:e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{exponent}"


BOUNDS = tuple(_bound(bound) for bound in BUCKETS)


def _labels(labels: Labels) -> str:
    return ",".join([f'{name}="{_escape(value)}"' for name, value in labels.items()])


def _escape(value: str) -> str:
    if "\\" in value or '"' in value or "\n" in value:
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return value
