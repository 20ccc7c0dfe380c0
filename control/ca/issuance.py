"""From a request to a recorded certificate: tokens, limits, keys and names that are known already.

Two ways in: `join` with a token, `renew` with a certificate that is still good. Both end in one
transaction that records the certificate and its key, counts the token, and holds against whatever
happened meanwhile; only then is the certificate handed out.

    /issued/<serial>     IssuedRecord: who, which instance, which service; for renewals and the log
    /keys/<sha256>       KeyRecord: whose key this is, and since when
    /revoked/<ns>/<sa>   the identity gets nothing any more

The first two carry a lease of the certificate's life, so they go when it does.

Does not do: check requests (requests.py), open sockets, keep anything in files.

Invariants:
1. A renewal is for the identity, the service and the instance of the certificate that asks.
2. A key is one identity's, and no key is certified for longer than `KEY_AGE_S_MAX`.
3. A refusal writes nothing; in particular it uses up no token.

Tests: tests/control/ca/test_issuance.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import msgspec

from meshfast.control.ca.authority import CertificateAuthority, Issued
from meshfast.control.ca.error import Refusal, RefusedError
from meshfast.control.ca.identity import SpiffeId
from meshfast.control.ca.peer import Peer
from meshfast.control.ca.rate import Rates
from meshfast.control.ca.tokens import Claim, JoinTokens
from meshfast.control.store import Condition, ConflictError, Entry, Put, Store, Transaction
from meshfast.resources.texts import CHECKS

__all__ = ["REVOKED_PREFIX", "Issuance", "IssuanceLimits", "IssuedRecord", "revoked_key"]

ISSUED_PREFIX: Final = "/issued/"
KEYS_PREFIX: Final = "/keys/"
REVOKED_PREFIX: Final = "/revoked/"
#: Istio refuses to certify for longer than 90 days; a key that lives on over renewals gets a third.
KEY_AGE_S_MAX: Final = 30 * 24 * 3600
#: Somebody else used the token, or the key, at the same moment; each repetition saw one succeed.
TRIES_MAX: Final = 100


class IssuedRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate that was issued; times in seconds since 1970."""

    identity: str
    service: str
    instance: str
    key: str
    not_after_s: int


class _KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Whose key it is, and since when it is certified."""

    identity: str
    since_s: int


@dataclass(frozen=True, slots=True)
class IssuanceLimits:
    """How many certificates a second, after a burst of so many."""

    #: A certificate of 10 s is renewed every 4 s; a restart needs two in a row.
    instance_per_s: float = 1.0
    instance_burst: int = 10
    total_per_s: float = 300.0
    total_burst: int = 300


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is to be certified."""

    csr_der: bytes
    identity: SpiffeId
    service: str
    instance: str


class Issuance:
    """The authority of a control plane. `join` and `renew` may be called from any thread."""

    def __init__(
        self,
        authority: CertificateAuthority,
        store: Store,
        *,
        ttl_s: int,
        limits: IssuanceLimits | None = None,
        clock_s: Callable[[], float] = time.time,
    ) -> None:
        """Issue certificates of `ttl_s` seconds."""
        limits = limits or IssuanceLimits()
        self.tokens = JoinTokens(store, clock_s=clock_s)
        self._authority = authority
        self._store = store
        self._ttl_s = ttl_s
        self._clock_s = clock_s
        self._instances = Rates(limits.instance_per_s, limits.instance_burst)
        self._total = Rates(limits.total_per_s, limits.total_burst)

    def join(self, csr_der: bytes, token_id: str, token_secret: str, instance: str) -> Issued:
        """Give the first certificate to the holder of a token. Raises `RefusedError`."""
        self._take(self._total, "")
        wanted = self._wanted(csr_der, self.tokens.check(token_id, token_secret).claim, instance)
        for _ in range(TRIES_MAX):
            redemption = self.tokens.check(token_id, token_secret)
            try:
                return self._issue(wanted, (redemption.write,), (redemption.condition,))
            except ConflictError:
                continue
        raise RefusedError(Refusal.RATE, "the token is being used by too many at once")

    def renew(self, csr_der: bytes, peer: Peer, instance: str) -> Issued:
        """Give the next certificate to who has one. Raises `RefusedError`.

        `instance` is only what the peer says; the record of its certificate counts, if it is there.
        """
        self._take(self._total, "")
        record = self.issued(peer.serial)
        identity = peer.identity
        service = identity.service_account if record is None else record.service
        instance = instance if record is None else record.instance
        claim = Claim(service, identity.namespace, identity.service_account)
        wanted = self._wanted(csr_der, claim, instance)
        for _ in range(TRIES_MAX):
            try:
                return self._issue(wanted, (), ())
            except ConflictError:
                continue
        raise RefusedError(Refusal.RATE, "the key is being certified by too many at once")

    def issued(self, serial: int) -> IssuedRecord | None:
        """Find what is known of a certificate; `None` when the store has lost it."""
        entry = self._store.read(f"{ISSUED_PREFIX}{serial:x}")
        return None if entry is None else msgspec.json.decode(entry.value, type=IssuedRecord)

    def is_revoked(self, identity: SpiffeId) -> bool:
        """Tell whether the identity was revoked."""
        key = revoked_key(identity.namespace, identity.service_account)
        return self._store.read(key) is not None

    def _wanted(self, csr_der: bytes, claim: Claim, instance: str) -> _Wanted:
        if CHECKS["instance"](instance) is not None:  # before it gets into a log
            raise RefusedError(Refusal.MALFORMED, "a request names the instance that it is for")
        identity = SpiffeId(self._authority.trust_domain, claim.namespace, claim.service_account)
        self._take(self._instances, f"{identity} {instance}")
        return _Wanted(csr_der, identity, claim.service, instance)

    def _issue(
        self, wanted: _Wanted, writes: tuple[Put, ...], conditions: tuple[Condition, ...]
    ) -> Issued:
        """Sign and record. Raises `RefusedError`, and `ConflictError` when to look again."""
        if self.is_revoked(wanted.identity):
            raise RefusedError(Refusal.REVOKED, f"{wanted.identity} was revoked")
        now_s = self._clock_s()
        now = datetime.fromtimestamp(now_s, UTC)
        issued = self._authority.issue(wanted.csr_der, wanted.identity, self._ttl_s, now)
        key = f"{KEYS_PREFIX}{issued.key}"
        entry = self._store.read(key)
        since_s = self._check_key(entry, wanted.identity, now_s)
        record = IssuedRecord(
            identity=str(wanted.identity),
            service=wanted.service,
            instance=wanted.instance,
            key=issued.key,
            not_after_s=int(issued.not_after.timestamp()),
        )
        key_record = _KeyRecord(identity=str(wanted.identity), since_s=since_s)
        lease = self._store.grant(max(1, int(record.not_after_s - now_s)) * 1000)
        revoked = revoked_key(wanted.identity.namespace, wanted.identity.service_account)
        try:
            self._store.transact(
                Transaction(
                    (
                        *writes,
                        Put(f"{ISSUED_PREFIX}{issued.serial:x}", _json(record), lease),
                        Put(key, _json(key_record), lease),
                    ),
                    (
                        *conditions,
                        Condition(key, None if entry is None else entry.modified),
                        Condition(revoked, None),
                    ),
                )
            )
        except ConflictError:
            self._store.revoke(lease)
            raise
        return issued

    def _check_key(self, entry: Entry | None, identity: SpiffeId, now_s: float) -> int:
        """Check 6: the key is nobody else's and not too old. Returns since when it is certified."""
        if entry is None:
            return int(now_s)
        known = msgspec.json.decode(entry.value, type=_KeyRecord)
        if known.identity != str(identity):
            raise RefusedError(Refusal.KEY_OWNER, "the key belongs to another identity")
        if now_s - known.since_s > KEY_AGE_S_MAX:
            raise RefusedError(Refusal.KEY_AGE, "the key has been certified for 30 days: change it")
        return known.since_s

    def _take(self, rates: Rates, key: str) -> None:
        """Check 7: so many a second and no more."""
        if not rates.take(key):
            raise RefusedError(Refusal.RATE, "too many certificate requests; try again later")


def revoked_key(namespace: str, service_account: str) -> str:
    """Name the key that stands for a revoked identity."""
    return f"{REVOKED_PREFIX}{namespace}/{service_account}"


def _json(record: msgspec.Struct) -> bytes:
    return msgspec.json.encode(record)
