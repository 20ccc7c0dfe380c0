"""Checks 1 to 3 and 7 of a certificate request: key, proof, names, authority, size."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from meshfast.control.ca import Refusal, RefusedError
from meshfast.control.ca.requests import check_request, fingerprint
from tests.control.ca.requests_made import ORDER, PAYMENT, csr, names, new_key, uri

RSA_2048 = rsa.generate_private_key(65537, 2048)
RSA_1024 = rsa.generate_private_key(65537, 1024)


def refusal(request: bytes) -> Refusal:
    with pytest.raises(RefusedError) as refused:
        check_request(request, PAYMENT)
    return refused.value.code


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        RSA_2048,
    ],
    ids=["P-256", "P-384", "RSA-2048"],
)
def test_takes_the_keys_that_are_allowed(key: ec.EllipticCurvePrivateKey) -> None:
    taken = check_request(csr(key=key), PAYMENT)
    assert fingerprint(taken) == fingerprint(key.public_key())


def test_takes_an_ed25519_key() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    request = builder.sign(key, None).public_bytes(Encoding.DER)
    assert fingerprint(check_request(request, PAYMENT)) == fingerprint(key.public_key())


@pytest.mark.parametrize(
    "key",
    [ec.generate_private_key(ec.SECP521R1()), ec.generate_private_key(ec.SECP256K1()), RSA_1024],
    ids=["P-521", "secp256k1", "RSA-1024"],
)
def test_refuses_any_other_key(key: ec.EllipticCurvePrivateKey) -> None:
    assert refusal(csr(key=key)) is Refusal.KEY


def test_refuses_a_request_that_another_key_has_signed() -> None:
    mine, other = new_key(), new_key()
    request, stolen = csr(key=mine), csr(key=other)
    # The public key of one request inside the signature of the other.
    spki = {
        one: one.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        for one in (mine, other)
    }
    assert spki[other] in stolen
    assert refusal(request.replace(spki[mine], spki[other])) is Refusal.SIGNATURE


def test_refuses_a_signature_with_a_broken_hash() -> None:
    request = csr(key=RSA_2048, algorithm=hashes.SHA224())
    assert refusal(request) is Refusal.SIGNATURE


@pytest.mark.parametrize("critical", [True, False])
def test_takes_the_name_that_was_authenticated(critical: bool) -> None:
    extension, _ = names(uri(PAYMENT))
    check_request(csr((extension, critical)), PAYMENT)


@pytest.mark.parametrize(
    "given_names",
    [
        [uri(ORDER)],
        [uri(PAYMENT), uri(PAYMENT)],
        [uri(PAYMENT), uri(ORDER)],
        [x509.DNSName("payment.default")],
        [uri(PAYMENT), x509.DNSName("payment.default")],
        [x509.RFC822Name("a@example.com")],
        [x509.DirectoryName(x509.Name([]))],
    ],
    ids=str,
)
def test_refuses_any_other_name(given_names: list[x509.GeneralName]) -> None:
    assert refusal(csr(names(*given_names))) is Refusal.SUBJECT


@pytest.mark.parametrize(
    "text",
    [
        str(PAYMENT) + "/",
        "spiffe://other.domain/ns/default/sa/payment",
        str(PAYMENT) + "?x",
        "spiffe://cluster.local:1/ns/default/sa/payment",
    ],
)
def test_refuses_another_spelling_of_the_name(text: str) -> None:
    assert refusal(csr(names(uri(text)))) in (Refusal.NAME, Refusal.SUBJECT)


def test_does_not_look_at_the_common_name() -> None:
    check_request(csr(common_name="root of all"), PAYMENT)


def usage(**asked: bool) -> x509.KeyUsage:
    fields = dict.fromkeys(
        (
            "digital_signature",
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "key_cert_sign",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    return x509.KeyUsage(**(fields | asked))


@pytest.mark.parametrize(
    "extension",
    [
        x509.BasicConstraints(ca=True, path_length=None),
        x509.BasicConstraints(ca=True, path_length=0),
        usage(key_cert_sign=True),
        usage(digital_signature=True, crl_sign=True),
    ],
    ids=["CA:TRUE", "CA:TRUE with a length", "keyCertSign", "cRLSign"],
)
@pytest.mark.parametrize("critical", [True, False])
def test_refuses_a_request_to_be_an_authority(
    extension: x509.ExtensionType, critical: bool
) -> None:
    assert refusal(csr((extension, critical))) is Refusal.AUTHORITY


def unknown() -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")


def test_refuses_a_critical_extension_that_is_not_known() -> None:
    assert refusal(csr((unknown(), True))) is Refusal.EXTENSION


def test_leaves_alone_what_is_not_critical_and_what_is_harmless() -> None:
    harmless = x509.BasicConstraints(ca=False, path_length=None)
    check_request(csr((unknown(), False), (harmless, True)), PAYMENT)


@pytest.mark.parametrize("size", [0, 1, 8192])
def test_refuses_bytes_that_are_no_request(size: int) -> None:
    assert refusal(b"\x30" * size) is Refusal.MALFORMED


def test_refuses_a_request_of_more_than_8_kib_unread() -> None:
    assert refusal(b"\x30" * 8193) is Refusal.TOO_LARGE


@pytest.mark.parametrize("trailing", [b"\0", b"\x30\0"])
def test_refuses_what_follows_a_request(trailing: bytes) -> None:
    assert refusal(csr() + trailing) is Refusal.MALFORMED


SOUND = csr(names(uri(PAYMENT)))


@settings(deadline=None)
@given(st.integers(0, len(SOUND) - 1), st.integers(1, 255))
def test_no_changed_byte_gets_another_name_or_a_crash(at: int, change: int) -> None:
    changed = bytearray(SOUND)
    changed[at] ^= change
    with pytest.raises(RefusedError):
        check_request(bytes(changed), PAYMENT)
