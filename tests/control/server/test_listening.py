"""The control stream listens at every address that it was told, and at no other."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from meshfast.control import listening
from meshfast.control.listening import listen
from tests.control.server.conftest import Start, free_port
from tests.control.server.sidecar import Wire, client_context

Named = Callable[..., None]


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> Named:
    """Give `mesh.test` these addresses."""
    real = socket.getaddrinfo

    def name(*addresses: str) -> None:
        def resolve(host: str, port: int, *how: Any, **more: Any) -> list[Any]:
            if host != "mesh.test":
                return real(host, port, *how, **more)
            return [
                (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
                for address in addresses
            ]

        monkeypatch.setattr(socket, "getaddrinfo", resolve)

    return name


@pytest.fixture
def at() -> Iterator[Callable[[str, int], list[tuple[str, int]]]]:
    """Listen until the end of the test; return where."""
    opened: list[socket.socket] = []

    def listening_at(host: str, port: int = 0) -> list[tuple[str, int]]:
        found = asyncio.run(listen(host, port))
        opened.extend(found)
        return [one.getsockname()[:2] for one in found]

    yield listening_at
    for one in opened:
        one.close()


def is_refused(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, 10).close()
    except ConnectionRefusedError:
        return True
    return False


At = Callable[..., list[tuple[str, int]]]


def test_every_address_of_ipv6_is_none_of_ipv4(at: At) -> None:
    [(host, port)] = at("::")
    assert host == "::"
    assert not is_refused(("::1", port))
    assert is_refused(("127.0.0.1", port))


def test_all_addresses_of_a_name_are_listened_on_at_one_port(at: At, named: Named) -> None:
    named("127.0.0.1", "127.0.0.2", "127.0.0.1")
    first, second = at("mesh.test")
    assert (first[0], second) == ("127.0.0.1", ("127.0.0.2", first[1]))
    port = free_port()
    assert at("mesh.test", port) == [("127.0.0.1", port), ("127.0.0.2", port)]


def test_addresses_of_a_name_that_this_host_has_not_are_passed_over(
    at: At, named: Named, caplog: pytest.LogCaptureFixture
) -> None:
    named("198.51.100.7", "127.0.0.1")  # RFC 5737: nobody has the first
    [(host, _)] = at("mesh.test")
    assert host == "127.0.0.1"
    assert [record.getMessage() for record in caplog.records] == [
        "not listening on 198.51.100.7: Cannot assign requested address"
    ]
    named("198.51.100.7", "203.0.113.7")
    with pytest.raises(OSError, match="Cannot assign") as refused:
        at("mesh.test")
    assert refused.value.errno == errno.EADDRNOTAVAIL


def test_a_port_that_is_taken_at_one_address_is_refused_and_free_at_the_others(
    at: At, named: Named
) -> None:
    [(_, port)] = at("127.0.0.2")
    named("127.0.0.1", "127.0.0.2")
    with pytest.raises(OSError, match="Address already in use"):
        at("mesh.test", port)
    assert is_refused(("127.0.0.1", port))


def test_a_free_port_is_free_at_each_address(
    at: At, named: Named, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[tuple[str, int]] = []
    real = listening._listener

    def listener(family: int, address: Any) -> socket.socket:
        tried.append(address)
        if len(tried) == 2:
            raise OSError(errno.EADDRINUSE, "Address already in use")
        return real(family, address)

    monkeypatch.setattr(listening, "_listener", listener)
    named("127.0.0.1", "127.0.0.2")
    (_, first), (_, second) = at("mesh.test")
    assert first == second
    assert [host for host, _ in tried] == ["127.0.0.1", "127.0.0.2"] * 2


def test_the_control_plane_serves_at_all_addresses(start: Start, named: Named) -> None:
    named("127.0.0.1", "127.0.0.2")
    plane = start(host="mesh.test")
    assert plane.control.address == plane.control.addresses[0]
    token = plane.token()
    assert len(plane.control.addresses) == 2
    for address in plane.control.addresses:
        wire = Wire(address, client_context(token.root))
        assert wire.tls.version() == "TLSv1.3"
        wire.close()
