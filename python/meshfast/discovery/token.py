"""The join token: what a host needs to become a workload of a mesh, as one line of text.

    mf1.<base64url of a JSON object>

It binds a service, a namespace and a service account, says where the control plane is, and carries
the root certificate, so that the very first connection is verified and nothing is trusted on first
use. The secret in it is a password: it belongs into a file or the environment, not into arguments.

What this module does not do: make tokens or judge them (control/ca does), or read certificates;
`root` is bytes here, so that an agent needs no library for them.

Invariants:
1. `parse` accepts what `text` gives and nothing that is longer than `TOKEN_CHARACTERS_MAX`.
2. Neither the text nor the secret shows up in `repr` or in an error.

Tests: tests/discovery/test_token.py.
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from meshfast.errors import MeshfastError
from meshfast.resources.texts import CLAIM_CHECKS

__all__ = ["TOKEN_CHARACTERS_MAX", "JoinToken", "TokenError"]

PREFIX: Final = "mf1."
#: A P-256 root has 450 bytes, an RSA-4096 one 1.4 KiB; with the names below 4 KiB.
TOKEN_CHARACTERS_MAX: Final = 8 << 10

Label = Annotated[str, Meta(pattern=r"\A[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?\Z")]
Host = Annotated[str, Meta(min_length=1, max_length=261)]  # 253 and a port, or an address
TrustDomain = Annotated[str, Meta(pattern=r"\A[a-z0-9._-]{1,255}\Z")]
Secret = Annotated[str, Meta(min_length=1, max_length=128)]


class TokenError(MeshfastError):
    """The text is not a join token. Never contains any of it."""


class JoinToken(msgspec.Struct, frozen=True, kw_only=True):
    """What a token says. `control` is `host:port`, `root` a certificate in DER: the pin."""

    control: Host
    root: bytes
    id: Secret
    secret: Secret
    service: Label
    namespace: Label
    service_account: Label
    trust_domain: TrustDomain

    @classmethod
    def parse(cls, text: str) -> JoinToken:
        """Read a token, with white space around it. Raises `TokenError`."""
        text = text.strip()
        if len(text) > TOKEN_CHARACTERS_MAX:
            raise TokenError(f"a join token has at most {TOKEN_CHARACTERS_MAX} characters")
        if not text.startswith(PREFIX):
            raise TokenError(f"a join token begins with {PREFIX}; copy it whole")
        try:
            data = base64.b64decode(_padded(text[len(PREFIX) :]), altchars=b"-_", validate=True)
            written = msgspec.json.decode(data, type=_Written)
            if CLAIM_CHECKS["host_port"](written.control) is not None:
                raise ValueError("no address of a control plane")
            root = base64.b64decode(_padded(written.root), altchars=b"-_", validate=True)
        except (msgspec.DecodeError, binascii.Error, ValueError):
            # The cause would quote parts of the token.
            raise TokenError("the join token is damaged; copy it whole") from None
        fields = {name: getattr(written, name) for name in _PLAIN}
        return cls(root=root, **fields)

    @property
    def identity(self) -> str:
        """The SPIFFE id that joining with this token gives."""
        return f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"

    def text(self) -> str:
        """Write the token. Whoever reads it can join until it is used up or has expired."""
        fields = {name: getattr(self, name) for name in _PLAIN}
        written = _Written(root=_base64(self.root), **fields)
        return PREFIX + _base64(msgspec.json.encode(written))

    def __repr__(self) -> str:
        """Render without the secret: tokens end up in tracebacks and logs otherwise."""
        return f"JoinToken(id={self.id!r}, service={self.service!r}, namespace={self.namespace!r})"


class _Written(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON form: as `JoinToken`, the root in base64url. Unknown fields are left alone."""

    control: Host
    root: Annotated[str, Meta(min_length=1)]
    id: Secret
    secret: Secret
    service: Label
    namespace: Label
    service_account: Label
    trust_domain: TrustDomain


_PLAIN: Final = tuple(name for name in _Written.__struct_fields__ if name != "root")


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _padded(text: str) -> bytes:
    return text.encode("ascii") + b"=" * (-len(text) % 4)
