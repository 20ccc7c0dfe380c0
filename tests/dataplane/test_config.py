"""A configuration file at a whole proxy: routes, weights, timeouts, TCP, and reading it again."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.dataplane.harness import Client, Origin, Proxy, echo_origin, free_port, wait_for

GATEWAY = """\
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: edge}}
spec:
  servers:
    - port: {{number: {port}, name: http, protocol: HTTP}}
      bind: 127.0.0.1
      hosts: ["*"]
"""

ROUTES = """\
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: shop}}
spec:
  hosts: ["*"]
  gateways: [edge]
  http:
"""

ENTRY = """\
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}}}
spec:
  hosts: [{name}]
  ports: [{{number: {port}, name: main, protocol: {protocol}}}]
  location: MESH_INTERNAL
  resolution: STATIC
  endpoints: [{{address: 127.0.0.1}}]
"""


def entry(name: str, origin: Origin, protocol: str = "HTTP") -> str:
    return ENTRY.format(name=name, port=origin.port, protocol=protocol)


def ask(port: int, path: str = "/", *lines: str) -> tuple[int, bytes]:
    with Client(port) as client:
        head = f"GET {path} HTTP/1.1\r\nHost: a\r\n" + "".join(f"{line}\r\n" for line in lines)
        client.send(head.encode() + b"\r\n")
        response = client.response()
        return response.status, response.body.split(b"\n")[0]


def test_the_first_route_that_matches_wins(tmp_path: Path) -> None:
    port = free_port()
    routes = """\
    - match:
        - uri: {exact: /exact}
          headers: {x-user: {regex: "a.*"}}
        - queryParams: {version: {exact: "1"}}
      route: [{destination: {host: one}}]
    - match: [{uri: {prefix: /exact}}]
      route: [{destination: {host: two}}]
"""
    with echo_origin("one") as one, echo_origin("two") as two:
        text = GATEWAY.format(port=port) + ROUTES.format() + routes
        config = tmp_path / "mesh.yaml"
        config.write_text(text + entry("one", one) + entry("two", two))
        with Proxy(["-c", str(config)], tmp_path) as proxy:
            assert ask(port, "/exact", "X-User: anna") == (200, b"one")
            assert ask(port, "/exact", "X-User: bob") == (200, b"two")
            assert ask(port, "/exactly") == (200, b"two")
            assert ask(port, "/other?version=1") == (200, b"one")
            assert ask(port, "/other")[0] == 404
            records = proxy.records(5)
            assert Counter(
                (record["upstream_cluster"], record["response_flags"]) for record in records
            ) == {
                (f"outbound|{one.port}||one.default", "-"): 2,
                (f"outbound|{two.port}||two.default", "-"): 2,
                (None, "NR"): 1,
            }


def test_weights_are_shares(tmp_path: Path) -> None:
    port = free_port()
    routes = """\
    - route:
        - {destination: {host: one}, weight: 90}
        - {destination: {host: two}, weight: 10}
"""
    with echo_origin("one") as one, echo_origin("two") as two:
        config = tmp_path / "mesh.yaml"
        config.write_text(
            GATEWAY.format(port=port)
            + ROUTES.format()
            + routes
            + entry("one", one)
            + entry("two", two)
        )
        with Proxy(["-c", str(config)], tmp_path):
            answers: Counter[bytes] = Counter()
            with Client(port) as client:
                for _ in range(2000):
                    client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                    answers[client.response().body.split(b"\n")[0]] += 1
            # Five standard deviations of 2000 draws at 0.1.
            assert abs(answers[b"two"] - 200) < 67


def test_a_route_timeout_is_a_504(tmp_path: Path) -> None:
    def script(client: Client) -> None:
        client.read_until(b"\r\n\r\n")
        client.rest()

    port = free_port()
    routes = """\
    - timeout: 200ms
      route: [{destination: {host: silent}}]
"""
    with Origin(script) as origin:
        config = tmp_path / "mesh.yaml"
        config.write_text(
            GATEWAY.format(port=port) + ROUTES.format() + routes + entry("silent", origin)
        )
        with Proxy(["-c", str(config)], tmp_path) as proxy:
            assert ask(port)[0] == 504
            record = proxy.records(1)[0]
            assert record["response_flags"] == "UT"
            assert 200 <= record["duration"] < 1000


def test_tcp_is_relayed_with_its_half_closes(tmp_path: Path) -> None:
    def script(client: Client) -> None:
        client.send(b"server first\n")
        data = client.rest()
        client.send(data[::-1])

    port = free_port()
    gateway = GATEWAY.format(port=port).replace("protocol: HTTP", "protocol: TCP")
    routes = ROUTES.format().replace("  http:\n", "  tcp:\n")
    with Origin(script) as origin:
        config = tmp_path / "mesh.yaml"
        route = "    - route: [{destination: {host: db}}]\n"
        config.write_text(gateway + routes + route + entry("db", origin, "TCP"))
        with Proxy(["-c", str(config)], tmp_path) as proxy:
            with Client(port) as client:
                assert client.read_until(b"\n") == b"server first\n"
                client.send(b"x" * 300_000 + b"end")
                client.socket.shutdown(1)
                assert client.rest() == b"dne" + b"x" * 300_000
            record = proxy.records(1)[0]
            assert record["protocol"] == "TCP"
            assert (record["bytes_received"], record["bytes_sent"]) == (300_003, 300_016)
            received = proxy.metrics()["istio_tcp_received_bytes_total"]
            assert sum(value for _, value in received) == 300_003


def test_reading_again_moves_traffic_and_keeps_connections(tmp_path: Path) -> None:
    port, second_port = free_port(), free_port()
    server = GATEWAY.format(port=second_port).split("servers:\n")[1]
    second = server.replace("name: http", "name: http-second")
    config = tmp_path / "mesh.yaml"

    def write(to: str, extra: str = "") -> None:
        routes = f"    - route: [{{destination: {{host: {to}}}}}]\n"
        text = GATEWAY.format(port=port) + extra + ROUTES.format() + routes
        config.write_text(text + entry("one", one) + entry("two", two))

    with echo_origin("one") as one, echo_origin("two") as two:
        write("one")
        with Proxy(["-c", str(config)], tmp_path) as proxy, Client(port) as client:

            def read_again(to: str, extra: str = "") -> None:
                write(to, extra)
                proxy.process.send_signal(signal.SIGHUP)
                wait_for("the second listener", lambda: listens(second_port) is bool(extra))
                wait_for("the new route", lambda: answers_here() == to.encode())

            def answers_here() -> bytes:
                client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                return client.response().body.split(b"\n")[0]

            assert answers_here() == b"one"
            read_again("two", second)
            assert ask(second_port) == (200, b"two")
            read_again("two")
            read_again("one", second)
            assert ask(second_port) == (200, b"one"), "a listener that came back"

            config.write_text(config.read_text().replace("host: one", "hots: one"))
            proxy.process.send_signal(signal.SIGHUP)
            wait_for("the refusal", lambda: "hots" in proxy.stderr())
            assert ask(port) == (200, b"one"), "a refused file changes nothing"
            samples = proxy.metrics()["meshfast_config_last_reload_success"]
            assert [value for _, value in samples] == [0]


def listens(port: int) -> bool:
    try:
        Client(port).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.parametrize("workers", [1, 2])
def test_least_request_over_all_workers_avoids_the_busy_endpoint(
    tmp_path: Path, workers: int
) -> None:
    held: list[Client] = []

    def slow(client: Client) -> None:
        while True:
            slow_origin.request(client)
            held.append(client)
            client.socket.recv(1)

    port = free_port()
    with Origin(slow) as slow_origin, echo_origin("fast") as fast:
        text = ENTRY.format(name="pair", port=80, protocol="HTTP").replace(
            "[{address: 127.0.0.1}]",
            f"[{{address: 127.0.0.1, ports: {{main: {slow_origin.port}}}}},"
            f" {{address: 127.0.0.1, ports: {{main: {fast.port}}}}}]",
        )
        config = tmp_path / "mesh.yaml"
        routes = "    - route: [{destination: {host: pair}}]\n"
        config.write_text(GATEWAY.format(port=port) + ROUTES.format() + routes + text)
        with Proxy(["-c", str(config)], tmp_path, workers=workers):
            clients = [Client(port) for _ in range(40)]
            for client in clients:
                client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            wait_for("every request to have arrived", lambda: len(held) + len(fast.heads) == 40)
            # Two endpoints: both are sampled every time, so the busy one never gets more than one
            # request above the other's active requests, whichever worker holds them.
            assert len(held) <= 40 // 2
            before = len(held)
            for _ in range(30):
                ask_fast(port)
            assert len(held) - before <= 1
            for client in clients:
                client.close()


def ask_fast(port: int) -> None:
    with Client(port) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        client.socket.settimeout(5)
        assert client.response().body.startswith(b"fast\n")
