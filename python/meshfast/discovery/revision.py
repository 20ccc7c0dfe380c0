"""The number of a write in the control plane's history, and the version of a resource's content.

A `Revision` orders everything that was ever written; a version only says whether two bodies are the
same bytes. Subscribers keep versions (resume sends differences only), operators and the refusal of
old configuration use revisions.

What this module does not do: hand out revisions. That is the store's (control/store).

Invariants:
1. Revisions are ordered by epoch, then by n; the order is the order of the writes.
2. A version depends on the bytes of the body alone, never on name, time or revision, so a control
   plane that lost its store and wrote the same resources again changes nothing at its subscribers.

Tests: tests/discovery/test_messages.py.
"""

from __future__ import annotations

import msgspec

from meshfast.discovery.digest import blake2b

__all__ = ["ORIGIN", "VERSION_BYTES", "Revision", "content_version"]

# 128 bits: collisions by chance are out of reach (2^64 bodies), and nobody gains by forging one,
# since a body and its version come from the same authenticated control plane.
VERSION_BYTES = 16


class Revision(msgspec.Struct, frozen=True, order=True, array_like=True):
    """A position in the store's history.

    `epoch` is the opening of the store that made the write (milliseconds since 1970, or one more
    than the last one), 0 before the first write. `n` counts writes from 1 and goes on over epochs.
    Travels as the array `[epoch, n]`, so a field can never be added here.
    """

    epoch: int
    n: int

    def __str__(self) -> str:
        """Render for operators and logs: `1764000000000-42`."""
        return f"{self.epoch}-{self.n}"


#: Before the first write.
ORIGIN = Revision(0, 0)


def content_version(body: bytes) -> str:
    """Compute the version of a resource: 32 hexadecimal digits of BLAKE2b-128 over its body."""
    return blake2b(body, digest_size=VERSION_BYTES).hexdigest()
