"""Connections that nobody knows yet are bounded; those that are known wait for none of them."""

import socket
import ssl
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshfast.control import server
from meshfast.control.admission import Admission
from tests.control.server.conftest import Plane, Start
from tests.control.server.sidecar import Sidecar, join


class Door:
    """An admission, and who was ended to make place."""

    def __init__(self, **bounds: Any) -> None:
        self.admission = Admission(**bounds)
        self.ended: list[str] = []
        self.entered = 0

    def enter(self, address: str, now_s: float = 0.0) -> Callable[[], None] | None:
        self.entered += 1
        return self.admission.enter(address, now_s, partial(self.ended.append, f"#{self.entered}"))


def test_there_is_a_bound() -> None:
    door = Door(waiting_max=2)
    first = door.enter("10.0.0.1")
    assert first is not None
    assert door.enter("10.0.0.1") is not None
    assert door.enter("10.0.0.1") is None
    first()
    first()
    assert len(door.admission) == 1
    assert door.enter("10.0.0.1") is not None
    assert door.ended == []


def test_the_oldest_makes_place_for_its_own_source_when_it_was_silent_for_too_long() -> None:
    door = Door(waiting_max=2, patience_s=3.0)
    oldest = door.enter("10.0.0.1", 0.0)
    assert oldest is not None
    assert door.enter("10.0.0.1", 2.0) is not None
    assert door.enter("10.0.0.1", 2.9) is None
    assert door.enter("10.0.0.1", 3.0) is not None
    assert door.ended == ["#1"]
    oldest()  # it hears of its end, and leaves
    assert len(door.admission) == 2
    assert door.enter("10.0.0.1", 4.9) is None
    assert door.enter("10.0.0.1", 5.0) is not None
    assert door.ended == ["#1", "#2"]


def test_sources_with_many_make_place_for_one_with_few_at_once() -> None:
    door = Door(waiting_max=6)
    for address in ("10.0.0.1",) * 4 + ("10.0.0.2",) * 2:
        assert door.enter(address) is not None
    assert door.enter("10.0.0.3") is not None
    assert door.ended == ["#1"]
    assert door.enter("10.0.0.3") is not None
    assert door.ended == ["#1", "#2"]
    assert door.enter("10.0.0.3") is None  # it has its share
    assert door.enter("10.0.0.1") is None
    assert len(door.admission) == 6


def test_one_source_may_have_all_places_and_gives_them_to_others() -> None:
    door = Door(waiting_max=6)
    for _ in range(6):
        assert door.enter("10.0.0.1") is not None
    for number in range(3):
        assert door.enter(f"10.0.1.{number}") is not None
    assert door.ended == ["#1", "#2", "#3"]


@pytest.mark.parametrize(
    ("one", "other", "are_one"),
    [
        ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%lo", "fe80::2%lo", True),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
        ("10.0.0.1", "10.0.0.2", False),
    ],
)
def test_a_source_is_an_address_or_a_network_of_64_bits(
    one: str, other: str, are_one: bool
) -> None:
    door = Door(waiting_max=2)
    assert door.enter(one) is not None
    assert door.enter(one) is not None
    assert (door.enter(other) is None) is are_one


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2), st.booleans()), max_size=60))
def test_bounds_and_counts_hold_whatever_happens(steps: list[tuple[int, int, bool]]) -> None:
    door = Door(waiting_max=6, patience_s=5.0)
    inside: dict[str, tuple[str, Callable[[], None]]] = {}
    now_s = 0.0
    for source, later_s, leaves in steps:
        now_s += later_s
        if leaves and inside:
            _, leave = inside.pop(next(iter(inside)))
            leave()
        leave_again = door.enter(f"10.0.0.{source}", now_s)
        if leave_again is not None:
            inside[f"#{door.entered}"] = (f"10.0.0.{source}", leave_again)
        for gone in door.ended:
            inside.pop(gone)[1]()
        door.ended.clear()
        assert len(door.admission) == len(inside) <= 6
        held = Counter(source for source, _ in inside.values())
        assert dict(held) == {name: len(one) for name, one in door.admission._sources.items()}


def silent(plane: Plane, source: str = "127.0.0.1") -> socket.socket:
    """A connection that says nothing."""
    host, _, port = plane.control.address.rpartition(":")
    return socket.create_connection((host, int(port)), 10, source_address=(source, 0))


def test_silent_connections_beyond_the_bound_are_closed_and_streams_live_on(start: Start) -> None:
    plane = start(admission=Admission(waiting_max=4, patience_s=60))
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


def test_silent_strangers_shut_nobody_out(start: Start) -> None:
    plane = start(admission=Admission(waiting_max=8, patience_s=60))
    with ExitStack() as stack:
        strangers = [
            stack.enter_context(silent(plane, source))
            for source in ("127.0.0.2", "127.0.0.3")
            for _ in range(4)
        ]
        waiting_is(plane.options.admission, 8)
        with Sidecar.join(plane.token("payment")) as sidecar:
            sidecar.wait_open()
        assert strangers[0].recv(1) == b""
        assert strangers[4].recv(1) == b""


def test_silent_neighbours_behind_one_address_make_place_after_a_while(start: Start) -> None:
    plane = start(admission=Admission(waiting_max=2, patience_s=0.0))
    with silent(plane) as first, silent(plane):
        waiting_is(plane.options.admission, 2)
        with Sidecar.join(plane.token("payment")) as sidecar:
            sidecar.wait_open()
        assert first.recv(1) == b""
        waiting_is(plane.options.admission, 0)


def test_one_that_makes_place_in_its_handshake_leaves_nothing_behind(start: Start) -> None:
    plane = start(admission=Admission(waiting_max=1, patience_s=0.0))
    with ExitStack() as stack:
        opened = [stack.enter_context(silent(plane)) for _ in range(20)]
        for one in opened[:-1]:
            assert one.recv(1) == b""
        serving = plane.control._serving_streams
        until(lambda: plane.call(lambda: len(serving)) == 1)
        assert len(plane.options.admission) == 1


def test_handshakes_have_less_time_when_places_are_few(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "PATIENCE_S", 0.2)
    plane = start(admission=Admission(waiting_max=4))
    with silent(plane) as first:
        waiting_is(plane.options.admission, 1)
        plane.call(lambda: None)  # a turn, in which its handshake begins
        second = silent(plane)
        waiting_is(plane.options.admission, 2)
        began_s = time.monotonic()
        with second:
            assert second.recv(1) == b""
        assert time.monotonic() - began_s < server.HANDSHAKE_S / 2
        first.setblocking(False)
        with pytest.raises(BlockingIOError):  # it came when there was place
            first.recv(1)


def test_those_without_a_place_are_said_once_in_a_while(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane = start(admission=Admission(waiting_max=1, patience_s=60))

    def turn_away(number: int) -> None:
        for _ in range(number):
            with silent(plane) as beyond:
                assert beyond.recv(1) == b""

    with silent(plane):
        waiting_is(plane.options.admission, 1)
        turn_away(5)
        monkeypatch.setattr(server, "WARN_AGAIN_S", 0.0)
        turn_away(1)
    said = "too many connections that have not said who they are: %d closed, the last from %s"
    records = [record for record in caplog.records if record.msg == said]
    assert [record.args for record in records] == [(1, "127.0.0.1"), (5, "127.0.0.1")]
    assert {record.levelname for record in records} == {"WARNING"}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def waiting_is(admission: Admission, number: int) -> None:
    deadline = time.monotonic() + 10
    while len(admission) != number:
        assert time.monotonic() < deadline, len(admission)
        time.sleep(0.005)
