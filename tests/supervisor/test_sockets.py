"""Listening sockets: what is bound, what is refused, what is cleaned up."""

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from meshfast.supervisor.settings import SocketSettings
from meshfast.supervisor.sockets import BindError, Listener, bind, bind_all


def entry(address: str, fallback: bool = False, kept: str = "") -> SocketSettings:
    return SocketSettings("web", address, "worker", fallback, kept)


@pytest.fixture
def taken() -> Iterator[str]:
    """Return an address that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def accepts(listener: Listener) -> bool:
    with socket.socket(fileno=os.dup(listener.fd)) as end:
        return bool(end.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def test_binds_a_free_port_and_tells_which() -> None:
    listener = bind(entry("127.0.0.1:0"))
    assert accepts(listener)
    assert not listener.address.endswith(":0")
    assert not os.get_blocking(listener.fd)
    assert not os.get_inheritable(listener.fd)
    listener.close()


def test_binds_ipv6_and_leaves_ipv4_on_the_same_port_free() -> None:
    six = bind(entry("[::]:0"))
    four = bind(entry(f"0.0.0.0:{six.address.rpartition(':')[2]}"))
    assert accepts(six)
    assert accepts(four)
    six.close()
    four.close()


def test_refuses_an_explicit_address_that_is_taken_with_its_name_and_a_hint(taken: str) -> None:
    with pytest.raises(BindError, match=f"^EADDRINUSE: {taken}: .*another process") as caught:
        bind(entry(taken))
    assert caught.value.code == errno.EADDRINUSE


def test_falls_back_to_a_free_port_of_the_same_host(taken: str) -> None:
    listener = bind(entry(taken, fallback=True))
    assert listener.address != taken
    assert listener.address.startswith("127.0.0.1:")
    listener.close()


def test_connects_that_nobody_accepts_yet_wait_in_the_backlog() -> None:
    listener = bind(entry("127.0.0.1:0"))
    host, _, port = listener.address.rpartition(":")
    with ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=2))
    listener.close()


@pytest.mark.parametrize(
    "address",
    [
        "",
        "8080",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "127.0.0.1:+80",
        "127.0.0.1:http",
        "localhost:80",
        "::1:80",
        "[::1]",
        "[127.0.0.1]:80",
        "unix:relative",
        "unix:/" + "x" * 107,
    ],
)
def test_refuses_an_address_it_cannot_read(address: str) -> None:
    with pytest.raises(BindError) as caught:
        bind(entry(address))
    assert caught.value.code == errno.EINVAL


def test_binds_a_unix_socket_and_removes_it(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    listener = bind(entry(f"unix:{path}"))
    assert accepts(listener)
    assert path.is_socket()
    listener.close()
    assert not path.exists()


def test_replaces_a_unix_socket_that_nobody_listens_on(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    listener = bind(entry(f"unix:{path}"))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    listener.close()


def test_refuses_a_unix_socket_that_is_in_use(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen(1)
        with pytest.raises(BindError, match="EADDRINUSE"):
            bind(entry(f"unix:{path}"))
    assert path.is_socket()


def test_refuses_a_path_that_is_no_socket(tmp_path: Path) -> None:
    path = tmp_path / "notes"
    path.write_text("keep")
    with pytest.raises(BindError, match="not a socket"):
        bind(entry(f"unix:{path}"))
    assert path.read_text() == "keep"


def test_leaves_a_unix_socket_alone_that_somebody_else_has_put_there(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    listener = bind(entry(f"unix:{path}"))
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        listener.close()
        assert path.is_socket()


def test_leaves_nothing_open_when_one_of_several_is_taken(taken: str) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(BindError):
        bind_all([entry("127.0.0.1:0"), entry(taken)], has_predecessor=False)
    assert set(os.listdir("/proc/self/fd")) == before


def test_waits_for_the_workers_of_a_predecessor_to_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{server.getsockname()[1]}"
    waits = []

    def let_go(seconds: float) -> None:
        waits.append(seconds)
        server.close()

    monkeypatch.setattr(time, "sleep", let_go)
    (listener,) = bind_all([entry(address)], has_predecessor=True)
    assert len(waits) == 1
    assert listener.address == address
    listener.close()


def free() -> str:
    """Return an address that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def test_binds_where_the_last_start_listened_rather_than_the_default() -> None:
    kept = free()
    (listener,) = bind_all([entry(free(), fallback=True, kept=kept)], has_predecessor=False)
    assert listener.address == kept
    listener.close()


def test_binds_the_default_when_somebody_has_the_kept_address_and_then_any(taken: str) -> None:
    default = free()
    (listener,) = bind_all([entry(default, fallback=True, kept=taken)], has_predecessor=False)
    assert listener.address == default
    (other,) = bind_all([entry(default, fallback=True, kept=taken)], has_predecessor=False)
    assert other.address not in (default, taken)
    assert other.address.startswith("127.0.0.1:")
    listener.close()
    other.close()


def test_a_kept_address_that_is_none_is_no_reason_not_to_start() -> None:
    default = free()
    (listener,) = bind_all([entry(default, fallback=True, kept="nowhere")], has_predecessor=False)
    assert listener.address == default
    listener.close()


def test_waits_for_the_workers_of_a_predecessor_at_the_kept_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = socket.create_server(("127.0.0.1", 0))
    kept = f"127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setattr(time, "sleep", lambda _: server.close())
    (listener,) = bind_all([entry(free(), fallback=True, kept=kept)], has_predecessor=True)
    assert listener.address == kept
    listener.close()


def test_gives_up_on_a_predecessor_after_two_seconds(taken: str) -> None:
    began = time.monotonic()
    with pytest.raises(BindError, match="EADDRINUSE"):
        bind_all([entry(taken)], has_predecessor=True)
    assert 2.0 <= time.monotonic() - began < 10.0
