"""A certificate authority for tests, and keys and requests as `meshfast._core` makes them."""

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DER = serialization.Encoding.DER


def generate_key() -> bytes:
    """PKCS #8 in DER, P-256."""
    return _pkcs8(ec.generate_private_key(ec.SECP256R1()))


def certificate_request(key: bytes, identity: str) -> bytes:
    """PKCS #10 in DER with the identity as its only name."""
    private = serialization.load_der_private_key(key, None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return (
        builder.add_extension(names, critical=True).sign(private, hashes.SHA256()).public_bytes(DER)
    )


class Authority:
    """A root and what it signs."""

    def __init__(self, life_s: float = 3600) -> None:
        """`life_s` is that of the root; below 0 it has expired."""
        self.key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test root")])
        builder = _builder(name, name, self.key.public_key(), life_s)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        builder = builder.add_extension(_usage(is_authority=True), True)
        self.certificate = builder.sign(self.key, hashes.SHA256())
        self.root: bytes = self.certificate.public_bytes(DER)

    def sign(self, csr: bytes, ttl_s: float, names: list[str] | None = None) -> bytes:
        """Give a certificate for a request, for other names when they are given."""
        request = x509.load_der_x509_csr(csr)
        assert request.is_signature_valid
        asked = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        given = names if names is not None else asked.get_values_for_type(
            x509.UniformResourceIdentifier
        )  # fmt: skip
        builder = _builder(
            x509.Name([]), self.certificate.subject, request.public_key(), ttl_s
        )  # fmt: skip
        uris = [x509.UniformResourceIdentifier(name) for name in given]
        builder = builder.add_extension(x509.SubjectAlternativeName(uris), True)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
        builder = builder.add_extension(_usage(is_authority=False), True)
        both = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        builder = builder.add_extension(x509.ExtendedKeyUsage(both), False)
        return builder.sign(self.key, hashes.SHA256()).public_bytes(DER)

    def pem(self, identity: str, ttl_s: float = 3600) -> str:
        """Give key and certificate of an identity, for a server."""
        key = generate_key()
        certificate = self.sign(certificate_request(key, identity), ttl_s)
        private = serialization.load_der_private_key(key, None)
        text = private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        loaded = x509.load_der_x509_certificate(certificate)
        return (loaded.public_bytes(serialization.Encoding.PEM) + text).decode()


def _builder(
    subject: x509.Name, issuer: x509.Name, key: object, ttl_s: float
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)  # type: ignore[arg-type]
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(seconds=60))
        .not_valid_after(now + datetime.timedelta(seconds=ttl_s))
    )


def _usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        encipher_only=False,
        decipher_only=False,
    )


def _pkcs8(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
