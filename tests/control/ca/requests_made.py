"""Certificate requests for tests: good ones, and ones that are wrong in one way."""

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from meshfast.control.ca import SpiffeId

PAYMENT = SpiffeId("cluster.local", "default", "payment")
ORDER = SpiffeId("cluster.local", "default", "order")

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def uri(identity: object) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(str(identity))


def csr(
    *extensions: tuple[x509.ExtensionType, bool],
    key: Key | None = None,
    common_name: str = "",
    algorithm: hashes.HashAlgorithm | None = None,
) -> bytes:
    """A request in DER, with extensions and whether each is critical."""
    subject = [x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)] if common_name else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(subject))
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    signed = builder.sign(key or new_key(), algorithm or hashes.SHA256())  # type: ignore[arg-type]
    return signed.public_bytes(Encoding.DER)


def names(*given: x509.GeneralName) -> tuple[x509.ExtensionType, bool]:
    return x509.SubjectAlternativeName(given), True
