"""The certificate authority: who may be called what, for how long, and how one joins.

    CertificateAuthority   root and issuer on disk; signs what it was asked after looking at it
    Issuance               the authority with the store behind it: tokens, limits, who got what
    JoinTokens             made by operators, used by hosts, kept as hashes
    SpiffeId               the names, parsed strictly

Checks of requests are in requests.py, the rules of names in identity.py. The only room that names
the library `cryptography`, which is loaded when a control plane starts and by nothing else.

Tests: tests/control/ca/.
"""

from meshfast.control.ca.authority import CertificateAuthority, Issued, ServerIdentity
from meshfast.control.ca.error import AuthorityError, Refusal, RefusedError
from meshfast.control.ca.identity import SpiffeId
from meshfast.control.ca.issuance import Issuance, IssuanceLimits, IssuedRecord
from meshfast.control.ca.peer import Peer
from meshfast.control.ca.tokens import Claim, JoinTokens, TokenRecord

__all__ = [
    "AuthorityError",
    "CertificateAuthority",
    "Claim",
    "Issuance",
    "IssuanceLimits",
    "Issued",
    "IssuedRecord",
    "JoinTokens",
    "Peer",
    "Refusal",
    "RefusedError",
    "ServerIdentity",
    "SpiffeId",
    "TokenRecord",
]
