"""What is refused before it is stored, with its place; what is only warned of."""

from dataclasses import replace
from pathlib import Path

import pytest

from meshfast import _core
from meshfast.control.translate import check, mesh_services
from meshfast.discovery import Port
from meshfast.errors import ConfigError, Problem
from meshfast.resources import Loaded
from tests.control.translate.made import endpoint, entry, resources, rule, to, versions, workload

V1 = {"version": "v1"}
SERVICES = mesh_services(
    [workload(at=1, labels=V1), workload("multi", Port(1, "a"), Port(2, "b"), at=2)]
)


def warnings(text: str, stored: str = "") -> list[str]:
    loaded = [
        Loaded(item.resource, replace(item.origin, file=f"{item.resource.kind} default/{name}"))
        for item in (resources(stored) if stored else [])
        for name in [item.resource.metadata.name]
    ]
    replaced = {(item.resource.kind, item.resource.metadata.name) for item in resources(text)}
    former = [
        item for item in loaded if (item.resource.kind, item.resource.metadata.name) in replaced
    ]
    loaded = [
        item for item in loaded if (item.resource.kind, item.resource.metadata.name) not in replaced
    ]
    found = check(resources(text), loaded, SERVICES, _core.Snapshot.build, replaced=former)
    return [str(one) for one in found]


def problems(text: str, stored: str = "") -> list[str]:
    with pytest.raises(ConfigError) as refused:
        warnings(text, stored)
    return [str(one) for one in refused.value.problems]


def test_sound_resources_pass_without_a_word() -> None:
    text = rule(f"[{{match: [{{uri: {{regex: '/a.*'}}}}], route: [{to('payment')}]}}]") + entry()
    assert warnings(text) == []


@pytest.mark.parametrize(
    ("text", "stored", "expected"),
    [
        (
            rule(f"[{{route: [{to('payment')}]}}, {{route: [{to('payment')}]}}]"),
            "",
            "never reached",
        ),
        (rule(f"[{{route: [{to('payment')}, {to('multi')}]}}]"), "", "the weights add up to 0"),
        (rule(f"[{{route: [{to('api.example.com', 81)}]}}]"), entry(), "no port 81"),
        (rule(f"[{{match: [{{uri: {{regex: '('}}}}], route: [{to('payment')}]}}]"), "", "regex"),
        (
            rule(
                f"[{{match: [{{port: 2, headers: {{x-a: {{regex: '['}}}}}}],"
                f" route: [{to('multi')}]}}]"
            ),
            "",
            "spec.http[0].match[0].headers.x-a.regex",
        ),
        (entry(rest="resolution: STATIC"), "", "needs endpoints"),
        (entry("payment"), "", "is a service of the mesh"),
        (entry("payment.default.svc.cluster.local"), "", "is a service of the mesh"),
        (entry(name="other"), entry(), "the service api.example.com is defined twice"),
        (
            rule(f"[{{route: [{to('payment')}]}}]", hosts="payment.default.svc", name="two"),
            rule(f"[{{route: [{to('payment')}]}}]"),
            "routed twice",
        ),
        (
            rule(f"[{{route: [{to('payment', subset='v1')}]}}]"),
            "",
            "no DestinationRule has the host 'payment.default', so it has no subsets",
        ),
        (
            rule(f"[{{route: [{to('payment', subset='v1')}]}}]"),
            versions("v2", "v3"),
            "the DestinationRule of payment.default has no subset 'v1' (subsets: v2, v3)",
        ),
        (
            versions("v2"),
            versions("v1") + rule(f"[{{route: [{to('payment', subset='v1')}]}}]"),
            "VirtualService default/rule sends to the subset 'v1' of payment.default",
        ),
        (
            versions("v1", host="multi"),
            versions("v1") + rule(f"[{{route: [{to('payment', subset='v1')}]}}]"),
            "VirtualService default/rule sends to the subset 'v1' of payment.default",
        ),
        (versions("v1", "v1"), "", "the subset 'v1' occurs twice"),
        (versions(host="payment.default.svc"), versions(name="other"), "has two DestinationRules"),
        (
            endpoint("one", address="one.example.com"),
            entry(rest="resolution: STATIC, workloadSelector: {labels: {app: api}}"),
            "spec.address: ServiceEntry default/api selects it, and needs an IP address",
        ),
        (
            entry(rest="resolution: STATIC, workloadSelector: {labels: {app: api}}"),
            endpoint("one", address="one.example.com"),
            "spec.workloadSelector: selects WorkloadEntry default/one, which has no IP address",
        ),
        (
            rule(f"[{{route: [{to('payment')}]}}]").replace("{hosts:", "{gateways: [edge], hosts:"),
            "",
            "does not serve the Gateway 'edge'",
        ),
    ],
)
def test_what_is_wrong_is_refused_at_its_place(text: str, stored: str, expected: str) -> None:
    found = problems(text, stored)
    assert any(expected in one for one in found), found
    assert all(one.startswith("mesh.yaml:") for one in found), found


def test_everything_is_reported_at_once_in_file_order() -> None:
    text = (
        entry("payment")
        + rule(f"[{{route: [{to('payment')}, {to('multi')}]}}]")
        + entry(name="z", host="z.example.com", rest="resolution: STATIC")
    )
    lines = [int(one.split(":")[1]) for one in problems(text)]
    assert len(lines) == 3
    assert lines == sorted(lines)


def test_what_is_stored_is_not_judged_again() -> None:
    stored = entry("payment") + rule(
        f"[{{route: [{to('nobody')}]}}]", hosts="x.example.com", name="old"
    )
    assert warnings(rule(f"[{{route: [{to('payment')}]}}]"), stored) == []


def test_what_may_become_right_is_a_warning() -> None:
    [unknown] = warnings(rule(f"[{{route: [{to('paymnt')}]}}]", hosts="a.example.com"))
    assert "nobody serves paymnt.default now" in unknown
    assert "did you mean 'payment.default'?" in unknown
    [port] = warnings(rule(f"[{{route: [{to('multi', 3)}]}}]", hosts="a.example.com"))
    assert "no workload of multi.default serves port 3 now, only 1, 2" in port


def test_a_subset_that_nobody_is_in_is_a_warning_where_it_is_named() -> None:
    stored = versions("v1", "v9")
    text = rule(f"[{{route: [{to('payment', 0, 9, 'v1')}, {to('payment', 0, 1, 'v9')}]}}]")
    [found] = warnings(text, stored)
    assert "spec.http[0].route[1].destination.subset: no endpoint of payment.default is in" in found


@pytest.mark.parametrize(
    ("text", "stored", "expected"),
    [
        (versions("v1", "v2"), "", ["spec.subsets[1].labels: no endpoint of payment has the la"]),
        (versions("v1"), "", []),
        (
            versions("v1", host="paymnt"),
            "",
            ["spec.host: nobody serves paymnt.default now (did you mean 'payment.default'?)"],
        ),
        (
            versions("v1", "v2", host="api.example.com"),
            entry(rest="resolution: STATIC, workloadSelector: {labels: {app: api}}")
            + endpoint("one"),
            ["spec.subsets[1].labels: no endpoint of api.example.com has the labels version=v2"],
        ),
        (endpoint("one"), "", ["metadata.name: no ServiceEntry of its namespace selects it"]),
        (
            entry(rest="resolution: STATIC, workloadSelector: {labels: {app: api}}"),
            endpoint("one", app="other"),
            ["spec.workloadSelector: selects no WorkloadEntry of its namespace"],
        ),
        (
            rule(f"[{{fault: {{delay: {{fixedDelay: 1s}}}}, route: [{to('payment')}]}}]"),
            "",
            ["spec.http[0].fault.delay: no request is delayed"],
        ),
    ],
)
def test_what_is_new_and_has_no_effect_is_a_warning(
    text: str, stored: str, expected: list[str]
) -> None:
    found = [one.split(": ", 1)[1] for one in warnings(text, stored)]
    assert len(found) == len(expected)
    for one, start in zip(found, expected, strict=True):
        assert one.startswith(start)


EXAMPLES = Path(__file__).parents[3] / "examples/mesh"


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.yaml")))
def test_every_example_for_the_mesh_passes(name: str) -> None:
    text = (EXAMPLES / name).read_text()
    assert all("now" in one or "has the labels" in one for one in warnings(text))


def test_a_rule_and_the_subset_that_it_no_longer_names_may_change_together() -> None:
    stored = versions("v1") + rule(f"[{{route: [{to('payment', subset='v1')}]}}]")
    text = versions("v2") + rule(f"[{{route: [{to('payment', subset='v2')}]}}]")
    assert all("no endpoint of" in one for one in warnings(text, stored))


def test_what_was_missing_before_is_no_reason_to_refuse_a_destination_rule() -> None:
    orphaned = rule(f"[{{route: [{to('other', subset='v1')}]}}]", name="other", hosts="other")
    assert warnings(versions("v1"), orphaned) == []
    text = versions("v1")
    stored = versions("v1", "v2") + rule(f"[{{route: [{to('payment', subset='v2')}]}}]") + orphaned
    [refused] = problems(text, stored)
    assert "VirtualService default/rule sends to the subset 'v2' of payment.default" in refused


def test_what_could_not_be_read_is_said_beside_what_is_wrong_between_the_rest() -> None:
    text = rule(
        f"[{{match: [{{uri: {{regex: '('}}}}], route: [{to('payment', subset='v1')}]}},"
        f" {{route: [{to('payment')}, {to('multi')}]}}]"
    )
    with pytest.raises(ConfigError) as refused:
        check(
            resources(text),
            [],
            SERVICES,
            _core.Snapshot.build,
            refused=[Problem("unreadable", "mesh.yaml", 1, 1)],
            unread=frozenset({"DestinationRule"}),
        )
    found = [one.message for one in refused.value.problems]
    assert found == [
        "unreadable",
        "not a regular expression: unclosed group",
        "the weights add up to 0; they must add up to 1 to 4294967295",
    ]
