"""Certificate requests (PKCS #10): everything that is looked at before a name is put on a key.

A request proves that its sender holds the key. Nothing else in it is believed: the name comes from
whoever authenticated the sender, the extensions are ours. What a request asks for beyond that is a
mistake or an attack and is refused rather than left out, so that nobody believes to have got it.

Does not do: decide who may have which identity, count, or sign.

Invariants: whatever the bytes, `check_request` returns a public key or raises `RefusedError`.

Tests: tests/control/ca/test_requests.py; each numbered check is a test there.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from meshfast.control.ca.error import Refusal, RefusedError
from meshfast.control.ca.identity import SpiffeId

__all__ = ["CSR_BYTES_MAX", "PublicKey", "check_request", "fingerprint"]

#: An RSA-4096 request with a SPIFFE name has 1.7 KiB.
CSR_BYTES_MAX: Final = 8 << 10
RSA_BITS_MIN: Final = 2048
#: OpenSSL verifies no larger one (OPENSSL_RSA_MAX_MODULUS_BITS).
RSA_BITS_MAX: Final = 16384

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey

_CURVES: Final = (ec.SECP256R1, ec.SECP384R1)
_HASHES: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
#: Understood, so they may be critical; their content is checked below or replaced by ours.
_UNDERSTOOD: Final = (
    x509.BasicConstraints,
    x509.ExtendedKeyUsage,
    x509.KeyUsage,
    x509.SubjectAlternativeName,
)


def check_request(csr_der: bytes, identity: SpiffeId) -> PublicKey:
    """Return the key of a request that may be certified as `identity`. Raises `RefusedError`."""
    if len(csr_der) > CSR_BYTES_MAX:
        raise RefusedError(Refusal.TOO_LARGE, f"a request has at most {CSR_BYTES_MAX} bytes")
    request = _parse(csr_der)
    key = _public_key(request)
    _check_signature(request)
    try:
        extensions = request.extensions
    except (ValueError, x509.DuplicateExtension, UnsupportedAlgorithm) as error:
        raise RefusedError(Refusal.MALFORMED, f"an extension: {error}") from error
    for extension in extensions:
        _check_extension(extension, identity)
    return key


def fingerprint(key: PublicKey) -> str:
    """Name a public key: SHA-256 of its SubjectPublicKeyInfo, in hexadecimal."""
    encoded = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return sha256(encoded).hexdigest()


def _parse(csr_der: bytes) -> x509.CertificateSigningRequest:
    try:
        return x509.load_der_x509_csr(csr_der)
    except (ValueError, x509.InvalidVersion) as error:
        raise RefusedError(Refusal.MALFORMED, "this is no PKCS #10 request in DER") from error


def _public_key(request: x509.CertificateSigningRequest) -> PublicKey:
    """Check 1, the key: P-256, P-384, Ed25519 or RSA from 2048 bits."""
    try:
        key = request.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise RefusedError(Refusal.KEY, "the key cannot be read") from error
    match key:
        case ec.EllipticCurvePublicKey() if isinstance(key.curve, _CURVES):
            return key
        case ed25519.Ed25519PublicKey():
            return key
        case rsa.RSAPublicKey() if RSA_BITS_MIN <= key.key_size <= RSA_BITS_MAX:
            return key
    raise RefusedError(Refusal.KEY, "a key is P-256, P-384, Ed25519, or RSA from 2048 bits")


def _check_signature(request: x509.CertificateSigningRequest) -> None:
    """Check 1, proof of possession."""
    try:
        algorithm = request.signature_hash_algorithm
        if algorithm is not None and not isinstance(algorithm, _HASHES):
            raise RefusedError(Refusal.SIGNATURE, f"signed with {algorithm.name}, which is broken")
        valid = request.is_signature_valid
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError) as error:
        raise RefusedError(Refusal.SIGNATURE, "the signature cannot be checked") from error
    if not valid:
        raise RefusedError(Refusal.SIGNATURE, "the request is not signed by its own key")


def _check_extension(extension: x509.Extension[x509.ExtensionType], identity: SpiffeId) -> None:
    """Checks 2 and 3: names, authority, and what is critical and not understood."""
    value = extension.value
    match value:
        case x509.SubjectAlternativeName():
            _check_names(value, identity)
        case x509.BasicConstraints() if value.ca:
            raise RefusedError(Refusal.AUTHORITY, "the request asks for CA:TRUE")
        case x509.KeyUsage() if value.key_cert_sign or value.crl_sign:
            raise RefusedError(Refusal.AUTHORITY, "the request asks to sign certificates")
        case _ if extension.critical and not isinstance(value, _UNDERSTOOD):
            oid = extension.oid.dotted_string
            raise RefusedError(Refusal.EXTENSION, f"the critical extension {oid} is not known")


def _check_names(names: x509.SubjectAlternativeName, identity: SpiffeId) -> None:
    """Check 2: no name but the authenticated one, once; the common name is not looked at."""
    given = list(names)
    if len(given) != 1 or not isinstance(given[0], x509.UniformResourceIdentifier):
        raise RefusedError(Refusal.SUBJECT, "a request has one name, a SPIFFE URI, or none")
    named = SpiffeId.parse(given[0].value)
    if named != identity:
        raise RefusedError(Refusal.SUBJECT, f"the request names {named}, not {identity}")
