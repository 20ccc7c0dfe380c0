"""What is refused before it is stored, with its place; what is only warned of."""

import pytest

from meshfast import _core
from meshfast.control.translate import check, mesh_services
from meshfast.discovery import Port
from meshfast.errors import ConfigError
from tests.control.translate.made import entry, resources, rule, to, workload

SERVICES = mesh_services([workload(at=1), workload("multi", Port(1, "a"), Port(2, "b"), at=2)])


def warnings(text: str, stored: str = "") -> list[str]:
    loaded = resources(stored, "stored") if stored else []
    found = check(resources(text), loaded, SERVICES, _core.Snapshot.build)
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
