"""The TLS of the control stream: version, trust, and our own certificate, renewed while we serve.

TLS 1.3 only. A client certificate is asked for and, when there is one, verified against the trust
bundle by OpenSSL; a host that joins has none yet. There are no session tickets: a resumed session
would not show a certificate again, so one that has expired or was revoked could come back.

Does not do: read the name in the client's certificate (peer.py), open sockets.

Invariants:
1. No private key is written to disk: `ssl` reads ours from a memory file that is closed at once.
2. A connection keeps the certificate it began with; only new ones see a renewed one.

Tests: tests/control/server/test_tls.py.
"""

from __future__ import annotations

import os
import ssl
from datetime import UTC, datetime
from typing import Final

from meshfast.control.ca.authority import CertificateAuthority, ServerIdentity
from meshfast.control.ca.identity import SpiffeId

__all__ = ["Serving"]

#: Part of a certificate's life after which ours is replaced; Istio and ztunnel renew there.
RENEW_AFTER: Final = 0.5


class Serving:
    """The context of the listener, and when it wants a new certificate."""

    def __init__(
        self, authority: CertificateAuthority, ttl_s: int, now: datetime | None = None
    ) -> None:
        """Make a context with a certificate of `ttl_s` seconds."""
        self._authority = authority
        self._identity = SpiffeId.control(authority.trust_domain)
        self._ttl_s = ttl_s
        self.context = _context(authority.bundle())
        self.renew(now)

    def renew(self, now: datetime | None = None) -> None:
        """Serve new connections with a new certificate."""
        self._current = self._authority.serve_identity(self._identity, self._ttl_s, now)
        _load(self.context, self._current)

    def renew_in_s(self, now: datetime | None = None) -> float:
        """Say in how many seconds `renew` is due; 0 when it is."""
        now = now or datetime.now(UTC)
        # The certificate is dated back; its life begins a ttl before its end.
        life_s = min(float(self._ttl_s), self._left_s(self._current.not_before))
        return max(0.0, self._left_s(now) - life_s * (1 - RENEW_AFTER))

    def _left_s(self, now: datetime) -> float:
        return (self._current.not_after - now).total_seconds()


def _context(bundle: list[bytes]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    context.verify_mode = ssl.CERT_OPTIONAL
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata=b"".join(bundle))
    return context


def _load(context: ssl.SSLContext, identity: ServerIdentity) -> None:
    """Hand the key to OpenSSL, which only takes names of files."""
    descriptor = os.memfd_create("meshfast-control-identity", os.MFD_CLOEXEC)
    with open(descriptor, "wb") as file:
        file.write(identity.pem)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
