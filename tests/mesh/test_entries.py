"""Workloads without a sidecar: ServiceEntries and WorkloadEntries, called in plain text.

One mesh serves the module: `order`, which calls, and servers of the test itself, which see every
byte that reaches them.
"""

from __future__ import annotations

import json
import math
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.dataplane.harness import Client, Origin, echo_origin
from tests.mesh.harness import (
    DEADLINE_S,
    Answer,
    Caller,
    Fixture,
    Sidecar,
    free_port,
    scrape,
    wait_until,
)

HOST = "billing.example.com"
UPSTREAM = "ledger.example.com"
GONE_S = 1.0


class World:
    """The mesh of the module; `upstream` is the port of `--upstream` for `UPSTREAM`."""

    def __init__(self, mesh: Fixture) -> None:
        self.mesh = mesh
        self.upstream = free_port()
        option = f"{UPSTREAM}=127.0.0.1:{self.upstream}"
        self.order: Sidecar = mesh.run("order", "--upstream", option)

    def until_gone(self, name: str, is_there: Callable[[], bool], times: int) -> float:
        """Delete a WorkloadEntry; return the seconds after which it was not there so many times."""
        began_s = last_s = time.monotonic()
        deleted = self.mesh.control.ask(delete=["WorkloadEntry", "default", name])
        assert "error" not in deleted, deleted
        left = times
        while left:
            asked_s = time.monotonic()
            assert asked_s - began_s < DEADLINE_S, f"{name} is still there"
            left -= 1
            if is_there():
                left, last_s = times, asked_s
        return last_s - began_s


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    mesh = Fixture(tmp_path_factory.mktemp("entries"))
    try:
        yield World(mesh)
    finally:
        mesh.close()


@pytest.fixture
def caller(world: World) -> Iterator[Caller]:
    with world.order.caller() as caller:
        yield caller


@pytest.fixture
def origins() -> Iterator[dict[str, Origin]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(echo_origin(name)) for name in ("one", "two", "three")}


def entry(resolution: str, rest: str, *, host: str = HOST, protocol: str = "HTTP") -> str:
    """A ServiceEntry of the name `entry`."""
    return f"""\
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: entry}}
spec:
  hosts: [{host}]
  ports: [{{number: 80, name: main, protocol: {protocol}}}]
  resolution: {resolution}
  {rest}
"""


def endpoints(address: str, *origins: Origin) -> str:
    """The field of a ServiceEntry."""
    each = [f"{{address: {address}, ports: {{main: {origin.port}}}}}" for origin in origins]
    return f"endpoints: [{', '.join(each)}]"


def workload(name: str, origin: Origin, version: str, weight: int = 1) -> str:
    """A WorkloadEntry that the ServiceEntry of `selecting` selects."""
    return f"""\
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: {name}}}
spec:
  address: 127.0.0.1
  ports: {{main: {origin.port}}}
  labels: {{app: billing, version: {version}}}
  weight: {weight}
"""


SELECTOR = "workloadSelector: {labels: {app: billing}}"


def answered_by(answer: Answer) -> str:
    """The server that echoed a request, as `echo_origin` names it."""
    assert answer.status == 200, answer
    return answer.body.split(b"\n")[0].decode()


@pytest.mark.parametrize("location", ["MESH_EXTERNAL", "MESH_INTERNAL"])
@pytest.mark.parametrize(("resolution", "address"), [("STATIC", "127.0.0.1"), ("DNS", "localhost")])
def test_a_server_without_a_sidecar_is_called_in_plain_text_under_a_name_of_its_own(
    world: World,
    caller: Caller,
    origins: dict[str, Origin],
    resolution: str,
    address: str,
    location: str,
) -> None:
    origin = origins["one"]
    rest = f"location: {location}\n  {endpoints(address, origin)}"
    world.mesh.apply(entry(resolution, rest))
    # A name is looked up after the resource was stored.
    wait_until(lambda: caller.call(f"http://{HOST}/").status == 200, "the name is known")
    headers = {"x-forwarded-client-cert": "By=me", "x-meshfast-port": "1"}
    answer = caller.call(f"http://{HOST}/path?q", "GET", headers)
    lines = answer.body.split(b"\r\n")
    assert lines[0] == b"one\nGET /path?q HTTP/1.1"
    names = {line.split(b":")[0].lower() for line in lines[1:]}
    assert b"x-request-id" in names
    assert not [name for name in names if name.startswith((b"x-forwarded-client", b"x-meshfast"))]
    [line] = {
        line.partition("}")[0]
        for line in scrape(world.order).splitlines()
        if line.startswith("istio_requests_total{") and f'"{HOST}"' in line and '"200"' in line
    }
    assert 'destination_principal="unknown"' in line
    world.mesh.delete("ServiceEntry", "entry")


def say(end: socket.socket) -> bytes:
    """Say and hear what is no HTTP."""
    end.settimeout(20)
    end.sendall(b"\x00\x01hello")
    end.shutdown(socket.SHUT_WR)
    return b"".join(iter(lambda: end.recv(100), b""))


def reverse(client: Client) -> None:
    """Answer everything at its end, from back to front."""
    client.socket.sendall(client.rest()[::-1])


def test_a_tcp_port_of_an_entry_is_reached_by_an_upstream(world: World) -> None:
    with Origin(reverse) as origin:
        rest = endpoints("127.0.0.1", origin)
        world.mesh.apply(entry("STATIC", rest, host=UPSTREAM, protocol="TCP"))
        with socket.create_connection(("127.0.0.1", world.upstream)) as end:
            assert say(end) == b"olleh\x01\x00"
        world.mesh.delete("ServiceEntry", "entry")


@pytest.mark.parametrize("protocol", ["HTTP", "TCP"])
def test_a_tunnel_to_an_entry_leads_to_its_endpoints(world: World, protocol: str) -> None:
    with Origin(reverse) as origin:
        world.mesh.apply(entry("STATIC", endpoints("127.0.0.1", origin), protocol=protocol))
        status, end = world.order.tunnel(f"{HOST}:80")
        with end:
            assert status == 200
            assert say(end) == b"olleh\x01\x00"
        world.mesh.delete("ServiceEntry", "entry")


def test_an_entry_says_nothing_about_ports_that_it_does_not_have(
    world: World, caller: Caller, origins: dict[str, Origin]
) -> None:
    world.mesh.apply(entry("STATIC", endpoints("127.0.0.1", origins["one"]), host="localhost"))
    assert answered_by(caller.call("http://localhost/")) == "one"
    assert answered_by(caller.call("http://localhost:80/")) == "one"
    assert answered_by(caller.call(f"http://localhost:{origins['two'].port}/")) == "two"
    with Origin(reverse) as origin:
        status, end = world.order.tunnel(f"localhost:{origin.port}")
        with end:
            assert status == 200
            assert say(end) == b"olleh\x01\x00"
    world.mesh.delete("ServiceEntry", "entry")


def test_labels_of_workload_entries_choose_subsets_and_weights_count(
    world: World, caller: Caller, origins: dict[str, Origin]
) -> None:
    world.mesh.apply(
        entry("STATIC", SELECTOR)
        + workload("one", origins["one"], "v1", weight=3)
        + workload("two", origins["two"], "v1")
        + workload("three", origins["three"], "v2")
        + SUBSETS
    )
    calls = 400
    first = Counter(answered_by(call(caller, "v1")) for _ in range(calls))
    assert set(first) == {"one", "two"}
    deviation = math.sqrt(calls * 3 / 4 * 1 / 4)
    assert abs(first["one"] - calls * 3 / 4) <= 5.5 * deviation, first
    assert Counter(answered_by(call(caller, "v2")) for _ in range(20)) == {"three": 20}

    # Deleted, an endpoint gets nothing more a second later, and the last one leaves a 503.
    took_s = world.until_gone("one", lambda: answered_by(call(caller, "v1")) == "one", 40)
    assert took_s <= GONE_S
    took_s = world.until_gone("three", lambda: call(caller, "v2").status == 200, 3)
    assert took_s <= GONE_S
    answer = call(caller, "v2")
    assert (answer.status, b"flags UH" in answer.body) == (503, True)
    for kind in ("VirtualService", "DestinationRule", "ServiceEntry"):
        world.mesh.delete(kind, "entry")
    world.mesh.delete("WorkloadEntry", "two")


def call(caller: Caller, version: str) -> Answer:
    """Call a subset."""
    return caller.call(f"http://{HOST}/", "GET", {"x-version": version})


SUBSETS = f"""\
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: entry}}
spec:
  host: {HOST}
  subsets:
    - {{name: v1, labels: {{version: v1}}}}
    - {{name: v2, labels: {{version: v2}}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: entry}}
spec:
  hosts: [{HOST}]
  http:
    - match: [{{headers: {{x-version: {{exact: v2}}}}}}]
      route: [{{destination: {{host: {HOST}, subset: v2}}}}]
    - route: [{{destination: {{host: {HOST}, subset: v1}}}}]
"""


def test_a_service_of_the_mesh_is_never_called_beside_its_sidecar(
    world: World, caller: Caller, origins: dict[str, Origin]
) -> None:
    # Declared while nobody was registered: from then on it is plain text, and until then only.
    rest = endpoints("127.0.0.1", origins["one"])
    world.mesh.apply(entry("STATIC", rest, host="payment"))
    assert answered_by(caller.call("http://payment/")) == "one"
    world.mesh.serve("payment", "--service-port", "80")
    wait_until(lambda: b"payment-v1" in caller.call("http://payment/").body, "the service wins")
    for _ in range(20):
        seen = json.loads(caller.call("http://payment/").body)
        assert seen["name"] == "payment-v1"
        assert "sa/order" in seen["headers"]["x-forwarded-client-cert"]
    refused = world.mesh.control.ask(apply=entry("STATIC", rest, host="payment"))
    assert "payment.default is a service of the mesh" in refused["error"]
    world.mesh.delete("ServiceEntry", "entry")
