"""Moments at which one connection could take something from another, or pass a part for a whole.

A caller that leaves before its answer, a peer that closes in the middle, a deadline that falls
between two states, a listener that goes away while it is used. Each test brings a whole proxy into
that moment by holding still one process or one peer, never by luck; what only a stepped worker can
show is in rust/engine/src/worker/tests/edges.rs. Requests that are wrong in themselves are in
test_rows.py, planned restarts under load in test_lifecycle.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import threading
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dataplane import harness
from tests.dataplane.harness import (
    Client,
    Origin,
    Proxy,
    echo_origin,
    forwarding,
    free_port,
    wait_for,
)

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"

WEBSOCKET = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"

SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"

LISTENER = """\
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: {name}}}
spec:
  servers:
    - port: {{number: {port}, name: http, protocol: HTTP}}
      bind: 127.0.0.1
      hosts: ["*"]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}}}
spec:
  hosts: ["*"]
  gateways: [{name}]
  http:
    - timeout: {timeout}
      route: [{{destination: {{host: {name}}}}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}}}
spec:
  hosts: [{name}]
  ports: [{{number: {upstream}, name: http, protocol: HTTP}}]
  location: MESH_INTERNAL
  resolution: STATIC
  endpoints: [{{address: 127.0.0.1}}]
---
"""


def listener(name: str, port: int, upstream: int, timeout: str = "0s") -> str:
    """The resources of a gateway that sends everything to one upstream."""
    return LISTENER.format(name=name, port=port, upstream=upstream, timeout=timeout)


@contextlib.contextmanager
def routed(upstream: int, folder: Path, timeout: str) -> Iterator[tuple[Proxy, int]]:
    """A proxy whose one route has a timeout, and its port."""
    port = free_port()
    config = folder / "mesh.yaml"
    config.write_text(listener("edge", port, upstream, timeout))
    with Proxy(["-c", str(config)], folder, workers=1) as proxy:
        yield proxy, port


@contextlib.contextmanager
def forward_proxy(folder: Path) -> Iterator[tuple[Proxy, int]]:
    """A forward proxy of one worker, and its port."""
    port = free_port()
    with Proxy(["--listen", f"127.0.0.1:{port}", "--forward"], folder, workers=1) as proxy:
        yield proxy, port


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Hold a process still for the time of the block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        stat = Path(f"/proc/{pid}/stat")
        wait_for("the process to stop", lambda: stat.read_text().rsplit(") ", 1)[1][0] == "T")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def is_worker(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text() == "meshfast-worker\n"
    except OSError:
        return False


def workers(proxy: Proxy) -> list[int]:
    return [pid for pid in proxy.children() if is_worker(pid)]


def agent(proxy: Proxy) -> int:
    [pid] = [pid for pid in proxy.children() if not is_worker(pid)]
    return pid


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def per_worker(proxy: Proxy, name: str) -> dict[str, float]:
    """The samples of a worker metric by slot."""
    return {labels["worker"]: value for labels, value in proxy.metrics().get(name, [])}


def reset(client: Client) -> None:
    """Close with a reset."""
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def ending(client: Client) -> tuple[bytes, str]:
    """Everything until the connection ends, and how it does."""
    try:
        return client.rest(), "FIN"
    except ConnectionResetError:
        return client.buffer, "reset"


def named(authority: str, path: str) -> bytes:
    return f"GET http://{authority}{path} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode()


def ask(port: int, request: bytes = GET) -> tuple[int, bytes]:
    """Status and first line of the answer on a connection of its own."""
    with Client(port, seconds=10) as client:
        client.send(request)
        response = client.response()
        return response.status, response.body.split(b"\n")[0]


def leave_a_question(port: int, worker: int, target: str) -> None:
    """Ask for a host name while the agent is held still, and reset without waiting."""
    before = descriptors(worker)
    client = Client(port)
    client.send(named(target, "/left"))
    # The worker asks the resolver in the turn in which it reads the request.
    wait_for("the request to be read", lambda: is_read(client, port))
    wait_for("the connection to be taken", lambda: descriptors(worker) == before + 1)
    reset(client)
    wait_for("the worker to let it go", lambda: descriptors(worker) == before)


def is_read(client: Client, port: int) -> bool:
    """Whether the proxy has taken from the kernel what `client` has sent."""
    own = client.socket.getsockname()[1]
    queues = {}  # (local, remote) -> bytes not acknowledged, bytes not read
    for row in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, both, *_ = row.split()
        ports = tuple(int(address.split(":")[1], 16) for address in (local, remote))
        queues[ports] = [int(bytes_, 16) for bytes_ in both.split(":")]
    arrived = (own, port) in queues and queues[own, port][0] == 0
    return arrived and (port, own) in queues and queues[port, own][1] == 0


def test_an_answer_that_comes_after_its_asker_left_touches_nobody(tmp_path: Path) -> None:
    with echo_origin("left") as left, echo_origin("next") as following:
        with forward_proxy(tmp_path) as (proxy, port):
            before = workers(proxy)
            with stopped(agent(proxy)):
                leave_a_question(port, before[0], f"localhost:{left.port}")
            # Answers of one name come in the order of the questions.
            name = f"localhost:{following.port}"
            assert ask(port, named(name, "/")) == (200, b"next")
            assert workers(proxy) == before
        assert left.accepted == 0


def test_an_answer_that_comes_late_does_not_move_who_took_the_place(tmp_path: Path) -> None:
    held = threading.Event()

    def script(client: Client) -> None:
        origin.request(client)
        held.wait(20)
        client.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nmine")

    with Origin(script) as origin, echo_origin("left") as left, echo_origin("last") as last:
        with forward_proxy(tmp_path) as (proxy, port):
            before = workers(proxy)
            with stopped(agent(proxy)):
                leave_a_question(port, before[0], f"localhost:{left.port}")
                client = Client(port)
                client.send(named(f"127.0.0.1:{origin.port}", "/private"))
                wait_for("the second request to arrive", lambda: origin.heads)
            assert ask(port, named(f"localhost:{last.port}", "/")) == (200, b"last")
            held.set()
            assert client.response().body == b"mine"
            client.close()
            assert workers(proxy) == before
        assert left.heads == []
        assert len(origin.heads) == 1


@pytest.mark.parametrize("slow_worker", [0, 1])
@pytest.mark.parametrize("removed", ["first", "second"])
def test_a_listener_that_goes_away_is_never_served_by_anothers_routes(
    tmp_path: Path, removed: str, slow_worker: int
) -> None:
    ports = dict(zip(["first", "second"], sorted([free_port(), free_port()]), strict=True))
    config = tmp_path / "mesh.yaml"
    [kept] = set(ports) - {removed}
    with echo_origin("first") as first, echo_origin("second") as second:
        text = {
            "first": listener("first", ports["first"], first.port),
            "second": listener("second", ports["second"], second.port),
        }
        config.write_text(text["first"] + text["second"])
        with Proxy(["-c", str(config)], tmp_path, workers=2) as proxy:
            before = workers(proxy)
            with stopped(before[slow_worker]):
                config.write_text(text[kept])
                proxy.process.send_signal(signal.SIGHUP)
                wait_for(
                    "the other worker to have the new snapshot",
                    lambda: 2 in per_worker(proxy, "meshfast_worker_generation").values(),
                )
                # The slow one has the listener still, so the kernel takes connections.
                clients = [Client(ports[removed]) for _ in range(8)]
                for client in clients:
                    client.send(GET)
            answers = [name_or_nothing(client) for client in clients]
            assert set(answers) <= {removed.encode(), b""}, answers
            assert ask(ports[kept]) == (200, kept.encode())
            assert workers(proxy) == before
            for client in clients:
                client.close()


def name_or_nothing(client: Client) -> bytes:
    """The name of the origin that answers; nothing when the connection ends without an answer."""
    try:
        return client.response().body.split(b"\n")[0]
    except ConnectionError:
        return b""


def relay(client: Client) -> None:
    """The far end of a WebSocket: says everything back."""
    client.read_until(b"\r\n\r\n")
    client.send(SWITCHED)
    while data := client.socket.recv(65536):
        client.send(data)


def test_a_worker_killed_while_it_drained_holds_up_nothing(tmp_path: Path) -> None:
    port = free_port()
    config = tmp_path / "mesh.yaml"
    with Origin(relay) as sockets, echo_origin("one") as one, echo_origin("two") as two:
        config.write_text(listener("edge", port, sockets.port))
        with Proxy(["-c", str(config)], tmp_path, workers=1) as proxy:

            def read_again(origin: Origin, name: bytes) -> None:
                config.write_text(listener("edge", port, origin.port))
                proxy.process.send_signal(signal.SIGHUP)
                wait_for(f"{name!r} to answer", lambda: ask(port) == (200, name), 10)

            [old] = workers(proxy)
            client = Client(port)
            client.send(WEBSOCKET)
            client.read_until(b"\r\n\r\n")
            # The agent of the next image does not know what the socket's snapshot had.
            read_again(one, b"one")
            proxy.process.send_signal(signal.SIGUSR2)
            wait_for("the restart", lambda: "all workers are of image 1" in proxy.stderr())
            assert per_worker(proxy, "meshfast_worker_connections")["0"] == 1
            os.kill(old, signal.SIGKILL)
            wait_for("the old worker to be gone", lambda: old not in proxy.children())
            client.close()
            read_again(two, b"two")
            read_again(one, b"one")

            def is_forgotten() -> bool:
                return not per_worker(proxy, "meshfast_worker_connections").get("0")

            wait_for("its connections to count for nothing", is_forgotten, 5)


def test_a_cluster_that_is_the_proxy_itself_is_told_at_once(tmp_path: Path) -> None:
    port = free_port()
    address = f"127.0.0.1:{port}"
    with Proxy(["--listen", address, "--to", address], tmp_path, workers=1) as proxy:
        [worker] = workers(proxy)
        before = descriptors(worker)
        with Client(port, seconds=2) as client:
            client.send(GET)
            assert client.response().status == 508
            assert descriptors(worker) == before + 1
        [record] = proxy.records(1)
        assert record["response_code_details"] == "request_loop"


def test_bytes_behind_an_upgrade_that_was_not_granted_are_no_request(tmp_path: Path) -> None:
    with echo_origin() as origin, forwarding(origin, tmp_path) as (_, port):
        with Client(port, seconds=5) as client:
            client.send(WEBSOCKET + GET)
            response = client.response()
            assert response.status == 200
            assert response.header("connection") == "close"
            assert client.is_closed()
        assert len(origin.heads) == 1


def test_bytes_behind_a_connect_that_failed_are_no_request(tmp_path: Path) -> None:
    with echo_origin() as origin, forward_proxy(tmp_path) as (_, port):
        nobody = f"127.0.0.1:{free_port()}"
        with Client(port, seconds=5) as client:
            head = f"CONNECT {nobody} HTTP/1.1\r\nHost: {nobody}\r\n\r\n"
            client.send(head.encode() + named(f"127.0.0.1:{origin.port}", "/inside"))
            response = client.response()
            assert response.status == 503
            assert response.header("connection") == "close"
            assert client.is_closed()
        assert origin.accepted == 0


def test_a_response_until_close_that_the_drain_cuts_ends_in_a_reset(tmp_path: Path) -> None:
    def script(client: Client) -> None:
        origin.request(client)
        client.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            client.send(b"5\r\nline\n\r\n")
            time.sleep(0.05)

    port = free_port()
    with Origin(script) as origin:
        arguments = ["--listen", f"127.0.0.1:{port}", "--to", f"127.0.0.1:{origin.port}"]
        with Proxy([*arguments, "--drain-time", "1s"], tmp_path, workers=1) as proxy:
            with Client(port) as client:
                client.send(b"GET / HTTP/1.0\r\n\r\n")
                client.read_until(b"line\n")
                proxy.process.send_signal(signal.SIGTERM)
                data, end = ending(client)
                assert end == "reset", data[-100:]
            assert proxy.process.wait(timeout=10) == 0
            [record] = proxy.records(1)
            assert (record["response_flags"], record["response_code"]) == ("LR", 200)


@pytest.mark.parametrize(
    ("said", "is_reset"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nha", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", True),
        (b"HTTP/1.1 200 OK\r\n\r\nhalf", True),
    ],
    ids=["chunk-cut-by-fin", "chunks-cut-by-reset", "until-close-cut-by-reset"],
)
def test_a_response_until_close_whose_upstream_vanishes_ends_in_a_reset(
    tmp_path: Path, said: bytes, is_reset: bool
) -> None:
    seen = threading.Event()

    def script(client: Client) -> None:
        origin.request(client)
        client.send(said)
        seen.wait(20)
        if is_reset:
            reset(client)

    with Origin(script) as origin, forwarding(origin, tmp_path) as (proxy, port):
        with Client(port) as client:
            client.send(b"GET / HTTP/1.0\r\n\r\n")
            client.read_until(b"\r\n\r\nha")
            seen.set()
            assert ending(client)[1] == "reset"
        assert proxy.records(1)[0]["response_flags"] == "UC"


def test_a_half_closed_caller_gets_the_whole_of_a_slow_response(tmp_path: Path) -> None:
    lines = 24  # 7.2 s: longer than a caller that has closed is waited for

    def script(client: Client) -> None:
        origin.request(client)
        client.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(lines):
            client.send(b"5\r\nline\n\r\n")
            time.sleep(0.3)
        client.send(b"0\r\n\r\n")

    with Origin(script) as origin, forwarding(origin, tmp_path) as (_, port):
        with Client(port) as old, Client(port) as new:
            for client, version in ((old, b"1.0"), (new, b"1.1")):
                client.send(b"GET / HTTP/" + version + b"\r\nHost: a\r\n\r\n")
                client.socket.shutdown(socket.SHUT_WR)
            for client in (new, old):
                assert client.response().body == b"line\n" * lines
                assert ending(client) == (b"", "FIN")


def test_a_half_closed_caller_is_told_of_the_route_timeout_at_its_time(tmp_path: Path) -> None:
    with Origin(silent) as origin, routed(origin.port, tmp_path, "1s") as (_, port):
        start = time.monotonic()
        with Client(port) as client:
            client.send(GET)
            client.socket.shutdown(socket.SHUT_WR)
            assert client.response().status == 504
            assert 1 <= time.monotonic() - start < 2.5


def silent(client: Client) -> None:
    """Reads and says nothing."""
    client.rest()


def test_a_websocket_lives_longer_than_the_timeout_of_its_route(tmp_path: Path) -> None:
    with Origin(relay) as origin, routed(origin.port, tmp_path, "1s") as (proxy, port):
        with Client(port) as client:
            client.send(WEBSOCKET)
            assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
            # A tunnel is looked at every 5 s; what had passed before shows then.
            end = time.monotonic() + 6.5
            while time.monotonic() < end:
                client.send(b"ping")
                assert client.read_exactly(4) == b"ping"
                time.sleep(0.1)
        assert proxy.records(1)[0]["response_flags"] == "-"


def test_an_early_answer_reaches_a_caller_that_is_still_sending(tmp_path: Path) -> None:
    def script(client: Client) -> None:
        client.read_until(b"\r\n\r\n")
        # Unread bytes make the close that follows a reset.
        client.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno")

    data = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n" + b"x" * 2_000_000
    with Origin(script) as origin, forwarding(origin, tmp_path) as (_, port):
        for number in range(20):
            with Client(port, seconds=5) as client:
                sender = threading.Thread(target=send_what_is_taken, args=(client, data))
                sender.start()
                response = client.response()
                assert (response.status, response.body) == (413, b"no"), number
                with contextlib.suppress(OSError):  # the proxy may have ended it already
                    client.socket.shutdown(socket.SHUT_RDWR)
                sender.join()


def send_what_is_taken(client: Client, data: bytes) -> None:
    with contextlib.suppress(OSError):
        client.send(data)


def closes_at_the_second_request(client: Client, origin: Origin, *, counts: list[bytes]) -> None:
    """Serves one request and closes when it has read the next, as a server does whose keep-alive
    time runs out in that moment."""
    head, _ = origin.request(client)
    counts.append(b"served " + head.split(b" ")[1])
    client.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    head, _ = origin.request(client)
    counts.append(b"lost " + head.split(b" ")[1])


def test_an_empty_chunked_body_on_a_stale_connection_never_hangs(tmp_path: Path) -> None:
    counts: list[bytes] = []

    def script(client: Client) -> None:
        closes_at_the_second_request(client, origin, counts=counts)

    with Origin(script) as origin, forwarding(origin, tmp_path) as (_, port):
        with Client(port) as client:
            client.send(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.response().status == 200
            client.socket.settimeout(2)
            start = time.monotonic()
            client.send(
                b"GET /2 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            )
            status = client.response().status
            assert time.monotonic() - start < 1
    assert b"lost /2" in counts
    assert status == (200 if b"served /2" in counts else 503)


def test_a_stale_connection_of_a_forward_proxy_is_tried_again_for_get(tmp_path: Path) -> None:
    counts: list[bytes] = []

    def script(client: Client) -> None:
        closes_at_the_second_request(client, origin, counts=counts)

    with Origin(script) as origin, forward_proxy(tmp_path) as (_, port):
        with Client(port) as client:
            for path in ("/1", "/2"):
                client.send(named(f"127.0.0.1:{origin.port}", path))
                assert client.response().status == 200
    assert counts == [b"served /1", b"lost /2", b"served /2"]


def test_idle_connections_make_room_at_the_descriptor_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = tmp_path / "meshfast"
    limited.write_text(f'#!/bin/sh\nulimit -n 256\nexec {harness.MESHFAST} "$@"\n')
    limited.chmod(0o755)
    monkeypatch.setattr(harness, "MESHFAST", limited)
    with echo_origin() as origin, forwarding(origin, tmp_path) as (proxy, port):
        with contextlib.ExitStack() as opened:
            for number in range(201):
                # Above a hundred, a connection is taken when another has been idle for a second.
                client = opened.enter_context(Client(port, seconds=5))
                client.send(GET)
                assert client.response().status == 200, number
        assert proxy.rejected("connection_limit") > 0


def test_a_fresh_upstream_that_says_nothing_is_told_from_one_that_broke_off(
    tmp_path: Path,
) -> None:
    def script(client: Client) -> None:
        client.read_until(b"\r\n\r\n")

    with Origin(script) as origin, forwarding(origin, tmp_path) as (proxy, port):
        assert ask(port)[0] == 503
        [record] = proxy.records(1)
        assert record["response_flags"] == "UC"
        assert (
            record["response_code_details"]
            == "upstream_reset_before_response_started{connection_termination}"
        )


def test_the_access_log_keeps_what_steers_a_terminal_out_of_sight(tmp_path: Path) -> None:
    steering = "\u009b31m\u2028\u202e\u200b\ufeff"
    raw = steering.encode()
    with echo_origin() as origin, forwarding(origin, tmp_path) as (proxy, port):
        refused = b"GET /" + raw + b" HTTP/1.1\r\nHost: a\r\nUser-Agent: " + raw + b"\r\n\r\n"
        assert ask(port, refused)[0] == 400
        fields = (b"User-Agent", b"X-Request-Id", b"X-Forwarded-For")
        lines = b"".join(name + b": a" + raw + b"z\r\n" for name in fields)
        assert ask(port, b"GET /ok HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n")[0] == 200
        proxy.records(2)
    text = proxy.log.read_bytes().decode()
    assert text.count("\n") == 2
    for line in text.split("\n")[:2]:
        kinds = {unicodedata.category(character) for character in line}
        assert not kinds & {"Cc", "Cf", "Zl", "Zp"}, line
    assert json.loads(text.split("\n")[1])["user_agent"] == f"a{steering}z"


@contextlib.contextmanager
def unanswering() -> Iterator[int]:
    """A port whose connects hang: the backlog is full and nobody accepts."""
    with contextlib.ExitStack() as opened:
        full = opened.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port: int = full.getsockname()[1]
        # The kernel takes one more than the backlog; the rest it lets wait.
        for _ in range(4):
            with contextlib.suppress(TimeoutError):
                opened.enter_context(socket.create_connection(("127.0.0.1", port), timeout=0.1))
        with pytest.raises(TimeoutError):
            socket.create_connection(("127.0.0.1", port), timeout=0.1)
        yield port


def test_a_route_timeout_runs_while_the_upstream_is_connected_to(tmp_path: Path) -> None:
    with unanswering() as upstream, routed(upstream, tmp_path, "500ms") as (proxy, port):
        start = time.monotonic()
        assert ask(port)[0] == 504
        assert 0.5 <= time.monotonic() - start < 2
        assert proxy.records(1)[0]["response_flags"] == "UT"


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_slow_reader_gets_the_whole_within_the_drain_time(tmp_path: Path, version: bytes) -> None:
    size = 50_000_000
    piece = bytes(range(250)) * 400

    def script(client: Client) -> None:
        origin.request(client)
        client.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // len(piece)):
            client.send(piece)

    port = free_port()
    with Origin(script) as origin:
        arguments = ["--listen", f"127.0.0.1:{port}", "--to", f"127.0.0.1:{origin.port}"]
        with Proxy([*arguments, "--drain-time", "30s"], tmp_path, workers=1) as proxy:
            with Client(port) as client:
                client.send(b"GET / HTTP/" + version + b"\r\nHost: a\r\n\r\n")
                client.read_until(b"\r\n\r\n")
                proxy.process.send_signal(signal.SIGTERM)
                wait_for("not ready", lambda: proxy.get("/healthz/ready")[0] == 503, 5)
                body, end = slowly(client)
            assert (len(body), end) == (size, "FIN")
            assert body == piece * (size // len(piece))
            assert proxy.process.wait(timeout=15) == 0


def slowly(client: Client) -> tuple[bytes, str]:
    """Everything until the connection ends, in five seconds or so, and how it ends."""
    taken = bytearray(client.buffer)
    pause_at = 0
    try:
        while more := client.socket.recv(65536):
            taken += more
            if len(taken) >= pause_at:
                pause_at += 1_000_000
                time.sleep(0.1)
    except ConnectionResetError:
        return bytes(taken), "reset"
    return bytes(taken), "FIN"


def test_an_origin_that_sends_its_head_alone_is_not_kept_waiting(tmp_path: Path) -> None:
    """Such an origin (Nagle's algorithm, two writes) sends the body when the head is acknowledged.

    Linux acknowledges up to 40 ms late (TCP_DELACK_MIN) on a connection that is in use for long.
    """

    def script(client: Client) -> None:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
        while client.read_until(b"\r\n\r\n"):
            client.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
            client.send(b"ok")

    took: list[float] = []
    with (
        Origin(script) as origin,
        forwarding(origin, tmp_path) as (_, port),
        Client(port) as client,
    ):
        for _ in range(60):
            began = time.monotonic()
            client.send(GET)
            assert client.response().body == b"ok"
            took.append(time.monotonic() - began)
    assert sorted(took[20:])[20] < 0.02
