"""What operators do: apply whole or not at all, read, delete, make tokens, look around."""

import asyncio
import json
import re
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from meshfast.control.operations import Applied, ChangedError, Expected, NotFoundError
from meshfast.control.population import revisions_of
from meshfast.control.push import resource_key
from meshfast.control.registry import WorkloadRecord, service_key
from meshfast.control.store import Put, Transaction
from meshfast.discovery import Port
from meshfast.errors import ConfigError
from meshfast.resources.kinds import VirtualService
from tests.control.server.conftest import Plane, Start
from tests.control.server.sidecar import Sidecar

RULE = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata:
  name: payment
spec:
  hosts: [payment]
  http:
    - timeout: 3s
      route:
        - destination: {host: payment}
"""
ENTRY = """\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: api}
spec:
  hosts: [api.example.com]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 10.0.0.1}]
"""


def apply(plane: Plane, text: str, **options: Any) -> Applied:
    applied = plane.ask(plane.operations.apply(text, **options))
    assert isinstance(applied, Applied)
    return applied


def problems(plane: Plane, text: str) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        apply(plane, text, file="mesh.yaml")
    return [str(problem) for problem in refused.value.problems]


def actions(applied: Applied) -> list[tuple[str, str]]:
    return [(change.name, change.action) for change in applied.changes]


def stored(plane: Plane) -> list[str]:
    return [f"{one.kind}/{one.name}" for one in plane.ask(plane.operations.list())]


def test_a_file_is_applied_and_read_back(plane: Plane) -> None:
    first = apply(plane, f"{RULE}---\n{ENTRY}")
    assert actions(first) == [("payment", "created"), ("api", "created")]
    assert stored(plane) == ["ServiceEntry/api", "VirtualService/payment"]
    found = plane.ask(plane.operations.get("VirtualService", "default", "payment"))
    assert found.document["spec"]["http"][0]["timeout"] == "3s"
    assert found.revision == found.created == first.revision
    changed = apply(plane, f"{RULE.replace('3s', '5s')}---\n{ENTRY}")
    assert actions(changed) == [("payment", "configured"), ("api", "unchanged")]
    assert changed.changes[0].before == found.document
    assert changed.changes[0].after is not None
    assert changed.changes[0].after["spec"]["http"][0]["timeout"] == "5s"
    again = apply(plane, f"{RULE.replace('3s', '5s')}---\n{ENTRY}")
    assert actions(again) == [("payment", "unchanged"), ("api", "unchanged")]
    assert again.revision == changed.revision


#: What YAML takes as an escape only, or as the end of a line, and a character of two units.
ODD = "\x7f\x80\x85\x9f\u2028\u2029\ufeff\ufffe\uffff\U0001f600\t\n\0"


@pytest.mark.parametrize("odd", [*ODD, ODD], ids=ascii)
def test_any_character_is_read_back_as_it_was_written(start: Start, odd: str) -> None:
    plane = start()
    escaped = "".join(f"\\U{ord(one):08x}" for one in f"a{odd}b")
    match = f'- match: [{{headers: {{x: {{exact: "{escaped}"}}}}}}]'
    apply(plane, RULE.replace("- timeout: 3s", match))
    plane.stop()
    again = start()
    found = again.ask(again.operations.get("VirtualService", "default", "payment"))
    assert found.document["spec"]["http"][0]["match"][0]["headers"]["x"]["exact"] == f"a{odd}b"
    [kept] = again.control._mesh.resources.values()
    assert isinstance(kept.loaded.resource, VirtualService)
    matched = kept.loaded.resource.spec.http[0].match[0].headers["x"].exact
    assert matched == f"a{odd}b"
    assert actions(apply(again, ENTRY)) == [("api", "created")]


def test_what_would_not_be_read_back_is_refused_at_its_place(plane: Plane) -> None:
    name = "x" * 1100  # libyaml takes keys of 1024 characters in a flow mapping
    long = RULE.replace("name: payment", f"name: payment\n  annotations: {{? {name}\n    : v}}")
    [found] = problems(plane, long)
    assert found.startswith("mesh.yaml:1:1")
    assert "cannot be stored" in found
    assert stored(plane) == []


def test_what_is_too_large_is_refused_at_its_place_before_anything_is_judged(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshfast.control.operations.check", None)
    large = RULE.replace("timeout: 3s", f"name: {'x' * (1 << 20)}")
    [found] = problems(plane, f"{ENTRY}---\n{large}")
    size = re.fullmatch(
        r"mesh.yaml:10:1: VirtualService default/payment has (\d+) bytes; a resource has 1048576 "
        r"at most \(.*\)",
        found,
    )
    assert size is not None, found
    assert (1 << 20) < int(size[1]) < (1 << 20) + 1000
    assert stored(plane) == []


def test_a_stored_resource_that_cannot_be_read_is_in_nobody_s_way(plane: Plane) -> None:
    for name in ("old", "older"):
        key = f"/resources/VirtualService/default/{name}"
        plane.control._store.transact(Transaction((Put(key, b'{"spec": {"gone": 1}}'),)))
    assert actions(apply(plane, ENTRY)) == [("api", "created")]
    assert stored(plane) == ["ServiceEntry/api", "VirtualService/old", "VirtualService/older"]
    plane.ask(plane.operations.delete("VirtualService", "default", "old"))
    replaced = apply(plane, RULE.replace("name: payment", "name: older"))
    assert actions(replaced) == [("older", "configured")]
    assert stored(plane) == ["ServiceEntry/api", "VirtualService/older"]


def test_one_bad_resource_keeps_the_whole_file_out_with_every_problem(plane: Plane) -> None:
    bad = RULE.replace("timeout: 3s", "timeout: soon").replace("hosts:", "hots:")
    found = problems(plane, f"{ENTRY}---\n{bad}")
    assert [one.split(": ")[0] for one in found] == [
        "mesh.yaml:14:1",
        "mesh.yaml:15:3",
        "mesh.yaml:17:16",
    ][-len(found) :]
    assert any("did you mean 'hosts'" in one for one in found)
    assert any("duration" in one for one in found)
    assert stored(plane) == []


def test_a_dry_run_says_what_would_happen_and_changes_nothing(plane: Plane) -> None:
    before = plane.operations.revision()
    dry = apply(plane, RULE, dry_run=True)
    assert dry.dry_run
    assert actions(dry) == [("payment", "created")]
    assert stored(plane) == []
    assert dry.revision == before


def test_a_regular_expression_is_judged_where_it_is_written(plane: Plane) -> None:
    bad = RULE.replace("- timeout: 3s", '- match: [{uri: {regex: "a(b"}}]')
    [found] = problems(plane, bad)
    assert found.startswith("mesh.yaml:8:")
    assert "spec.http[0].match[0].uri.regex" in found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            RULE.replace("hosts: [payment]", "hosts: [payment]\n  gateways: [edge]"),
            "Gateway 'edge'",
        ),
        (
            "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g}\nspec:\n"
            "  servers: [{port: {number: 1, name: h, protocol: HTTP}, hosts: ['*']}]\n",
            "does not serve the kind Gateway",
        ),
        (
            RULE.replace("  http:", "  tcp: [{route: [{destination: {host: db}}]}]\n  http:"),
            "tcp routes are not served",
        ),
        (f"{RULE}---\n{RULE}", "defined twice"),
        (f"{RULE}---\n{RULE.replace('name: payment', 'name: other')}", "routed twice"),
        (
            f"{ENTRY}---\n{RULE}".replace(
                "{host: payment}", "{host: api.example.com, port: {number: 81}}"
            ),
            "no port 81",
        ),
    ],
)
def test_what_no_sidecar_would_serve_is_refused(plane: Plane, text: str, expected: str) -> None:
    found = problems(plane, text)
    assert any(expected in one for one in found), found
    assert all(one.startswith("mesh.yaml:") for one in found)
    assert stored(plane) == []


def test_a_second_rule_for_a_host_is_refused_across_files(plane: Plane) -> None:
    apply(plane, RULE)
    [found] = problems(plane, RULE.replace("name: payment", "name: other"))
    assert "the first is at VirtualService default/payment" in found


def test_a_destination_that_nobody_serves_is_a_warning(plane: Plane) -> None:
    applied = apply(plane, RULE)
    [warning] = applied.warnings
    assert "nobody serves payment.default now" in str(warning)
    with Sidecar.join(plane.token("payment")) as sidecar:
        sidecar.wait_open()
        sidecar.register(8080)
        sidecar.subscribe()
        sidecar.wait_until(lambda: b"payment" in sidecar.held.get("route", {}).get("outbound", b""))
        assert apply(plane, RULE).warnings == ()
        wrong = RULE.replace("{host: payment}", "{host: payment, port: {number: 9}}")
        [warning] = apply(plane, wrong).warnings
        assert "no workload of payment.default serves port 9 now, only 8080" in str(warning)
        [refused] = problems(plane, ENTRY.replace("api.example.com", "payment"))
        assert "is a service of the mesh" in refused


def test_a_rule_reaches_sidecars_and_goes_again(plane: Plane) -> None:
    def timeouts(sidecar: Sidecar) -> list[object]:
        hosts = json.loads(sidecar.held.get("route", {}).get("outbound", b"[]"))
        return [route["timeout_ms"] for host in hosts for route in host["routes"]]

    with Sidecar.join(plane.token("payment")) as sidecar:
        sidecar.wait_open()
        sidecar.register(8080)
        sidecar.subscribe()
        sidecar.wait_until(lambda: timeouts(sidecar) == [None])
        apply(plane, RULE)
        sidecar.wait_until(lambda: timeouts(sidecar) == [3000], 1.0)
        deleted = plane.ask(plane.operations.delete("VirtualService", "default", "payment"))
        assert actions(deleted) == [("payment", "deleted")]
        sidecar.wait_until(lambda: timeouts(sidecar) == [None], 1.0)


SUBSETS = """\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: payment}
spec: {host: payment, subsets: [{name: v1, labels: {version: v1}}]}
"""


def test_what_is_needed_cannot_be_deleted(plane: Plane) -> None:
    apply(plane, f"{SUBSETS}---\n{RULE.replace('host: payment', 'host: payment, subset: v1')}")
    with pytest.raises(ConfigError) as refused:
        plane.ask(plane.operations.delete("DestinationRule", "default", "payment"))
    assert str(refused.value) == (
        "DestinationRule default/payment: VirtualService default/payment sends to the subset 'v1' "
        "of payment.default (change or delete it first)"
    )
    assert stored(plane) == ["DestinationRule/payment", "VirtualService/payment"]
    plane.ask(plane.operations.delete("VirtualService", "default", "payment"))
    plane.ask(plane.operations.delete("DestinationRule", "default", "payment"))
    assert stored(plane) == []


def test_a_rule_that_lost_its_subset_before_is_no_reason_to_keep_another(plane: Plane) -> None:
    apply(plane, f"{SUBSETS}---\n{RULE.replace('host: payment', 'host: payment, subset: v1')}")
    apply(plane, SUBSETS.replace("payment", "order"))
    # As a release that cannot read what is stored sees it.
    key = resource_key("DestinationRule", "default", "payment")
    plane.call(lambda: plane.control._store.transact(Transaction((Put(key, b"{}"),))))
    assert actions(plane.ask(plane.operations.delete("DestinationRule", "default", "order"))) == [
        ("order", "deleted")
    ]


def test_fields_references_and_expressions_of_all_texts_come_in_one_round(plane: Plane) -> None:
    texts = [
        ("a.yaml", ENTRY.replace("resolution:", "resolutoin:")),
        ("b.yaml", RULE.replace("host: payment", "host: payment, subset: v2")),
        ("c.yaml", SUBSETS),
        ("d.yaml", RULE.replace("payment", "order").replace("- timeout: 3s",
                                                            "- match: [{uri: {regex: '('}}]")),
    ]  # fmt: skip
    with pytest.raises(ConfigError) as refused:
        plane.ask(plane.operations.apply_texts(texts))
    found = [(one.file, one.path) for one in refused.value.problems]
    assert found == [
        ("a.yaml", "spec.resolutoin"),
        ("b.yaml", "spec.http[0].route[0].destination.subset"),
        ("d.yaml", "spec.http[0].match[0].uri.regex"),
    ]
    assert stored(plane) == []


def test_what_was_changed_since_it_was_read_stays(plane: Plane) -> None:
    def expect(revision: str) -> Applied:
        one = Expected(
            kind="VirtualService", namespace="default", name="payment", revision=revision
        )
        texts = [("mesh.yaml", RULE.replace("3s", "9s"))]
        applied = plane.ask(plane.operations.apply_texts(texts, expected=[one]))
        assert isinstance(applied, Applied)
        return applied

    read = apply(plane, RULE).revision
    changed = apply(plane, RULE.replace("3s", "5s")).revision
    for stale in (read, ""):
        with pytest.raises(ChangedError, match="VirtualService default/payment was changed"):
            expect(stale)
    found = plane.ask(plane.operations.get("VirtualService", "default", "payment"))
    assert found.document["spec"]["http"][0]["timeout"] == "5s"
    assert actions(expect(changed)) == [("payment", "configured")]
    plane.ask(plane.operations.delete("VirtualService", "default", "payment"))
    with pytest.raises(ChangedError):
        expect(changed)
    assert actions(expect("")) == [("payment", "created")]


def test_what_was_decided_from_the_workloads_of_a_service_holds_while_they_are_those(
    plane: Plane,
) -> None:
    def expect(revision: str) -> Applied:
        one = Expected(kind="Service", namespace="default", name="payment", revision=revision)
        texts = [("mesh.yaml", RULE)]
        applied = plane.ask(plane.operations.apply_texts(texts, expected=[one]))
        assert isinstance(applied, Applied)
        return applied

    def revision() -> str:
        services = plane.ask(plane.operations.services())
        return next((str(one.revision) for one in services if one.name == "payment"), "")

    assert actions(expect("")) == [("payment", "created")]
    with Sidecar.join(plane.token("payment")) as first:
        first.wait_open()
        first.register(8080)
        first.subscribe()
        first.wait_until(lambda: revision() != "")
        alone = revision()
        assert actions(expect(alone)) == [("payment", "unchanged")]
        with Sidecar.join(plane.token("payment"), "i2") as second:
            second.wait_open()
            second.register(8080)
            second.subscribe()
            second.wait_until(lambda: revision() != alone)
            for stale in (alone, ""):
                with pytest.raises(ChangedError, match="workloads of default/payment"):
                    expect(stale)
            expect(revision())


PAYMENT = WorkloadRecord(
    instance="p1",
    workload="payment-v1",
    namespace="default",
    service="payment",
    identity="spiffe://cluster.local/ns/default/sa/payment",
    address="127.0.0.1:15006",
    ports=(Port(8080),),
    labels={"version": "v1"},
)
SECOND = replace(PAYMENT, instance="p2", address="127.0.0.1:15007")
STREAM = object()


def register(plane: Plane, record: WorkloadRecord, stream: object = STREAM) -> None:
    plane.ask(plane.control._registry.register(stream, record))


def deregister(plane: Plane, record: WorkloadRecord) -> None:
    plane.ask(plane.control._registry.deregister(STREAM, record.key))


def revoke(plane: Plane) -> None:
    plane.ask(plane.operations.revoke_identity("default", "payment"))


def at_the_next_write(
    plane: Plane, monkeypatch: pytest.MonkeyPatch, happens: Callable[[], None]
) -> None:
    """Have something happen after all was looked at, and before it is written."""
    store = plane.control._store
    write = store.transact

    def beside(transaction: Transaction) -> object:
        monkeypatch.setattr(store, "transact", write)
        happens()
        return write(transaction)

    monkeypatch.setattr(store, "transact", beside)


@pytest.mark.parametrize(
    "happens",
    [
        lambda plane: register(plane, replace(SECOND, instance="p3", address="127.0.0.1:15008")),
        lambda plane: register(plane, replace(SECOND, labels={"version": "v2"})),
        lambda plane: deregister(plane, SECOND),
        revoke,
    ],
    ids=["comes", "changes", "goes", "is_revoked"],
)
def test_an_expected_service_is_looked_at_until_the_write(
    plane: Plane, monkeypatch: pytest.MonkeyPatch, happens: Callable[[Plane], None]
) -> None:
    register(plane, PAYMENT)
    register(plane, SECOND)

    def revision() -> str:
        services = plane.ask(plane.operations.services())
        return next((str(one.revision) for one in services if one.workloads == 2), "")

    deadline = time.monotonic() + 10
    while not revision():
        assert time.monotonic() < deadline
    one = Expected(kind="Service", namespace="default", name="payment", revision=revision())
    at_the_next_write(plane, monkeypatch, lambda: happens(plane))
    with pytest.raises(ChangedError, match="workloads of default/payment were others"):
        plane.ask(plane.operations.apply_texts([("mesh.yaml", RULE)], expected=[one]))
    assert stored(plane) == []


def test_a_service_that_comes_where_none_was_expected_is_seen(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Expected(kind="Service", namespace="default", name="payment")
    at_the_next_write(plane, monkeypatch, lambda: register(plane, PAYMENT))
    with pytest.raises(ChangedError):
        plane.ask(plane.operations.apply_texts([("mesh.yaml", RULE)], expected=[one, one]))
    assert stored(plane) == []


def test_an_expected_service_of_more_workloads_than_a_transaction_takes_conditions(
    plane: Plane,
) -> None:
    many = [replace(PAYMENT, instance=f"p{number}") for number in range(1100)]
    for first in range(0, len(many), 550):
        puts = [Put(one.key, msgspec.json.encode(one)) for one in many[first : first + 550]]
        plane.control._store.transact(Transaction(tuple(puts)))
    revision = revisions_of(many)["default", "payment"]
    one = Expected(kind="Service", namespace="default", name="payment", revision=revision)
    applied = plane.ask(plane.operations.apply_texts([("mesh.yaml", RULE)], expected=[one]))
    assert actions(applied) == [("payment", "created")]


def test_a_second_try_sees_the_services_of_its_own_time(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    def happens() -> None:
        register(plane, PAYMENT)
        apply(plane, ENTRY)  # the first try fails by that

    at_the_next_write(plane, monkeypatch, happens)
    assert apply(plane, RULE).warnings == ()


def test_a_workload_that_comes_while_its_service_is_forgotten_keeps_it(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(plane, PAYMENT)
    deregister(plane, PAYMENT)
    at_the_next_write(plane, monkeypatch, lambda: register(plane, PAYMENT))
    with pytest.raises(ConfigError, match="workloads are registered for default/payment"):
        plane.ask(plane.operations.forget_service("default", "payment"))
    store = plane.control._store
    assert store.read(PAYMENT.key) is not None
    assert store.read(service_key("default", "payment")) is not None


def test_a_service_that_is_forgotten_while_a_workload_comes_is_written_again(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(plane, PAYMENT)
    deregister(plane, PAYMENT)

    def happens() -> None:
        plane.operations._forget_service("default", "payment")

    at_the_next_write(plane, monkeypatch, happens)
    register(plane, PAYMENT)
    store = plane.control._store
    assert store.read(PAYMENT.key) is not None
    assert store.read(service_key("default", "payment")) is not None


def test_what_is_not_there_is_not_found(plane: Plane) -> None:
    for kind, namespace, name in (
        ("VirtualService", "default", "payment"),
        ("VirtualService", "..", "payment"),
        ("Nothing", "default", "a b"),
        ("", "", ""),
        ("VirtualService/default", "x", "y/z"),
    ):
        with pytest.raises(NotFoundError):
            plane.ask(plane.operations.get(kind, namespace, name))
        with pytest.raises(NotFoundError):
            plane.ask(plane.operations.delete(kind, namespace, name))
    with pytest.raises(NotFoundError):
        plane.ask(plane.operations.revoke_token("0" * 16))


def test_lists_can_be_narrowed(plane: Plane) -> None:
    apply(plane, f"{RULE}---\n{ENTRY.replace('name: api', 'name: api, namespace: shop')}")
    by_kind = plane.ask(plane.operations.list(kind="VirtualService"))
    by_namespace = plane.ask(plane.operations.list(namespace="shop"))
    assert [one.name for one in by_kind] == ["payment"]
    assert [one.name for one in by_namespace] == ["api"]


def test_two_that_apply_conflicting_rules_at_once_cannot_both_succeed(plane: Plane) -> None:
    async def both() -> list[object]:
        texts = [RULE.replace("name: payment", f"name: rule-{number}") for number in range(8)]
        calls = (plane.operations.apply(text) for text in texts)
        return list(await asyncio.gather(*calls, return_exceptions=True))

    outcomes = plane.ask(both())
    assert sum(isinstance(one, Applied) for one in outcomes) == 1
    assert sum(isinstance(one, ConfigError) for one in outcomes) == 7
    assert len(stored(plane)) == 1


def test_services_and_workloads_are_shown(plane: Plane) -> None:
    with (
        Sidecar.join(plane.token("payment"), "p1") as first,
        Sidecar.join(plane.token("payment"), "p2") as second,
    ):
        for port, sidecar in ((8080, first), (8081, second)):
            sidecar.wait_open()
            sidecar.register(port, address=f"127.0.0.1:1{port}", healthy=port == 8080)
        first.subscribe()
        first.wait_until(
            lambda: (
                b"18081"
                in first.held.get("endpoint", {}).get("outbound|8080||payment.default", b"")
            )
        )
        [service] = plane.ask(plane.operations.services())
        assert (service.host, service.ports) == ("payment.default", (8080, 8081))
        assert (service.workloads, service.healthy) == (2, 1)
        shown = plane.ask(plane.operations.workloads())
        assert [(one.workload.instance, one.connected) for one in shown] == [
            ("p1", True),
            ("p2", True),
        ]


def test_a_token_carries_the_address_that_it_was_made_for(start: Start) -> None:
    plane = start(advertise="mesh.example.com:443")
    assert plane.token().control == "mesh.example.com:443"
    assert plane.token(control="10.0.0.9:15012").control == "10.0.0.9:15012"


def test_a_service_keeps_its_name_without_endpoints_until_it_is_forgotten(start: Start) -> None:
    plane = start(grace_ms=1000)
    cluster = "outbound|8080||payment.default"

    def endpoints(sidecar: Sidecar) -> object:
        body = sidecar.held.get("endpoint", {}).get(cluster)
        return None if body is None else len(json.loads(body))

    def forget() -> None:
        plane.ask(plane.operations.forget_service("default", "payment"))

    with Sidecar.join(plane.token("order"), "o1") as order:
        order.wait_open()
        order.subscribe()
        with Sidecar.join(plane.token("payment")) as payment:
            payment.wait_open()
            payment.register(8080)
            order.wait_until(lambda: endpoints(order) == 1)
            with pytest.raises(
                ConfigError, match="workloads are registered for default/payment"
            ) as no:
                forget()
            assert "stop its workloads first" in no.value.problems[0].hint
            payment.register(0)
            order.wait_until(lambda: endpoints(order) == 0)
        hosts = json.loads(order.held["route"]["outbound"])
        assert [host["domains"][0] for host in hosts] == ["payment"]
        [service] = plane.ask(plane.operations.services())
        assert (service.host, service.ports, service.workloads) == ("payment.default", (8080,), 0)
        [warning] = apply(plane, RULE).warnings
        assert "nobody serves payment.default now" in str(warning)
        [refused] = problems(plane, ENTRY.replace("api.example.com", "payment"))
        assert "workloads were registered for it" in refused
        plane.ask(plane.operations.delete("VirtualService", "default", "payment"))
        forget()
        order.wait_until(lambda: endpoints(order) is None)
        order.wait_until(lambda: json.loads(order.held["route"]["outbound"]) == [])
        with pytest.raises(NotFoundError):
            forget()


def test_a_service_keeps_its_name_over_a_restart(start: Start) -> None:
    first = start(grace_ms=1000)
    with Sidecar.join(first.token("payment")) as payment:
        payment.wait_open()
        payment.register(8080)
        deadline = time.monotonic() + 10
        while not first.ask(first.operations.services()):
            assert time.monotonic() < deadline
        payment.register(0)
        while first.ask(first.operations.workloads()):
            assert time.monotonic() < deadline
    first.stop()
    second = start()
    [service] = second.ask(second.operations.services())
    assert (service.host, service.workloads) == ("payment.default", 0)


def test_services_are_shown_as_sidecars_are_brought_to_see_them(start: Start) -> None:
    plane = start(debounce_s=0.8)
    before = plane.operations.revision()
    assert plane.operations.stored_revision() == before
    with Sidecar.join(plane.token("payment")) as payment:
        payment.wait_open()
        payment.register(8080)
        deadline = time.monotonic() + 10
        while plane.operations.stored_revision() == before:
            assert time.monotonic() < deadline
        # The workload is there already; no sidecar can know yet.
        assert len(plane.ask(plane.operations.workloads())) == 1
        assert plane.ask(plane.operations.services()) == []
        assert plane.operations.revision() == before
        while plane.operations.revision() < plane.operations.stored_revision():
            assert time.monotonic() < deadline
        assert len(plane.ask(plane.operations.services())) == 1


def test_a_thousand_rules_are_applied_at_once(plane: Plane) -> None:
    rules = [
        RULE.replace("name: payment", f"name: r{number}")
        .replace("hosts: [payment]", f"hosts: [s{number}]")
        .replace("- timeout: 3s", '- match: [{uri: {regex: "a+"}}]')
        for number in range(1000)
    ]
    assert len(apply(plane, "---\n".join(rules)).changes) == 1000
