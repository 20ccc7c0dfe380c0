"""Checks 5 and 8, and the form of what is issued."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store

from meshfast.control.ca import CertificateAuthority, Refusal, RefusedError, SpiffeId
from tests.control.ca.requests_made import PAYMENT, csr, names, new_key, uri

NOW = datetime(2026, 5, 1, 12, 0, 0, 123456, tzinfo=UTC)
DAY = timedelta(days=1)


def open_at(directory: Path, now: datetime = NOW) -> CertificateAuthority:
    return CertificateAuthority.open(directory / "ca", "cluster.local", now=now)


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return open_at(tmp_path)


def leaf(
    authority: CertificateAuthority, ttl_s: int = 3600, now: datetime = NOW
) -> x509.Certificate:
    issued = authority.issue(csr(), PAYMENT, ttl_s, now)
    return x509.load_der_x509_certificate(issued.chain[0])


def issuer_of(authority: CertificateAuthority, now: datetime = NOW) -> x509.Certificate:
    return x509.load_der_x509_certificate(authority.issue(csr(), PAYMENT, 10, now).chain[1])


def test_a_leaf_is_a_leaf_with_one_name_and_no_subject(authority: CertificateAuthority) -> None:
    key = new_key()
    asked = x509.BasicConstraints(ca=False, path_length=None)
    issued = authority.issue(
        csr(names(uri(PAYMENT)), (asked, False), key=key, common_name="x"), PAYMENT, 3600, NOW
    )
    certificate = x509.load_der_x509_certificate(issued.chain[0])
    assert certificate.public_key() == key.public_key()
    assert certificate.subject == x509.Name([])
    extensions = {type(one.value): one for one in certificate.extensions}
    san = extensions[x509.SubjectAlternativeName]
    assert (list(san.value), san.critical) == ([uri(PAYMENT)], True)
    constraints = extensions[x509.BasicConstraints]
    assert constraints.value == x509.BasicConstraints(ca=False, path_length=None)
    assert constraints.critical
    key_usage = extensions[x509.KeyUsage]
    assert key_usage.critical
    assert key_usage.value.digital_signature
    assert not key_usage.value.key_cert_sign
    assert set(extensions[x509.ExtendedKeyUsage].value) == {
        ExtendedKeyUsageOID.CLIENT_AUTH,
        ExtendedKeyUsageOID.SERVER_AUTH,
    }


def test_a_chain_verifies_against_the_bundle_with_its_spiffe_id(
    authority: CertificateAuthority,
) -> None:
    issued = authority.issue(csr(), PAYMENT, 3600, NOW)
    [root] = authority.bundle()
    store = Store([x509.load_der_x509_certificate(root)])
    chain = [x509.load_der_x509_certificate(der) for der in issued.chain]
    verified = (
        PolicyBuilder().store(store).time(NOW).build_client_verifier().verify(chain[0], chain[1:])
    )
    assert verified.subjects == [uri(PAYMENT)]


def test_a_leaf_begins_a_minute_ago_and_ends_after_its_ttl(
    authority: CertificateAuthority,
) -> None:
    certificate = leaf(authority, 3600)
    whole = NOW.replace(microsecond=0)
    assert certificate.not_valid_before_utc == whole - timedelta(seconds=60)
    assert certificate.not_valid_after_utc == whole + timedelta(seconds=3600)


def test_a_ttl_is_cut_to_a_day(authority: CertificateAuthority) -> None:
    assert leaf(authority, 10**9).not_valid_after_utc == NOW.replace(microsecond=0) + DAY


def test_a_ttl_is_cut_to_what_is_left_of_the_issuer(authority: CertificateAuthority) -> None:
    end = issuer_of(authority).not_valid_after_utc
    assert leaf(authority, 3600, end - timedelta(seconds=30)).not_valid_after_utc == end


def test_serials_have_at_least_64_random_bits(authority: CertificateAuthority) -> None:
    serials = {leaf(authority).serial_number for _ in range(50)}
    assert len(serials) == 50
    assert sum(serial.bit_length() > 128 for serial in serials) > 40


def test_an_issuer_out_of_its_time_signs_nothing(authority: CertificateAuthority) -> None:
    end = issuer_of(authority).not_valid_after_utc
    for now in (end, end + DAY, NOW - timedelta(days=2)):
        with pytest.raises(RefusedError) as refused:
            authority.issue(csr(), PAYMENT, 3600, now)
        assert refused.value.code is Refusal.ISSUER


def test_an_issuer_of_another_root_signs_nothing(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir()
    second.mkdir()
    open_at(first)
    open_at(second)
    (first / "ca" / "issuer.pem").write_bytes((second / "ca" / "issuer.pem").read_bytes())
    authority = open_at(first)
    with pytest.raises(RefusedError) as refused:
        authority.issue(csr(), PAYMENT, 3600, NOW)
    assert refused.value.code is Refusal.ISSUER


def test_an_identity_of_another_trust_domain_is_refused(authority: CertificateAuthority) -> None:
    with pytest.raises(RefusedError) as refused:
        authority.issue(csr(), SpiffeId("other", "default", "payment"), 3600, NOW)
    assert refused.value.code is Refusal.NAME


def test_authorities_live_ten_years_and_one(authority: CertificateAuthority) -> None:
    root = x509.load_der_x509_certificate(authority.bundle()[0])
    issuer = issuer_of(authority)
    life = {one.not_valid_after_utc - NOW.replace(microsecond=0) for one in (root, issuer)}
    assert life == {timedelta(days=3650), timedelta(days=365)}
    limits = [
        one.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
        for one in (root, issuer)
    ]
    assert limits == [1, 0]


def test_an_issuer_is_replaced_in_the_last_fifth_of_its_life_and_leaves_stay_good(
    tmp_path: Path,
) -> None:
    authority = open_at(tmp_path)
    before = issuer_of(authority)
    later = NOW + timedelta(days=291)
    assert authority.renew_issuer(later) is False
    later = NOW + timedelta(days=293)
    old_leaf = leaf(authority, 3600, later)
    assert authority.renew_issuer(later) is True
    after = issuer_of(authority, later)
    assert after != before
    [root] = authority.bundle()
    store = Store([x509.load_der_x509_certificate(root)])
    verifier = PolicyBuilder().store(store).time(later).build_client_verifier()
    verifier.verify(old_leaf, [before])
    verifier.verify(leaf(authority, 3600, later), [after])
    assert issuer_of(open_at(tmp_path, later), later) == after


def test_an_expired_issuer_is_replaced_when_the_authority_is_opened(tmp_path: Path) -> None:
    open_at(tmp_path)
    much_later = NOW + timedelta(days=1000)
    leaf(open_at(tmp_path, much_later), 3600, much_later)


def test_the_listener_gets_a_key_of_its_own_that_repr_hides(
    authority: CertificateAuthority,
) -> None:
    control = SpiffeId.control("cluster.local")
    served = authority.serve_identity(control, 3600, NOW)
    certificate = x509.load_pem_x509_certificates(served.pem)[0]
    san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(san) == [uri("spiffe://cluster.local/ns/meshfast-system/sa/control")]
    assert "PRIVATE" not in repr(served)
