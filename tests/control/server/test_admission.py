"""Connections that nobody knows yet are bounded; those that are known wait for none of them."""

import socket
import ssl
import time

import pytest

from meshfast.control.admission import Admission
from tests.control.server.conftest import Plane, Start
from tests.control.server.sidecar import Sidecar, join


def test_there_is_a_bound_in_all_and_one_for_an_address() -> None:
    admission = Admission(waiting_max=3, of_address_max=2)
    first = admission.enter("a")
    assert first is not None
    assert admission.enter("a") is not None
    assert admission.enter("a") is None
    assert admission.enter("b") is not None
    assert admission.enter("c") is None
    first()
    first()
    assert len(admission) == 2
    assert admission.enter("a") is not None


def silent(plane: Plane) -> socket.socket:
    """A connection that says nothing."""
    host, _, port = plane.control.address.rpartition(":")
    return socket.create_connection((host, int(port)), 10)


def test_silent_connections_beyond_the_bound_are_closed_and_streams_live_on(start: Start) -> None:
    plane = start(admission=Admission(of_address_max=4))
    with Sidecar.join(plane.token("payment")) as sidecar:
        sidecar.wait_open()
        sidecar.subscribe()
        waiting = plane.options.admission
        waiting_is(waiting, 0)  # a stream that is known does not count
        open_ones = [silent(plane) for _ in range(4)]
        waiting_is(waiting, 4)
        with silent(plane) as beyond:
            assert beyond.recv(1) == b""
        with pytest.raises((ConnectionError, ssl.SSLError)):
            join(plane.token("order"))
        sidecar.register(8080)
        name = "outbound|8080||payment.default"
        sidecar.wait_until(lambda: name in sidecar.held.get("cluster", {}))
        for one in open_ones:
            one.close()
        waiting_is(waiting, 0)
        assert join(plane.token("order"))[0] is not None


def waiting_is(admission: Admission, number: int) -> None:
    deadline = time.monotonic() + 10
    while len(admission) != number:
        assert time.monotonic() < deadline, len(admission)
        time.sleep(0.005)
