"""What hostile or unlucky callers, upstreams and moments did once, and must not again."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.dataplane.harness import (
    MESHFAST,
    Client,
    Origin,
    Proxy,
    echo_origin,
    forwarding,
    free_port,
    pool,
    wait_for,
)


def is_worker(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text() == "meshfast-worker\n"
    except OSError:
        return False


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_follows_its_answer_does_not_cost_the_next_request(
    tmp_path: Path, chunked: bool
) -> None:
    def script(client: Client) -> None:
        client.read_until(b"\r\n\r\n")
        client.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        client.rest()

    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: 5"
    body = b"5\r\nhello\r\n0\r\n\r\n" if chunked else b"hello"
    with Origin(script) as origin, forwarding(origin, tmp_path) as (_, port):
        with Client(port) as client:
            for _ in range(3):
                client.send(b"POST / HTTP/1.1\r\nHost: a\r\n" + framing + b"\r\n\r\n")
                response = client.response()
                assert (response.status, response.header("connection")) == (200, None)
                client.send(body)


def test_a_long_body_that_follows_its_answer_is_told_to_end_the_connection(tmp_path: Path) -> None:
    def script(client: Client) -> None:
        client.read_until(b"\r\n\r\n")
        client.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        client.rest()

    with Origin(script) as origin, forwarding(origin, tmp_path) as (_, port):
        with Client(port) as client:
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
            assert client.response().header("connection") == "close"


def test_a_body_nobody_wants_is_not_read_for_ever(tmp_path: Path) -> None:
    def script(client: Client) -> None:
        client.read_until(b"\r\n\r\n")
        client.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        client.rest()

    with Origin(script) as origin, forwarding(origin, tmp_path) as (_, port):
        with Client(port) as client:
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
            assert client.response().status == 200
            wait_for("the connection to end", lambda: not takes(client, b"1\r\nx\r\n" * 1000), 10)


def takes(client: Client, data: bytes) -> bool:
    try:
        client.send(data)
    except ConnectionError:
        return False
    return True


def test_one_good_endpoint_among_refusing_ones_answers_everything(tmp_path: Path) -> None:
    port = free_port()
    refusing = [free_port() for _ in range(4)]
    with echo_origin("good") as good:
        ports = [*refusing, good.port]
        endpoints = ", ".join(f"{{address: 127.0.0.1, ports: {{http: {one}}}}}" for one in ports)
        config = tmp_path / "mesh.yaml"
        config.write_text(pool(port, endpoints))
        with Proxy(["-c", str(config)], tmp_path, workers=2):
            outcomes: Counter[int] = Counter()
            clients = [Client(port) for _ in range(8)]
            for number in range(400):
                client = clients[number % 8]
                method = b"POST" if number % 4 == 0 else b"GET"
                client.send(method + b" / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
                outcomes[client.response().status] += 1
            for client in clients:
                client.close()
    assert outcomes == {200: 400}


def test_a_stopped_worker_is_given_no_more_than_what_came_before_it_was_noticed(
    tmp_path: Path,
) -> None:
    with echo_origin() as origin, forwarding(origin, tmp_path, workers=2) as (proxy, port):
        stopped = max(pid for pid in proxy.children() if is_worker(pid))
        os.kill(stopped, signal.SIGSTOP)
        try:
            answered = 0
            clients = []
            for _ in range(60):
                client = Client(port, seconds=0.3)
                clients.append(client)
                client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                with contextlib.suppress(TimeoutError):
                    answered += client.response().status == 200
            assert answered >= 55
        finally:
            os.kill(stopped, signal.SIGCONT)
        for client in clients:
            client.close()


def test_an_answer_to_a_dead_worker_s_question_is_nobody_else_s(tmp_path: Path) -> None:
    port = free_port()
    with echo_origin("first") as first, echo_origin("second") as second:
        with Proxy(["--listen", f"127.0.0.1:{port}", "--forward"], tmp_path, workers=1) as proxy:
            [worker] = [pid for pid in proxy.children() if is_worker(pid)]
            agent = next(pid for pid in proxy.children() if pid != worker)
            os.kill(agent, signal.SIGSTOP)
            try:
                with Client(port) as lost:
                    lost.send(
                        f"GET http://localhost:{first.port}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode()
                    )
                    peer = lost.socket.getsockname()[1]
                    wait_for("the request to be read", lambda: is_read(peer))
                    os.kill(worker, signal.SIGKILL)
                    wait_for("a successor", lambda: [p for p in proxy.children() if p != worker])
                client = Client(port)
                client.send(
                    f"GET http://localhost:{second.port}/ HTTP/1.1\r\nHost: x\r\n"
                    "Authorization: Bearer secret\r\n\r\n".encode()
                )
            finally:
                os.kill(agent, signal.SIGCONT)
            assert client.response().body.startswith(b"second\n")
            client.close()
    # The first request itself may have waited in the backlog and been served by the successor.
    assert not [head for head in first.heads if b"secret" in head]


def is_read(peer: int) -> bool:
    """Whether the proxy has read everything that came from this port."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    queues = [row[4] for row in rows if int(row[2].rsplit(":", 1)[1], 16) == peer]
    return bool(queues) and all(queue.endswith(":00000000") for queue in queues)


def test_https_in_a_target_is_never_answered_in_plain_text(tmp_path: Path) -> None:
    port = free_port()
    with echo_origin() as origin:
        with Proxy(["--listen", f"127.0.0.1:{port}", "--forward"], tmp_path) as proxy:
            with Client(port) as client:
                target = f"https://127.0.0.1:{origin.port}/"
                client.send(f"GET {target} HTTP/1.1\r\nHost: x\r\nCookie: s=1\r\n\r\n".encode())
                assert client.response().status == 501
            assert proxy.rejected("https_target_not_supported") == 1
        assert origin.accepted == 0


def test_the_next_address_of_a_name_is_tried(tmp_path: Path) -> None:
    """`localhost` may be ::1 first; the origin listens on 127.0.0.1 only."""
    port = free_port()
    with echo_origin() as origin:
        with Proxy(["--listen", f"127.0.0.1:{port}", "--forward"], tmp_path):
            with Client(port) as client:
                client.send(
                    f"GET http://localhost:{origin.port}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode()
                )
                assert client.response().status == 200


def test_a_request_to_the_host_s_own_address_does_not_go_round(tmp_path: Path) -> None:
    own = [one for one in own_addresses() if not one.startswith("127.")]
    port = free_port()
    with Proxy(["--listen", f"0.0.0.0:{port}", "--forward"], tmp_path):
        for address in [*own, "127.0.0.1", "127.0.0.9"]:
            with Client(port) as client:
                client.send(f"GET http://{address}:{port}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                assert client.response().status == 508, address


def own_addresses() -> list[str]:
    listing = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=True).stdout
    return [address for address in listing.split() if ":" not in address]


def test_two_proxies_that_point_at_each_other_stop(tmp_path: Path) -> None:
    ports = [free_port(), free_port()]
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    arguments = [
        ["--listen", f"127.0.0.1:{ports[0]}", "--to", f"127.0.0.1:{ports[1]}"],
        ["--listen", f"127.0.0.1:{ports[1]}", "--to", f"127.0.0.1:{ports[0]}"],
    ]
    with Proxy(arguments[0], folders[0]) as proxy, Proxy(arguments[1], folders[1]):
        with Client(ports[0]) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.response().status == 508
        assert len(proxy.records(1)) <= 20


def test_it_starts_with_stdout_closed(tmp_path: Path) -> None:
    port = free_port()
    command = (
        f"exec {MESHFAST} proxy --listen 127.0.0.1:{port} --to 127.0.0.1:1 --access-log off "
        f"--runtime-dir {tmp_path}/run --metrics-address 127.0.0.1:{free_port()} >&-"
    )
    process = subprocess.Popen(["sh", "-c", command], stderr=subprocess.PIPE)
    try:
        wait_for("the proxy to accept", lambda: accepts(port))
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=20)
    assert b"Traceback" not in errors
    assert process.returncode == 0


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return False
    return True
