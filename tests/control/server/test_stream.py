"""Authenticated streams: configuration, registration, progress, and who may say what."""

import json
import time
from collections.abc import Callable

import pytest

from meshfast.control.push.status import SidecarStatus
from meshfast.control.push.stream import StreamLimits
from meshfast.discovery import (
    ClientSession,
    Code,
    Goodbye,
    Hello,
    Node,
    Port,
    Problem,
    Push,
    Registration,
    Status,
)
from tests.control.server.conftest import Plane, Start
from tests.control.server.sidecar import Credentials, Sidecar, Wire, client_context, join

CLUSTER = "outbound|8080||payment.default"
DEADLINE_S = 10.0


def wait(condition: Callable[[], object], timeout_s: float = DEADLINE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.01)


def statuses(plane: Plane) -> dict[str, SidecarStatus]:
    return {one.instance: one for one in plane.ask(plane.operations.sidecars())}


def instances(plane: Plane) -> list[str]:
    return [one.workload.instance for one in plane.ask(plane.operations.workloads())]


def synced(sidecar: Sidecar) -> bool:
    return all(map(sidecar.session.is_complete, ("cluster", "endpoint", "listener", "route")))


def test_a_registration_reaches_another_sidecar_within_a_second(plane: Plane) -> None:
    with Sidecar.join(plane.token("order"), "o1") as order:
        order.subscribe()
        order.wait_until(lambda: synced(order))
        assert order.held["cluster"] == {}
        with Sidecar.join(plane.token("payment"), "p1") as payment:
            payment.wait_open()
            payment.register(8080, labels={"version": "v2"})
            order.wait_until(lambda: CLUSTER in order.held["endpoint"], 1.0)
    [endpoint] = json.loads(order.held["endpoint"][CLUSTER])
    assert endpoint["address"] == "127.0.0.1:15006"
    assert endpoint["healthy"] is True
    assert endpoint["workload"] == {
        "name": "payment-p1",
        "namespace": "default",
        "app": "payment",
        "revision": "v2",
        "principal": "spiffe://cluster.local/ns/default/sa/payment",
    }


def test_health_reaches_others(plane: Plane) -> None:
    def health() -> list[bool]:
        endpoints = order.held.get("endpoint", {}).get(CLUSTER, b"[]")
        return [one["healthy"] for one in json.loads(endpoints)]

    with (
        Sidecar.join(plane.token("order"), "o1") as order,
        Sidecar.join(plane.token("payment"), "p1") as payment,
    ):
        order.subscribe()
        payment.wait_open()
        payment.register(8080, healthy=False)
        order.wait_until(lambda: health() == [False])
        payment.register(8080, healthy=True)
        order.wait_until(lambda: health() == [True])
        payment.register(8080, healthy=False)
        order.wait_until(lambda: health() == [False])


def test_a_clean_goodbye_removes_a_workload_at_once_and_a_lost_one_after_the_grace(
    start: Start,
) -> None:
    plane = start(grace_ms=1500)
    with Sidecar.join(plane.token("payment"), "clean") as clean:
        clean.wait_open()
        clean.register(8080)
        lost = Sidecar.join(plane.token("payment"), "lost")
        lost.connect()
        lost.wait_open()
        lost.register(8080, address="127.0.0.1:15007")
        wait(lambda: len(instances(plane)) == 2)
        clean.register(0)
        wait(lambda: instances(plane) == ["lost"])
        lost.disconnect()
        left_s = time.monotonic()
        wait(lambda: not statuses(plane)["lost"].connected)
        assert instances(plane) == ["lost"]
        wait(lambda: instances(plane) == [])
        assert time.monotonic() - left_s > 1.2


def test_a_job_that_has_said_goodbye_is_not_shown_any_more(plane: Plane) -> None:
    with (
        Sidecar.join(plane.token("payment"), "job") as job,
        Sidecar.join(plane.token("payment"), "lost") as lost,
    ):
        job.wait_open()
        lost.wait_open()
        wait(lambda: statuses(plane).keys() == {"job", "lost"})
        job.register(0)
        job.send(Goodbye("drain"))
        assert job.ended().code == "drain"
        lost.disconnect()
        wait(lambda: [one.connected for one in statuses(plane).values()] == [False])
        assert statuses(plane).keys() == {"lost"}


def test_a_workload_that_returns_within_the_grace_was_never_gone(start: Start) -> None:
    plane = start(grace_ms=1000)
    with Sidecar.join(plane.token("order"), "o1") as order:
        order.subscribe()
        payment = Sidecar.join(plane.token("payment"), "p1")
        payment.connect()
        payment.wait_open()
        payment.register(8080)
        order.wait_until(lambda: b"payment" in order.held.get("route", {}).get("outbound", b""))
        pushes = len(order.pushes)
        revision = plane.operations.revision()
        for _ in range(3):
            payment.disconnect()
            payment.connect()
            payment.session.heartbeat_ms = 0
            payment.wait_open()
            payment.register(8080)
            wait(lambda: statuses(plane)["p1"].connected)
        end = time.monotonic() + 2.0  # twice the grace
        while time.monotonic() < end:
            try:
                order.step(end - time.monotonic())
            except TimeoutError:
                break
        payment.disconnect()
    assert len(order.pushes) == pushes
    assert plane.operations.revision() == revision


@pytest.mark.parametrize(
    "change",
    [
        {"namespace": "shop"},
        {"service": "order"},
        {"address": "127.0.0.1"},
        {"address": "0.0.0.0:15006"},
        {"address": "host.example.com:15006"},
        {"address": "::1:15006"},
        {"address": "127.0.0.1:0"},
        {"address": "127.0.0.1:99999"},
        {"address": "224.0.0.1:15006"},
        {"workload": "../order"},
        {"ports": [Port(8080), Port(8080)]},
        {"ports": [Port(8080, "Not A Label")]},
        {"ports": [Port(8080, protocol="HTTP!")]},
    ],
    ids=str,
)
def test_a_registration_beyond_the_certificate_ends_the_stream_and_changes_nothing(
    plane: Plane, change: dict[str, object]
) -> None:
    said = {
        "workload": "payment-v1",
        "namespace": "default",
        "service": "payment",
        "address": "127.0.0.1:15006",
        "ports": [Port(8080)],
    }
    with Sidecar.join(plane.token("payment"), "p1") as sidecar:
        sidecar.wait_open()
        sidecar.send(Registration(**(said | change)))  # type: ignore[arg-type]
        assert sidecar.ended().code == Code.UNAUTHORIZED
    assert instances(plane) == []


def test_a_token_may_name_another_service_than_its_account(plane: Plane) -> None:
    token = plane.token("payment", service_account="shared")
    with Sidecar.join(token, "p1") as sidecar:
        sidecar.wait_open()
        sidecar.register(8080, service="payment")
        wait(lambda: instances(plane) == ["p1"])
        sidecar.register(8080, service="shared")
        assert sidecar.ended().code == Code.UNAUTHORIZED


def test_hello_for_another_namespace_is_refused(plane: Plane) -> None:
    sidecar = Sidecar.join(plane.token("payment"), "p1", namespace="shop")
    with sidecar:
        assert sidecar.ended().code == Code.UNAUTHORIZED
    assert statuses(plane) == {}


@pytest.mark.parametrize("instance", ["../x", "a/b", "a b", "é", "-a", "x" * 254])
def test_an_instance_that_is_no_name_is_refused(plane: Plane, instance: str) -> None:
    sidecar = Sidecar.join(plane.token("payment"), "p1")
    sidecar.session = ClientSession(Node(instance, "payment-v1", "default"))
    with sidecar:
        assert sidecar.ended().code == Code.MALFORMED


def test_a_second_hello_ends_the_stream(plane: Plane) -> None:
    with Sidecar.join(plane.token("payment"), "p1") as sidecar:
        sidecar.wait_open()
        sidecar.send(Hello(1, sidecar.session.node))
        assert sidecar.ended().code == Code.UNEXPECTED


def test_a_newer_stream_of_an_instance_replaces_the_older(plane: Plane) -> None:
    old = Sidecar.join(plane.token("payment"), "p1")
    with old:
        old.wait_open()
        old.register(8080)
        wait(lambda: instances(plane) == ["p1"])
        new = Sidecar(old.address, old.root, old.credentials, ClientSession(old.session.node))
        with new:
            new.wait_open()
            assert old.ended().code == Code.REPLACED
            new.register(8080, labels={"version": "v2"})
            wait(
                lambda: (
                    [one.workload.labels for one in plane.ask(plane.operations.workloads())]
                    == [{"version": "v2"}]
                )
            )
            assert statuses(plane)["p1"].connected


def test_an_instance_of_another_identity_with_the_same_name_is_another_one(plane: Plane) -> None:
    with (
        Sidecar.join(plane.token("payment"), "i1") as payment,
        Sidecar.join(plane.token("order"), "i1") as order,
    ):
        for sidecar in (payment, order):
            sidecar.wait_open()
            sidecar.register(8080)
        wait(lambda: instances(plane) == ["i1", "i1"])
        shown = plane.ask(plane.operations.sidecars())
        assert [(one.identity[-7:], one.connected) for one in shown] == [
            ("a/order", True),
            ("payment", True),
        ]
        order.register(0)
        wait(lambda: instances(plane) == ["i1"])
        [found] = plane.ask(plane.operations.workloads())
        assert (found.workload.service, found.connected) == ("payment", True)


def test_a_nack_is_shown_with_its_reason_until_the_resource_is_taken(plane: Plane) -> None:
    with (
        Sidecar.join(plane.token("order"), "o1") as order,
        Sidecar.join(plane.token("payment"), "p1") as payment,
    ):
        order.subscribe()
        order.wait_until(lambda: synced(order))
        wait(lambda: statuses(plane)["o1"].state == "SYNCED")
        order.refuses = lambda push: (
            [Problem(CLUSTER, "no room")] if push.type == "endpoint" else []
        )
        payment.wait_open()
        payment.register(8080)
        order.wait_until(lambda: any(push.type == "route" for push in order.pushes[4:]))
        wait(lambda: statuses(plane)["o1"].state == "NACK")
        shown = statuses(plane)["o1"]
        assert {type: one.state for type, one in shown.types.items()} == {
            "cluster": "SYNCED",
            "endpoint": "NACK",
            "listener": "SYNCED",
            "route": "SYNCED",
        }
        [refused] = shown.types["endpoint"].refused
        assert (refused.name, refused.reason) == (CLUSTER, "no room")
        order.refuses = lambda push: []
        payment.register(8080, labels={"version": "v2"})
        order.wait_until(lambda: CLUSTER in order.held["endpoint"])
        wait(lambda: statuses(plane)["o1"].state == "SYNCED")


def test_what_is_not_answered_is_stale(plane: Plane) -> None:
    with (
        Sidecar.join(plane.token("order"), "o1") as order,
        Sidecar.join(plane.token("payment"), "p1") as payment,
    ):
        order.subscribe()
        order.wait_until(lambda: synced(order))
        wait(lambda: statuses(plane)["o1"].state == "SYNCED")
        before = statuses(plane)["o1"].revision
        payment.wait_open()
        payment.register(8080)  # and order does not read
        wait(lambda: statuses(plane)["o1"].state == "STALE")
        shown = statuses(plane)["o1"]
        assert {type: one.state for type, one in shown.types.items()} == {
            "cluster": "STALE",
            "endpoint": "STALE",
            "listener": "SYNCED",
            "route": "STALE",
        }
        assert shown.revision == before
        order.wait_until(lambda: CLUSTER in order.held["endpoint"])
        order.wait_until(lambda: any(push.type == "route" for push in order.pushes[4:]))
        wait(lambda: statuses(plane)["o1"].state == "SYNCED")
        assert statuses(plane)["o1"].revision == plane.operations.revision() != before


def test_the_state_of_the_data_plane_is_shown(plane: Plane) -> None:
    with Sidecar.join(plane.token("payment"), "p1") as sidecar:
        sidecar.wait_open()
        sidecar.send(Status(7, "serving", "2 workers"))
        wait(lambda: statuses(plane)["p1"].generation == 7)
        shown = statuses(plane)["p1"]
        assert (shown.data_plane, shown.detail) == ("serving", "2 workers")
        assert (shown.workload, shown.namespace) == ("payment-p1", "default")
        assert (
            shown.certificate_expires_s == sidecar.credentials.leaf.not_valid_after_utc.timestamp()
        )


def test_changes_that_come_together_are_pushed_together(start: Start) -> None:
    plane = start(debounce_s=0.3)
    with Sidecar.join(plane.token("order"), "o1") as order:
        order.subscribe()
        order.wait_until(lambda: synced(order))
        before = len(order.pushes)
        sidecars = [Sidecar.join(plane.token("payment"), f"p{n}") for n in range(8)]
        for number, sidecar in enumerate(sidecars):
            sidecar.connect()
            sidecar.wait_open()
            sidecar.register(8080, address=f"127.0.0.1:{16000 + number}")
        order.wait_until(lambda: len(json.loads(order.held["endpoint"].get(CLUSTER, b"[]"))) == 8)
        for sidecar in sidecars:
            sidecar.disconnect()
    endpoint_pushes = [one for one in order.pushes[before:] if one.type == "endpoint"]
    assert len(endpoint_pushes) < 4


def test_a_namespace_sees_its_own_short_names(plane: Plane) -> None:
    def domains(sidecar: Sidecar) -> list[str]:
        hosts = json.loads(sidecar.held.get("route", {}).get("outbound", b"[]"))
        return [domain for host in hosts for domain in host["domains"]]

    with (
        Sidecar.join(plane.token("payment"), "p1") as payment,
        Sidecar.join(plane.token("order", namespace="shop"), "o1") as order,
    ):
        payment.wait_open()
        payment.register(8080)
        payment.subscribe()
        order.subscribe()
        payment.wait_until(lambda: "payment.default" in domains(payment))
        order.wait_until(lambda: "payment.default" in domains(order))
    assert "payment" in domains(payment)
    assert "payment" not in domains(order)
    assert payment.held["cluster"] == order.held["cluster"]


def test_a_certificate_that_is_not_ours_gets_no_stream(plane: Plane, tmp_path: object) -> None:
    token = plane.token("payment")
    credentials, _ = join(token)
    assert credentials is not None
    stolen = Credentials(credentials.key, credentials.chain[1:])  # the issuer, without its key
    with pytest.raises(OSError, match="KEY_VALUES_MISMATCH"):
        Wire(token.control, client_context(token.root, stolen))


def test_pushes_name_only_what_changed(plane: Plane) -> None:
    def changed(push: Push) -> set[str]:
        return {one.name for one in push.resources}

    with (
        Sidecar.join(plane.token("order"), "o1") as order,
        Sidecar.join(plane.token("payment", uses=2), "p1") as payment,
        Sidecar.join(plane.token("ledger"), "l1") as ledger,
    ):
        order.subscribe()
        for sidecar, port in ((payment, 16001), (ledger, 16002)):
            sidecar.wait_open()
            sidecar.register(8080, address=f"127.0.0.1:{port}")
        order.wait_until(lambda: len(order.held.get("endpoint", {})) == 2)
        order.wait_until(lambda: b"ledger" in order.held["route"]["outbound"])
        before = len(order.pushes)
        payment.register(8080, address="127.0.0.1:16001", healthy=False)
        order.wait_until(lambda: len(order.pushes) > before)
        assert [(one.type, changed(one)) for one in order.pushes[before:]] == [
            ("endpoint", {CLUSTER})
        ]


def test_a_silent_sidecar_is_let_go(start: Start) -> None:
    plane = start(stream_limits=StreamLimits(heartbeat_ms=200, silence=3, opening_s=2.0))
    with Sidecar.join(plane.token("payment"), "p1") as sidecar:
        sidecar.wait_open()
        assert sidecar.ended(5.0).code == Code.SLOW


def test_a_connection_that_says_nothing_is_let_go(start: Start) -> None:
    plane = start(stream_limits=StreamLimits(opening_s=1.0))
    token = plane.token("payment")
    credentials, _ = join(token)
    for known in (None, credentials):
        wire = Wire(token.control, client_context(token.root, known))
        begin = time.monotonic()
        wire.all()
        assert 0.5 < time.monotonic() - begin < 5.0


def test_heartbeats_carry_the_revision_that_is_offered(start: Start) -> None:
    plane = start(stream_limits=StreamLimits(heartbeat_ms=300))
    with Sidecar.join(plane.token("order"), "o1") as order:
        order.subscribe()
        order.wait_until(lambda: synced(order))
        plane.token("other")  # a revision that changes nothing for sidecars
        with Sidecar.join(plane.token("payment"), "p1") as payment:
            payment.wait_open()
            payment.register(8080)
            order.wait_until(lambda: str(order.session.revision) == plane.operations.revision())
