"""Join tokens: bounded, counted, hashed, and silent to those who guess."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshfast.control.ca import Claim, JoinTokens, Refusal, RefusedError
from meshfast.control.store import ConflictError, SqliteStore, Transaction
from meshfast.errors import ConfigError

CLAIM = Claim("payment", "default", "payment")


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    opened = SqliteStore(tmp_path / "store")
    yield opened
    opened.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tokens(store: SqliteStore, clock: Clock) -> JoinTokens:
    return JoinTokens(store, clock_s=clock)


def use(tokens: JoinTokens, store: SqliteStore, id: str, secret: str) -> Claim:
    """Check a token and count it, as joining does."""
    redemption = tokens.check(id, secret)
    store.transact(Transaction(redemption.writes, (redemption.condition,)))
    return tokens.claim(id, secret)


def refusal(tokens: JoinTokens, id: str, secret: str) -> Refusal:
    with pytest.raises(RefusedError) as refused:
        tokens.check(id, secret)
    assert secret not in str(refused.value) or not secret
    return refused.value.code


def test_a_token_is_good_for_its_uses_and_not_for_one_more(
    tokens: JoinTokens, store: SqliteStore
) -> None:
    record, secret = tokens.create(CLAIM, uses=3, ttl_s=60)
    assert [use(tokens, store, record.id, secret) for _ in range(3)] == [CLAIM] * 3
    assert refusal(tokens, record.id, secret) is Refusal.TOKEN_USED
    [listed] = tokens.records()
    assert (listed.uses, listed.uses_max) == (3, 3)


def test_a_replayed_token_is_never_accepted(tokens: JoinTokens, store: SqliteStore) -> None:
    record, secret = tokens.create(CLAIM, uses=1, ttl_s=60)
    use(tokens, store, record.id, secret)
    refusals = {refusal(tokens, record.id, secret) for _ in range(1000)}
    assert refusals == {Refusal.TOKEN_USED}


def test_two_that_look_at_once_cannot_both_use_it(tokens: JoinTokens, store: SqliteStore) -> None:
    record, secret = tokens.create(CLAIM, uses=1, ttl_s=60)
    first, second = tokens.check(record.id, secret), tokens.check(record.id, secret)
    store.transact(Transaction(first.writes, (first.condition,)))
    with pytest.raises(ConflictError):
        store.transact(Transaction(second.writes, (second.condition,)))


def test_a_token_ends_at_its_time(tokens: JoinTokens, clock: Clock) -> None:
    record, secret = tokens.create(CLAIM, uses=1, ttl_s=60)
    clock.now_s += 59.9
    tokens.check(record.id, secret)
    clock.now_s += 0.1
    assert refusal(tokens, record.id, secret) is Refusal.TOKEN_EXPIRED


def test_a_revoked_token_is_refused(tokens: JoinTokens) -> None:
    record, secret = tokens.create(CLAIM, uses=2, ttl_s=60)
    assert tokens.revoke(record.id) is True
    assert refusal(tokens, record.id, secret) is Refusal.TOKEN_REVOKED
    assert tokens.revoke("0" * 16) is False
    assert tokens.revoke("no/id") is False


def test_who_does_not_know_the_secret_learns_nothing(tokens: JoinTokens, clock: Clock) -> None:
    record, secret = tokens.create(CLAIM, uses=1, ttl_s=60)
    other, _ = tokens.create(CLAIM, uses=1, ttl_s=60)
    guesses = [
        (record.id, ""),
        (record.id, secret[:-1]),
        (record.id, secret + "A"),
        (other.id, secret),
        ("0" * 16, secret),
        ("", secret),
        ("../" + record.id, secret),
        (record.id.upper() + "\0", secret),
        (record.id, "\udc80"),
    ]
    assert {refusal(tokens, *guess) for guess in guesses} == {Refusal.TOKEN_INVALID}
    clock.now_s += 3600
    tokens.revoke(record.id)
    assert refusal(tokens, record.id, "wrong") is Refusal.TOKEN_INVALID


def test_the_store_never_holds_the_secret(tokens: JoinTokens, store: SqliteStore) -> None:
    record, secret = tokens.create(CLAIM, uses=1, ttl_s=60)
    [entry] = store.scan("/").entries
    assert secret.encode() not in entry.value
    assert len(json.loads(entry.value)["secret_sha256"]) == 64
    assert record.secret_sha256 not in repr(record)
    for path in (store._path, store._path.with_name("store.db-wal")):
        assert secret.encode() not in path.read_bytes()


@pytest.mark.parametrize(
    ("claim", "uses", "ttl_s"),
    [
        (Claim("Payment", "default", "payment"), 1, 60),
        (Claim("payment", "de/fault", "payment"), 1, 60),
        (Claim("payment", "default", ""), 1, 60),
        (Claim("control", "meshfast-system", "control"), 1, 60),
        (CLAIM, 0, 60),
        (CLAIM, 100_001, 60),
        (CLAIM, 1, 0),
        (CLAIM, 1, 31 * 24 * 3600),
    ],
)
def test_refuses_to_make_a_token_that_means_nothing(
    tokens: JoinTokens, claim: Claim, uses: int, ttl_s: int
) -> None:
    with pytest.raises(ConfigError):
        tokens.create(claim, uses=uses, ttl_s=ttl_s)
    assert tokens.records() == []


def test_expired_tokens_are_forgotten_after_a_while(tokens: JoinTokens, clock: Clock) -> None:
    tokens.create(CLAIM, uses=1, ttl_s=60)
    kept, _ = tokens.create(CLAIM, uses=1, ttl_s=3600)
    clock.now_s += 200
    assert tokens.forget_expired(after_s=100) == 1
    assert [record.id for record in tokens.records()] == [kept.id]
