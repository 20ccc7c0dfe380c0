"""The sidecar's identity: its key, its chain, the roots it trusts; and when to renew it.

The key is made here (`_core.generate_key`) and leaves the process in two ways only: in a sealed
memory file to the workers, and in the state directory unless that is switched off.

    life of a certificate   0 %        35-50 %             60 %         100 %
                            obtained   first attempt ...   alarm        refused by peers

Attempts after the first wait at least 5 s (a twentieth of a life shorter than 100 s), at most twice
that, at random. So an outage of the authority for half a life fails nothing, and its end is not a
stampede.

Does not do: verifying chains; sending requests (the link does).

Tests: tests/agent/test_identity.py.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import time

from meshfast._core import TlsClient
from meshfast.agent.certificate import CertificateError, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from meshfast.agent.loop import Loop, Timer

__all__ = ["Identity", "IdentityError", "Renewal", "tls_client"]

FIRST_ATTEMPT = (0.35, 0.5)
ALARM = 0.6
RETRY_S = 5.0
RETRY_OF_LIFE = 1 / 20
RETRY_SPREAD = (1.0, 2.0)
# Timers stand still while the host is suspended, and the clock may be set: look at it that often.
SLEEP_S_MAX = 60.0
CLOCK_S = 0.001

VERSION = 1
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class IdentityError(Exception):
    """A certificate that is not for us, not for now, or not for our key."""


class Identity:
    """Immutable. DER throughout; `obtained` and `not_after` are seconds since 1970."""

    __slots__ = ("bundle", "chain", "key", "not_after", "obtained", "trust_domain")

    def __init__(
        self,
        trust_domain: str,
        key: bytes,
        chain: Sequence[bytes],
        bundle: Sequence[bytes],
        obtained: float,
        name: str,
    ) -> None:
        """Check what can be checked without a chain. `name` is the SPIFFE id that is expected.

        Raises IdentityError.
        """
        if not chain or not bundle:
            raise IdentityError("no certificate, or no root to trust")
        try:
            leaf = parse(chain[0])
        except CertificateError as error:
            raise IdentityError(str(error)) from None
        if leaf.uris != [name]:
            raise IdentityError(f"the certificate is for {leaf.uris}, not for {name}")
        self.trust_domain = trust_domain
        self.key = key
        self.chain = tuple(chain)
        self.bundle = tuple(bundle)
        self.obtained = obtained
        self.not_after = leaf.not_after
        tls_client(self.bundle, self, name)

    @classmethod
    def decode(cls, data: bytes, name: str) -> Identity:
        """Take back what `encode` or `encode_for_disk` gave. Raises IdentityError.

        Of `encode`'s it is not known when it was obtained: its life counts from now.
        """
        try:
            fields: dict[str, Any] = json.loads(data)
            if fields["version"] != VERSION:
                raise IdentityError(f"identity of version {fields['version']}, not {VERSION}")
            return cls(
                fields["trust_domain"],
                base64.b64decode(fields["key"]),
                [base64.b64decode(one) for one in fields["chain"]],
                [base64.b64decode(one) for one in fields["bundle"]],
                fields.get("obtained", time.time()),
                name,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise IdentityError(f"not an identity: {error!r}") from None

    def encode(self) -> bytes:
        """Give what workers take over, as JSON."""
        return json.dumps(self._fields()).encode()

    def encode_for_disk(self) -> bytes:
        """Give the same with the time at which it was obtained."""
        return json.dumps({**self._fields(), "obtained": self.obtained}).encode()

    def memory_file(self) -> int:
        """Put `encode` into a sealed memory file; the descriptor is the caller's."""
        fd = os.memfd_create("meshfast-identity", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.write(fd, self.encode())
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        return fd

    def is_valid(self, now: float) -> bool:
        """Tell whether peers still take it."""
        return now < self.not_after

    def _fields(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "trust_domain": self.trust_domain,
            "chain": [_text(one) for one in self.chain],
            "key": _text(self.key),
            "bundle": [_text(one) for one in self.bundle],
        }


def tls_client(roots: Sequence[bytes], identity: Identity | None, server: str) -> TlsClient:
    """Make the TLS side of a stream: roots, who the server is, and the identity if there is one.

    Raises IdentityError when key and certificate do not belong together.
    """
    chain, key = (identity.chain, identity.key) if identity is not None else ((), b"")
    try:
        return TlsClient(roots, chain, key, server)
    except ValueError as error:
        raise IdentityError(f"certificate or key cannot be used: {error}") from None


def _text(der: bytes) -> str:
    return base64.b64encode(der).decode("ascii")


class Renewal:
    """Says when to ask for the next certificate, and when to ring."""

    def __init__(
        self,
        loop: Loop,
        attempt: Callable[[], None],
        alarm: Callable[[], None],
        uniform: Callable[[float, float], float],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`attempt` is called when a certificate is due, again and again until `obtained`.

        `clock` is the time that certificates speak of, which goes on while a host sleeps.
        """
        self._loop = loop
        self._attempt = attempt
        self._alarm = alarm
        self._uniform = uniform
        self._clock = clock
        self._life_s = 0.0
        self._due_at = self._alarm_at = 0.0
        self._timers: list[Timer] = []
        self.is_due = False

    def obtained(self, life_s: float, age_s: float = 0.0) -> None:
        """Begin with a certificate of which `age_s` have passed already."""
        self.cancel()
        self._life_s = max(life_s, 1.0)
        self.is_due = False
        began = self._clock() - age_s
        self._due_at = began + self._uniform(*FIRST_ATTEMPT) * self._life_s
        self._alarm_at = began + ALARM * self._life_s
        self._timers = [self._later(self._due_at, self._on_due)]
        self._timers.append(self._later(self._alarm_at, self._on_alarm))

    def cancel(self) -> None:
        """Ask no more."""
        for timer in self._timers:
            timer.cancel()
        self._timers = []

    def _later(self, at: float, call: Callable[[], None]) -> Timer:
        """Call at a time of the clock, or earlier: whoever is called looks at it again."""
        return self._loop.call_later(min(max(at - self._clock(), 0.0), SLEEP_S_MAX), call)

    def _on_alarm(self) -> None:
        if self._alarm_at - self._clock() > CLOCK_S:
            self._timers[1] = self._later(self._alarm_at, self._on_alarm)
        else:
            self._alarm()

    def _on_due(self) -> None:
        if not self.is_due and self._due_at - self._clock() > CLOCK_S:
            self._timers[0] = self._later(self._due_at, self._on_due)
            return
        self.is_due = True
        wait_s = min(RETRY_S, RETRY_OF_LIFE * self._life_s) * self._uniform(*RETRY_SPREAD)
        self._timers[0] = self._loop.call_later(wait_s, self._on_due)
        self._attempt()
