"""The whole mesh as a user starts it: `meshfast run`, applications that know nothing, clients."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Self

import pytest

from meshfast import _core
from tests.mesh.harness import (
    DEADLINE_S,
    SERVICE,
    Fixture,
    Sidecar,
    free_port,
    scrape,
    until_reached,
    wait_until,
)

pytestmark = pytest.mark.skipif(
    not hasattr(_core, "generate_key"), reason="the extension has no mutual TLS yet"
)

COLD_STARTS = 20  # 200 with -m full
SLACK_S = 3.0  # for a machine that does other things as well
FIRST_CALL = """
import json, os, sys, urllib.request
with urllib.request.urlopen(sys.argv[1], timeout=10) as answer:
    sys.exit(0 if json.load(answer)["name"] == sys.argv[2] else 9)
"""


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Fixture]:
    one = Fixture(tmp_path)
    yield one
    one.close()


def test_services_call_each_other_by_name_over_mutual_tls(mesh: Fixture) -> None:
    payment = mesh.serve("payment")
    order = mesh.run("order")
    for host in ("payment", "payment.default", "payment.default.svc.cluster.local"):
        body = until_reached(order, f"http://{host}:{payment.port}/hello")
        assert (body["name"], body["path"]) == ("payment-v1", "/hello")
    labels = 'connection_security_policy="mutual_tls"'
    text = scrape(payment)
    assert labels in text
    assert 'source_principal="spiffe://cluster.local/ns/default/sa/order"' in text


def test_a_service_is_the_meshs_before_its_application_has_ever_accepted(mesh: Fixture) -> None:
    # Somebody else listens in plain text where the name leads outside of the mesh.
    with Impostor() as impostor:
        waiting = mesh.run(
            "localhost", "--service-port", str(impostor.port), command=["sleep", "1000"]
        )
        wait_until(lambda: healthy_of(mesh, "localhost") == "0/1", f"known:\n{waiting.text}")
        url = f"http://localhost:{impostor.port}/pay"
        with mesh.run("order").caller() as order:
            assert order.call(url, "POST").status == 503
            app = subprocess.Popen([sys.executable, "-c", SERVICE, str(waiting.port), "late"])
            try:
                wait_until(lambda: order.call(url, "POST").status == 200, "the application answers")
                wait_until(lambda: healthy_of(mesh, "localhost") == "1/1", "it is healthy")
            finally:
                app.kill()
                app.wait()
        assert impostor.heard == []


def healthy_of(mesh: Fixture, service: str) -> str:
    """The workloads of a service as `status` counts them; nothing while it is not known."""
    found = mesh.control.services().get(f"{service}.default")
    return f"{found['healthy']}/{found['workloads']}" if found else ""


class Impostor:
    """Answers whoever connects, in plain text, and keeps what it heard."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.port = free_port()
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self.heard.append(connection.recv(1000))
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")


def says(sidecar: Sidecar, text: str) -> bool:
    """Tell whether its log holds a text."""
    return text in sidecar.text


def test_another_user_of_the_host_cannot_borrow_the_identity(mesh: Fixture) -> None:
    payment = mesh.serve("payment")
    order = mesh.run("order")
    url = f"http://payment:{payment.port}/"
    until_reached(order, url)
    address = order.address("outbound")
    assert order.get(url, proxy=f"http://{address}")[0] == 407
    assert order.get(url, proxy=f"http://order-v1:guess@{address}")[0] == 407


def test_nobody_without_a_certificate_reaches_the_inbound_port(mesh: Fixture) -> None:
    payment = mesh.serve("payment")
    host, _, port = payment.address("inbound").rpartition(":")
    with socket.create_connection((host.replace("0.0.0.0", "127.0.0.1"), int(port)), 10) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: payment\r\n\r\n")
        assert plain.recv(100)[:4] != b"HTTP"


def test_a_job_ends_with_its_own_code_within_a_second(mesh: Fixture) -> None:
    mesh.serve("payment")
    for code in (0, 3):
        job = mesh.run("job", name=f"job-{code}", command=["sh", "-c", f"sleep 0.2; exit {code}"])
        wait_until(partial(says, job, "the application"), "it ends")
        ended_at = time.monotonic()
        assert job.process.wait(10) == code
        assert time.monotonic() - ended_at < 1.0


def cold_starts(mesh: Fixture, count: int) -> Counter[int]:
    """Start a job that calls at once, so many times; exit codes."""
    payment = mesh.serve("payment")
    warm = mesh.run("order")
    url = f"http://payment:{payment.port}/"
    until_reached(warm, url)
    codes: Counter[int] = Counter()
    for number in range(count):
        command = [sys.executable, "-c", FIRST_CALL, url, "payment-v1"]
        job = Sidecar(mesh.folder, mesh.control, "job", name=f"job-{number}", command=command)
        mesh.sidecars.append(job)
        codes[job.process.wait(30)] += 1
        if codes.keys() != {0}:
            print(job.text)
    return codes


def test_the_first_call_of_a_cold_start_succeeds(mesh: Fixture) -> None:
    assert cold_starts(mesh, COLD_STARTS) == {0: COLD_STARTS}


@pytest.mark.full
@pytest.mark.timeout(900)
def test_the_first_call_of_200_cold_starts_succeeds(mesh: Fixture) -> None:
    assert cold_starts(mesh, 200) == {0: 200}


def test_an_upstream_carries_tcp_to_its_service(mesh: Fixture) -> None:
    echo = (
        "import socketserver,sys\n"
        "class Echo(socketserver.BaseRequestHandler):\n"
        "    def handle(self):\n"
        "        while data := self.request.recv(65536):\n"
        "            self.request.sendall(data)\n"
        "socketserver.ThreadingTCPServer(('127.0.0.1', int(sys.argv[1])), Echo).serve_forever()\n"
    )
    port = free_port()
    db = mesh.serve(
        "db", "--protocol", "tcp", app_port=port, command=[sys.executable, "-c", echo, str(port)]
    )
    local = free_port()
    client = mesh.run("client", "--upstream", f"db=127.0.0.1:{local}")

    def echoed() -> bool:
        try:
            with socket.create_connection(("127.0.0.1", local), 5) as end:
                end.sendall(b"hello")
                return end.recv(5) == b"hello"
        except OSError:
            return False

    wait_until(echoed, f"TCP through the mesh:\n{client.text}\n{db.text}")


class Calls:
    """Calls from several threads until the block ends; `failed` says how."""

    def __init__(self, caller: Sidecar, url: str, rate: float) -> None:
        self.caller, self.url, self.rate = caller, url, rate
        self.counted: Counter[str] = Counter()
        self.slowest = 0.0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(at,)) for at in range(4)]

    def __enter__(self) -> "Calls":
        self.caller.proxies()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, at: int) -> None:
        between = len(self._threads) / self.rate
        due = time.monotonic() + between * at / len(self._threads)
        while not self._over.is_set():
            time.sleep(max(0.0, due - time.monotonic()))
            due += between
            began = time.monotonic()
            try:
                self.counted[str(self.caller.get(self.url)[0])] += 1
            except OSError as error:
                self.counted[repr(error)] += 1
            self.slowest = max(self.slowest, time.monotonic() - began)


def test_a_killed_control_plane_fails_no_request_and_a_restart_serves_within_two_seconds(
    mesh: Fixture,
) -> None:
    payment = mesh.serve("payment")
    order = mesh.run("order")
    url = f"http://payment:{payment.port}/"
    until_reached(order, url)
    third = mesh.run("third")
    until_reached(third, url)
    with Calls(order, url, rate=100) as calls:
        mesh.control.kill()
        assert third.stop() == 143
        began = time.monotonic()
        third.start()
        third.until_started()
        assert third.get(url)[0] == 200
        assert time.monotonic() - began < 2.0
        mesh.control.start()
        wait_until(lambda: len(mesh.control.ask(sidecars=True)) == 3, "all come back")
    assert calls.counted.keys() == {"200"}, calls.counted


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_without_control_plane_is_found_by_its_callers_though_its_port_was_a_free_one(
    mesh: Fixture, end: signal.Signals
) -> None:
    pair = [mesh.serve("payment"), mesh.serve("order")]
    # One of them has the default port, or neither where somebody else has it.
    pair.sort(key=lambda one: one.address("inbound").endswith(":15006"))
    callee, caller = pair
    before = callee.address("inbound")
    assert not before.endswith(":15006")
    url = f"http://{callee.name.removesuffix('-v1')}:{callee.port}/"
    until_reached(caller, url)
    mesh.control.kill()
    callee.process.send_signal(end)
    assert callee.process.wait(DEADLINE_S) in (128 + end, -end)
    began = time.monotonic()
    callee.start()
    callee.until_started()
    until_reached(caller, url)
    assert time.monotonic() - began < 2.0 + SLACK_S
    assert callee.address("inbound") == before


def test_a_stopped_instance_fails_no_request_of_its_callers(mesh: Fixture) -> None:
    mesh.serve("payment", "--service-port", "80", version="v1")
    two = mesh.serve("payment", "--service-port", "80", version="v2")
    order = mesh.run("order")
    url = "http://payment/"
    until_reached(order, url)
    with Calls(order, url, rate=100) as calls:
        assert two.stop() in (0, 143)
        time.sleep(0.5)
    assert calls.counted.keys() == {"200"}, calls.counted
