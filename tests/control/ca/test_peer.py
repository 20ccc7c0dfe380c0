"""Who a verified certificate says that its holder is."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from meshfast.control.ca import CertificateAuthority, Peer, RefusedError
from tests.control.ca.requests_made import PAYMENT, csr, new_key, uri


def certificate(*given: x509.GeneralName) -> bytes:
    key, now = new_key(), datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(hours=1))
    )
    if given:
        builder = builder.add_extension(x509.SubjectAlternativeName(given), critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def test_a_leaf_names_its_holder(tmp_path: Path) -> None:
    authority = CertificateAuthority.open(tmp_path / "ca", "cluster.local")
    issued = authority.issue(csr(), PAYMENT, 3600)
    peer = Peer.of(issued.chain[0], "cluster.local")
    assert (peer.identity, peer.serial, peer.not_after) == (
        PAYMENT,
        issued.serial,
        issued.not_after,
    )


@pytest.mark.parametrize(
    "given",
    [
        [],
        [uri(PAYMENT), uri(PAYMENT)],
        [x509.DNSName("payment")],
        [uri(PAYMENT), x509.DNSName("payment")],
        [uri("spiffe://cluster.local")],  # an authority's
        [uri("spiffe://other.domain/ns/default/sa/payment")],
        [uri(f"{PAYMENT}/more")],
    ],
    ids=str,
)
def test_any_other_certificate_is_nobody_s(given: list[x509.GeneralName]) -> None:
    with pytest.raises(RefusedError):
        Peer.of(certificate(*given), "cluster.local")


def test_an_issuer_is_nobody(tmp_path: Path) -> None:
    authority = CertificateAuthority.open(tmp_path / "ca", "cluster.local")
    issuer = authority.issue(csr(), PAYMENT, 3600).chain[1]
    for der in (issuer, authority.bundle()[0], b"\x30\x00"):
        with pytest.raises(RefusedError):
            Peer.of(der, "cluster.local")
