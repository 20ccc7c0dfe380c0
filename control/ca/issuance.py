"""From a request to a recorded certificate: tokens, limits, keys and names that are known already.

Three ways in: `join` with a token, `renew` with a certificate that is still good, `renew_expired`
with one that is not any more, as after a long outage. All end in one transaction that records the
certificate and its key, counts the token, and holds against whatever happened meanwhile; only then
is the certificate handed out.

    /issued/<serial>     IssuedRecord: who, which instance, which service; for renewals and the log
    /keys/<sha256>       KeyRecord: whose key this is, and since when
    /revoked/<ns>/<sa>   the identity gets nothing any more

The first two stay as long as the certificate can be renewed, and go with `forget_expired`.

An answer can get lost. So a join that is repeated, with the same token, key and instance, is
answered again and counts once; what is renewed expired can be asked for again anyway.

Does not do: check requests (requests.py), open sockets, keep anything in files.

Invariants:
1. A renewal is for the identity, the service and the instance of the certificate that asks, as
   recorded; a certificate without a record is not renewed.
2. A key is one identity's, and no key is certified for longer than `KEY_AGE_S_MAX`.
3. A refusal writes nothing; in particular it uses up no token.
4. Who is refused takes nothing from what others may take: the limit for all is drawn on last, and
   strangers have limits of their own.

Tests: tests/control/ca/test_issuance.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Final, NamedTuple

import msgspec

from meshfast.control.ca.authority import CertificateAuthority, Issued
from meshfast.control.ca.error import Refusal, RefusedError
from meshfast.control.ca.identity import SpiffeId
from meshfast.control.ca.peer import Peer
from meshfast.control.ca.rate import Rates
from meshfast.control.ca.requests import check_request, fingerprint
from meshfast.control.ca.tokens import Claim, JoinTokens
from meshfast.control.store import (
    Condition,
    ConflictError,
    Delete,
    Entry,
    Put,
    Store,
    Transaction,
    scan_all,
)
from meshfast.resources.texts import CLAIM_CHECKS

__all__ = ["REVOKED_PREFIX", "Issuance", "IssuanceLimits", "IssuedRecord", "revoked_key"]

ISSUED_PREFIX: Final = "/issued/"
KEYS_PREFIX: Final = "/keys/"
REVOKED_PREFIX: Final = "/revoked/"
#: Istio refuses to certify for longer than 90 days; a key that lives on over renewals gets a third.
KEY_AGE_S_MAX: Final = 30 * 24 * 3600
#: Somebody else used the token, or the key, at the same moment; each repetition saw one succeed.
TRIES_MAX: Final = 100


class IssuedRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate that was issued; times in seconds since 1970.

    `before` is the serial of the one that it was renewed from. Once a renewal is asked for with
    this one, that one has been `left`: it is not renewed when it has expired.
    """

    identity: str
    service: str
    instance: str
    key: str
    not_after_s: int
    certificate_sha256: str
    before: str = ""
    left: bool = False


class _KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Whose key it is, since when it is certified and until when; by which token, for whom."""

    identity: str
    since_s: int
    not_after_s: int
    token: str
    instance: str


@dataclass(frozen=True, slots=True)
class IssuanceLimits:
    """How many certificates a second, after a burst of so many; for how long after their end."""

    #: A certificate of 10 s is renewed every 4 s; a restart needs two in a row.
    instance_per_s: float = 1.0
    instance_burst: int = 10
    #: Of what is signed.
    total_per_s: float = 300.0
    total_burst: int = 300
    #: Of strangers, who show a token or an expired certificate: by address, a fleet may have one.
    stranger_per_s: float = 20.0
    stranger_burst: int = 200
    strangers_per_s: float = 300.0
    strangers_burst: int = 300
    #: A certificate that has expired can be renewed for so long: an outage over a long weekend.
    expired_s: int = 7 * 24 * 3600


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is to be certified: by which token, or instead of which certificate."""

    csr_der: bytes
    identity: SpiffeId
    service: str
    instance: str
    key: str
    token: str = ""
    before: str = ""


class CertificateEnds(NamedTuple):
    """When the certificates of an identity that are valid now end, in seconds since 1970."""

    valid_s: list[int]
    are_known: bool  # whether any is on record, valid or not


class Issuance:
    """The authority of a control plane. Its methods may be called from any thread."""

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
        self._expired_s = limits.expired_s
        self._instances = Rates(limits.instance_per_s, limits.instance_burst)
        self._total = Rates(limits.total_per_s, limits.total_burst)
        self._stranger = Rates(limits.stranger_per_s, limits.stranger_burst)
        self._strangers = Rates(limits.strangers_per_s, limits.strangers_burst)

    def join(
        self, csr_der: bytes, token_id: str, token_secret: str, instance: str, address: str = ""
    ) -> Issued:
        """Give the first certificate to the holder of a token. Raises `RefusedError`.

        `address` is where the request came from, without the port.
        """
        self._take_as_stranger(address)
        claim = self.tokens.claim(token_id, token_secret)
        wanted = self._wanted(csr_der, claim, instance, token=token_id)
        for tried in range(TRIES_MAX):
            redemption = self.tokens.check(
                token_id, token_secret, is_repeated=self._is_repeated(wanted)
            )
            if not tried:
                self._take(self._total, "")
            try:
                return self._issue(wanted, redemption.writes, (redemption.condition,))
            except ConflictError:
                continue
        raise RefusedError(Refusal.RATE, "the token is being used by too many at once")

    def renew(self, csr_der: bytes, peer: Peer) -> Issued:
        """Give the next certificate to who has one. Raises `RefusedError`."""
        record = self.issued(peer.serial)
        if record is None:
            raise RefusedError(Refusal.UNKNOWN, "the certificate is not on record; join again")
        identity = peer.identity
        claim = Claim(record.service, identity.namespace, identity.service_account)
        wanted = self._wanted(csr_der, claim, record.instance, before=f"{peer.serial:x}")
        self._take(self._total, "")
        return self._renewed(wanted, record)

    def renew_expired(
        self, csr_der: bytes, certificate_der: bytes, instance: str, address: str = ""
    ) -> Issued:
        """Give the next certificate to who shows one that has expired, and has its key.

        It has to be, byte for byte, what was issued to this instance, for the key that the request
        is signed with, and may not have expired for longer than the limit. Raises `RefusedError`.
        """
        self._take_as_stranger(address)
        peer = Peer.of(certificate_der, self._authority.trust_domain)
        record = self.issued(peer.serial)
        digest = sha256(certificate_der).hexdigest()
        if record is None or record.certificate_sha256 != digest or record.instance != instance:
            raise RefusedError(Refusal.UNKNOWN, "the certificate is not on record; join again")
        if record.left or self._clock_s() >= record.not_after_s + self._expired_s:
            raise RefusedError(Refusal.EXPIRED, "the certificate has expired for too long")
        identity = peer.identity
        claim = Claim(record.service, identity.namespace, identity.service_account)
        wanted = self._wanted(csr_der, claim, instance, before=f"{peer.serial:x}")
        if wanted.key != record.key:
            raise RefusedError(Refusal.KEY_OWNER, "the request is for another key")
        self._take(self._total, "")
        return self._renewed(wanted, record)

    def issued(self, serial: int) -> IssuedRecord | None:
        """Find what is known of a certificate; `None` when the store has lost it."""
        entry = self._store.read(f"{ISSUED_PREFIX}{serial:x}")
        return None if entry is None else msgspec.json.decode(entry.value, type=IssuedRecord)

    def is_revoked(self, identity: SpiffeId) -> bool:
        """Tell whether the identity was revoked."""
        key = revoked_key(identity.namespace, identity.service_account)
        return self._store.read(key) is not None

    def certificate_ends(self, namespace: str, service_account: str) -> CertificateEnds:
        """Say when certificates of an identity end; after a revocation none will end later."""
        identity = str(SpiffeId(self._authority.trust_domain, namespace, service_account))
        ends_s = [
            issued.not_after_s
            for entry in scan_all(self._store, ISSUED_PREFIX)
            for issued in [msgspec.json.decode(entry.value, type=IssuedRecord)]
            if issued.identity == identity
        ]
        now_s = self._clock_s()
        return CertificateEnds([one for one in ends_s if one > now_s], bool(ends_s))

    def forget_expired(self) -> int:
        """Remove the records of what cannot be renewed any more; say how many."""
        now_s = self._clock_s()
        old = []
        for entry in scan_all(self._store, ISSUED_PREFIX):
            issued = msgspec.json.decode(entry.value, type=IssuedRecord)
            if now_s >= issued.not_after_s + (0 if issued.left else self._expired_s):
                old.append(entry)
        for entry in scan_all(self._store, KEYS_PREFIX):
            key = msgspec.json.decode(entry.value, type=_KeyRecord)
            if now_s >= key.not_after_s + self._expired_s:
                old.append(entry)
        removed = 0
        for entry in old:
            condition = Condition(entry.key, entry.modified)
            with suppress(ConflictError):  # it was certified again at this moment
                self._store.transact(Transaction((Delete(entry.key),), (condition,)))
                removed += 1
        return removed

    def _wanted(
        self, csr_der: bytes, claim: Claim, instance: str, *, token: str = "", before: str = ""
    ) -> _Wanted:
        """Look at a request of somebody who is known by now."""
        if CLAIM_CHECKS["instance"](instance) is not None:  # before it gets into a log
            raise RefusedError(Refusal.MALFORMED, "a request names the instance that it is for")
        identity = SpiffeId(self._authority.trust_domain, claim.namespace, claim.service_account)
        self._take(self._instances, f"{identity} {instance}")
        key = fingerprint(check_request(csr_der, identity))
        return _Wanted(csr_der, identity, claim.service, instance, key, token, before)

    def _is_repeated(self, wanted: _Wanted) -> bool:
        """Tell whether this very join was answered before."""
        entry = self._store.read(f"{KEYS_PREFIX}{wanted.key}")
        if entry is None:
            return False
        known = msgspec.json.decode(entry.value, type=_KeyRecord)
        return (known.identity, known.token, known.instance) == (
            str(wanted.identity),
            wanted.token,
            wanted.instance,
        )

    def _renewed(self, wanted: _Wanted, record: IssuedRecord) -> Issued:
        for _ in range(TRIES_MAX):
            try:
                return self._issue(wanted, *self._leave(record.before))
            except ConflictError:
                continue
        raise RefusedError(Refusal.RATE, "the key is being certified by too many at once")

    def _leave(self, serial: str) -> tuple[tuple[Put, ...], tuple[Condition, ...]]:
        """Note that nobody will come back with a certificate: its successor is in use."""
        entry = self._store.read(f"{ISSUED_PREFIX}{serial}") if serial else None
        if entry is None:
            return (), ()
        record = msgspec.json.decode(entry.value, type=IssuedRecord)
        left = msgspec.structs.replace(record, left=True)
        return (Put(entry.key, _json(left)),), (Condition(entry.key, entry.modified),)

    def _issue(
        self, wanted: _Wanted, writes: tuple[Put, ...], conditions: tuple[Condition, ...]
    ) -> Issued:
        """Sign and record. Raises `RefusedError`, and `ConflictError` when to look again."""
        if self.is_revoked(wanted.identity):
            raise RefusedError(Refusal.REVOKED, f"{wanted.identity} was revoked")
        now_s = self._clock_s()
        key = f"{KEYS_PREFIX}{wanted.key}"
        entry = self._store.read(key)
        since_s = self._check_key(entry, wanted.identity, now_s)
        now = datetime.fromtimestamp(now_s, UTC)
        issued = self._authority.issue(wanted.csr_der, wanted.identity, self._ttl_s, now)
        record = IssuedRecord(
            identity=str(wanted.identity),
            service=wanted.service,
            instance=wanted.instance,
            key=issued.key,
            not_after_s=int(issued.not_after.timestamp()),
            certificate_sha256=sha256(issued.chain[0]).hexdigest(),
            before=wanted.before,
        )
        key_record = _KeyRecord(
            identity=record.identity,
            since_s=since_s,
            not_after_s=record.not_after_s,
            token=wanted.token,
            instance=wanted.instance,
        )
        revoked = revoked_key(wanted.identity.namespace, wanted.identity.service_account)
        self._store.transact(
            Transaction(
                (
                    *writes,
                    Put(f"{ISSUED_PREFIX}{issued.serial:x}", _json(record)),
                    Put(key, _json(key_record)),
                ),
                (
                    *conditions,
                    Condition(key, None if entry is None else entry.modified),
                    Condition(revoked, None),
                ),
            )
        )
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

    def _take_as_stranger(self, address: str) -> None:
        """Check 7 of somebody who is not known yet."""
        self._take(self._stranger, address)
        self._take(self._strangers, "")

    def _take(self, rates: Rates, key: str) -> None:
        """Check 7: so many a second and no more."""
        if not rates.take(key):
            raise RefusedError(Refusal.RATE, "too many certificate requests; try again later")


def revoked_key(namespace: str, service_account: str) -> str:
    """Name the key that stands for a revoked identity."""
    return f"{REVOKED_PREFIX}{namespace}/{service_account}"


def _json(record: msgspec.Struct) -> bytes:
    return msgspec.json.encode(record)
