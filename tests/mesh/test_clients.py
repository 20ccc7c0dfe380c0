"""Clients as they are: HTTP libraries that read proxy variables, programs that go beside the
sidecar, and a load that does not stop while certificates are renewed.

The programs are in tests/mesh/programs and know nothing of the mesh. Clients that ignore proxies
have a file of their own, tests/mesh/test_upstreams.py.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import http.server
import ipaddress
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.mesh.harness import (
    MESHFAST,
    Fixture,
    Sidecar,
    beyond_loopback,
    free_port,
    scrape,
    until_reached,
    wait_until,
)

PROGRAMS = Path(__file__).parent / "programs"
LENGTH = 10_000_000  # of every large body, in all programs
ORDER = "spiffe://cluster.local/ns/default/sa/order"

RATE, LOAD_S = 500, 15  # requests a second; three renewals of a certificate that lives 10 s
LIFE_S = 10

HOLDS_A_CONNECTION = """
import socket, sys, time
with socket.create_connection((sys.argv[1], int(sys.argv[2]))):
    time.sleep(60)
"""
KEEPS_A_SESSION = """
import requests, sys, time
with requests.Session() as session:
    session.get(sys.argv[1], timeout=10).raise_for_status()
    print("called", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Fixture]:
    one = Fixture(tmp_path)
    yield one
    one.close()


# --- HTTP by proxy variables


class Outside(http.server.BaseHTTPRequestHandler):
    """A server with TLS of its own, which no sidecar knows."""

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(200)
        self.send_header("Content-Length", "7")
        self.end_headers()
        self.wfile.write(b"outside")

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The URL of an `Outside`, and the certificate to trust."""
    address = beyond_loopback()
    certificate = self_signed(tmp_path, address)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with http.server.ThreadingHTTPServer((address, 0), Outside) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"https://{address}:{server.server_port}/", certificate
        server.shutdown()
        thread.join()


def self_signed(folder: Path, address: str) -> Path:
    """Write a certificate for an address together with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "outside")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    path = folder / "outside.pem"
    path.write_bytes(
        certificate.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


def go_program(folder: Path) -> list[str]:
    """Compile the caller in Go; it uses the standard library only."""
    compiler = shutil.which("go")
    if compiler is None:
        pytest.skip("no Go compiler here")
    binary = folder / "call"
    subprocess.run([compiler, "build", "-o", binary, PROGRAMS / "call.go"], check=True, cwd=folder)
    return [str(binary)]


def caller_program(client: str, folder: Path) -> list[str]:
    """The command of a caller, to which its three arguments are added."""
    if client == "go":
        return go_program(folder)
    if client == "curl":
        if shutil.which("curl") is None:
            pytest.skip("no curl here")
        return [str(PROGRAMS / "call_curl.sh")]
    return [sys.executable, str(PROGRAMS / f"call_{client}.py")]


def http_service(mesh: Fixture) -> Sidecar:
    """Start the service that all of them call."""
    port = free_port()
    command = [sys.executable, str(PROGRAMS / "http_service.py"), str(port)]
    return mesh.serve("payment", app_port=port, command=command)


@pytest.mark.parametrize("client", ["curl", "requests", "httpx", "go"])
def test_a_client_that_reads_proxy_variables_calls_through_the_mesh(
    mesh: Fixture, outside: tuple[str, Path], client: str
) -> None:
    url, authority = outside
    program = caller_program(client, mesh.folder)
    payment = http_service(mesh)
    access = mesh.folder / "access.log"
    job = mesh.job(
        "caller", "--access-log", str(access), service="order",
        command=[*program, f"http://payment:{payment.port}", url, str(authority)],
    )  # fmt: skip
    facts = json.loads(job.succeeded())

    assert f"URI={ORDER}" in facts["caller"]
    assert facts["down"] == [LENGTH, LENGTH]
    digest = hashlib.sha256(b"x" * LENGTH).hexdigest()
    assert facts["up"] == [{"length": LENGTH, "sha256": digest}] * 2
    assert facts["connections"] == 1
    assert facts["outside"] == "outside"

    calls = [json.loads(line) for line in access.read_text().splitlines()]
    [tunnel] = [one for one in calls if one["method"] == "CONNECT"]
    assert tunnel["authority"] == urlsplit(url).netloc
    assert {one["response_code"] for one in calls} == {200}
    assert security_policies(payment) == {"mutual_tls"}


def security_policies(callee: Sidecar) -> set[str]:
    """How requests came to a callee, as its own sidecar counted them."""
    counted = re.findall(r"^istio_requests_total\{(.*)\} ", scrape(callee), re.MULTILINE)
    return {
        found[1]
        for labels in counted
        if (found := re.search(r'connection_security_policy="([^"]*)"', labels))
        and 'reporter="destination"' in labels
    }


# --- Clients beside the sidecar


def checked(mesh: Fixture) -> tuple[int, list[dict[str, str]]]:
    """Run `meshfast check` over all sidecars of the mesh: its code and what it found."""
    folders = ["--state-dir", str(mesh.folder / "state"), "--runtime-dir", str(mesh.folder / "run")]
    done = subprocess.run(
        [*MESHFAST, "check", "-o", "json", *folders],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)["findings"]


def only_here(name: str) -> str:
    """A name of an instance that no other mesh on this host has; `check` looks at all processes."""
    return f"{name}-{os.getpid()}"


def named(mesh: Fixture, instance: str) -> dict[str, str]:
    """Wait until a client of an instance is found, and return the only finding of that kind."""
    found: list[dict[str, str]] = []

    def is_found() -> bool:
        code, findings = checked(mesh)
        assert (code == 1) == bool(findings)
        of_it = [one for one in findings if one["instance"] == instance]
        found[:] = [one for one in of_it if one["kind"] != "health"]  # it may still be starting
        return bool(found)

    wait_until(is_found, f"{instance} is named")
    assert len(found) == 1, found
    return found[0]


def test_check_names_the_process_and_where_it_is_connected_beside_the_sidecar(
    mesh: Fixture,
) -> None:
    payment = mesh.serve("payment", name=only_here("payment"))
    good = mesh.job(
        only_here("good"),
        command=[sys.executable, "-c", KEEPS_A_SESSION, f"http://payment:{payment.port}/"],
    )
    wait_until(lambda: "called" in good.output, f"it holds its connection:\n{good.text}")
    assert checked(mesh) == (0, [])

    with socket.create_server((beyond_loopback(), 0)) as server:
        host, port = server.getsockname()
        command = [sys.executable, "-c", HOLDS_A_CONNECTION, host, str(port)]
        bad = mesh.job(only_here("bad"), command=command)
        finding = named(mesh, bad.name)
        pid = re.findall(r"started .* \(pid (\d+)\)", bad.text)[-1]
        assert finding["kind"] == "direct-connection"
        assert re.fullmatch(rf"pid {pid} \(python.*\)", finding["subject"])
        assert finding["message"] == f"is connected directly to {host}:{port}"
        assert {one["instance"] for one in checked(mesh)[1]} == {bad.name}


def test_check_names_a_client_that_calls_a_neighbour_on_loopback(mesh: Fixture) -> None:
    payment = mesh.serve("payment", name=only_here("payment"))
    where = ("127.0.0.1", str(payment.port))
    command = [sys.executable, "-c", HOLDS_A_CONNECTION, *where]
    finding = named(mesh, mesh.job(only_here("bad"), command=command).name)
    assert finding["kind"] == "direct-connection"
    there = f"127.0.0.1:{payment.port} (the application of {payment.name})"
    assert finding["message"] == f"is connected directly to {there}"


def test_check_does_not_name_a_database_client_that_uses_its_upstream(mesh: Fixture) -> None:
    if not shutil.which("redis-cli") or not shutil.which("redis-server"):
        pytest.skip("no Redis here")
    port, local = free_port(), free_port()
    server = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    name = only_here("cache")
    mesh.serve("cache", "--protocol", "tcp", app_port=port, command=server, name=name)

    def subscriber(port: int) -> list[str]:
        return ["redis-cli", "-h", "127.0.0.1", "-p", str(port), "SUBSCRIBE", "news"]

    upstream = ("--upstream", f"cache=127.0.0.1:{local}")
    good = mesh.job(only_here("good"), *upstream, command=subscriber(local))
    wait_until(lambda: "subscribe" in good.output, f"it is connected:\n{good.text}")
    assert checked(mesh) == (0, [])
    bad = mesh.job(only_here("bad"), command=subscriber(port))
    wait_until(
        lambda: (
            {(one["instance"], one["kind"]) for one in checked(mesh)[1]}
            == {(bad.name, "ignores-proxies"), (bad.name, "direct-connection")}
        ),
        "the other one is named",
    )


# --- Certificates under load


class Load:
    """h2load with HTTP/1 through the proxy of an application, at a steady rate."""

    def __init__(self, caller: Sidecar, url: str, rate: int, *options: str) -> None:
        proxy = urlsplit(caller.proxies()["http"])
        secret = base64.b64encode(f"{proxy.username}:{proxy.password}".encode()).decode()
        clients = 10
        self.process = subprocess.Popen(
            ["h2load", "--h1", f"--clients={clients}", f"--rps={rate // clients}",
             f"--duration={LOAD_S}", f"--connect-to={proxy.hostname}:{proxy.port}",
             f"--header=Proxy-Authorization: Basic {secret}", *options, url],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def counts(self) -> dict[str, int]:
        """Wait for the end and return what became of the requests."""
        text, _ = self.process.communicate(timeout=LOAD_S + 30)
        counted = re.search(r"^requests: (.*)$", text, re.MULTILINE)
        assert counted, text
        found = {what: int(count) for count, what in re.findall(r"(\d+) (\w+)", counted[1])}
        statuses = re.search(r"^status codes: (\d+) 2xx, 0 3xx, 0 4xx, 0 5xx", text, re.MULTILINE)
        assert statuses, text
        return found | {"answered": int(statuses[1])}


def renewals(sidecar: Sidecar) -> int:
    """How often its certificate has been asked for."""
    found = re.search(r"^meshfast_certificate_requests_total (\d+)", scrape(sidecar), re.MULTILINE)
    return int(found[1]) if found else 0


def test_certificates_are_renewed_at_500_requests_a_second_without_a_failure(
    tmp_path: Path,
) -> None:
    if shutil.which("h2load") is None:
        pytest.skip("no h2load here")
    mesh = Fixture(tmp_path, cert_ttl_s=LIFE_S)
    try:
        payment = http_service(mesh)
        order = mesh.run("order")
        url = f"http://payment:{payment.port}/"
        until_reached(order, url)
        before = [renewals(one) for one in (payment, order)]
        body = tmp_path / "body"
        body.write_bytes(b"x" * 1000)
        # Half of them must never be sent twice.
        loads = [Load(order, url, RATE // 2), Load(order, url, RATE // 2, f"--data={body}")]
        counted: list[dict[str, Any]] = [one.counts() for one in loads]
        after = [renewals(one) for one in (payment, order)]
        assert all(late - early >= 2 for early, late in zip(before, after, strict=True))
        for one in counted:
            assert (one["failed"], one["errored"], one["timeout"]) == (0, 0, 0), counted
            # Those that the end cut off have been answered or not, and nothing else.
            assert one["done"] <= one["answered"] <= one["started"], counted
        done = sum(one["done"] for one in counted)
        assert done >= 0.9 * RATE * LOAD_S, f"{done / LOAD_S} requests a second: {counted}"
        print(f"{done / LOAD_S:.0f} requests a second")
    finally:
        mesh.close()
