"""HTTP/1 through a whole proxy: keep-alive, bodies, versions, interim answers, tunnels."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import threading
from pathlib import Path

import pytest

from tests.dataplane.harness import (
    Client,
    Origin,
    Proxy,
    echo_origin,
    forwarding,
    free_port,
    wait_for,
)


def test_one_connection_carries_many_requests(echoing: tuple[Proxy, int]) -> None:
    _, port = echoing
    with Client(port) as client:
        for number in range(50):
            client.send(f"GET /{number} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            response = client.response()
            assert response.status == 200
            assert f"GET /{number} HTTP/1.1".encode() in response.body


def test_pipelined_requests_are_answered_in_order(echoing: tuple[Proxy, int]) -> None:
    _, port = echoing
    with Client(port) as client:
        heads = [f"GET /{number} HTTP/1.1\r\nHost: a\r\n\r\n".encode() for number in range(20)]
        client.send(b"".join(heads))
        for number in range(20):
            assert f"GET /{number} HTTP".encode() in client.response().body


def test_header_lines_keep_their_order_case_and_spacing(echoing: tuple[Proxy, int]) -> None:
    _, port = echoing
    lines = b"X-One: 1\r\nx-TWO:2\r\nX-thREE:  3  \r\nx-two: again\r\n"
    with Client(port) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n")
        assert lines in client.response().body


@pytest.mark.parametrize("size", [0, 1, 1000, 65_536, 65_537, 3_000_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_arrive_whole(tmp_path: Path, size: int, chunked: bool) -> None:
    body = os.urandom(size)
    digests: list[str] = []

    def script(client: Client) -> None:
        _, got = origin.request(client)
        digests.append(hashlib.sha256(got).hexdigest())
        pieces = [got[start : start + 9000] for start in range(0, len(got), 9000)]
        client.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for piece in pieces:
            client.send(b"%x\r\n%s\r\n" % (len(piece), piece))
        client.send(b"0\r\nX-Sum: yes\r\n\r\n")

    with Origin(script) as origin, forwarding(origin, tmp_path) as (_, port):
        with Client(port) as client:
            if chunked:
                framed = b"%x;ext=1\r\n%s\r\n" % (size, body) if size else b""
                head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
                data = head + framed + b"0\r\n\r\n"
            else:
                head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size
                data = head + body
            sender = threading.Thread(target=client.send, args=(data,))
            sender.start()
            response = client.response()
            sender.join()
            assert response.body == body
            assert response.trailers == [b"X-Sum: yes"]
    assert digests == [hashlib.sha256(body).hexdigest()]


def test_a_slow_reader_stops_the_upstream(tmp_path: Path) -> None:
    sent = 0

    def script(client: Client) -> None:
        nonlocal sent
        origin.request(client)
        client.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n")
        client.socket.settimeout(3)
        piece = b"x" * 65536
        try:
            while True:
                sent += client.socket.send(piece)
        except TimeoutError:
            stopped.set()

    stopped = threading.Event()
    with Origin(script) as origin, forwarding(origin, tmp_path) as (proxy, port):
        with Client(port) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert stopped.wait(20), "the upstream was never held back"
            assert sent < 40 * 1024 * 1024
            sizes = [
                int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in proxy.children()
            ]
            assert max(sizes) * 4096 < 60 * 1024 * 1024


def test_http_10_gets_a_body_without_chunks_and_a_close(tmp_path: Path) -> None:
    def script(client: Client) -> None:
        origin.request(client)
        client.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.send(b"5\r\nhello\r\n0\r\n\r\n")

    with Origin(script) as origin, forwarding(origin, tmp_path) as (_, port):
        with Client(port) as client:
            client.send(b"GET / HTTP/1.0\r\n\r\n")
            response = client.response()
            assert response.version == "HTTP/1.0"
            assert response.header("transfer-encoding") is None
            assert response.body == b"hello"
    assert b"\r\nhost: 127.0.0.1" in origin.heads[0]


def test_http_10_keep_alive_is_told_and_kept(echoing: tuple[Proxy, int]) -> None:
    _, port = echoing
    with Client(port) as client:
        for _ in range(3):
            client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            response = client.response()
            assert response.header("connection") == "keep-alive"


def test_a_response_without_length_ends_with_the_connection(tmp_path: Path) -> None:
    def script(client: Client) -> None:
        origin.request(client)
        client.send(b"HTTP/1.0 200 OK\r\n\r\nuntil the end")

    with Origin(script) as origin, forwarding(origin, tmp_path) as (_, port):
        with Client(port) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            response = client.response()
            assert response.header("transfer-encoding") == "chunked"
            assert response.body == b"until the end"


@pytest.mark.parametrize(
    "cut",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nha",
    ],
)
def test_a_response_that_breaks_off_never_looks_complete(tmp_path: Path, cut: bytes) -> None:
    def script(client: Client) -> None:
        origin.request(client)
        client.send(cut)

    for version in (b"1.1", b"1.0"):
        folder = tmp_path / version.decode()
        folder.mkdir()
        with Origin(script) as origin, forwarding(origin, folder) as (proxy, port):
            with Client(port) as client:
                client.send(b"GET / HTTP/" + version + b"\r\nHost: a\r\n\r\n")
                with pytest.raises((ConnectionError, ValueError)):
                    client.response()
            assert proxy.records(1)[0]["response_flags"] == "UC"


def test_expect_100_continue_waits_for_the_upstream(tmp_path: Path) -> None:
    def script(client: Client) -> None:
        head = client.read_until(b"\r\n\r\n")
        assert b"Expect: 100-continue" in head
        client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert client.read_exactly(5) == b"hello"
        client.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    with Origin(script) as origin, forwarding(origin, tmp_path) as (_, port):
        with Client(port) as client:
            client.send(
                b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
            )
            assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
            client.send(b"hello")
            assert client.response().body == b"ok"


def test_a_final_answer_instead_of_100_keeps_the_framing(tmp_path: Path) -> None:
    def script(client: Client) -> None:
        client.read_until(b"\r\n\r\n")
        client.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")

    with Origin(script) as origin, forwarding(origin, tmp_path) as (_, port):
        with Client(port) as client:
            client.send(
                b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
            )
            response = client.response()
            assert (response.status, response.body) == (413, b"no")
            assert client.is_closed(), "whether the body follows is not known"


def test_interim_responses_pass_and_a_flood_does_not(tmp_path: Path) -> None:
    count = 3

    def script(client: Client) -> None:
        while True:
            origin.request(client)
            client.send(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * count)
            client.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    with Origin(script) as origin, forwarding(origin, tmp_path) as (proxy, port):
        with Client(port) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert [client.response().status for _ in range(4)] == [103, 103, 103, 200]
        count = 11
        with Client(port) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            statuses: list[int] = []
            while not statuses or statuses[-1] == 103:
                statuses.append(client.response().status)
            assert statuses == [103] * 10 + [502]
        assert proxy.rejected("upstream_interim_response_flood") == 1


def test_head_answers_have_no_body(tmp_path: Path) -> None:
    def script(client: Client) -> None:
        while True:
            origin.request(client)
            client.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n")

    with Origin(script) as origin, forwarding(origin, tmp_path) as (_, port):
        with Client(port) as client:
            for _ in range(3):
                client.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
                assert client.response("HEAD").header("content-length") == "100"


def test_an_upgrade_becomes_a_relay_of_bytes(tmp_path: Path) -> None:
    def script(client: Client) -> None:
        head = client.read_until(b"\r\n\r\n")
        assert b"upgrade: websocket" in head.lower()
        client.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\n\r\nfirst"
        )
        while data := client.socket.recv(65536):
            client.send(data[::-1])
        client.send(b"bye")

    with Origin(script) as origin, forwarding(origin, tmp_path) as (_, port):
        with Client(port) as client:
            client.send(
                b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
            )
            assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
            assert client.read_exactly(5) == b"first"
            for word in (b"abc", b"\x00\xff" * 100):
                client.send(word)
                assert client.read_exactly(len(word)) == word[::-1]
            client.socket.shutdown(socket.SHUT_WR)
            assert client.rest() == b"bye"


UPGRADE = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.parametrize("cut", [0, 1, len(SMUGGLED) - 1, len(SMUGGLED)])
def test_bytes_behind_an_upgrade_wait_for_the_101(tmp_path: Path, cut: int) -> None:
    """Row U1: after another answer than 101 they are nobody's, and the connection ends."""
    heads: list[bytes] = []
    early: list[bytes] = []
    answer = threading.Event()

    def script(client: Client) -> None:
        while True:
            heads.append(client.read_until(b"\r\n\r\n"))
            assert answer.wait(20)
            client.socket.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                early.append(client.socket.recv(100))
            client.socket.setblocking(True)
            client.send(b"HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n")

    with Origin(script) as origin, forwarding(origin, tmp_path) as (_, port):
        with Client(port) as client:
            client.send(UPGRADE + SMUGGLED[:cut])
            wait_for("the upgrade to reach the origin", lambda: heads)
            client.send(SMUGGLED[cut:])
            client.send(SMUGGLED)
            wait_for("the proxy to have read it", lambda: is_read(client))
            answer.set()
            response = client.response()
            assert (response.status, response.header("connection")) == (400, "close")
            assert client.is_closed()
    assert early == [], "nothing goes before the 101"
    assert len(heads) == 1, "nothing is read as a request"


def is_read(client: Client) -> bool:
    """Whether the proxy has taken everything this client sent out of its socket."""
    peer = f":{client.socket.getsockname()[1]:04X}"
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    queues = [row[4] for row in rows if row[2].endswith(peer)]
    return bool(queues) and all(queue.endswith(":00000000") for queue in queues)


def test_a_refused_upgrade_with_nothing_behind_it_keeps_the_connection(tmp_path: Path) -> None:
    """RFC 9110 7.8: an Upgrade may be ignored, and whoever knows that goes on in HTTP/1.1."""
    with echo_origin() as origin, forwarding(origin, tmp_path) as (_, port):
        with Client(port) as client:
            for path in (b"/one", b"/two"):
                client.send(UPGRADE.replace(b"/ws", path))
                response = client.response()
                assert (response.status, response.header("connection")) == (200, None)
                assert b"GET " + path in response.body


def test_bytes_behind_a_refused_connect_are_not_a_request(tmp_path: Path) -> None:
    connect = b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n"
    with echo_origin() as origin:
        folder = tmp_path / "off"
        folder.mkdir()
        with forwarding(origin, folder) as (_, port):
            with Client(port) as client:
                client.send(connect + SMUGGLED)
                response = client.response()
                assert (response.status, response.header("connection")) == (405, "close")
                assert client.is_closed()
        port = free_port()
        arguments = ["--listen", f"127.0.0.1:{port}", "--forward"]
        with Proxy(arguments, tmp_path) as proxy, Client(port) as client:
            client.send(connect + b"GET http://127.0.0.1:%d/ HTTP/1.1\r\n" % origin.port)
            client.send(b"Host: a\r\n\r\n")
            response = client.response()
            assert (response.status, response.header("connection")) == (503, "close")
            assert client.is_closed()
            assert len(proxy.records(1)) == 1
        assert origin.accepted == 0


def test_an_unasked_101_is_refused(tmp_path: Path) -> None:
    def script(client: Client) -> None:
        client.read_until(b"\r\n\r\n")
        client.send(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        )

    with Origin(script) as origin, forwarding(origin, tmp_path) as (_, port):
        with Client(port) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.response().status == 502


def test_connect_is_refused_where_tunnelling_is_off(echoing: tuple[Proxy, int]) -> None:
    _, port = echoing
    with Client(port) as client:
        client.send(b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n")
        response = client.response()
        assert response.status == 405
        assert response.header("allow")


def test_a_forward_proxy_tunnels_and_takes_absolute_targets(tmp_path: Path) -> None:
    port = free_port()
    with echo_origin() as origin:
        with Proxy(["--listen", f"127.0.0.1:{port}", "--forward"], tmp_path) as proxy:
            target = f"127.0.0.1:{origin.port}".encode()
            named = f"localhost:{origin.port}".encode()
            for authority in (target, named):
                with Client(port) as client:
                    client.send(b"CONNECT " + authority + b" HTTP/1.1\r\nHost: x\r\n\r\n")
                    assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
                    for _ in range(2):
                        client.send(b"GET /in HTTP/1.1\r\nHost: inner\r\n\r\n")
                        assert b"GET /in" in client.response().body
                with Client(port) as client:
                    client.send(b"GET http://" + authority + b"/abs HTTP/1.1\r\nHost: x\r\n\r\n")
                    body = client.response().body
                    assert b"GET /abs HTTP/1.1\r\nHost: " + authority in body
            with Client(port) as client:
                client.send(b"GET http://no.such.host.invalid/ HTTP/1.1\r\nHost: x\r\n\r\n")
                assert client.response().status == 503
            with Client(port) as client:
                client.send(f"GET http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                assert client.response().status == 508
            flags = {record["response_flags"] for record in proxy.records(6)}
            assert "DF" in flags
            opened = proxy.metrics()["istio_tcp_connections_opened_total"]
            assert sum(value for _, value in opened) == 2


def test_a_stale_connection_is_tried_again_for_get_and_never_for_post(tmp_path: Path) -> None:
    requests: list[bytes] = []

    def script(client: Client) -> None:
        head, _ = origin.request(client)
        requests.append(head.split(b" ")[0])
        client.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        # Reads the next request and closes without an answer, as a server does whose keep-alive
        # time runs out in that moment.
        head, _ = origin.request(client)
        requests.append(b"lost " + head.split(b" ")[0])

    with Origin(script) as origin, forwarding(origin, tmp_path) as (_, port):
        with Client(port) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.response().status == 200
            client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.response().status == 200, "an idempotent request is tried again"
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx")
            assert client.response().status == 503
    assert requests.count(b"lost POST") == 1
    assert requests.count(b"POST") == 0, "a POST that may have been read is not sent again"


def test_bytes_behind_a_response_end_the_upstream_connection(tmp_path: Path) -> None:
    def script(client: Client) -> None:
        while True:
            origin.request(client)
            client.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n")

    with Origin(script) as origin, forwarding(origin, tmp_path) as (_, port):
        with Client(port) as client:
            for _ in range(3):
                client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                assert client.response().body == b"ok"
        assert origin.accepted == 3


def test_connections_to_the_upstream_are_reused_and_dropped_when_idle(tmp_path: Path) -> None:
    with echo_origin() as origin, forwarding(origin, tmp_path) as (_, port):
        with Client(port) as client:
            for _ in range(20):
                client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                client.response()
        assert origin.accepted == 1
        assert_idle_closed(origin.port)


def assert_idle_closed(port: int) -> None:
    """Nobody is connected to `port` any more, 3 s after the last request."""
    suffix = f":{port:04X}"

    def gone() -> bool:
        rows = Path("/proc/net/tcp").read_text().splitlines()[1:]
        return not any(row.split()[2].endswith(suffix) and row.split()[3] == "01" for row in rows)

    wait_for("the idle upstream connection to close", gone, 6)


def test_nobody_listening_is_a_503_that_says_so(tmp_path: Path) -> None:
    with echo_origin() as origin:
        pass
    with forwarding(origin, tmp_path) as (proxy, port):
        with Client(port) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.response().status == 503
        record = proxy.records(1)[0]
        assert record["response_flags"] == "UF,URX"
        assert "refused" in record["upstream_transport_failure_reason"]


def test_an_aborted_request_body_aborts_the_upstream(tmp_path: Path) -> None:
    ends: list[bytes] = []

    def script(client: Client) -> None:
        client.read_until(b"\r\n\r\n")
        try:
            ends.append(client.rest())
        except ConnectionResetError:
            ends.append(b"reset")

    with Origin(script) as origin, forwarding(origin, tmp_path) as (proxy, port):
        with Client(port) as client:
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf")
            wait_for("the request to reach the origin", lambda: origin.accepted)
        assert proxy.records(1)[0]["response_flags"] == "DC"
        wait_for("the origin to see the end", lambda: ends)
        assert ends[0] in (b"half", b"reset")
