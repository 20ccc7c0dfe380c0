"""CONNECT to a service of the mesh, as clients do that tunnel everything through their proxy."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.mesh.harness import Fixture, Sidecar, free_port, scrape, until_reached, wait_until

PORT = 8080  # of the service; nothing listens there

# Speaks TLS itself, with a certificate of its own that the mesh knows nothing of.
SECURE = """
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2])
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    try:
        with context.wrap_socket(listener.accept()[0], server_side=True) as one:
            one.sendall(b"for " + one.recv(100))
    except OSError:  # who only looks whether the port accepts
        pass
"""


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Fixture]:
    one = Fixture(tmp_path)
    yield one
    one.close()


def replicas(mesh: Fixture) -> list[Sidecar]:
    """Two of the service `payment` at `PORT`."""
    options = ("--service-port", str(PORT))
    return [mesh.serve("payment", *options, version=version) for version in ("v1", "v2")]


def get_inside(one: socket.socket, host: str) -> dict[str, object]:
    """Send a request through a tunnel that is open."""
    connection = http.client.HTTPConnection(host)
    connection.sock = one
    connection.request("GET", "/inside", headers={"Host": host})
    answer = connection.getresponse()
    assert answer.status == 200
    body: dict[str, object] = json.loads(answer.read())
    return body


def test_requests_inside_a_tunnel_are_balanced_one_by_one_over_mutual_tls(mesh: Fixture) -> None:
    first, second = replicas(mesh)
    order = mesh.run("order")
    host = f"payment:{PORT}"
    wait_until(
        lambda: until_reached(order, f"http://{host}/")["name"] == "payment-v2",
        f"both are known:\n{order.text}",
    )
    status, one = order.tunnel(host)
    assert status == 200
    with one:
        seen = Counter(str(get_inside(one, host)["name"]) for _ in range(40))
    assert seen.keys() == {"payment-v1", "payment-v2"}, seen
    for callee in (first, second):
        text = scrape(callee)
        assert 'source_principal="spiffe://cluster.local/ns/default/sa/order"' in text


def test_tls_inside_a_tunnel_reaches_the_application_unopened(mesh: Fixture) -> None:
    port, pem = free_port(), mesh.folder / "own.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-subj", "/CN=secure", "-addext", "subjectAltName=DNS:secure",
         "-keyout", str(pem), "-out", str(pem.with_suffix(".crt"))],
        check=True, capture_output=True,
    )  # fmt: skip
    certificate = pem.with_suffix(".crt").read_text()
    pem.write_text(pem.read_text() + certificate)
    command = [sys.executable, "-c", SECURE, str(port), str(pem)]
    mesh.serve("secure", app_port=port, command=command)
    order = mesh.run("order")
    trusts = ssl.create_default_context(cadata=certificate)

    def answered() -> bool:
        status, one = order.tunnel(f"secure:{port}")
        with one:
            if status != 200:
                return False
            with trusts.wrap_socket(one, server_hostname="secure") as opened:
                opened.sendall(b"order")
                return opened.recv(100) == b"for order"

    wait_until(answered, f"the service is known:\n{order.text}")


def reaches_another(caller: Sidecar, url: str) -> bool:
    """Tell whether a call is answered by another instance than the one that calls."""
    return bool(until_reached(caller, url)["name"] != caller.name)


def test_an_application_calls_its_own_service_whichever_replica_it_is(mesh: Fixture) -> None:
    for caller in replicas(mesh):
        url = f"http://payment:{PORT}/"
        wait_until(partial(reaches_another, caller, url), "the other one is known")
        answers = [caller.get(url) for _ in range(40)]
        assert {status for status, _ in answers} == {200}
        assert {body["name"] for _, body in answers} == {"payment-v1", "payment-v2"}


def test_a_port_that_nobody_serves_is_not_served_by_another_one(mesh: Fixture) -> None:
    payment = mesh.serve("payment")
    order = mesh.run("order")
    until_reached(order, f"http://payment:{payment.port}/")
    assert order.get("http://payment/")[0] == 200
    assert order.get("http://payment:9/")[0] == 404
    status, one = order.tunnel("payment:9")
    one.close()
    assert status == 404
