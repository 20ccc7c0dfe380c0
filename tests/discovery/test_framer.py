"""Frames: whole messages out of bytes in any pieces, and the refusal of everything else."""

import json
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshfast.discovery import (
    Ack,
    Code,
    DiscoveryError,
    Encoding,
    Framer,
    Goodbye,
    Heartbeat,
    Hello,
    Message,
    Nack,
    Node,
    Problem,
    Push,
    Reference,
    Resource,
    Revision,
    Welcome,
)

MESSAGES: tuple[Message, ...] = (
    Hello(1, Node("i", "w", "default", {"app": "w"}), {"route": {"a": "1"}}, Revision(5, 6), 7),
    Welcome(1),
    Push("route", 1, Revision(5, 6), [Resource("a", "1", b"\x00\xff")], ["b"], False, 2),
    Ack("route", 1),
    Nack("route", 1, [Problem("a", "no", Reference("cluster", "c"))]),
    Heartbeat(),
    Goodbye("drain"),
)
encodings = pytest.mark.parametrize("encoding", Encoding)


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


def take_all(framer: Framer) -> list[Message]:
    taken = []
    while (message := framer.take()) is not None:
        taken.append(message)
    return taken


def refusal(framer: Framer, data: bytes) -> DiscoveryError:
    framer.receive(data)
    with pytest.raises(DiscoveryError) as refused:
        take_all(framer)
    return refused.value


@encodings
def test_messages_survive_one_byte_at_a_time(encoding: Encoding) -> None:
    sender, receiver = Framer(encoding), Framer(encoding)
    taken: list[Message] = []
    for byte in b"".join(sender.encode(message) for message in MESSAGES):
        receiver.receive(bytes([byte]))
        taken += take_all(receiver)
    assert tuple(taken) == MESSAGES
    receiver.finish()


@encodings
def test_messages_survive_in_one_piece(encoding: Encoding) -> None:
    receiver = Framer(encoding)
    receiver.receive(b"".join(Framer(encoding).encode(message) for message in MESSAGES))
    assert tuple(take_all(receiver)) == MESSAGES


def test_the_json_twin_says_the_same() -> None:
    for message in MESSAGES:
        packed = Framer().encode(message)[4:]
        text = Framer(Encoding.JSON).encode(message)[4:]
        decoded = msgspec.json.decode(text)
        assert decoded["kind"] == msgspec.msgpack.decode(packed)["kind"]
        assert json.loads(text) == decoded


@pytest.mark.parametrize("cut", [1, 3, 4, 5, 20])
def test_a_cut_off_message_is_an_error_at_the_end(cut: int) -> None:
    framer = Framer()
    framer.receive(Framer().encode(MESSAGES[0])[:cut])
    assert framer.take() is None
    with pytest.raises(DiscoveryError) as refused:
        framer.finish()
    assert refused.value.code is Code.MALFORMED


def test_refuses_a_long_frame_at_its_length() -> None:
    framer = Framer(frame_bytes_max=1000)
    error = refusal(framer, (1001).to_bytes(4, "big"))
    assert error.code is Code.TOO_LARGE
    assert "1001" in str(error)


def test_takes_a_frame_of_exactly_the_limit() -> None:
    sent = Framer().encode(MESSAGES[0])
    framer = Framer(frame_bytes_max=len(sent) - 4)
    framer.receive(sent)
    assert framer.take() == MESSAGES[0]
    with pytest.raises(DiscoveryError):
        Framer(frame_bytes_max=len(sent) - 5).encode(MESSAGES[0])


def test_an_unknown_kind_is_named_in_the_refusal() -> None:
    error = refusal(Framer(), frame(msgspec.msgpack.encode({"kind": "teleport", "x": 1})))
    assert error.code is Code.UNKNOWN_TYPE
    assert "teleport" in str(error)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x80",
        b"\x93\x01\x02\x03",
        b"{}",
        msgspec.msgpack.encode({"kind": 1}),
        msgspec.msgpack.encode({"kind": "ack", "type": "route", "nonce": 1.5}),
        msgspec.msgpack.encode({"kind": "ack", "type": "route", "nonce": 1}) + b"\x00",
        b"\x82\xa4kind\xa9heartbeat\xa1x" + b"\x91" * 100_000,
        b"\x82\xa4kind\xa9heartbeat\xa1x" + b"\xdd\xff\xff\xff\xff",
    ],
    ids=[
        "empty",
        "no code of MessagePack",
        "no kind",
        "an array",
        "JSON where MessagePack is agreed",
        "a kind that is no text",
        "a fraction",
        "a byte behind the message",
        "nested deeper than the stack",
        "a length that is not there",
    ],
)
def test_refuses_a_body_that_is_no_message(body: bytes) -> None:
    assert refusal(Framer(), frame(body)).code is Code.MALFORMED


def test_after_an_error_nothing_is_taken() -> None:
    framer = Framer()
    first = refusal(framer, frame(b"\xc1"))
    assert refusal(framer, Framer().encode(MESSAGES[0])) is first


def test_messages_before_the_bad_one_are_still_taken() -> None:
    framer = Framer()
    framer.receive(Framer().encode(MESSAGES[0]) + frame(b"\xc1"))
    assert framer.take() == MESSAGES[0]
    with pytest.raises(DiscoveryError):
        framer.take()


@given(st.lists(st.binary(max_size=40)))
def test_any_bytes_end_in_a_message_or_an_error(pieces: list[bytes]) -> None:
    framer = Framer(frame_bytes_max=100)
    with suppress(DiscoveryError):  # any other exception fails the test
        for piece in pieces:
            framer.receive(piece)
            take_all(framer)
        framer.finish()
