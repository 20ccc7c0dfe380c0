"""Joining and renewing: what is recorded, what is limited, and what a refusal costs (nothing)."""

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from meshfast.control.ca import (
    CertificateAuthority,
    Claim,
    Issuance,
    IssuanceLimits,
    Issued,
    Peer,
    Refusal,
    RefusedError,
)
from meshfast.control.ca.issuance import KEY_AGE_S_MAX, revoked_key
from meshfast.control.store import Delete, Put, SqliteStore, Transaction
from tests.control.ca.requests_made import ORDER, PAYMENT, csr, names, new_key, uri

CLAIM = Claim("payment", "default", "payment")
UNLIMITED = IssuanceLimits(10_000.0, 10_000, 10_000.0, 10_000)


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    opened = SqliteStore(tmp_path / "store")
    yield opened
    opened.close()


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority.open(tmp_path / "ca", "cluster.local")


@pytest.fixture
def issuance(store: SqliteStore, authority: CertificateAuthority) -> Issuance:
    return Issuance(authority, store, ttl_s=3600, limits=UNLIMITED)


def token(issuance: Issuance, claim: Claim = CLAIM, uses: int = 1) -> tuple[str, str]:
    record, secret = issuance.tokens.create(claim, uses=uses, ttl_s=60)
    return record.id, secret


def joined(issuance: Issuance, claim: Claim = CLAIM, instance: str = "i1") -> Peer:
    return peer(issuance.join(csr(), *token(issuance, claim), instance))


def peer(issued: Issued) -> Peer:
    return Peer.of(issued.chain[0], "cluster.local")


def uses(issuance: Issuance) -> list[int]:
    return [record.uses for record in issuance.tokens.records()]


def test_joining_gives_the_identity_of_the_token_and_records_it(issuance: Issuance) -> None:
    claim = Claim("payment", "shop", "pay-account")
    found = joined(issuance, claim, "host-7")
    assert str(found.identity) == "spiffe://cluster.local/ns/shop/sa/pay-account"
    record = issuance.issued(found.serial)
    assert record is not None
    assert (record.identity, record.service, record.instance) == (
        str(found.identity),
        "payment",
        "host-7",
    )
    assert record.not_after_s == int(found.not_after.timestamp())


@pytest.mark.parametrize(
    ("request_der", "code"),
    [
        (b"", Refusal.MALFORMED),
        (b"\x30" * 9000, Refusal.TOO_LARGE),
        (csr(names(uri(ORDER))), Refusal.SUBJECT),
    ],
)
def test_a_faulty_request_does_not_use_the_token_up(
    issuance: Issuance, store: SqliteStore, request_der: bytes, code: Refusal
) -> None:
    id, secret = token(issuance)
    before = store.revision()
    with pytest.raises(RefusedError) as refused:
        issuance.join(request_der, id, secret, "i1")
    assert refused.value.code is code
    assert store.revision() == before
    issuance.join(csr(), id, secret, "i1")


@pytest.mark.parametrize("instance", ["", "a\n\x1b[31m", "_a", "x" * 254])
def test_a_request_names_its_instance(issuance: Issuance, instance: str) -> None:
    with pytest.raises(RefusedError) as refused:
        issuance.join(csr(), *token(issuance), instance)
    assert refused.value.code is Refusal.MALFORMED


def test_many_at_once_get_as_many_certificates_as_there_are_uses(issuance: Issuance) -> None:
    id, secret = token(issuance, uses=5)

    def attempt(number: int) -> Refusal | None:
        try:
            issuance.join(csr(), id, secret, f"i{number}")
        except RefusedError as error:
            return error.code
        return None

    with ThreadPoolExecutor(8) as threads:
        outcomes = Counter(threads.map(attempt, range(20)))
    assert outcomes == {None: 5, Refusal.TOKEN_USED: 15}
    assert uses(issuance) == [5]


def test_a_renewal_is_for_the_same_identity_service_and_instance(issuance: Issuance) -> None:
    first = joined(issuance, Claim("payment", "shop", "account"), "host-7")
    second = peer(issuance.renew(csr(), first, "another-name"))
    assert second.identity == first.identity
    assert second.serial != first.serial
    record = issuance.issued(second.serial)
    assert record is not None
    assert (record.service, record.instance) == ("payment", "host-7")


def test_a_renewal_for_somebody_else_is_refused(issuance: Issuance) -> None:
    found = joined(issuance)
    codes = set()
    for number in range(1000):
        other = PAYMENT if number == 500 else ORDER
        wanted = names(uri(other), uri(ORDER)) if other is PAYMENT else names(uri(other))
        with pytest.raises(RefusedError) as refused:
            issuance.renew(csr(wanted), found, "i1")
        codes.add(refused.value.code)
    assert codes == {Refusal.SUBJECT}


def test_without_its_record_a_certificate_renews_for_the_service_of_its_account(
    issuance: Issuance, store: SqliteStore
) -> None:
    found = joined(issuance)
    store.transact(Transaction((Delete(f"/issued/{found.serial:x}"),)))
    record = issuance.issued(peer(issuance.renew(csr(), found, "i9")).serial)
    assert record is not None
    assert (record.service, record.instance) == ("payment", "i9")


def test_a_key_is_one_identity_s(issuance: Issuance) -> None:
    key = new_key()
    issuance.join(csr(key=key), *token(issuance), "i1")
    with pytest.raises(RefusedError) as refused:
        issuance.join(csr(key=key), *token(issuance, Claim("order", "default", "order")), "i2")
    assert refused.value.code is Refusal.KEY_OWNER
    assert 0 in uses(issuance)


def test_a_key_lives_on_over_renewals_for_thirty_days_only(
    store: SqliteStore, authority: CertificateAuthority
) -> None:
    clock, key = Clock(), new_key()
    start = clock.now_s = float(int(time.time()))
    issuance = Issuance(authority, store, ttl_s=86_400, limits=UNLIMITED, clock_s=clock)
    found = peer(issuance.join(csr(key=key), *token(issuance), "i1"))
    for day in range(1, 31):
        clock.now_s = start + day * 86_400
        found = peer(issuance.renew(csr(key=key), found, "i1"))
    clock.now_s = start + KEY_AGE_S_MAX + 10
    with pytest.raises(RefusedError) as refused:
        issuance.renew(csr(key=key), found, "i1")
    assert refused.value.code is Refusal.KEY_AGE
    issuance.renew(csr(), found, "i1")


def test_records_go_when_the_certificate_does(
    tmp_path: Path, authority: CertificateAuthority
) -> None:
    now_ms = [0]
    store = SqliteStore(tmp_path / "other", clock_ms=lambda: now_ms[0])
    try:
        issuance = Issuance(authority, store, ttl_s=3600, limits=UNLIMITED)
        found = joined(issuance)
        for _ in range(3600):  # a step below the stall that would give leases their time back
            now_ms[0] += 1001
            store.sweep()
        assert issuance.issued(found.serial) is None
        assert [entry.key[:8] for entry in store.scan("/").entries] == ["/tokens/"]
    finally:
        store.close()


def test_a_revoked_identity_gets_nothing(issuance: Issuance, store: SqliteStore) -> None:
    found = joined(issuance)
    store.transact(Transaction((Put(revoked_key("default", "payment"), b"{}"),)))
    assert issuance.is_revoked(PAYMENT)
    assert not issuance.is_revoked(ORDER)
    with pytest.raises(RefusedError) as refused:
        issuance.renew(csr(), found, "i1")
    assert refused.value.code is Refusal.REVOKED
    with pytest.raises(RefusedError) as refused:
        issuance.join(csr(), *token(issuance), "i2")
    assert refused.value.code is Refusal.REVOKED


def test_an_instance_has_its_rate_and_all_have_one(
    store: SqliteStore, authority: CertificateAuthority
) -> None:
    limits = IssuanceLimits(
        instance_per_s=0.001, instance_burst=3, total_per_s=0.001, total_burst=10
    )
    issuance = Issuance(authority, store, ttl_s=3600, limits=limits)
    found = joined(issuance)

    for _ in range(2):  # the join was the first of three
        issuance.renew(csr(), found, "i1")
    for _ in range(2):
        with pytest.raises(RefusedError) as refused:
            issuance.renew(csr(), found, "i1")
        assert refused.value.code is Refusal.RATE
    id, secret = token(issuance, Claim("order", "default", "order"), uses=100)
    for number in range(5):
        issuance.join(csr(), id, secret, f"o{number}")
    with pytest.raises(RefusedError) as refused:
        issuance.join(csr(), id, secret, "o6")
    assert refused.value.code is Refusal.RATE
