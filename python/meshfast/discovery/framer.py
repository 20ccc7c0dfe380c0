"""Bytes ↔ messages: a length of four bytes, big-endian, then one message. Sans-I/O.

The message is a MessagePack map with its name under `kind`. The JSON twin carries the same maps
(bytes as base64) for a person with a debugger; both ends have to be told which, since guessing
would give an attacker two parsers to choose from.

What this module does not do: read sockets, or check that a message is allowed now.

Invariants:
1. A frame longer than the limit is refused at its length, before a byte of it is kept.
2. If `take` is called until it returns `None` after each `receive`, at most one frame is buffered.
3. After an error `take` repeats it for ever: the position in the stream is lost.
4. Decoding is strict: no conversion between types, every bound of messages.py is checked, and what
   follows the message inside its frame is refused.

Tests: tests/discovery/test_framer.py.
"""

from __future__ import annotations

import struct
from enum import StrEnum
from typing import Final, get_args

import msgspec

from meshfast.discovery.error import Code, DiscoveryError
from meshfast.discovery.messages import Message

__all__ = ["FRAME_BYTES_MAX", "Encoding", "Framer"]

#: A sidecar that holds 100,000 resources says so in one Hello of about 10 MiB. Pushes are far
#: smaller (server.py splits them).
FRAME_BYTES_MAX: Final = 16 << 20
LENGTH: Final = struct.Struct(">I")


class Encoding(StrEnum):
    """How messages are written in frames."""

    JSON = "json"
    MESSAGE_PACK = "message_pack"


class _Kind(msgspec.Struct):
    kind: str


KINDS: Final = frozenset(str(kind.__struct_config__.tag) for kind in get_args(Message))

_ENCODERS: Final = {
    Encoding.JSON: msgspec.json.Encoder().encode,
    Encoding.MESSAGE_PACK: msgspec.msgpack.Encoder().encode,
}
_DECODERS: Final = {
    Encoding.JSON: msgspec.json.Decoder(Message).decode,
    Encoding.MESSAGE_PACK: msgspec.msgpack.Decoder(Message).decode,
}
_KIND_DECODERS: Final = {
    Encoding.JSON: msgspec.json.Decoder(_Kind).decode,
    Encoding.MESSAGE_PACK: msgspec.msgpack.Decoder(_Kind).decode,
}


class Framer:
    """One end of a stream: `encode` for what goes out, `receive` and `take` for what comes in."""

    def __init__(
        self,
        encoding: Encoding = Encoding.MESSAGE_PACK,
        *,
        frame_bytes_max: int = FRAME_BYTES_MAX,
    ) -> None:
        """Start at the beginning of a stream. The limit counts a message without its length."""
        self._encode = _ENCODERS[encoding]
        self._decode = _DECODERS[encoding]
        self._decode_kind = _KIND_DECODERS[encoding]
        self._frame_bytes_max = frame_bytes_max
        self._buffer = bytearray()
        self._error: DiscoveryError | None = None

    def encode(self, message: Message) -> bytes:
        """Write one message with its length. Raises `DiscoveryError` (`TOO_LARGE`)."""
        body = self._encode(message)
        self._check_length(len(body))
        return LENGTH.pack(len(body)) + body

    def receive(self, data: bytes) -> None:
        """Add bytes in any pieces; then call `take` until it returns `None`."""
        if self._error is None:
            self._buffer += data

    def take(self) -> Message | None:
        """Return the next whole message, `None` when there is none yet.

        Raises `DiscoveryError`: `TOO_LARGE`, `MALFORMED`, `UNKNOWN_TYPE`.
        """
        if self._error is not None:
            raise self._error
        try:
            return self._next()
        except DiscoveryError as error:
            self._error = error
            self._buffer.clear()
            raise

    def finish(self) -> None:
        """Say that the peer closed. Raises `DiscoveryError` when that cut a message off."""
        if self._error is None and self._buffer:
            raise DiscoveryError(Code.MALFORMED, "the stream ended inside a message")

    def _next(self) -> Message | None:
        if len(self._buffer) < LENGTH.size:
            return None
        (length,) = LENGTH.unpack_from(self._buffer)
        self._check_length(length)
        end = LENGTH.size + length
        if len(self._buffer) < end:
            return None
        body = bytes(memoryview(self._buffer)[LENGTH.size : end])
        del self._buffer[:end]
        try:
            message: Message = self._decode(body)
        except msgspec.ValidationError as error:
            raise self._refusal(body, error) from error
        except (msgspec.DecodeError, RecursionError) as error:
            raise DiscoveryError(Code.MALFORMED, str(error)) from error
        return message

    def _refusal(self, body: bytes, error: msgspec.ValidationError) -> DiscoveryError:
        """Tell a message of another version from one that breaks a rule of this one."""
        try:
            kind = self._decode_kind(body).kind
        except msgspec.DecodeError:
            return DiscoveryError(Code.MALFORMED, str(error))
        if kind in KINDS:
            return DiscoveryError(Code.MALFORMED, f"{kind}: {error}")
        return DiscoveryError(Code.UNKNOWN_TYPE, f"no message is called {kind[:80]!r}")

    def _check_length(self, length: int) -> None:
        if length > self._frame_bytes_max:
            raise DiscoveryError(
                Code.TOO_LARGE,
                f"a message of {length} bytes; at most {self._frame_bytes_max} are taken",
            )
