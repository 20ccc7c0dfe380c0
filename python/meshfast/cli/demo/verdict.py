"""What the demo has measured, and whether each thing that it shows has really happened.

A measurement that was never made has the value that fails, so that an act that was left out cannot
pass. The limits are absolute; one is statistical: the share of a canary of 10 % among n random
choices has the standard deviation sqrt(0.09 / n), and a demo should not fail by chance.

Tests: tests/demo/test_verdict.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from meshfast.cli.demo.hops import Hop
from meshfast.cli.demo.load import CHAIN, Sample
from meshfast.cli.demo.spans import Trace

__all__ = ["CANARY_SHARE", "Measured", "problems", "share_tolerance", "to_json"]

CANARY_SHARE = 0.10
SHARE_TOLERANCE = 0.03
#: Of the standard deviation: exceeded by chance in one run of 150,000.
DEVIATIONS = 4.5
RATE_MIN = 100.0
HOPS_MIN = 3
CONVERGENCE_MS_MAX = 1000.0


@dataclass
class Measured:
    """Everything that was measured; filled in as the acts go by."""

    duration_s: float = 0.0
    whole: Sample = field(default_factory=Sample)
    baseline: Sample = field(default_factory=Sample)
    canary: Sample = field(default_factory=Sample)
    warnings: list[str] = field(default_factory=list)
    trace: Trace | None = None
    convergence_ms: list[float] = field(default_factory=list)
    rollback: Sample = field(default_factory=Sample)
    control_down: Sample = field(default_factory=Sample)
    hops: list[Hop] = field(default_factory=list)
    pss_kb: dict[str, int] = field(default_factory=dict)

    @property
    def mtls_hops(self) -> int:
        """How many of the hops were mutual TLS on every request."""
        return sum(hop.is_mutual_tls for hop in self.hops)


def share_tolerance(requests: int) -> float:
    """Say how far the share of v2 may be from 10 % when it is measured on so many requests."""
    deviation = math.sqrt(CANARY_SHARE * (1 - CANARY_SHARE) / max(requests, 1))
    return max(SHARE_TOLERANCE, DEVIATIONS * deviation)


def problems(measured: Measured, act: str | None = None) -> list[str]:
    """What did not happen in an act, one sentence each; without an act in all of the demo."""
    return [
        problem
        for check in (CHECKS[act] if act else [one for each in CHECKS.values() for one in each])
        if (problem := check(measured))
    ]


def to_json(measured: Measured) -> dict[str, Any]:
    """Give the object that `-o json` prints."""
    whole, trace = measured.whole, measured.trace
    return {
        "requests": whole.requests,
        "errors": whole.errors,
        "duration_s": round(measured.duration_s, 3),
        "rate": round(whole.rate, 1),
        "p50_ms": whole.percentile_ms(50),
        "p95_ms": whole.percentile_ms(95),
        "p99_ms": whole.percentile_ms(99),
        "baseline_share": measured.baseline.share("v2"),
        "v2_share": measured.canary.share("v2"),
        "v2_share_requests": measured.canary.requests,
        "warnings": measured.warnings,
        "hops": len(measured.hops),
        "mtls_hops": measured.mtls_hops,
        "hop_details": [_hop(hop) for hop in measured.hops],
        "trace_services": list(trace.services) if trace else [],
        "trace_id": trace.id if trace else None,
        "applies": len(measured.convergence_ms),
        "convergence_max_ms": max(measured.convergence_ms, default=None),
        "rollback_share": measured.rollback.share("v2") if measured.rollback.requests else None,
        "errors_control_down": measured.control_down.errors
        if measured.control_down.requests
        else None,
        "error_reasons": dict(whole.reasons),
        "pss_kb": measured.pss_kb,
        "problems": problems(measured),
    }


def _hop(hop: Hop) -> dict[str, Any]:
    return {
        "source": hop.source,
        "destination": hop.destination,
        "destination_version": hop.version,
        "source_principal": hop.source_principal,
        "destination_principal": hop.destination_principal,
        "mutual_tls": hop.is_mutual_tls,
        "requests": hop.requests,
        "errors": hop.errors,
        "rate": round(hop.rate, 1),
        **{f"p{percent}_ms": round(hop.percentile_ms(percent), 2) for percent in (50, 95, 99)},
    }


def _baseline(measured: Measured) -> str:
    share = measured.baseline.share("v2")
    if not measured.baseline.requests:
        return "nothing was answered before the canary"
    return f"v2 got {share:.1%} before the canary" if share else ""


def _share(measured: Measured) -> str:
    share, tolerance = measured.canary.share("v2"), share_tolerance(measured.canary.requests)
    if not measured.canary.requests:
        return "nothing was answered during the canary"
    if abs(share - CANARY_SHARE) <= tolerance:
        return ""
    return f"v2 got {share:.1%}, not {CANARY_SHARE:.0%} ± {tolerance:.1%}"


def _warning(measured: Measured) -> str:
    return "" if measured.warnings else "a VirtualService without hosts was not warned about"


def _trace(measured: Measured) -> str:
    missing = set(CHAIN) - set(measured.trace.services if measured.trace else ())
    return f"no trace joins all services ({', '.join(sorted(missing))} missing)" if missing else ""


def _convergence(measured: Measured) -> str:
    if not measured.convergence_ms:
        return "no apply was measured"
    worst = max(measured.convergence_ms)
    if worst <= CONVERGENCE_MS_MAX:
        return ""
    return f"the worst apply took {worst:.1f} ms, not {CONVERGENCE_MS_MAX:.0f} at most"


def _rollback(measured: Measured) -> str:
    share = measured.rollback.share("v2")
    if not measured.rollback.requests:
        return "nothing was answered after the rollback"
    return f"v2 still got {share:.1%} after the rollback" if share else ""


def _control_down(measured: Measured) -> str:
    sample = measured.control_down
    if not sample.requests:
        return "nothing was answered without the control plane"
    return f"{sample.errors} errors without the control plane" if sample.errors else ""


def _hops(measured: Measured) -> str:
    hops, mutual = len(measured.hops), measured.mtls_hops
    if hops < HOPS_MIN:
        return f"{hops} hops, not {HOPS_MIN} at least"
    return "" if mutual == hops else f"{mutual} of {hops} hops are mutual TLS"


def _errors(measured: Measured) -> str:
    if not measured.whole.errors:
        return ""
    example = "".join(reason for reason, _ in measured.whole.reasons.most_common(1))
    return f"{measured.whole.errors} errors, such as {example!r}"


def _requests(measured: Measured) -> str:
    needed = math.ceil(RATE_MIN * max(measured.duration_s, 1.0))
    got = measured.whole.requests
    return "" if got >= needed else f"{got} requests, not {needed} at least"


#: Act → its checks, each of which gives a problem or an empty text. "" is what belongs to no act.
CHECKS: dict[str, tuple[Callable[[Measured], str], ...]] = {
    "baseline": (_baseline,),
    "canary": (_warning, _share),
    "trace": (_trace,),
    "convergence": (_convergence,),
    "rollback": (_rollback,),
    "control": (_control_down,),
    "": (_requests, _errors, _hops),
}
