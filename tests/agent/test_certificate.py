"""The reader of certificates agrees with a library, and takes no bytes that are none."""

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from meshfast.agent.certificate import CertificateError, parse

PRINCIPAL = "spiffe://cluster.local/ns/default/sa/payment"


def certificate(
    names: list[x509.GeneralName] | None, after: datetime.datetime, *, critical: bool = True
) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime(1999, 12, 31, 23, 59, 58))
        .not_valid_after(after)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), True)
    )
    if names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize(
    "after",
    [
        datetime.datetime(2026, 2, 28, 1, 2, 3),
        datetime.datetime(2049, 12, 31, 23, 59, 59),  # the last UTCTime
        datetime.datetime(2050, 1, 1),  # the first GeneralizedTime
        datetime.datetime(2100, 3, 1),  # no leap year
        datetime.datetime(2400, 2, 29),
        datetime.datetime(9999, 12, 31, 23, 59, 59),
    ],
)
def test_reads_both_forms_of_time(after: datetime.datetime) -> None:
    found = parse(certificate([x509.UniformResourceIdentifier(PRINCIPAL)], after))
    assert found.not_before == 946684798
    assert found.not_after == int(after.replace(tzinfo=datetime.UTC).timestamp())


@pytest.mark.parametrize("critical", [False, True])
def test_reads_the_uris_among_other_names(critical: bool) -> None:
    names = [
        x509.DNSName("a.example"),
        x509.UniformResourceIdentifier(PRINCIPAL),
        x509.UniformResourceIdentifier("spiffe://other/x"),
    ]
    after = datetime.datetime(2030, 1, 1)
    assert parse(certificate(names, after, critical=critical)).uris == [
        PRINCIPAL,
        "spiffe://other/x",
    ]


def test_a_certificate_without_names_has_none() -> None:
    assert parse(certificate(None, datetime.datetime(2030, 1, 1))).uris == []


def test_no_cut_of_a_certificate_is_one() -> None:
    whole = certificate([x509.UniformResourceIdentifier(PRINCIPAL)], datetime.datetime(2030, 1, 1))
    for end in range(len(whole)):
        with pytest.raises(CertificateError):
            parse(whole[:end])


def test_no_changed_byte_makes_it_fail_otherwise() -> None:
    whole = certificate([x509.UniformResourceIdentifier(PRINCIPAL)], datetime.datetime(2030, 1, 1))
    for at in range(len(whole)):
        for flip in (0x01, 0x80, 0xFF):
            changed = whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :]
            try:
                parse(changed)
            except CertificateError:
                continue
