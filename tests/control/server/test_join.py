"""Joining over TLS: a token gives one certificate for its own identity, and nothing else does."""

import json
import time
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec.structs import replace

from meshfast.control.ca import CertificateAuthority
from meshfast.control.store import Delete, Transaction
from meshfast.discovery import (
    CertificateRequest,
    CertificateResponse,
    ClientSession,
    Code,
    Goodbye,
    Heartbeat,
    Hello,
    JoinToken,
    Message,
    Node,
    Registration,
    Subscribe,
)
from tests.control.server.conftest import Plane, Start
from tests.control.server.sidecar import (
    Credentials,
    Sidecar,
    Wire,
    client_context,
    join,
    new_key,
    refusal,
    request,
)

PAYMENT = "spiffe://cluster.local/ns/default/sa/payment"
ORDER = "spiffe://cluster.local/ns/default/sa/order"


def name(uri: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(uri)


def names(certificate: x509.Certificate) -> list[x509.GeneralName]:
    san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return list(san.value)


def issued(plane: Plane) -> list[str]:
    """Serials on record, oldest first."""
    entries = plane.control._store.scan("/issued/").entries
    return [one.key.rpartition("/")[2] for one in sorted(entries, key=lambda one: one.created)]


def has_received(sidecar: Sidecar, count: int) -> bool:
    """Tell whether so many messages have come."""
    return len(sidecar.received) == count


def refusal_of(message: object) -> str:
    assert isinstance(message, CertificateResponse)
    return message.refusal


def refused(token: JoinToken, *given: x509.GeneralName, **changes: str) -> str:
    credentials, messages = join(token, *given, **changes)  # type: ignore[arg-type]
    assert credentials is None
    return refusal(messages)


def test_a_token_gives_the_certificate_of_its_identity(plane: Plane) -> None:
    credentials, messages = join(plane.token("payment"), name(PAYMENT))
    assert credentials is not None
    assert names(credentials.leaf) == [name(PAYMENT)]
    assert credentials.leaf.public_key() == credentials.key.public_key()
    [response, goodbye] = messages
    assert isinstance(response, CertificateResponse)
    assert len(response.chain) == 2
    assert len(response.bundle) == 1
    assert isinstance(goodbye, Goodbye)


def test_the_service_account_may_differ_from_the_service(plane: Plane) -> None:
    token = plane.token("payment", namespace="shop", service_account="account")
    credentials, _ = join(token)
    assert credentials is not None
    assert names(credentials.leaf) == [name(token.identity)]


def test_the_first_connection_is_verified_by_the_token_alone(plane: Plane, tmp_path: Path) -> None:
    token = plane.token()
    wire = Wire(token.control, client_context(token.root))
    assert wire.tls.version() == "TLSv1.3"
    der = wire.tls.getpeercert(binary_form=True)
    assert der is not None
    control = f"spiffe://{token.trust_domain}/ns/meshfast-system/sa/control"
    assert names(x509.load_der_x509_certificate(der)) == [name(control)]
    wire.close()
    other = CertificateAuthority.open(tmp_path / "other", "cluster.local").bundle()[0]
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        Wire(token.control, client_context(other))


def test_a_used_token_is_refused_however_often_it_is_tried(plane: Plane) -> None:
    token = plane.token(uses=1)
    assert join(token)[0] is not None
    assert {refused(token, instance=f"i{n}") for n in range(20)} == {
        "token_used: the join token is used up (1); make a new one"
    }


def test_an_expired_token_is_refused(plane: Plane) -> None:
    token = plane.token(ttl_s=1, uses=1000)
    deadline = time.monotonic() + 10
    while (found := join(token))[0] is not None:
        assert time.monotonic() < deadline
        time.sleep(0.25)  # as often as the limit of the address allows
    assert refusal(found[1]).startswith("token_expired")


def test_a_wrong_secret_and_an_unknown_token_get_one_answer(plane: Plane) -> None:
    token = plane.token()
    wrong = refused(token, secret="A" * len(token.secret))
    unknown = refused(replace(token, id="0" * 16))
    assert wrong == unknown == "token_invalid: there is no such join token"
    assert join(token)[0] is not None


def test_a_revoked_token_is_refused(plane: Plane) -> None:
    token = plane.token()
    plane.ask(plane.operations.revoke_token(token.id))
    assert refused(token).startswith("token_revoked")


@pytest.mark.parametrize(
    "given",
    [
        [name(ORDER)],
        [name(PAYMENT), name(ORDER)],
        [x509.DNSName("payment")],
        [name("spiffe://cluster.local/ns/meshfast-system/sa/control")],
    ],
    ids=str,
)
def test_a_request_for_another_name_is_refused_and_costs_no_use(
    plane: Plane, given: list[x509.GeneralName]
) -> None:
    token = plane.token("payment")
    assert refused(token, *given).startswith("subject")
    assert join(token)[0] is not None


@pytest.mark.parametrize(
    "message",
    [
        CertificateRequest(1, b""),
        CertificateRequest(1, b"", token_secret="x", instance="i1"),
        Hello(1, Node("i1", "w", "default")),
        Subscribe("cluster", ["*"]),
        Heartbeat(),
        Registration("w", "default", "payment", "127.0.0.1:1", []),
    ],
    ids=lambda message: type(message).__name__,
)
def test_without_a_certificate_nothing_but_a_join_is_taken(
    plane: Plane, message: CertificateRequest
) -> None:
    token = plane.token()
    wire = Wire(token.control, client_context(token.root))
    wire.send(message)
    [goodbye] = wire.all()
    assert isinstance(goodbye, Goodbye)
    assert goodbye.code == Code.UNAUTHORIZED
    assert plane.call(lambda: len(plane.control.streams)) == 0


def test_a_stranger_may_send_little(plane: Plane) -> None:
    token = plane.token()
    wire = Wire(token.control, client_context(token.root))
    wire.tls.sendall((17 << 10).to_bytes(4, "big"))
    [goodbye] = wire.all()
    assert isinstance(goodbye, Goodbye)
    assert goodbye.code == Code.TOO_LARGE


def test_a_renewal_on_the_stream_is_for_the_same_identity(plane: Plane) -> None:
    with Sidecar.join(plane.token("payment", namespace="shop")) as sidecar:
        sidecar.wait_open()
        key = new_key()
        sidecar.session.send(CertificateRequest(7, request(key)))
        sidecar.flush()
        sidecar.wait_until(lambda: sidecar.received)
        [response] = sidecar.received
        assert isinstance(response, CertificateResponse)
        assert (response.id, response.refusal) == (7, "")
        renewed = Credentials(key, response.chain)
        assert names(renewed.leaf) == names(sidecar.credentials.leaf)
        sidecar.disconnect()
        sidecar.credentials = renewed
        sidecar.connect()
        sidecar.wait_open()


def test_over_many_renewals_on_a_stream_service_and_instance_stay(plane: Plane) -> None:
    token = plane.token("payment", service_account="account")
    with Sidecar.join(token) as sidecar:
        sidecar.wait_open()
        for number in range(3):
            sidecar.session.send(CertificateRequest(number, request(new_key())))
            sidecar.flush()
            sidecar.wait_until(partial(has_received, sidecar, number + 1))
            for serial in issued(plane)[:-1]:  # as when the certificates before have expired
                plane.control._store.transact(Transaction((Delete(f"/issued/{serial}"),)))
        assert [refusal_of(one) for one in sidecar.received] == ["", "", ""]
        [serial] = issued(plane)
        record = plane.control._issuance.issued(int(serial, 16))
        assert record is not None
        assert (record.service, record.instance) == ("payment", "i1")
        sidecar.register(8080, service="payment")
        sidecar.subscribe()
        name_of = "outbound|8080||payment.default"
        sidecar.wait_until(lambda: name_of in sidecar.held.get("cluster", {}))


def test_without_a_record_of_its_certificate_a_stream_is_refused(plane: Plane) -> None:
    sidecar = Sidecar.join(plane.token("payment"))
    for serial in issued(plane):
        plane.control._store.transact(Transaction((Delete(f"/issued/{serial}"),)))
    sidecar.connect()
    goodbye = sidecar.ended()
    assert (goodbye.code, "not on record" in goodbye.detail) == (Code.UNAUTHORIZED, True)
    sidecar.disconnect()


def test_the_instance_is_the_certificate_s(plane: Plane) -> None:
    sidecar = Sidecar.join(plane.token("payment"), "i1")
    sidecar.session = ClientSession(Node("i2", "payment-i2", "default"))
    sidecar.connect()
    goodbye = sidecar.ended()
    assert goodbye.code == Code.UNAUTHORIZED
    assert "the instance 'i1', not for 'i2'" in goodbye.detail
    sidecar.disconnect()


def test_a_join_whose_answer_was_lost_is_repeated(plane: Plane) -> None:
    token, key = plane.token(uses=1), new_key()
    wire = Wire(token.control, client_context(token.root))
    wire.send(CertificateRequest(1, request(key), token.id, token.secret, "i1"))
    wire.close()
    deadline = time.monotonic() + 10
    while not issued(plane):
        assert time.monotonic() < deadline
    again, messages = join(token, key=key, instance="i1")
    assert again is not None, messages
    assert refused(token, instance="i2").startswith("token_used")


def test_an_expired_certificate_is_renewed_without_a_certificate(start: Start) -> None:
    plane = start(cert_ttl_s=10)
    token = plane.token(uses=1)
    credentials, _ = join(token)
    assert credentials is not None
    plane.control._issuance._clock_s = lambda: time.time() + 3600

    def ask(key: ec.EllipticCurvePrivateKey) -> list[Message]:
        wire = Wire(token.control, client_context(token.root))
        previous = credentials.chain[0]
        wire.send(CertificateRequest(1, request(key), instance="i1", previous=previous))
        return wire.all()

    assert refusal(ask(new_key())).startswith("key_owner")
    [response, _] = ask(credentials.key)
    assert isinstance(response, CertificateResponse)
    assert names(Credentials(credentials.key, response.chain).leaf) == [name(PAYMENT)]


def test_a_renewal_for_somebody_else_is_refused_and_the_stream_lives(plane: Plane) -> None:
    others = [
        name(f"spiffe://cluster.local/ns/{namespace}/sa/{account}")
        for namespace in ("default", "shop", "meshfast-system")
        for account in ("order", "control", "payment2", "root")
    ]
    with Sidecar.join(plane.token("payment")) as sidecar:
        sidecar.wait_open()
        for number, other in enumerate(others):
            sidecar.session.send(CertificateRequest(number, request(new_key(), other)))
        sidecar.flush()
        sidecar.wait_until(lambda: len(sidecar.received) == len(others))
        for response in sidecar.received:
            assert isinstance(response, CertificateResponse)
            assert response.refusal.startswith("subject")
            assert response.chain == []
        sidecar.register()
        sidecar.subscribe()
        sidecar.wait_until(lambda: sidecar.session.is_complete("cluster"))


def test_a_renewal_takes_no_token(plane: Plane) -> None:
    token = plane.token("order")
    with Sidecar.join(plane.token("payment")) as sidecar:
        sidecar.wait_open()
        sidecar.send(CertificateRequest(1, request(new_key()), token.id, token.secret, "i1"))
        sidecar.wait_until(lambda: sidecar.received)
        assert "no token" in refusal(list(sidecar.received))
    assert join(token)[0] is not None


def test_the_log_of_tokens_and_the_stored_rows_do_not_hold_secrets(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plane = start()
    token = plane.token()
    with caplog.at_level("DEBUG"):
        refused(token, secret="wrong-secret-wrong-secret")
        join(token)
        refused(token)
    assert "token_used" in caplog.text
    assert token.secret not in caplog.text
    assert "wrong-secret" not in caplog.text
    listed = plane.ask(plane.operations.list_tokens())
    assert token.secret not in json.dumps([repr(one) for one in listed])
    plane.stop()
    for path in (tmp_path / "state").rglob("*"):
        if path.is_file():
            assert token.secret.encode() not in path.read_bytes()


@pytest.mark.parametrize(
    ("id", "logged"),
    [
        ("fea99437d053d0f1", "'fea99437d053d0f1'"),
        ("a\nb\x1b[2J", r"'a\nb\x1b[2J'"),
        ("a" * 81, f"'{'a' * 80}'… (81 characters)"),
    ],
)
def test_the_log_has_the_whole_id_of_a_token_that_was_refused(
    plane: Plane, caplog: pytest.LogCaptureFixture, id: str, logged: str
) -> None:
    refused(replace(plane.token(), id=id))
    [line] = [one for one in caplog.messages if one.startswith("join refused: ")]
    assert line.startswith(f"join refused: token {logged}, instance 'i")


def test_files_of_the_state_are_private(plane: Plane, tmp_path: Path) -> None:
    join(plane.token())
    for path in [tmp_path / "state", *(tmp_path / "state").rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path
