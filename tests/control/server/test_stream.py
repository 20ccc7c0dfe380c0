"""Authenticated streams: configuration, registration, progress, and who may say what."""

import json

from tests.control.server.conftest import Plane
from tests.control.server.sidecar import Sidecar

CLUSTER = "outbound|8080||payment.default"


def test_a_registration_reaches_another_sidecar_within_a_second(plane: Plane) -> None:
    with Sidecar.join(plane.token("order"), "o1") as order:
        order.subscribe()
        order.wait_until(lambda: order.session.is_complete("route"))
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
