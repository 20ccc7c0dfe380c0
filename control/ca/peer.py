"""Who is at the other end of a connection: the identity in a certificate that TLS has verified.

TLS has checked chain, time and purpose. Here the name is read, under the same strict rules by which
it was given: a certificate below our root that is no workload's (an issuer, or one made elsewhere)
is nobody.

Tests: tests/control/ca/test_peer.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from meshfast.control.ca.error import Refusal, RefusedError
from meshfast.control.ca.identity import SpiffeId

__all__ = ["Peer"]


@dataclass(frozen=True, slots=True)
class Peer:
    """An authenticated peer: its identity, and which certificate says so."""

    identity: SpiffeId
    serial: int
    not_after: datetime

    @classmethod
    def of(cls, certificate_der: bytes, trust_domain: str) -> Peer:
        """Read a verified certificate. Raises `RefusedError` unless it is a workload's of ours."""
        try:
            certificate = x509.load_der_x509_certificate(certificate_der)
            names = certificate.extensions.get_extension_for_class(
                x509.SubjectAlternativeName
            ).value
        except (
            ValueError,
            x509.DuplicateExtension,
            x509.ExtensionNotFound,
            x509.InvalidVersion,
        ) as error:
            raise RefusedError(Refusal.NAME, "the certificate has no readable name") from error
        given = list(names)
        if len(given) != 1 or not isinstance(given[0], x509.UniformResourceIdentifier):
            raise RefusedError(Refusal.NAME, "the certificate has to have one name, a SPIFFE URI")
        identity = SpiffeId.parse(given[0].value)
        if identity.trust_domain != trust_domain:
            raise RefusedError(Refusal.NAME, f"{identity} is not of the domain {trust_domain}")
        return cls(identity, certificate.serial_number, certificate.not_valid_after_utc)
