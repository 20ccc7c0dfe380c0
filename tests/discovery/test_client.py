"""The sidecar's end: what it says, what it holds, what it refuses."""

import pytest

from meshfast.discovery import (
    Ack,
    CertificateRequest,
    CertificateResponse,
    ClientSession,
    ClientState,
    Code,
    DiscoveryError,
    Goodbye,
    Heartbeat,
    Hello,
    Message,
    Nack,
    Problem,
    Push,
    Resource,
    Revision,
    Subscribe,
    Unsubscribe,
    Welcome,
    content_version,
)
from meshfast.discovery.messages import REASON_CHARACTERS_MAX
from tests.discovery.world import NODE, resource

AT = Revision(1, 10)
A1, A2, B1 = resource("a", b"1"), resource("a", b"2"), resource("b", b"1")


def opened(client: ClientSession | None = None) -> ClientSession:
    """Return a session with an open stream, subscribed to all routes, with nothing to send."""
    client = client or ClientSession(NODE)
    client.subscribe("route")
    client.connected()
    client.poll_messages()
    client.handle_message(Welcome(1))
    return client


def push(
    nonce: int, *resources: Resource, removed: tuple[str, ...] = (), at: Revision = AT
) -> Push:
    return Push("route", nonce, at, list(resources), list(removed), subscribes=1)


def refusal(client: ClientSession, message: Message) -> DiscoveryError:
    with pytest.raises(DiscoveryError) as refused:
        client.handle_message(message)
    return refused.value


def apply(client: ClientSession, *problems: Problem) -> None:
    for taken in client.take_pushes():
        client.answer(taken, problems)


def test_says_hello_with_what_is_on_disk_and_asks_for_all_that_is_wanted() -> None:
    held = {"route": {"a": A1.version, "old": "1"}, "secret": {"x": "1"}}
    client = ClientSession(NODE, held=held, revision=AT)
    client.generation = 4
    client.subscribe("route", ["a", "b"])
    assert client.poll_messages() == []
    client.connected()
    assert client.poll_messages() == [
        Hello(1, NODE, {"route": {"a": A1.version}}, AT, 4),
        Subscribe("route", ["a", "b"]),
    ]
    assert client.poll_messages() == []


def test_holds_and_acknowledges_what_is_applied() -> None:
    client = opened()
    client.handle_message(push(1, A1, B1))
    assert client.held == {}
    assert client.poll_messages() == []
    apply(client)
    assert client.held == {"route": {"a": A1.version, "b": B1.version}}
    assert client.poll_messages() == [Ack("route", 1)]


def test_a_refused_resource_keeps_its_version_and_the_others_are_held() -> None:
    client = opened()
    client.handle_message(push(1, A1))
    apply(client)
    client.poll_messages()
    client.handle_message(push(2, A2, B1))
    problem = Problem("a", "unknown cluster")
    apply(client, problem)
    assert client.held == {"route": {"a": A1.version, "b": B1.version}}
    assert client.poll_messages() == [Nack("route", 2, [problem])]


def test_a_removed_resource_is_not_held() -> None:
    client = opened()
    client.handle_message(push(1, A1, B1))
    apply(client)
    client.handle_message(push(2, removed=("a", "never had")))
    apply(client)
    assert client.held == {"route": {"b": B1.version}}


def test_a_long_reason_is_clipped_to_its_bound() -> None:
    client = opened()
    client.handle_message(push(1, A1))
    apply(client, Problem("a", "x" * (REASON_CHARACTERS_MAX + 1)))
    (nack,) = client.poll_messages()
    assert isinstance(nack, Nack)
    assert nack.problems[0].reason == "x" * REASON_CHARACTERS_MAX


def test_hello_waits_for_the_push_in_hand() -> None:
    client = opened()
    client.handle_message(push(1, A1))
    (in_hand,) = client.take_pushes()
    client.disconnected()
    client.connected()
    assert client.poll_messages() == []
    client.answer(in_hand)
    hello, _ = client.poll_messages()
    assert isinstance(hello, Hello)
    assert hello.held == {"route": {"a": A1.version}}
    assert client.poll_messages() == [], "the old stream's push is not acknowledged on the new one"


def test_a_push_that_was_not_taken_dies_with_its_stream() -> None:
    client = opened()
    client.handle_message(push(1, A1))
    client.disconnected()
    assert client.take_pushes() == []
    opened(client).handle_message(push(1, B1))
    apply(client)
    assert client.held == {"route": {"b": B1.version}}


def test_what_is_unsubscribed_from_is_neither_held_nor_taken() -> None:
    client = ClientSession(NODE)
    client.subscribe("route", ["a", "b"])
    client.connected()
    client.poll_messages()
    client.handle_message(Welcome(1))
    client.handle_message(push(1, A1, B1))
    apply(client)
    client.handle_message(push(2, A2))
    client.unsubscribe("route", ["a"])
    assert client.held == {"route": {"b": B1.version}}
    (taken,) = client.take_pushes()
    assert taken.resources == []
    client.answer(taken)
    assert client.held == {"route": {"b": B1.version}}
    assert Unsubscribe("route", ["a"]) in client.poll_messages()


def test_subscribing_again_to_the_same_says_nothing() -> None:
    client = opened()
    client.subscribe("route")
    client.unsubscribe("route", ["never"])
    assert client.poll_messages() == []


def test_is_complete_when_the_last_subscription_is_answered() -> None:
    client = opened()
    client.subscribe("route", ["late"])
    client.handle_message(push(1, A1))
    apply(client)
    assert not client.is_complete("route"), "the push answers the first of two subscriptions"
    client.handle_message(Push("route", 2, AT, complete=False, subscribes=2))
    apply(client)
    assert not client.is_complete("route"), "more is waiting"
    client.handle_message(Push("route", 3, AT, subscribes=2))
    assert not client.is_complete("route"), "it is not applied yet"
    apply(client)
    assert client.is_complete("route")
    client.disconnected()
    assert client.is_complete("route")


@pytest.mark.parametrize("message", [push(2, A1, at=Revision(1, 9)), Heartbeat(Revision(0, 99))])
def test_refuses_what_is_older_than_it_has_seen(message: Message) -> None:
    client = opened(ClientSession(NODE, revision=AT))
    assert refusal(client, message).code is Code.OUTDATED
    assert client.revision == AT


def test_a_heartbeat_moves_the_revision() -> None:
    client = opened()
    client.handle_message(Heartbeat())
    assert client.revision is None
    client.handle_message(Heartbeat(AT))
    assert client.revision == AT


def test_refuses_a_body_that_is_not_its_version() -> None:
    forged = Resource("a", content_version(b"1"), b"2")
    assert refusal(opened(), push(1, forged)).code is Code.MALFORMED


def test_refuses_a_name_twice_in_one_push() -> None:
    assert refusal(opened(), push(1, A1, A2)).code is Code.MALFORMED
    assert refusal(opened(), push(1, A1, removed=("a",))).code is Code.MALFORMED


def test_refuses_a_second_push_of_a_type_before_the_answer() -> None:
    client = opened()
    client.handle_message(push(1, A1))
    assert refusal(client, push(2, A2)).code is Code.UNEXPECTED
    client.take_pushes()
    assert refusal(client, push(2, A2)).code is Code.UNEXPECTED


def test_refuses_a_nonce_that_does_not_grow() -> None:
    client = opened()
    client.handle_message(push(5, A1))
    apply(client)
    assert refusal(client, push(5, A2)).code is Code.UNEXPECTED


def test_refuses_a_later_version_than_it_offered() -> None:
    client = ClientSession(NODE)
    client.connected()
    client.poll_messages()
    assert refusal(client, Welcome(2)).code is Code.VERSION


def test_refuses_welcome_before_hello() -> None:
    client = ClientSession(NODE)
    client.connected()
    assert refusal(client, Welcome(1)).code is Code.UNEXPECTED


EARLY: tuple[Message, ...] = (push(1, A1), Heartbeat(), CertificateResponse(1))
WRONG: tuple[Message, ...] = (Hello(1, NODE), Ack("route", 1), Welcome(1))


@pytest.mark.parametrize("message", EARLY, ids=lambda m: type(m).__name__)
def test_refuses_messages_before_welcome(message: Message) -> None:
    client = ClientSession(NODE)
    client.connected()
    client.poll_messages()
    assert refusal(client, message).code is Code.UNEXPECTED


@pytest.mark.parametrize("message", WRONG, ids=lambda m: type(m).__name__)
def test_refuses_messages_of_the_other_direction_or_state(message: Message) -> None:
    assert refusal(opened(), message).code is Code.UNEXPECTED


def test_passes_on_what_is_for_the_agent() -> None:
    client = opened()
    client.send(CertificateRequest(1, b"csr"))
    assert client.poll_messages() == [CertificateRequest(1, b"csr")]
    for message in (CertificateResponse(1, [b"leaf"]), Goodbye("drain")):
        client.handle_message(message)
    assert client.take_received() == [CertificateResponse(1, [b"leaf"]), Goodbye("drain")]
    assert client.take_received() == []


def test_sends_nothing_without_an_open_stream() -> None:
    client = ClientSession(NODE)
    with pytest.raises(DiscoveryError):
        client.send(Heartbeat())
    opened(client)
    assert client.state is ClientState.OPEN
    client.disconnected()
    with pytest.raises(DiscoveryError):
        client.send(Heartbeat())
