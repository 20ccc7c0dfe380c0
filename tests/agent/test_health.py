"""The application's port: asked by connecting, again and again, and where it is open."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from meshfast.agent.health import EVERY_S, AppHealth, listening_addresses
from meshfast.agent.loop import Loop
from tests.agent.harness import wait_for


class Watched:
    """A health check on a loop in a thread; `changes` is what it said."""

    def __init__(self, port: int) -> None:
        self.loop = Loop()
        self.changes: list[bool] = []
        self.health = AppHealth(self.loop, port, self.changes.append)
        assert not self.health.is_known
        self.loop.call_later(0, self.health.start)
        self.tick()
        self.thread = threading.Thread(target=self.loop.run)
        self.thread.start()

    def tick(self) -> None:
        """Come round at least so often, so that `stop` is noticed."""
        self.loop.call_later(0.02, self.tick)

    def close(self) -> None:
        self.health.stop()
        self.loop.stop()
        self.thread.join()


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.fixture
def watched(port: int) -> Iterator[Watched]:
    one = Watched(port)
    yield one
    one.close()


def test_a_port_is_healthy_while_it_accepts(watched: Watched, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        wait_for(lambda: watched.changes[-1:] == [True])
        assert watched.health.seen
    wait_for(lambda: not watched.changes[-1])
    assert watched.health.seen
    with socket.create_server(("127.0.0.1", port)):
        wait_for(lambda: watched.changes[-3:] == [True, False, True])


def test_a_port_that_accepts_again_is_noticed_soon(watched: Watched, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        wait_for(lambda: watched.changes[-1:] == [True])
    wait_for(lambda: not watched.changes[-1])
    with socket.create_server(("127.0.0.1", port)):
        back_at = time.monotonic()
        wait_for(lambda: watched.changes[-1])
        assert time.monotonic() - back_at < EVERY_S / 2


def test_a_connect_cannot_meet_itself_on_a_port_where_nobody_listens(
    watched: Watched, port: int
) -> None:
    with socket.create_server(("127.0.0.1", port)) as server:
        server.settimeout(10)
        connection, (asking, _) = server.accept()
        connection.close()
    assert asking != "127.0.0.1"


def test_a_port_that_never_accepted_is_said_to_refuse_once(watched: Watched) -> None:
    wait_for(lambda: watched.changes)
    with socket.create_server(("127.0.0.1", 0)) as other:  # to whose end more answers come
        another = Watched(other.getsockname()[1])
        wait_for(lambda: another.changes == [True])
        other.close()
        wait_for(lambda: another.changes == [True, False])
        another.close()
    assert watched.changes == [False]
    assert watched.health.is_known
    assert not watched.health.seen


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_the_kernels_list_says_where_a_port_is_open(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as server:
        assert listening_addresses(server.getsockname()[1]) == [address]
    assert listening_addresses(server_port_of(address)) == []


def server_port_of(address: str) -> int:
    """A port on which nobody listens any more."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as server:
        return int(server.getsockname()[1])
