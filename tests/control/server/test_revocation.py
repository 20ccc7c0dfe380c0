"""A revoked identity: cut off at once, gone from everybody's endpoints, and not to be renewed."""

import json
import time

import pytest

from meshfast.control.operations import NotFoundError
from meshfast.discovery import Code
from meshfast.errors import ConfigError
from tests.control.server.conftest import Plane, Start
from tests.control.server.sidecar import Sidecar, join, refusal

CLUSTER = "outbound|8080||payment.default"


def test_revoking_cuts_off_and_takes_out_of_service_at_once(plane: Plane) -> None:
    with (
        Sidecar.join(plane.token("order"), "o1") as order,
        Sidecar.join(plane.token("payment"), "p1") as payment,
    ):
        order.subscribe()
        payment.wait_open()
        payment.register(8080)
        order.wait_until(lambda: json.loads(order.held.get("endpoint", {}).get(CLUSTER, b"[]")))
        began_s = time.monotonic()
        plane.ask(plane.operations.revoke_identity("default", "payment"))
        assert payment.ended(5.0).code == Code.REVOKED
        order.wait_until(lambda: order.held["endpoint"][CLUSTER] == b"[]", 5.0)
        assert time.monotonic() - began_s < 5.0
        payment.disconnect()
        payment.received.clear()
        payment.connect()
        assert payment.ended().code == Code.REVOKED
        assert refusal(join(plane.token("payment"))[1]).startswith("revoked")
        order.wait_until(lambda: order.session.is_complete("cluster"))  # order is not concerned


def test_an_identity_that_is_restored_may_come_back(plane: Plane) -> None:
    plane.ask(plane.operations.revoke_identity("default", "payment"))
    token = plane.token("payment")
    assert refusal(join(token)[1]).startswith("revoked")
    [revoked] = plane.ask(plane.operations.list_revoked())
    assert (revoked.namespace, revoked.service_account) == ("default", "payment")
    plane.ask(plane.operations.restore_identity("default", "payment"))
    assert join(token)[0] is not None
    with pytest.raises(NotFoundError):
        plane.ask(plane.operations.restore_identity("default", "payment"))


def test_revoking_says_until_when_others_take_its_calls(start: Start) -> None:
    plane = start(cert_ttl_s=600)
    ends = []
    for service in ("payment", "payment", "order"):
        credentials, _ = join(plane.token(service, service_account=service))
        assert credentials is not None
        ends.append(int(credentials.leaf.not_valid_after_utc.timestamp()))
    for _ in range(2):
        revoked = plane.ask(plane.operations.revoke_identity("default", "payment"))
        assert revoked.certified_until_s == max(ends[:2])
    revoked = plane.ask(plane.operations.revoke_identity("default", "nobody"))
    assert revoked.certified_until_s is None


def test_a_certificate_that_has_ended_is_not_waited_for(start: Start) -> None:
    plane = start(cert_ttl_s=10)
    assert join(plane.token("payment"))[0] is not None
    now_s = time.time()
    plane.control._issuance._clock_s = lambda: now_s + 11
    revoked = plane.ask(plane.operations.revoke_identity("default", "payment"))
    assert revoked.certified_until_s is None


def test_only_names_can_be_revoked(plane: Plane) -> None:
    with pytest.raises(ConfigError, match="service_account"):
        plane.ask(plane.operations.revoke_identity("default", "a/b"))
