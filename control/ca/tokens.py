"""Join tokens: made by an operator, shown once, kept as a hash, counted down in the store.

A token says which service, namespace and service account its holder becomes. It is checked first
(cheap, and without an effect), and used up in the same transaction that records the certificate:
a request that is refused for its own faults costs no use, and no use is ever given twice.

Does not do: sign (issuance.py), carry the secret anywhere after `create` returned it.

Invariants:
1. The store never holds a secret: SHA-256 of 32 random bytes, which no dictionary can reverse.
2. `uses` grows by compare-and-set, and never beyond `uses_max`.
3. Who does not know the secret learns nothing: an unknown id and a wrong secret take the same
   comparison and get the same answer.

Tests: tests/control/ca/test_tokens.py.
"""

from __future__ import annotations

import hmac
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from meshfast.control.ca.error import Refusal, RefusedError
from meshfast.control.ca.identity import CONTROL_NAMESPACE
from meshfast.control.store import Condition, ConflictError, Delete, Entry, Put, Store, Transaction
from meshfast.errors import ConfigError
from meshfast.resources.texts import CHECKS

__all__ = ["Claim", "JoinTokens", "Redemption", "TokenRecord"]

PREFIX: Final = "/tokens/"
SECRET_BYTES: Final = 32
TOKEN_TTL_S_MIN: Final = 1
TOKEN_TTL_S_MAX: Final = 30 * 24 * 3600
USES_MAX: Final = 100_000
_ID: Final = re.compile(r"[0-9a-f]{16}", re.ASCII)
#: Compared with when there is no such token, so that both answers take the same time.
_NOTHING: Final = "0" * 64


@dataclass(frozen=True, slots=True)
class Claim:
    """What the holder of a token may call itself."""

    service: str
    namespace: str
    service_account: str


class TokenRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A token as it is stored; times in seconds since 1970."""

    id: str
    secret_sha256: str
    service: str
    namespace: str
    service_account: str
    uses_max: Annotated[int, Meta(ge=1)]
    uses: int = 0
    created_s: int
    expires_s: int
    revoked: bool = False

    @property
    def claim(self) -> Claim:
        """What its holder becomes."""
        return Claim(self.service, self.namespace, self.service_account)

    def __repr__(self) -> str:
        """Render without the hash."""
        return f"TokenRecord(id={self.id!r}, service={self.service!r}, uses={self.uses})"


@dataclass(frozen=True, slots=True)
class Redemption:
    """A token that was good when it was looked at. It counts once `writes` are in the store."""

    writes: tuple[Put, ...]
    condition: Condition


class JoinTokens:
    """The tokens of a mesh. May be called from any thread."""

    def __init__(self, store: Store, *, clock_s: Callable[[], float] = time.time) -> None:
        """Keep tokens in the store, which also knows what was used before a restart."""
        self._store = store
        self._clock_s = clock_s

    def create(self, claim: Claim, *, uses: int, ttl_s: int) -> tuple[TokenRecord, str]:
        """Make a token; return it with its secret, which is not to be had again.

        Raises `ConfigError` for names that are no DNS labels and for numbers out of their range.
        """
        _check(claim, uses, ttl_s)
        secret = secrets.token_urlsafe(SECRET_BYTES)
        now = int(self._clock_s())
        record = TokenRecord(
            id=secrets.token_hex(8),
            secret_sha256=_hash(secret),
            service=claim.service,
            namespace=claim.namespace,
            service_account=claim.service_account,
            uses_max=uses,
            created_s=now,
            expires_s=now + ttl_s,
        )
        self._store.transact(Transaction((_put(record),), (Condition(PREFIX + record.id, None),)))
        return record, secret

    def claim(self, id: str, secret: str) -> Claim:
        """Say what the holder of a token becomes. Raises `RefusedError` unless it is in its time.

        It may be used up: what was joined with it can be asked for again.
        """
        return self._known(id, secret)[1].claim

    def check(self, id: str, secret: str, *, is_repeated: bool = False) -> Redemption:
        """Look whether a token may be used now. Raises `RefusedError`.

        A repeated use is one that has been counted.
        """
        entry, record = self._known(id, secret)
        condition = Condition(entry.key, entry.modified)
        if is_repeated:
            return Redemption((), condition)
        if record.uses >= record.uses_max:
            raise RefusedError(
                Refusal.TOKEN_USED, f"the join token is used up ({record.uses_max}); make a new one"
            )
        used = msgspec.structs.replace(record, uses=record.uses + 1)
        return Redemption((_put(used),), condition)

    def _known(self, id: str, secret: str) -> tuple[Entry, TokenRecord]:
        """Find the token of a secret. Raises `RefusedError` when it was revoked or has expired."""
        entry = self._store.read(PREFIX + id) if _ID.fullmatch(id) else None
        record = None if entry is None else _record(entry)
        known = _NOTHING if record is None else record.secret_sha256
        # Both sides are hashes of one length: the time says nothing about the secret.
        same = hmac.compare_digest(_hash(secret), known)
        if entry is None or record is None or not same:
            raise RefusedError(Refusal.TOKEN_INVALID, "there is no such join token")
        if record.revoked:
            raise RefusedError(Refusal.TOKEN_REVOKED, "the join token was revoked")
        if self._clock_s() >= record.expires_s:
            raise RefusedError(Refusal.TOKEN_EXPIRED, "the join token has expired; make a new one")
        return entry, record

    def records(self) -> list[TokenRecord]:
        """Return all tokens, in the order of their ids."""
        return [_record(entry) for entry in self._entries()]

    def revoke(self, id: str) -> bool:
        """End a token; what joined with it stays. Say whether there is such a token."""
        while _ID.fullmatch(id):
            entry = self._store.read(PREFIX + id)
            if entry is None:
                return False
            revoked = msgspec.structs.replace(_record(entry), revoked=True)
            condition = Condition(entry.key, entry.modified)
            try:
                self._store.transact(Transaction((_put(revoked),), (condition,)))
            except ConflictError:
                continue  # used in the meantime; somebody else made progress
            return True
        return False

    def forget_expired(self, *, after_s: int) -> int:
        """Remove tokens that have been expired for so long; say how many."""
        limit = self._clock_s() - after_s
        old = [entry for entry in self._entries() if _record(entry).expires_s < limit]
        for entry in old:
            self._store.transact(Transaction((Delete(entry.key),)))
        return len(old)

    def _entries(self) -> Iterator[Entry]:
        after, more = "", True
        while more:
            listing = self._store.scan(PREFIX, after=after)
            yield from listing.entries
            more = listing.more
            after = listing.entries[-1].key if listing.entries else ""


def _check(claim: Claim, uses: int, ttl_s: int) -> None:
    for what in ("service", "namespace", "service_account"):
        expected = CHECKS["label"](getattr(claim, what))
        if expected is not None:
            raise ConfigError(f"{what}: expected {expected}, got {getattr(claim, what)!r}")
    if claim.namespace == CONTROL_NAMESPACE:
        raise ConfigError(f"the namespace {CONTROL_NAMESPACE} is the control plane's own")
    if not 1 <= uses <= USES_MAX:
        raise ConfigError(f"uses: a token is used 1 to {USES_MAX} times, not {uses}")
    if not TOKEN_TTL_S_MIN <= ttl_s <= TOKEN_TTL_S_MAX:
        raise ConfigError(f"ttl: a token lives {TOKEN_TTL_S_MIN} s to 30 days, not {ttl_s} s")


def _hash(secret: str) -> str:
    return sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _put(record: TokenRecord) -> Put:
    return Put(PREFIX + record.id, msgspec.json.encode(record))


def _record(entry: Entry) -> TokenRecord:
    return msgspec.json.decode(entry.value, type=TokenRecord)
