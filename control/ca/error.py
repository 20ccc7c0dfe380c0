"""What the authority answers when it does not sign, and what is wrong with its files.

A refusal travels to the sidecar and into an operator's log; `code` is stable, for metrics, tests.
It says nothing about tokens to somebody who does not hold one: an unknown id, a wrong secret and a
token of another mesh are all `TOKEN_INVALID`.

Tests: tests/control/ca/.
"""

from __future__ import annotations

from enum import StrEnum

from meshfast.errors import MeshfastError

__all__ = ["AuthorityError", "Refusal", "RefusedError"]


class Refusal(StrEnum):
    """Why a certificate was not issued."""

    #: The request asks to be an authority itself.
    AUTHORITY = "authority"
    #: The certificate has expired for too long to be renewed.
    EXPIRED = "expired"
    #: The request has a critical extension that is not understood.
    EXTENSION = "extension"
    #: The issuer has expired or is not below the published root.
    ISSUER = "issuer"
    #: The kind or size of key is not taken.
    KEY = "key"
    #: The key has been certified for long enough; make a new one.
    KEY_AGE = "key_age"
    #: The key already belongs to another identity.
    KEY_OWNER = "key_owner"
    #: The bytes are not a certificate request, or not one without errors.
    MALFORMED = "malformed"
    #: The identity is not a SPIFFE id that this authority can give.
    NAME = "name"
    #: Too many requests; try again later.
    RATE = "rate"
    #: The identity was revoked.
    REVOKED = "revoked"
    #: The request is signed by another key, or with a broken algorithm.
    SIGNATURE = "signature"
    #: The request names somebody else.
    SUBJECT = "subject"
    #: The request is larger than the limit.
    TOO_LARGE = "too_large"
    #: The token was good until its time was over.
    TOKEN_EXPIRED = "token_expired"
    #: No such token, or not its secret.
    TOKEN_INVALID = "token_invalid"
    #: An operator has revoked the token.
    TOKEN_REVOKED = "token_revoked"
    #: The token has been used as often as it may.
    TOKEN_USED = "token_used"
    #: The store knows nothing of the certificate.
    UNKNOWN = "unknown"


class RefusedError(MeshfastError):
    """A request was refused. The text is for whoever sent it and contains nothing secret."""

    code: Refusal

    def __init__(self, code: Refusal, message: str) -> None:
        """Keep the label beside the text."""
        super().__init__(f"{code}: {message}")
        self.code = code


class AuthorityError(MeshfastError):
    """The files of the authority are damaged, incomplete, or open to others."""
