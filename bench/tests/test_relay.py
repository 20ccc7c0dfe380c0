"""Behaviour of bench/relay.c: bytes arrive whole, ends are passed on, nothing is left behind."""

from __future__ import annotations

import os
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench import accounting
from bench.processes import free_port, stop, wait_until
from bench.tests.conftest import serving

TIMEOUT_S = 20.0
BIG = 64 * 2**20  # more than the kernel buffers of four sockets hold (tcp_rmem, tcp_wmem: 20 MiB)


@contextmanager
def relaying(binary: Path, upstream_port: int) -> Iterator[tuple[int, int]]:
    """Run the relay; yield its port and its process id."""
    port = free_port()
    process = subprocess.Popen([str(binary), str(port), str(upstream_port)], start_new_session=True)
    try:
        wait_until("relay listens", TIMEOUT_S, lambda: listens(port))
        yield port, process.pid
    finally:
        stop(process)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)


def echo(connection: socketserver.BaseRequestHandler) -> None:
    """Send back all that comes, until the end."""
    while piece := connection.request.recv(65536):
        connection.request.sendall(piece)


def read_all(client: socket.socket) -> bytes:
    received = bytearray()
    while piece := client.recv(65536):
        received += piece
    return bytes(received)


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_a_reader_that_waits_stops_the_writer_and_loses_nothing(relay_binary: Path) -> None:
    block = os.urandom(2**16)
    sent = 0
    go_on = threading.Event()

    def echo_when_told(connection: socketserver.BaseRequestHandler) -> None:
        go_on.wait(TIMEOUT_S)
        echo(connection)

    def send() -> None:
        nonlocal sent
        while sent < BIG:
            client.sendall(block)
            sent += len(block)
        client.shutdown(socket.SHUT_WR)

    def stalled() -> bool:
        before = sent
        time.sleep(0.1)
        return 0 < before == sent

    with (
        serving(echo_when_told) as upstream,
        relaying(relay_binary, upstream) as (port, pid),
        connect(port) as client,
    ):
        sender = threading.Thread(target=send)
        sender.start()
        wait_until("the writer stalled", TIMEOUT_S, stalled)
        assert sent < BIG
        assert (accounting.pss_bytes(pid) or BIG) < 2 * 2**20
        go_on.set()
        received = read_all(client)
        sender.join()
    assert received == block * (BIG // len(block))


def test_the_end_of_one_direction_leaves_the_other_open(relay_binary: Path) -> None:
    def answer_after_the_end(connection: socketserver.BaseRequestHandler) -> None:
        count = len(read_all(connection.request))
        connection.request.sendall(b"%d bytes" % count)

    with (
        serving(answer_after_the_end) as upstream,
        relaying(relay_binary, upstream) as (port, _),
        connect(port) as client,
    ):
        client.sendall(b"x" * 1000)
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"1000 bytes"


def test_without_an_upstream_the_client_is_closed(relay_binary: Path) -> None:
    with relaying(relay_binary, free_port()) as (port, _), connect(port) as client:
        assert client.recv(1) == b""


def test_closed_pairs_give_their_descriptors_back(relay_binary: Path) -> None:
    with serving(echo) as upstream, relaying(relay_binary, upstream) as (port, pid):
        wait_until("the probe's pair closed", TIMEOUT_S, lambda: open_files(pid) == idle_files())
        for _ in range(50):
            with connect(port) as client:
                client.sendall(b"ping")
                assert client.recv(4) == b"ping"
        wait_until("descriptors back", TIMEOUT_S, lambda: open_files(pid) == idle_files())


def idle_files() -> int:
    """Standard streams, the epoll set and the listener."""
    return 5


@pytest.mark.parametrize("arguments", [(), ("1",), ("1", "2", "3")])
def test_wrong_arguments_are_refused_with_the_usage(
    relay_binary: Path, arguments: tuple[str, ...]
) -> None:
    done = subprocess.run(
        [str(relay_binary), *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "usage: relay LISTEN_PORT UPSTREAM_PORT\n"
