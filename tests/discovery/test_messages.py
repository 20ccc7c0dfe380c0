"""The messages: what travels, what is bounded, how they grow; revisions and versions."""

from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshfast.discovery import (
    ORIGIN,
    TYPES,
    Message,
    Nack,
    Problem,
    Push,
    Registration,
    Revision,
    Subscribe,
    content_version,
)
from meshfast.discovery.messages import CSR_BYTES_MAX, NAME_CHARACTERS_MAX

PLAIN = msgspec.json.Encoder()
MESSAGES = msgspec.json.Decoder(Message)


def test_each_kind_of_message_has_a_name_of_its_own() -> None:
    kinds = [kind.__struct_config__.tag for kind in get_args(Message)]
    assert len(set(kinds)) == len({*get_args(Message)})
    assert {kind.__struct_config__.tag_field for kind in get_args(Message)} == {"kind"}


def test_no_collection_or_text_is_without_a_bound() -> None:
    schemas, components = msgspec.json.schema_components([Message])
    unbounded = [
        path
        for path, schema in _walk("", [schemas, components])
        if schema.get("type") in ("string", "array", "object")
        and not {"maxLength", "maxItems", "maxProperties", "properties"} & schema.keys()
        and "enum" not in schema
        and schema.get("title") != "Revision"  # an array of exactly two
    ]
    assert unbounded == []


def _walk(path: str, schema: object) -> list[tuple[str, dict[str, object]]]:
    if isinstance(schema, list | tuple):
        return [found for i, item in enumerate(schema) for found in _walk(f"{path}/{i}", item)]
    if not isinstance(schema, dict):
        return []
    found = [(path, schema)] if isinstance(schema.get("type"), str) else []
    for key, item in schema.items():
        if key not in ("default", "propertyNames"):
            found += _walk(f"{path}/{key}", item)
    return found


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"kind":"ack","type":"route","nonce":"1"}', "a text is no number"),
        ('{"kind":"ack","type":"route","nonce":-1}', "below the range"),
        ('{"kind":"ack","type":"route","nonce":9007199254740992}', "above the range"),
        ('{"kind":"ack","type":"","nonce":1}', "an empty name"),
        ('{"kind":"ack","nonce":1}', "a field is missing"),
        ('{"kind":"nack","type":"route","nonce":1,"problems":[]}', "a nack without a problem"),
        ('{"kind":"push","type":"route","nonce":1,"revision":[1]}', "half a revision"),
        ('{"kind":"push","type":"route","nonce":1,"revision":[1,2],"removed":null}', "no list"),
    ],
    ids=lambda value: value if value[0] != "{" else "",
)
def test_refuses_a_message_out_of_its_form(text: str, why: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        MESSAGES.decode(text)


def test_refuses_what_is_longer_than_its_bound() -> None:
    name = "n" * NAME_CHARACTERS_MAX
    assert MESSAGES.decode(PLAIN.encode(Subscribe("route", [name]))) == Subscribe("route", [name])
    with pytest.raises(msgspec.ValidationError):
        MESSAGES.decode(PLAIN.encode(Subscribe("route", [name + "n"])))
    csr = {"kind": "certificate_request", "id": 1, "csr": b"c" * (CSR_BYTES_MAX + 1)}
    with pytest.raises(msgspec.ValidationError):
        MESSAGES.decode(PLAIN.encode(csr))


def test_ignores_an_optional_field_of_a_later_version() -> None:
    text = '{"kind":"subscribe","type":"route","names":["a"],"colour":{"deep":[1,{"x":2}]}}'
    assert MESSAGES.decode(text) == Subscribe("route", ["a"])


def test_fills_in_an_optional_field_that_an_earlier_version_lacks() -> None:
    text = '{"kind":"push","type":"route","nonce":3,"revision":[1,2]}'
    assert MESSAGES.decode(text) == Push("route", 3, Revision(1, 2), [], [], True, 0)


def test_a_registration_is_unhealthy_until_it_says_otherwise() -> None:
    assert not Registration("w", "default", "payment", "10.0.0.1", []).healthy


def test_the_order_of_types_is_make_before_break() -> None:
    assert TYPES == ("cluster", "endpoint", "listener", "route")


def test_a_problem_stands_on_its_own_unless_it_waits() -> None:
    nack = MESSAGES.decode(PLAIN.encode(Nack("route", 1, [Problem("a", "bad")])))
    assert isinstance(nack, Nack)
    assert nack.problems[0].waits_for is None


revisions = st.builds(Revision, st.integers(0, 9), st.integers(0, 9))


@given(revisions, revisions)
def test_revisions_are_ordered_by_epoch_then_by_count(one: Revision, other: Revision) -> None:
    assert (one < other) == ((one.epoch, one.n) < (other.epoch, other.n))
    assert one >= ORIGIN


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_a_version_tells_bodies_apart_and_nothing_else(one: bytes, other: bytes) -> None:
    assert (content_version(one) == content_version(other)) == (one == other)


def test_a_version_is_the_same_in_every_release() -> None:
    # Another value would make every sidecar of a running mesh fetch everything anew.
    assert content_version(b"meshfast") == "37d032aa0ec3dc15d0929c4dba82c252"
