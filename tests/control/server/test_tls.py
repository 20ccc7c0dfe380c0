"""The TLS of the control stream: 1.3 only, no tickets, expiry, a certificate renewed in flight."""

import socket
import ssl
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from meshfast.control.ca import CertificateAuthority, SpiffeId
from meshfast.control.ca.serving import Serving
from meshfast.discovery import CertificateRequest, CertificateResponse, Code, Goodbye
from tests.control.ca.requests_made import csr
from tests.control.server.conftest import Plane, Start
from tests.control.server.sidecar import (
    Credentials,
    Sidecar,
    Wire,
    client_context,
    new_key,
    request,
)


def served(plane: Plane) -> x509.Certificate:
    token = plane.token()
    wire = Wire(token.control, client_context(token.root))
    der = wire.tls.getpeercert(binary_form=True)
    wire.close()
    assert der is not None
    return x509.load_der_x509_certificate(der)


def is_refused(address: str, context: ssl.SSLContext) -> bool:
    """Whether the handshake fails; TLS 1.3 tells a client of that after its own part of it."""
    try:
        wire = Wire(address, context)
    except OSError:
        return True
    try:
        wire.tls.settimeout(1.0)
        return wire.tls.recv(1) == b""
    except TimeoutError:
        return False  # the other end waits for a message
    except OSError:
        return True
    finally:
        wire.close()


def test_older_versions_of_tls_are_refused(plane: Plane) -> None:
    token = plane.token()
    context = client_context(token.root)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert is_refused(token.control, context)


def test_plain_text_is_refused(plane: Plane) -> None:
    host, _, port = plane.token().control.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert b"HTTP" not in plain.recv(1024)


def test_no_session_can_be_resumed(plane: Plane) -> None:
    with Sidecar.join(plane.token("payment")) as sidecar:
        sidecar.wait_open()
        assert sidecar.wire is not None
        assert sidecar.wire.tls.session is None or not sidecar.wire.tls.session.has_ticket


def test_a_certificate_of_another_authority_is_refused(plane: Plane, tmp_path: Path) -> None:
    other = CertificateAuthority.open(tmp_path / "other", "cluster.local")
    key = new_key()
    issued = other.issue(csr(key=key), SpiffeId("cluster.local", "default", "payment"), 3600)
    token = plane.token("payment")
    context = client_context(token.root, Credentials(key, list(issued.chain)))
    assert is_refused(token.control, context)
    assert not is_refused(token.control, client_context(token.root))


def test_an_expired_certificate_is_refused(start: Start) -> None:
    plane = start(cert_ttl_s=10)
    sidecar = Sidecar.join(plane.token("payment"))
    left = sidecar.credentials.leaf.not_valid_after_utc - datetime.now(UTC)
    time.sleep(max(0.0, left.total_seconds()) + 0.5)
    assert is_refused(sidecar.address, client_context(sidecar.root, sidecar.credentials))


def test_a_stream_ends_with_its_certificate_unless_it_was_renewed_on_it(start: Start) -> None:
    plane = start(cert_ttl_s=10)
    with (
        Sidecar.join(plane.token("payment"), "p1") as idle,
        Sidecar.join(plane.token("order"), "o1") as renewing,
    ):
        idle.wait_open()
        renewing.wait_open()
        time.sleep(4)  # the renewed certificate shall end later than the first
        renewing.send(CertificateRequest(1, request(new_key())))
        renewing.wait_until(lambda: renewing.received)
        assert isinstance(renewing.received[0], CertificateResponse)
        began_s = time.monotonic()
        assert idle.ended(15.0).code == Code.EXPIRED
        assert time.monotonic() - began_s < 8.0
        renewing.register(8080)
        deadline = time.monotonic() + 2
        while not plane.ask(plane.operations.workloads()):
            assert time.monotonic() < deadline
        assert not any(isinstance(one, Goodbye) for one in renewing.received)


def test_the_control_plane_renews_its_own_certificate_while_it_serves(start: Start) -> None:
    plane = start(serve_ttl_s=4)
    with Sidecar.join(plane.token("payment")) as sidecar:
        sidecar.wait_open()
        first = served(plane)
        deadline = time.monotonic() + 10
        while (second := served(plane)).serial_number == first.serial_number:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert second.not_valid_after_utc > first.not_valid_after_utc
        assert second.not_valid_after_utc > datetime.now(UTC)
        sidecar.subscribe()  # the old stream lives on
        sidecar.wait_until(lambda: sidecar.session.is_complete("route"))


def test_renewal_is_due_at_half_of_the_life(tmp_path: Path) -> None:
    authority = CertificateAuthority.open(tmp_path / "ca", "cluster.local")
    now = datetime.now(UTC).replace(microsecond=0)
    serving = Serving(authority, 3600, now)
    assert serving.renew_in_s(now) == 1800
    assert serving.renew_in_s(now + timedelta(seconds=1800)) == 0
    assert serving.renew_in_s(now + timedelta(seconds=4000)) == 0
    serving.renew(now + timedelta(seconds=1800))
    assert serving.renew_in_s(now + timedelta(seconds=1800)) == 1800


def test_the_clock_is_looked_at_again_after_a_suspension(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshfast.control.server.LOOK_S", 0.02)
    plane = start(serve_ttl_s=3600)
    serving = plane.control._serving
    before = serving._current
    # An hour of the clock passes at once; the sleep that was planned by the other clock does not.
    monkeypatch.setattr(serving, "_left_s", lambda now: 0.0)
    deadline = time.monotonic() + 10
    while serving._current is before:
        assert time.monotonic() < deadline
        time.sleep(0.005)
