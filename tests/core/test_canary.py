"""meshfast.policy.canary: what becomes of a rule, and what is refused with a next step."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshfast.errors import ConfigError
from meshfast.policy.canary import (
    ANNOTATION,
    Service,
    find_destination_rule,
    find_rule,
    roll_back,
    rule_of_versions,
    set_shares,
    weights_of,
)
from meshfast.resources import load_text, render_yaml
from meshfast.resources.kinds import DestinationRule, VirtualService

PAYMENT = Service("payment", "default")
# The YAML that users of Istio have, without hosts and annotations.
BY_HAND = """\
apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata:
  name: payment
spec:
  http:
    - route:
        - destination:
            host: payment
            subset: v1
          weight: 90
        - destination:
            host: payment
            subset: v2
          weight: 10
"""


def rule(text: str = BY_HAND) -> VirtualService:
    (loaded,) = load_text(text, "f.yaml")
    assert isinstance(loaded.resource, VirtualService)
    return loaded.resource


def routes(*routes: str) -> VirtualService:
    """A rule with routes in YAML's flow style."""
    head = BY_HAND.partition("    - route:")[0]
    return rule(head + "".join(f"    - {route}\n" for route in routes))


def to(subset: str, weight: int = 0, host: str = "payment") -> str:
    named = f", subset: {subset}" if subset else ""
    return f"{{destination: {{host: {host}{named}}}, weight: {weight}}}"


def versions(*names: str, host: str = "payment") -> DestinationRule:
    return rule_of_versions(Service(host, "default"), [{"version": name} for name in names])


def shares(made: VirtualService) -> list[list[tuple[str, int]]]:
    return [
        [(item.destination.subset, item.weight or 0) for item in route.route]
        for route in made.spec.http
    ]


def refusal(*arguments: object) -> str:
    function, *rest = arguments
    assert callable(function)
    with pytest.raises(ConfigError) as refused:
        function(*rest)
    return str(refused.value)


V1_V2, V1_V2_V3 = versions("v1", "v2"), versions("v1", "v2", "v3")


def test_set_makes_a_rule_where_there_is_none() -> None:
    made = set_shares(None, V1_V2, PAYMENT, {"v2": 10})
    assert shares(made) == [[("v1", 90), ("v2", 10)]]
    assert made.spec.hosts == ("payment",)
    assert made.metadata.annotations == {ANNOTATION: "v2"}
    assert load_text(render_yaml([made, V1_V2]), "f.yaml")


@pytest.mark.parametrize(
    ("taken", "name"),
    [
        ([], "payment"),
        (["order"], "payment"),
        (["payment"], "payment-canary"),
        (["payment", "payment-canary"], "payment-canary-2"),
    ],
)
def test_what_is_made_takes_nobody_s_name(taken: list[str], name: str) -> None:
    assert set_shares(None, V1_V2, PAYMENT, {"v2": 10}, taken).metadata.name == name
    labels = [{"version": "v1"}, {"version": "v2"}]
    assert rule_of_versions(PAYMENT, labels, taken).metadata.name == name


@pytest.mark.parametrize(
    ("before", "wanted", "after"),
    [
        ([f"route: [{to('v1', 90)}, {to('v2', 10)}]"], {"v2": 50}, [[("v1", 50), ("v2", 50)]]),
        ([f"route: [{to('v1', 9)}, {to('v2', 1)}]"], {"v2": 50}, [[("v1", 50), ("v2", 50)]]),
        ([f"route: [{to('v1')}]"], {"v2": 5}, [[("v1", 95), ("v2", 5)]]),
        ([f"route: [{to('')}]"], {"v2": 5}, [[("v1", 95), ("v2", 5)]]),
        ([f"route: [{to('v2')}]"], {"v2": 5}, [[("v2", 5), ("v1", 95)]]),
        ([f"route: [{to('v1', 1)}, {to('v2', 0)}]"], {"v2": 100}, [[("v1", 0), ("v2", 100)]]),
        ([f"route: [{to('v1', 0)}, {to('v2', 1)}]"], {"v2": 1}, [[("v1", 99), ("v2", 1)]]),
        (  # routes by a condition that split are edited too; testers are left alone
            [
                f"{{match: [{{uri: {{prefix: /a}}}}], route: [{to('v2')}]}}",
                f"{{match: [{{uri: {{prefix: /b}}}}], route: [{to('v1', 1)}, {to('v2', 1)}]}}",
                f"route: [{to('v1', 1)}, {to('v2', 1)}]",
            ],
            {"v2": 20},
            [[("v2", 0)], [("v1", 80), ("v2", 20)], [("v1", 80), ("v2", 20)]],
        ),
        (
            [f"{{match: [{{uri: {{prefix: /a}}}}], route: [{to('v2')}]}}", f"route: [{to('')}]"],
            {"v2": 20},
            [[("v2", 0)], [("v1", 80), ("v2", 20)]],
        ),
    ],
)
def test_set_edits_the_routes_that_split_or_else_the_one_for_all(
    before: list[str], wanted: dict[str, int], after: list[list[tuple[str, int]]]
) -> None:
    made = set_shares(routes(*before), V1_V2, PAYMENT, wanted)
    assert shares(made) == after


def test_the_others_share_the_rest_in_their_proportions() -> None:
    before = routes(f"route: [{to('v1', 60)}, {to('v2', 10)}, {to('v3', 30)}]")
    made = set_shares(before, V1_V2_V3, PAYMENT, {"v2": 40})
    assert shares(made) == [[("v1", 40), ("v2", 40), ("v3", 20)]]


def test_several_subsets_may_be_given() -> None:
    made = set_shares(None, V1_V2_V3, PAYMENT, {"v2": 10, "v1": 60})
    assert shares(made) == [[("v3", 30), ("v2", 10), ("v1", 60)]]
    assert made.metadata.annotations == {ANNOTATION: "v2"}


@pytest.mark.parametrize(
    ("before", "subsets", "wanted", "said"),
    [
        (
            None,
            V1_V2,
            {"v9": 10},
            "DestinationRule default/payment has no subset 'v9', only v1, v2",
        ),
        (None, V1_V2, {"v1": 60, "v2": 60}, "the shares add up to 120 %"),
        (None, V1_V2, {"v1": 10, "v2": 10}, "the shares add up to 20 %, and there is no other"),
        (None, V1_V2_V3, {"v2": 10}, "which of v1, v3 takes the rest?"),
        (
            [f"route: [{to('', 1)}, {to('', 1, 'other')}]"],
            V1_V2,
            {"v2": 10},
            "no route of VirtualService default/payment can be split",
        ),
        (
            [f"{{match: [{{uri: {{prefix: /a}}}}], route: [{to('')}]}}"],
            V1_V2,
            {"v2": 10},
            "no route of VirtualService default/payment can be split",
        ),
    ],
)
def test_set_refuses_what_it_cannot_decide(
    before: list[str] | None, subsets: DestinationRule, wanted: dict[str, int], said: str
) -> None:
    found = routes(*before) if before else None
    assert refusal(set_shares, found, subsets, PAYMENT, wanted).startswith(said)


def test_the_canary_of_a_rule_applied_by_hand_is_the_lighter_of_two() -> None:
    done = roll_back(rule(), PAYMENT)
    assert (done.subset, shares(done.rule), done.left) == ("v2", [[("v1", 100), ("v2", 0)]], ())


def test_the_canary_that_was_set_is_remembered_when_it_is_the_heavier() -> None:
    set_ = set_shares(rule(), V1_V2, PAYMENT, {"v2": 75})
    done = roll_back(set_, PAYMENT)
    assert (done.subset, shares(done.rule)) == ("v2", [[("v1", 100), ("v2", 0)]])
    assert roll_back(done.rule, PAYMENT).rule == done.rule


def test_what_was_written_down_and_is_gone_from_the_rule_does_not_count() -> None:
    noted = BY_HAND.replace(
        "name: payment\n", f"name: payment\n  annotations: {{{ANNOTATION}: v9}}\n"
    )
    assert roll_back(rule(noted), PAYMENT).subset == "v2"


def test_a_subset_that_is_asked_for_goes_before() -> None:
    assert shares(roll_back(rule(), PAYMENT, "v1").rule) == [[("v1", 0), ("v2", 100)]]


def test_a_canary_that_had_everything_gives_it_to_the_only_other() -> None:
    set_ = set_shares(rule(), V1_V2, PAYMENT, {"v2": 100})
    assert shares(roll_back(set_, PAYMENT).rule) == [[("v1", 100), ("v2", 0)]]


def test_rolling_back_keeps_the_sum_and_says_which_routes_it_left() -> None:
    before = routes(
        f"{{match: [{{headers: {{x-tester: {{}}}}}}], route: [{to('v2')}]}}",
        f"route: [{to('v1', 9)}, {to('v2', 1)}]",
    )
    done = roll_back(before, PAYMENT)
    assert (shares(done.rule)[1], done.left) == ([("v1", 10), ("v2", 0)], (0,))


@pytest.mark.parametrize(
    ("before", "subset", "said"),
    [
        ([f"route: [{to('v1', 1)}, {to('v2', 1)}]"], "", "it is not clear which subset of payment"),
        (
            [f"route: [{to('v1', 1)}, {to('v2', 2)}, {to('v3', 3)}]"],
            "",
            "it is not clear which subset of payment.default is the canary (its weights: v1 1, "
            "v2 2, v3 3; say it with --subset)",
        ),
        ([f"route: [{to('v1')}]"], "", "it is not clear which subset"),
        ([f"route: [{to('v1')}]"], "v1", "no route of VirtualService default/payment splits"),
        ([f"route: [{to('v1', 1)}, {to('v2', 2)}]"], "v3", "no route of VirtualService"),
        (
            [f"route: [{to('v1', 0)}, {to('v2', 100)}, {to('v3', 0)}]"],
            "v2",
            "which of v1, v3 takes the requests of 'v2'?",
        ),
    ],
)
def test_rolling_back_refuses_what_it_cannot_decide(
    before: list[str], subset: str, said: str
) -> None:
    assert refusal(roll_back, routes(*before), PAYMENT, subset).startswith(said)


@given(
    st.lists(st.integers(0, 1000), min_size=2, max_size=5).filter(any),
    st.integers(0, 100),
    st.integers(0, 4),
)
def test_shares_add_up_and_nobody_gains_on_another(
    weights: list[int], share: int, canary: int
) -> None:
    names = [f"v{at}" for at in range(len(weights))]
    canary %= len(names)
    listed = ", ".join(map(to, names, weights))
    before = routes(f"route: [{listed}]")
    made = set_shares(before, versions(*names), PAYMENT, {names[canary]: share})
    after = dict(shares(made)[0])
    assert sum(after.values()) == 100
    assert after[names[canary]] == share
    others = [name for name in names if name != names[canary]]
    for lighter in others:
        for heavier in others:
            if weights[names.index(lighter)] < weights[names.index(heavier)]:
                assert after[lighter] <= after[heavier]
    if sum(after[name] for name in others):
        back = weights_of(roll_back(made, PAYMENT, names[canary]).rule, PAYMENT)
        assert (back[names[canary]], sum(back.values())) == (0, 100)


@pytest.mark.parametrize(
    "host", ["payment", "payment.default", "payment.default.svc.cluster.local"]
)
def test_a_service_is_found_under_every_spelling(host: str) -> None:
    asked = Service(host, "default")
    assert find_rule([rule()], asked) == rule()
    assert find_destination_rule([V1_V2], asked) == V1_V2
    assert find_rule([rule()], Service("payment", "shop")) is None
    assert find_destination_rule([V1_V2], Service("order", "default")) is None


def test_rules_for_gateways_are_not_edited() -> None:
    text = BY_HAND.replace("spec:\n", "spec:\n  gateways: [edge]\n")
    assert find_rule([rule(text)], PAYMENT) is None


def test_subsets_come_from_the_label_version() -> None:
    made = rule_of_versions(PAYMENT, [{"version": "v2"}, {"version": "1.0"}, {"app": "x"}])
    assert [(one.name, one.labels) for one in made.spec.subsets] == [
        ("1-0", {"version": "1.0"}),
        ("v2", {"version": "v2"}),
    ]
    said = refusal(rule_of_versions, PAYMENT, [{"version": "v2"}, {"version": "v2"}, {}])
    assert re.search(r"fewer than two versions \(v2\) \(start them with `meshfast run", said)
