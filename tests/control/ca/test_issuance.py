"""Joining and renewing: what is recorded, what is limited, and what a refusal costs (nothing)."""

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

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
UNLIMITED = IssuanceLimits(*(10_000.0, 10_000) * 4)


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
    second = peer(issuance.renew(csr(), first))
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
            issuance.renew(csr(wanted), found)
        codes.add(refused.value.code)
    assert codes == {Refusal.SUBJECT}


def test_without_its_record_a_certificate_is_not_renewed(
    issuance: Issuance, store: SqliteStore
) -> None:
    found = joined(issuance)
    store.transact(Transaction((Delete(f"/issued/{found.serial:x}"),)))
    with pytest.raises(RefusedError) as refused:
        issuance.renew(csr(), found)
    assert refused.value.code is Refusal.UNKNOWN


def test_a_lost_answer_to_a_join_is_asked_for_again_and_counts_once(issuance: Issuance) -> None:
    key, (id, secret) = new_key(), token(issuance)
    first = issuance.join(csr(key=key), id, secret, "i1")
    again = issuance.join(csr(key=key), id, secret, "i1")
    assert again.serial != first.serial
    assert again.key == first.key
    assert uses(issuance) == [1]
    for request_der, instance in ((csr(), "i1"), (csr(key=key), "i2")):
        with pytest.raises(RefusedError) as refused:
            issuance.join(request_der, id, secret, instance)
        assert refused.value.code is Refusal.TOKEN_USED
    other = token(issuance, Claim("payment", "default", "payment"), uses=2)
    issuance.join(csr(key=key), *other, "i1")
    assert sorted(uses(issuance)) == [1, 1]


def test_a_repeated_join_is_answered_within_the_token_s_life_only(
    store: SqliteStore, authority: CertificateAuthority
) -> None:
    clock, key = Clock(), new_key()
    clock.now_s = float(int(time.time()))
    issuance = Issuance(authority, store, ttl_s=3600, limits=UNLIMITED, clock_s=clock)
    id, secret = token(issuance)
    issuance.join(csr(key=key), id, secret, "i1")
    clock.now_s += 59
    issuance.join(csr(key=key), id, secret, "i1")
    clock.now_s += 1
    with pytest.raises(RefusedError) as refused:
        issuance.join(csr(key=key), id, secret, "i1")
    assert refused.value.code is Refusal.TOKEN_EXPIRED


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
        found = peer(issuance.renew(csr(key=key), found))
    clock.now_s = start + KEY_AGE_S_MAX + 10
    with pytest.raises(RefusedError) as refused:
        issuance.renew(csr(key=key), found)
    assert refused.value.code is Refusal.KEY_AGE
    issuance.renew(csr(), found)


class Outage:
    """An instance whose certificate of an hour has expired some time ago."""

    def __init__(self, store: SqliteStore, authority: CertificateAuthority) -> None:
        self.clock, self.key, self.store = Clock(), new_key(), store
        self.clock.now_s = float(int(time.time()))
        self.issuance = Issuance(authority, store, ttl_s=3600, limits=LIMITED, clock_s=self.clock)
        self.first = self.issuance.join(csr(key=self.key), *token(self.issuance), "i1")

    def passes(self, after_its_end_s: float) -> None:
        self.clock.now_s = self.first.not_after.timestamp() + after_its_end_s

    def renew(self, **changes: Any) -> Issued:
        """Renew the expired one; `changes` are of what is sent."""
        asked = {
            "csr_der": csr(key=self.key),
            "certificate_der": self.first.chain[0],
            "instance": "i1",
        }
        return self.issuance.renew_expired(**asked | changes)

    def refusal(self, **changes: Any) -> Refusal:
        before = self.store.revision()
        with pytest.raises(RefusedError) as refused:
            self.renew(**changes)
        assert self.store.revision() == before
        return refused.value.code


LIMITED = replace(UNLIMITED, expired_s=1000)


@pytest.fixture
def outage(store: SqliteStore, authority: CertificateAuthority) -> Outage:
    return Outage(store, authority)


def test_a_certificate_that_expired_is_renewed_for_some_time(outage: Outage) -> None:
    outage.passes(999)
    second = outage.renew()
    record = outage.issuance.issued(second.serial)
    assert record is not None
    assert (record.service, record.instance) == ("payment", "i1")
    assert Peer.of(second.chain[0], "cluster.local").identity == PAYMENT
    assert outage.renew().serial != second.serial  # the answer was lost
    assert uses(outage.issuance) == [1]
    outage.passes(1000)
    assert outage.refusal() is Refusal.EXPIRED


def test_an_expired_certificate_is_renewed_for_its_key_and_instance_only(outage: Outage) -> None:
    outage.passes(10)
    assert outage.refusal(csr_der=csr()) is Refusal.KEY_OWNER
    assert outage.refusal(instance="i2") is Refusal.UNKNOWN
    assert outage.refusal(csr_der=csr(names(uri(ORDER)), key=outage.key)) is Refusal.SUBJECT


def test_what_the_authority_did_not_issue_is_not_renewed(outage: Outage, tmp_path: Path) -> None:
    other = CertificateAuthority.open(tmp_path / "other", "cluster.local")
    forged = other.issue(csr(key=outage.key), PAYMENT, 1).chain[0]
    tampered = bytearray(outage.first.chain[0])
    tampered[-1] ^= 1
    outage.passes(10)
    assert outage.refusal(certificate_der=forged) is Refusal.UNKNOWN
    assert outage.refusal(certificate_der=bytes(tampered)) is Refusal.UNKNOWN
    assert outage.refusal(certificate_der=b"nothing") is Refusal.NAME
    assert outage.refusal(certificate_der=outage.first.chain[1]) is Refusal.NAME


def test_an_expired_certificate_of_a_revoked_identity_is_not_renewed(outage: Outage) -> None:
    outage.store.transact(Transaction((Put(revoked_key("default", "payment"), b"{}"),)))
    outage.passes(10)
    assert outage.refusal() is Refusal.REVOKED


def test_nobody_comes_back_with_a_certificate_whose_successor_was_used(outage: Outage) -> None:
    second = outage.issuance.renew(csr(), peer(outage.first))
    outage.passes(10)
    outage.renew()  # the answer with the second one was lost
    outage.passes(-10)
    outage.issuance.renew(csr(), peer(second))
    outage.passes(10)
    assert outage.refusal() is Refusal.EXPIRED


def test_records_go_when_nothing_can_be_renewed_with_them(outage: Outage) -> None:
    def kept() -> int:
        entries = outage.store.scan("/").entries
        return sum(entry.key.startswith(("/issued/", "/keys/")) for entry in entries)

    outage.passes(999)
    assert outage.issuance.forget_expired() == 0
    assert kept() == 2
    outage.passes(1000)
    assert outage.issuance.forget_expired() == 2
    assert kept() == 0


def test_the_record_of_a_certificate_that_was_left_goes_with_it(outage: Outage) -> None:
    second = outage.issuance.renew(csr(), peer(outage.first))
    third = outage.issuance.renew(csr(), peer(second))
    outage.passes(0)
    assert outage.issuance.forget_expired() == 1
    found = [outage.issuance.issued(one.serial) is None for one in (outage.first, second, third)]
    assert found == [True, False, False]


def test_a_revoked_identity_gets_nothing(issuance: Issuance, store: SqliteStore) -> None:
    found = joined(issuance)
    store.transact(Transaction((Put(revoked_key("default", "payment"), b"{}"),)))
    assert issuance.is_revoked(PAYMENT)
    assert not issuance.is_revoked(ORDER)
    with pytest.raises(RefusedError) as refused:
        issuance.renew(csr(), found)
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
        issuance.renew(csr(), found)
    for _ in range(2):
        with pytest.raises(RefusedError) as refused:
            issuance.renew(csr(), found)
        assert refused.value.code is Refusal.RATE
    id, secret = token(issuance, Claim("order", "default", "order"), uses=100)
    for number in range(7):  # what was refused took nothing from all
        issuance.join(csr(), id, secret, f"o{number}")
    with pytest.raises(RefusedError) as refused:
        issuance.join(csr(), id, secret, "o7")
    assert refused.value.code is Refusal.RATE


def test_strangers_take_nothing_from_those_who_are_known(
    store: SqliteStore, authority: CertificateAuthority
) -> None:
    limits = IssuanceLimits(
        total_per_s=0.001, total_burst=4, stranger_per_s=0.001, stranger_burst=9
    )
    issuance = Issuance(authority, store, ttl_s=3600, limits=limits)
    found = joined(issuance)
    mine = token(issuance, uses=100)
    codes = Counter[Refusal]()
    for number in range(20):
        request_der, secret = (b"", mine[1]) if number % 2 else (csr(), "wrong")
        with pytest.raises(RefusedError) as refused:
            issuance.join(request_der, mine[0], secret, f"i{number}", "10.0.0.66")
        codes[refused.value.code] += 1
    assert codes == {Refusal.TOKEN_INVALID: 5, Refusal.MALFORMED: 4, Refusal.RATE: 11}
    with pytest.raises(RefusedError):
        issuance.renew_expired(csr(), b"", "i1", "10.0.0.66")
    issuance.join(csr(), *mine, "other", "10.0.0.1")
    issuance.renew(csr(), found)


def test_an_instance_that_floods_takes_nothing_from_others(
    store: SqliteStore, authority: CertificateAuthority
) -> None:
    limits = IssuanceLimits(
        instance_per_s=0.001, instance_burst=3, total_per_s=0.001, total_burst=8
    )
    issuance = Issuance(authority, store, ttl_s=3600, limits=limits)
    flooder, other = joined(issuance), joined(issuance, instance="i2")
    codes = Counter[Refusal | None]()
    for _ in range(50):
        try:
            issuance.renew(csr(), flooder)
            codes[None] += 1
        except RefusedError as error:
            codes[error.code] += 1
    assert codes == {None: 2, Refusal.RATE: 48}
    issuance.renew(csr(), other)
