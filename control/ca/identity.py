"""SPIFFE ids: the names of workloads, parsed so strictly that each has one spelling.

    spiffe://<trust domain>/ns/<namespace>/sa/<service account>

The general rules are those of the SPIFFE-ID specification (sections 2.1 to 2.3); the shape of the
path is Istio's. Only ids of that shape are given or accepted here.

Does not do: look at certificates (peer.py), or ask whether a workload exists.

Invariants:
1. `str(SpiffeId.parse(text)) == text` for every text that is accepted: there is no second spelling
   of a name, so comparing strings compares identities.
2. Whatever the text, `parse` returns or raises `RefusedError`.

Tests: tests/control/ca/test_identity.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from meshfast.control.ca.error import Refusal, RefusedError

__all__ = ["CONTROL_NAMESPACE", "CONTROL_SERVICE_ACCOUNT", "SpiffeId"]

#: What the control plane calls itself; no token is made for it.
CONTROL_NAMESPACE: Final = "meshfast-system"
CONTROL_SERVICE_ACCOUNT: Final = "control"

#: SPIFFE-ID 2.3: at most 2048 bytes in all; 2.1: at most 255 for the trust domain.
ID_BYTES_MAX: Final = 2048
_SCHEME: Final = "spiffe://"
_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9._-]{1,255}", re.ASCII)
#: SPIFFE-ID 2.2: letters, digits, dots, dashes and underscores; percent-encoding is not allowed.
_SEGMENT: Final = re.compile(r"[a-zA-Z0-9._-]+", re.ASCII)
_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)  # RFC 1123, section 2.1


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """The identity of a workload. Namespace and service account are DNS labels."""

    trust_domain: str
    namespace: str
    service_account: str

    @classmethod
    def parse(cls, text: str) -> SpiffeId:
        """Read an id. Raises `RefusedError` (`NAME`) that says which rule it breaks."""
        problem = _problem(text)
        if problem is not None:
            raise RefusedError(Refusal.NAME, f"{text[:200]!r} is no SPIFFE id: {problem}")
        trust_domain, *segments = text.removeprefix(_SCHEME).split("/")
        match segments:
            case ["ns", namespace, "sa", account] if _is_label(namespace) and _is_label(account):
                return cls(trust_domain, namespace, account)
        raise RefusedError(
            Refusal.NAME, f"{text[:200]!r} is not of the form …/ns/NAMESPACE/sa/SERVICE-ACCOUNT"
        )

    @classmethod
    def control(cls, trust_domain: str) -> SpiffeId:
        """Name the control plane of a trust domain."""
        return cls.parse(
            f"{_SCHEME}{trust_domain}/ns/{CONTROL_NAMESPACE}/sa/{CONTROL_SERVICE_ACCOUNT}"
        )

    def __str__(self) -> str:
        """Write the id; the only spelling that `parse` takes."""
        path = f"/ns/{self.namespace}/sa/{self.service_account}"
        return f"{_SCHEME}{self.trust_domain}{path}"


def _problem(text: str) -> str | None:
    """Say which rule of SPIFFE-ID the text breaks; `None` when it keeps them all."""
    if len(text.encode("utf-8", "surrogatepass")) > ID_BYTES_MAX:
        return f"more than {ID_BYTES_MAX} bytes"
    if not text.startswith(_SCHEME):
        return "the scheme has to be spiffe://, in lower case"
    trust_domain, slash, path = text.removeprefix(_SCHEME).partition("/")
    if not _TRUST_DOMAIN.fullmatch(trust_domain):
        # Also catches user information, a port, a query or a fragment before the path.
        return "the trust domain has 1 to 255 of a-z, 0-9, dot, dash and underscore"
    if not slash or not path:
        return "there is no path"
    for segment in path.split("/"):
        if segment in ("", ".", ".."):
            return "the path has an empty or a dot segment"
        if not _SEGMENT.fullmatch(segment):
            # Query, fragment, percent-encoding, NUL and everything beyond ASCII end here.
            return "a path segment has a character that is not allowed"
    return None


def _is_label(text: str) -> bool:
    return _LABEL.fullmatch(text) is not None
