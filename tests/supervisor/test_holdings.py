"""What passes from image to image comes out as it went in."""

import json
import os

import pytest

from meshfast.supervisor.children import SERVING, Child
from meshfast.supervisor.holdings import Holdings
from meshfast.supervisor.hot_restart import State, StateError


def state_of(holdings: Holdings) -> State:
    workers = [Child(3, 4711, 1020, 0, 7, 12.5, SERVING), Child(0, 4712, -1, 0, 7, None)]
    agent = Child(-1, 4713, 1021, 0, 7, None)
    return State(holdings, workers, [3, 0], agent, told=6, told_identity=2, app={"pid": 4714})


def test_a_state_survives_the_passage(holdings: Holdings) -> None:
    state = state_of(holdings)
    text = state.encode()
    taken = State.parse(text)
    assert taken.holdings.image == 1
    taken.holdings.image = 0
    assert taken.encode() == text
    assert taken.fds() == state.fds()


def test_every_open_descriptor_is_passed_on(holdings: Holdings) -> None:
    fds = state_of(holdings).fds()
    # lock, snapshot, shared memory, 2 listeners, 2 pairs of 2 ends for 4 slots, 2 open channels
    assert len(set(fds)) == len(fds) == 3 + 2 + 16 + 2


def test_a_state_of_another_version_is_refused(holdings: Holdings) -> None:
    document = json.loads(state_of(holdings).encode())
    document["version"] = 2
    with pytest.raises(StateError, match="version 2, not 1"):
        State.parse(json.dumps(document).encode())


PARTS = ["homes", "holdings", "workers", "told", "told_identity", "agent", "app"]


@pytest.mark.parametrize("path", PARTS)
def test_a_state_that_lacks_something_is_refused(holdings: Holdings, path: str) -> None:
    document = json.loads(state_of(holdings).encode())
    del document[path]
    with pytest.raises(StateError):
        State.parse(json.dumps(document).encode())


def test_a_newer_snapshot_replaces_the_older_and_closes_it(holdings: Holdings) -> None:
    old, new = holdings.snapshot_fd, os.memfd_create("new")
    holdings.replace_snapshot(2, new)
    assert (holdings.snapshot_fd, holdings.generation) == (new, 2)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(old)


def test_closing_the_workers_sockets_leaves_the_agents(holdings: Holdings) -> None:
    holdings.close_listeners_of("worker")
    assert [listener.name for listener in holdings.listeners] == ["metrics"]
