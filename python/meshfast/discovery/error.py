"""What ends a discovery stream: the peer broke the protocol, or speaks another one.

There is one class with a stable `code`, because every case is handled alike: say goodbye, close,
connect again with back-off. A refused *resource* is no error here, it is a `Nack`.

Tests: tests/discovery/.
"""

from __future__ import annotations

from enum import StrEnum

from meshfast.errors import MeshfastError

__all__ = ["Code", "DiscoveryError"]


class Code(StrEnum):
    """Why a stream ended; the label in metrics and in `Goodbye`."""

    #: The client's certificate has expired; renew, or join again.
    EXPIRED = "expired"
    #: The bytes are no message: damaged, of a wrong type, or out of their range.
    MALFORMED = "malformed"
    #: The configuration offered is older than the one that is held.
    OUTDATED = "outdated"
    #: Another stream of the same instance has taken over.
    REPLACED = "replaced"
    #: The identity was revoked.
    REVOKED = "revoked"
    #: The peer does not read what is sent to it, or has said nothing for too long.
    SLOW = "slow"
    #: A frame is larger than the limit.
    TOO_LARGE = "too_large"
    #: The certificate does not cover what was said or asked.
    UNAUTHORIZED = "unauthorized"
    #: The message is one of ours, but not now, or not in this direction.
    UNEXPECTED = "unexpected"
    #: The message type is not known in this version.
    UNKNOWN_TYPE = "unknown_type"
    #: The peers have no protocol version in common.
    VERSION = "version"


class DiscoveryError(MeshfastError):
    """The stream cannot go on. `code` is stable, the text is for an operator."""

    code: Code

    def __init__(self, code: Code, message: str) -> None:
        """Keep the label beside the text."""
        super().__init__(f"{code}: {message}")
        self.code = code
        self.detail = message
