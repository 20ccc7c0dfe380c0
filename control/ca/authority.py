"""The certificate authority: a root of ten years, an issuer of one, leaves of a day at most.

    root (P-256, 10 years)  →  issuer (P-256, 1 year)  →  leaf (the sidecar's key, hours)

Sidecars trust the root; the issuer signs and travels in every chain, so it is replaced without
anybody noticing: a new one under the same root is made when a fifth of its life is left (Istio
replaces its certificates there). The root's key is needed for that alone.

Does not do: decide who gets which identity, limit, or remember (issuance.py); talk to anybody.

Invariants:
1. Key and certificate of an authority are one file, 0600 in a directory 0700 that is ours, written
   aside, synced and renamed: a killed process leaves the old file or the new one, never half.
2. Nothing is signed by an issuer that is out of its time or not below the published root.
3. A leaf has one name, a SPIFFE URI, no subject, and ends within 24 hours and before its issuer.

Tests: tests/control/ca/test_authority.py, test_authority_files.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from meshfast.control.ca import files
from meshfast.control.ca.error import AuthorityError, Refusal, RefusedError
from meshfast.control.ca.identity import SpiffeId
from meshfast.control.ca.requests import PublicKey, check_request, fingerprint

__all__ = ["LEAF_TTL_S_MAX", "LEAF_TTL_S_MIN", "CertificateAuthority", "Issued", "ServerIdentity"]

ROOT_FILE: Final = "root.pem"
ISSUER_FILE: Final = "issuer.pem"
ROOT_LIFE: Final = timedelta(days=3650)  # Istio's self-signed root
ISSUER_LIFE: Final = timedelta(days=365)  # Linkerd's issuer
#: Part of an issuer's life that is left when the next one is made; Istio's grace period.
ISSUER_GRACE: Final = 0.2
LEAF_TTL_S_MAX: Final = 24 * 3600
LEAF_TTL_S_MIN: Final = 10
#: How far a verifier's clock may lag behind ours; Istio's and Linkerd's skew allowances are less.
BACKDATING: Final = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate with its issuer, DER, leaf first; times in UTC; `key` names the public key."""

    chain: tuple[bytes, ...]
    not_before: datetime
    not_after: datetime
    serial: int
    key: str


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """A key of our own with its chain, as one PEM text for `ssl`. Not for disks or logs."""

    pem: bytes
    not_before: datetime
    not_after: datetime

    def __repr__(self) -> str:
        """Render without the key."""
        return f"ServerIdentity(not_after={self.not_after.isoformat()})"


@dataclass(frozen=True, slots=True)
class _Signer:
    """A certificate that may sign others, and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def pem(self) -> bytes:
        key = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return key + self.certificate.public_bytes(Encoding.PEM)


class CertificateAuthority:
    """A root and an issuer. Not safe to open twice at a time: the store's lock guards that."""

    def __init__(self, directory: Path, trust_domain: str, root: _Signer, issuer: _Signer) -> None:
        """Use `open`."""
        self.trust_domain = trust_domain
        self._directory = directory
        self._root = root
        self._issuer = issuer

    @classmethod
    def open(
        cls, directory: Path, trust_domain: str, *, now: datetime | None = None
    ) -> CertificateAuthority:
        """Load the authority of a trust domain; make one when the directory is new or empty.

        Raises `AuthorityError`: files that others could read or change, that are damaged, that
        belong to another trust domain, or of which the root is missing.
        """
        SpiffeId.control(trust_domain)  # refuses what no identity could be made in
        now = now or _now()
        files.prepare(directory)
        root = _load(directory / ROOT_FILE)
        issuer = _load(directory / ISSUER_FILE)
        if root is None:
            if issuer is not None:
                raise AuthorityError(
                    f"{directory / ROOT_FILE} is missing: restore it from a backup, or remove "
                    f"{ISSUER_FILE} as well to start a mesh that no present sidecar trusts"
                )
            root = _make(trust_domain, "root", None, now, ROOT_LIFE)
            files.replace(directory / ROOT_FILE, root.pem())
        if _trust_domain(root.certificate) != trust_domain:
            raise AuthorityError(
                f"{directory} belongs to the trust domain {_trust_domain(root.certificate)!r}, "
                f"not to {trust_domain!r}"
            )
        if issuer is None:
            issuer = _make(trust_domain, "issuer", root, now, ISSUER_LIFE)
            files.replace(directory / ISSUER_FILE, issuer.pem())
        authority = cls(directory, trust_domain, root, issuer)
        authority.renew_issuer(now)
        return authority

    def bundle(self) -> list[bytes]:
        """Return the certificates that sidecars trust, DER."""
        return [self._root.certificate.public_bytes(Encoding.DER)]

    def renew_issuer(self, now: datetime | None = None) -> bool:
        """Replace the issuer when its time comes; say whether that was now."""
        now = now or _now()
        certificate = self._issuer.certificate
        life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        if certificate.not_valid_after_utc - now > life * ISSUER_GRACE:
            return False
        issuer = _make(self.trust_domain, "issuer", self._root, now, ISSUER_LIFE)
        files.replace(self._directory / ISSUER_FILE, issuer.pem())
        self._issuer = issuer
        return True

    def issue(
        self, csr_der: bytes, identity: SpiffeId, ttl_s: int, now: datetime | None = None
    ) -> Issued:
        """Check the request and certify its key as `identity`. Raises `RefusedError`.

        `ttl_s` is cut to 24 hours and to what is left of the issuer.
        """
        if identity.trust_domain != self.trust_domain:
            raise RefusedError(
                Refusal.NAME, f"{identity} is not of the trust domain {self.trust_domain}"
            )
        return self._certify(check_request(csr_der, identity), identity, ttl_s, now or _now())

    def serve_identity(
        self, identity: SpiffeId, ttl_s: int, now: datetime | None = None
    ) -> ServerIdentity:
        """Make a key and certify it, for the control plane's own listener."""
        key = ec.generate_private_key(ec.SECP256R1())
        issued = self._certify(key.public_key(), identity, ttl_s, now or _now())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        for der in issued.chain:
            pem += x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)
        return ServerIdentity(pem, issued.not_before, issued.not_after)

    def _certify(self, key: PublicKey, identity: SpiffeId, ttl_s: int, now: datetime) -> Issued:
        self._check_issuer(now)
        now = now.replace(microsecond=0)  # certificates count in seconds
        issuer = self._issuer.certificate
        ttl = timedelta(seconds=min(ttl_s, LEAF_TTL_S_MAX))
        not_before, not_after = now - BACKDATING, min(now + ttl, issuer.not_valid_after_utc)
        serial = x509.random_serial_number()  # 159 random bits
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(issuer.subject)
            .public_key(key)
            .serial_number(serial)
            .not_valid_before(not_before)
            .not_valid_after(not_after)
            # RFC 5280 4.2.1.6: critical where there is no subject.
            .add_extension(_names(str(identity)), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage(
                    [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
                ),
                critical=False,
            )
            .add_extension(_key_id(key), critical=False)
            .add_extension(_authority_key_id(issuer), critical=False)
            .sign(self._issuer.key, hashes.SHA256())
        )
        chain = (certificate.public_bytes(Encoding.DER), issuer.public_bytes(Encoding.DER))
        return Issued(chain, not_before, not_after, serial, fingerprint(key))

    def _check_issuer(self, now: datetime) -> None:
        """Check 8: the issuer is in its time and below the published root, which is too."""
        issuer, root = self._issuer.certificate, self._root.certificate
        for name, certificate in (("issuer", issuer), ("root", root)):
            if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
                until = certificate.not_valid_after_utc.isoformat()
                raise RefusedError(Refusal.ISSUER, f"the {name} is out of its time ({until})")
        try:
            issuer.verify_directly_issued_by(root)
        except (InvalidSignature, ValueError, TypeError) as error:
            raise RefusedError(Refusal.ISSUER, "the issuer is not below the root") from error


def _make(
    trust_domain: str, name: str, signer: _Signer | None, now: datetime, life: timedelta
) -> _Signer:
    """Make a root (no signer) or an issuer."""
    now = now.replace(microsecond=0)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [
            x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "meshfast"),
            # 64 characters at most (RFC 5280, ub-common-name); the URI below has the whole name.
            x509.NameAttribute(x509.NameOID.COMMON_NAME, f"{name} of {trust_domain}"[:64]),
        ]
    )
    not_after = now + life
    if signer is not None:
        not_after = min(not_after, signer.certificate.not_valid_after_utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if signer is None else signer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATING)
        .not_valid_after(not_after)
        .add_extension(
            x509.BasicConstraints(ca=True, path_length=1 if signer is None else 0), critical=True
        )
        .add_extension(_usage(signs=True), critical=True)
        # X509-SVID 3.1: a signing certificate may have an id without a path.
        .add_extension(_names(f"spiffe://{trust_domain}"), critical=False)
        .add_extension(_key_id(key.public_key()), critical=False)
    )
    if signer is not None:
        builder = builder.add_extension(_authority_key_id(signer.certificate), critical=False)
    certificate = builder.sign(key if signer is None else signer.key, hashes.SHA256())
    return _Signer(certificate, key)


def _load(path: Path) -> _Signer | None:
    """Read a key and its certificate; `None` when there is no such file."""
    pem = files.read(path)
    if pem is None:
        return None
    try:
        key = load_pem_private_key(pem, password=None)
        certificate = x509.load_pem_x509_certificate(pem)
    except (ValueError, TypeError) as error:
        raise AuthorityError(f"{path}: is damaged; restore it from a backup") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise AuthorityError(f"{path}: the key is not of a kind that this authority makes")
    if key.public_key() != certificate.public_key():
        raise AuthorityError(f"{path}: key and certificate do not belong together")
    return _Signer(certificate, key)


def _trust_domain(certificate: x509.Certificate) -> str:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    found = names.get_values_for_type(x509.UniformResourceIdentifier)
    return found[0].removeprefix("spiffe://") if found else ""


def _names(uri: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_id(key: PublicKey) -> x509.SubjectKeyIdentifier:
    return x509.SubjectKeyIdentifier.from_public_key(key)


def _authority_key_id(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    key_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(key_id)


def _now() -> datetime:
    return datetime.now(UTC)
