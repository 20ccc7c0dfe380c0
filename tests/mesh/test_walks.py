"""The four walks of ARCHITECTURE.md, each followed from its beginning to its end in a whole mesh.

Every stop of a walk that can be seen from outside is asserted here, in the order in which the page
names them; what happens inside a stop is tested in that room.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from cryptography import x509

from tests.mesh.harness import (
    Control,
    Fixture,
    Sidecar,
    free_port,
    scrape,
    until_reached,
    wait_until,
)

RULE = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: payment-rule}
spec:
  hosts: [payment]
  http:
    - name: pushed
      route:
        - destination: {host: payment}
"""
# Answers with the headers it saw; `/slow` waits for a file to appear.
APP = """
import http.server, json, os, sys, time
class App(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        while self.path == "/slow" and not os.path.exists(sys.argv[2]):
            time.sleep(0.01)
        body = json.dumps(dict(self.headers)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), App).serve_forever()
"""


class Mesh(Fixture):
    """Order calls payment; both keep an access log."""

    def __init__(self, folder: Path, **control: Any) -> None:
        super().__init__(folder, **control)
        self.gate = folder / "gate"
        port = free_port()
        command = [sys.executable, "-c", APP, str(port), str(self.gate)]
        self.payment = self._logged("payment", app_port=port, command=command)
        self.order = self._logged("order")
        self.url = f"http://payment:{port}"
        until_reached(self.order, f"{self.url}/")

    def _logged(self, service: str, **more: Any) -> Sidecar:
        return self.run(service, "--access-log", str(self.folder / f"{service}.access"), **more)

    def lines(self, service: str, **wanted: str) -> list[dict[str, Any]]:
        """The access-log lines of a sidecar that have these values."""
        written = (self.folder / f"{service}.access").read_text().splitlines()
        found = [json.loads(line) for line in written]
        return [one for one in found if all(one[key] == is_ for key, is_ in wanted.items())]

    def close(self) -> None:
        """End everything."""
        self.gate.touch()
        super().close()


def test_a_request(tmp_path: Path) -> None:
    with closing(Mesh(tmp_path)) as mesh:
        began = total(mesh.payment, "istio_requests_total")
        status, headers = mesh.order.get(f"{mesh.url}/walk")
        assert status == 200
        seen = {name.lower(): value for name, value in headers.items()}

        # The application is told who calls, by what its sidecar verified.
        assert "URI=spiffe://cluster.local/ns/default/sa/order" in seen["x-forwarded-client-cert"]

        # One access record on each side, joined by the request's id.
        [out] = wait_until(lambda: mesh.lines("order", path="/walk"), "order records it")
        [into] = wait_until(lambda: mesh.lines("payment", path="/walk"), "payment records it")
        for line in (out, into):
            assert (line["response_code"], line["response_flags"]) == (200, "-")
            assert line["request_id"] == seen["x-request-id"]
        port = mesh.url.rpartition(":")[2]
        assert out["upstream_cluster"] == f"outbound|{port}||payment.default"
        assert into["upstream_cluster"] == f"inbound|{port}||"
        # The leg between them is the callee's inbound listener, and nothing else.
        assert out["upstream_host"].endswith(":" + mesh.payment.address("inbound").split(":")[-1])
        assert into["upstream_host"] == f"127.0.0.1:{port}"

        # One sample, and the guard that counts active requests is back at zero.
        wait_until(
            lambda: total(mesh.payment, "istio_requests_total") == began + 1, "one sample more"
        )
        assert total(mesh.order, "meshfast_upstream_active_requests") == 0


def test_a_push(tmp_path: Path) -> None:
    with closing(Mesh(tmp_path)) as mesh:
        generation = total(mesh.order, "meshfast_config_generation")
        outcome: list[Any] = []
        slow = threading.Thread(target=lambda: outcome.append(mesh.order.get(f"{mesh.url}/slow")))
        slow.start()
        wait_until(
            lambda: total(mesh.order, "meshfast_upstream_active_requests") == 1, "it is under way"
        )

        # The store refuses before anything exists.
        held = revision(mesh.control)
        refused = mesh.control.ask(apply=RULE.replace("route:", "rout:"))
        assert "did you mean 'route'?" in refused["error"]
        assert revision(mesh.control) == held

        # A revision, debounced, pushed, taken by every worker, acknowledged by every sidecar.
        mesh.control.ask(apply=RULE)
        wait_until(lambda: revision(mesh.control) > held, "both sidecars acknowledge")
        assert {one["state"] for one in mesh.control.ask(sidecars=True)} == {"SYNCED"}
        assert total(mesh.order, "meshfast_config_generation") > generation
        workers = values(mesh.order, "meshfast_worker_generation")
        assert set(workers) == {total(mesh.order, "meshfast_config_generation")}

        # New requests go by the new rule; the one in flight keeps what it began with.
        assert mesh.order.get(f"{mesh.url}/after")[0] == 200
        mesh.gate.touch()
        slow.join(20)
        assert outcome[0][0] == 200
        [after] = wait_until(lambda: mesh.lines("order", path="/after"), "it is recorded")
        [before] = wait_until(lambda: mesh.lines("order", path="/slow"), "it is recorded")
        assert after["route_name"] == "default/payment-rule/pushed"
        assert before["route_name"] == "default"


def test_an_identity(tmp_path: Path) -> None:
    with closing(Mesh(tmp_path, cert_ttl_s=10)) as mesh:
        # The key stays in the workload's own folder, readable by its user.
        kept = [one for one in (tmp_path / "state" / "payment-v1").rglob("*") if one.is_file()]
        assert kept
        assert all(one.stat().st_mode & 0o077 == 0 for one in kept)

        # What the sidecar shows is a short-lived certificate with that one SPIFFE URI.
        first = shown_certificate(mesh.payment)
        names = first.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        assert uris == ["spiffe://cluster.local/ns/default/sa/payment"]
        life = first.not_valid_after_utc - first.not_valid_before_utc
        assert life.total_seconds() < 120

        # It is renewed by a push of its own while calls go on, and old legs are left.
        with calls(mesh, rate=50) as counted:
            wait_until(
                lambda: shown_certificate(mesh.payment).serial_number != first.serial_number,
                "another certificate is shown",
            )
            expires_in = first.not_valid_after_utc.timestamp() - time.time()
            time.sleep(max(0.0, expires_in) + 1)
        assert counted.keys() == {200}, counted


def test_a_workers_death(tmp_path: Path) -> None:
    with closing(Mesh(tmp_path)) as mesh:
        began = total(mesh.order, "istio_requests_total")
        before = workers(mesh.order)
        with calls(mesh, rate=100) as counted:
            wait_until(lambda: counted[200] >= 50, "calls go on")
            killed_at = time.monotonic()
            os.kill(before[0], signal.SIGKILL)
            wait_until(
                lambda: len(set(workers(mesh.order)) - {before[0]}) == len(before),
                "there is a new worker",
            )
            back_s = time.monotonic() - killed_at
            seen = counted[200]
            wait_until(lambda: counted[200] >= seen + 50, "calls go on")
        # One call at a time was under way: nothing but that one may have been lost.
        lost = sum(number for code, number in counted.items() if code != 200)
        assert lost <= 1, counted
        assert back_s < 2.0
        assert total(mesh.order, "istio_requests_total") >= began + counted[200]


def test_a_service_that_has_left(tmp_path: Path) -> None:
    with closing(Mesh(tmp_path)) as mesh:
        mesh.payment.stop()
        wait_until(lambda: not workloads(mesh), "payment is deregistered")
        wait_until(
            lambda: mesh.order.get(f"{mesh.url}/left")[0] == 503, "order knows that it has left"
        )
        # Not passed through to whatever else has the name, which would be DF here or a stranger.
        lines = wait_until(lambda: mesh.lines("order", path="/left"), "order records it")
        assert (lines[-1]["response_code"], lines[-1]["response_flags"]) == (503, "UH")
        port = mesh.url.rpartition(":")[2]
        assert lines[-1]["upstream_cluster"] == f"outbound|{port}||payment.default"


def workloads(mesh: Mesh) -> object:
    return mesh.control.services()["payment.default"]["workloads"]


@contextmanager
def calls(mesh: Mesh, rate: float) -> Iterator[Counter[Any]]:
    """Call at a pace, one at a time, while the block runs; what came back, counted."""
    counted: Counter[Any] = Counter()
    over = threading.Event()
    mesh.order.proxies()

    def run() -> None:
        while not over.wait(1 / rate):
            try:
                counted[mesh.order.get(f"{mesh.url}/")[0]] += 1
            except OSError as error:
                counted[repr(error)] += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield counted
    finally:
        over.set()
        thread.join()


def revision(control: Control) -> list[int]:
    """The oldest of the revisions that sidecars have acknowledged."""
    held = [one["revision"] for one in control.ask(sidecars=True)]
    return min([int(number) for number in re.findall(r"\d+", one)] for one in held)


def values(sidecar: Sidecar, name: str) -> list[float]:
    """The samples of a metric."""
    return [float(at) for at in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", scrape(sidecar), re.M)]


def total(sidecar: Sidecar, name: str) -> float:
    """The sum of a metric's samples."""
    return sum(values(sidecar, name))


def workers(sidecar: Sidecar) -> list[int]:
    """The process ids of a sidecar's workers."""
    pid = sidecar.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(one) for one in children if name_of(one) == "meshfast-worker"]


def name_of(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def shown_certificate(sidecar: Sidecar) -> x509.Certificate:
    """What the inbound listener shows to whoever begins a handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["meshfast/1"])
    port = int(sidecar.address("inbound").rpartition(":")[2])
    with (
        socket.create_connection(("127.0.0.1", port), 10) as plain,
        context.wrap_socket(plain) as encrypted,
    ):
        return x509.load_der_x509_certificate(encrypted.getpeercert(binary_form=True) or b"")
