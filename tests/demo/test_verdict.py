"""Whatever did not happen is a problem, alone and in its own words; what happened is none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from meshfast.cli.demo.hops import Hop
from meshfast.cli.demo.load import CHAIN, Sample
from meshfast.cli.demo.spans import Trace
from meshfast.cli.demo.story import ACTS
from meshfast.cli.demo.verdict import CHECKS, Measured, problems, share_tolerance, to_json

KEYS = {
    "convergence_max_ms",
    "errors",
    "errors_control_down",
    "hop_details",
    "hops",
    "mtls_hops",
    "pss_kb",
    "requests",
    "rollback_share",
    "trace_services",
    "v2_share",
}


def sample(v1: int, v2: int = 0) -> Sample:
    return Sample(seconds=(v1 + v2) / 250, versions=Counter(v1=v1, v2=v2))


def hop(source: str, destination: str) -> Hop:
    one = Hop(source, destination, "v1")
    one.source_principal = f"spiffe://cluster.local/ns/default/sa/{source}"
    one.destination_principal = f"spiffe://cluster.local/ns/default/sa/{destination}"
    one.requests = one.arrived = one.arrived_mutual_tls = 9
    return one


def good() -> Measured:
    """The measurements of a demo in which everything happened."""
    return Measured(
        duration_s=20.0,
        whole=sample(4700, 300),
        baseline=sample(500),
        canary=sample(1800, 200),
        warnings=["demo.yaml:3:1: spec.hosts is missing"],
        trace=Trace("1f", CHAIN, 6, 1.0, 2.5),
        convergence_ms=[120.0] * 24 + [1000.0],
        rollback=sample(200),
        control_down=sample(1000),
        hops=[hop(*pair) for pair in zip(("load", *CHAIN), CHAIN, strict=False)],
    )


def test_everything_that_happened_is_no_problem() -> None:
    assert problems(good()) == []


def plaintext_of_one(measured: Measured) -> None:
    measured.hops[1].arrived_mutual_tls -= 1


def nameless_callee(measured: Measured) -> None:
    measured.hops[2].destination_principal = "unknown"


def one_hop_less(measured: Measured) -> None:
    measured.hops.pop()


def errors(measured: Measured) -> None:
    measured.whole.errors, measured.whole.reasons = 1, Counter({"ValueError: 503": 1})


def trace_of_two(measured: Measured) -> None:
    measured.trace = Trace("1f", ("order", "payment-service"), 3, 1.0, 2.5)


def setting(name: str, value: object) -> Callable[[Measured], None]:
    return lambda measured: setattr(measured, name, value)


DEVIATIONS: dict[str, tuple[Callable[[Measured], None], str]] = {
    "too few requests": (setting("whole", sample(1999)), "1999 requests, not 2000 at least"),
    "an error": (errors, "1 errors, such as 'ValueError: 503'"),
    "v2 before the canary": (setting("baseline", sample(499, 1)), "v2 got 0.2% before the canary"),
    "nothing before the canary": (
        setting("baseline", Sample()),
        "nothing was answered before the canary",
    ),
    "share too small": (
        setting("canary", sample(4651, 349)),
        "v2 got 7.0%, not 10% ± 3.0%",
    ),
    "share too large": (setting("canary", sample(4345, 655)), "v2 got 13.1%, not 10% ± 3.0%"),
    "no canary": (setting("canary", Sample()), "nothing was answered during the canary"),
    "no warning": (
        setting("warnings", []),
        "a VirtualService without hosts was not warned about",
    ),
    "no trace": (
        setting("trace", None),
        "no trace joins all services (inventory, order, payment-service missing)",
    ),
    "a trace of two": (trace_of_two, "no trace joins all services (inventory missing)"),
    "slow apply": (
        setting("convergence_ms", [1.0, 1000.1]),
        "the worst apply took 1000.1 ms, not 1000 at most",
    ),
    "no apply": (setting("convergence_ms", []), "no apply was measured"),
    "v2 after the rollback": (
        setting("rollback", sample(199, 1)),
        "v2 still got 0.5% after the rollback",
    ),
    "no rollback": (setting("rollback", Sample()), "nothing was answered after the rollback"),
    "errors without control plane": (
        setting("control_down", Sample(versions=Counter(v1=9), errors=2)),
        "2 errors without the control plane",
    ),
    "control plane never killed": (
        setting("control_down", Sample()),
        "nothing was answered without the control plane",
    ),
    "plaintext": (plaintext_of_one, "2 of 3 hops are mutual TLS"),
    "no identity": (nameless_callee, "2 of 3 hops are mutual TLS"),
    "too few hops": (one_hop_less, "2 hops, not 3 at least"),
}


@pytest.mark.parametrize(("spoil", "problem"), DEVIATIONS.values(), ids=DEVIATIONS)
def test_what_did_not_happen_is_the_one_problem(
    spoil: Callable[[Measured], None], problem: str
) -> None:
    measured = good()
    spoil(measured)
    assert problems(measured) == [problem]
    assert to_json(measured)["problems"] == [problem]


def test_a_demo_in_which_nothing_happened_fails_every_check_that_is_not_about_errors() -> None:
    checks = sum(map(len, CHECKS.values()))
    assert len(problems(Measured())) == checks - 1


def test_every_act_is_judged_at_its_end_by_checks_of_its_own() -> None:
    assert [name for name, _ in ACTS] == [name for name in CHECKS if name]
    measured = good()
    measured.rollback = sample(199, 1)
    assert [name for name, _ in ACTS if problems(measured, name)] == ["rollback"]


def test_a_share_of_few_requests_may_be_further_off_and_one_of_many_may_not() -> None:
    assert share_tolerance(2_026) == share_tolerance(100_000) == 0.03
    assert 0.060 < share_tolerance(500) < 0.061


def test_the_json_has_numbers_for_what_happened_and_null_for_what_did_not() -> None:
    shown = to_json(good())
    assert shown.keys() >= KEYS
    assert (shown["requests"], shown["errors"], shown["v2_share"]) == (5000, 0, 0.1)
    assert (shown["hops"], shown["mtls_hops"], len(shown["hop_details"])) == (3, 3, 3)
    assert shown["trace_services"] == list(CHAIN)
    assert (shown["convergence_max_ms"], shown["applies"]) == (1000.0, 25)
    assert (shown["rollback_share"], shown["errors_control_down"]) == (0.0, 0)
    nothing = to_json(Measured())
    for key in ("convergence_max_ms", "rollback_share", "errors_control_down"):
        assert nothing[key] is None
