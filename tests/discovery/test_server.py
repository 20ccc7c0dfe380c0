"""The control plane's end: what it pushes, in which order, and what it leaves unsaid."""

import pytest

from meshfast.discovery import (
    TYPES,
    WILDCARD,
    Ack,
    CertificateRequest,
    CertificateResponse,
    Code,
    DiscoveryError,
    FromServer,
    Goodbye,
    Heartbeat,
    Hello,
    Message,
    Nack,
    Problem,
    Push,
    Reference,
    Revision,
    ServerSession,
    Status,
    Subscribe,
    Unsubscribe,
    Welcome,
    content_version,
)
from meshfast.discovery.server import PUSH_BYTES_MAX
from tests.discovery.world import NODE, World


class Server:
    """A session with its world; edits notify, and what is pushed is kept as (type, names)."""

    def __init__(self, *edits: tuple[str, str, bytes], hello: Hello | None = None) -> None:
        self.world = World()
        for edit in edits:
            self.world.set(*edit)
        self.session = ServerSession(self.world)
        self.session.handle_message(hello or Hello(1, NODE))
        self.session.poll_messages()

    def subscribe(self, type: str, *names: str) -> list[Push]:
        self.session.handle_message(Subscribe(type, list(names or (WILDCARD,))))
        return self.pushes()

    def edit(self, type: str, name: str, body: bytes | None) -> list[Push]:
        self.session.notify(self.world, self.world.set(type, name, body))
        return self.pushes()

    def ack(self, push: Push, *problems: Problem) -> list[Push]:
        answer = Nack(push.type, push.nonce, list(problems)) if problems else None
        self.session.handle_message(answer or Ack(push.type, push.nonce))
        return self.pushes()

    def pushes(self) -> list[Push]:
        return [message for message in self.session.poll_messages() if isinstance(message, Push)]

    def settle(self, pushes: list[Push]) -> list[Push]:
        """Acknowledge these pushes and all that follow; return those that followed."""
        followed: list[Push] = []
        while pushes:
            pushes = [new for push in pushes for new in self.ack(push)]
            followed += pushes
        return followed


def names(pushes: list[Push]) -> list[tuple[str, list[str], list[str]]]:
    return [(push.type, [r.name for r in push.resources], push.removed) for push in pushes]


def refusal(server: Server, message: Message) -> DiscoveryError:
    with pytest.raises(DiscoveryError) as refused:
        server.session.handle_message(message)
    return refused.value


def test_welcomes_with_the_lower_version() -> None:
    session = ServerSession(World(), heartbeat_ms=500)
    session.handle_message(Hello(7, NODE))
    assert session.poll_messages() == [Welcome(1, 500)]
    assert session.take_received() == [Hello(7, NODE)]


def test_a_subscription_is_answered_with_what_there_is() -> None:
    server = Server(("route", "a", b"1"), ("route", "b", b"1"), ("cluster", "c", b"1"))
    (push,) = server.subscribe("route")
    assert names([push]) == [("route", ["a", "b"], [])]
    assert (push.revision, push.complete, push.subscribes) == (Revision(1, 3), True, 1)


def test_an_empty_subscription_is_answered_too() -> None:
    (push,) = Server().subscribe("route")
    assert names([push]) == [("route", [], [])]
    assert push.complete


def test_a_name_that_does_not_exist_is_reported_once() -> None:
    server = Server(("route", "a", b"1"))
    (push,) = server.subscribe("route", "a", "missing")
    assert names([push]) == [("route", ["a"], ["missing"])]
    assert server.ack(push) == []
    assert names(server.edit("route", "missing", b"1")) == [("route", ["missing"], [])]


def test_resuming_sends_differences_only() -> None:
    same, old = content_version(b"same"), content_version(b"old")
    hello = Hello(1, NODE, {"route": {"same": same, "changed": old, "gone": old}})
    server = Server(("route", "same", b"same"), ("route", "changed", b"new"), hello=hello)
    (push,) = server.subscribe("route")
    assert names([push]) == [("route", ["changed"], [])]
    assert not push.complete
    assert names(server.ack(push)) == [("route", [], ["gone"])]


def test_resuming_without_differences_sends_no_resource() -> None:
    hello = Hello(1, NODE, {"route": {"a": content_version(b"1"), "b": content_version(b"1")}})
    server = Server(("route", "a", b"1"), ("route", "b", b"1"), hello=hello)
    assert names(server.subscribe("route", "a")) == [("route", [], [])]
    server = Server(("route", "a", b"1"), ("route", "b", b"1"), hello=hello)
    assert names(server.subscribe("route")) == [("route", [], [])]


def test_changes_during_a_push_become_one_next_push() -> None:
    server = Server(("route", "a", b"0"))
    (first,) = server.subscribe("route")
    assert server.session.outstanding("route") == first.nonce
    for i in range(1, 50):
        assert server.edit("route", "a", b"%d" % i) == []
        assert server.edit("route", f"new {i % 3}", b"%d" % i) == []
    (second,) = server.ack(first)
    assert names([second]) == [("route", ["a", "new 0", "new 1", "new 2"], [])]
    assert second.resources[0].body == b"49"
    assert server.ack(second) == []
    assert server.session.outstanding("route") is None


def test_a_change_that_was_taken_back_is_not_sent() -> None:
    server = Server(("route", "a", b"1"))
    (first,) = server.subscribe("route")
    server.edit("route", "a", b"2")
    server.edit("route", "a", b"1")
    assert server.ack(first) == []


def test_what_returns_while_its_removal_is_under_way_is_sent_again() -> None:
    server = Server(("route", "a", b"1"))
    server.settle(server.subscribe("route"))
    (removal,) = server.edit("route", "a", None)
    assert server.edit("route", "a", b"1") == []
    assert names(server.ack(removal)) == [("route", ["a"], [])]


def test_a_refused_version_is_not_sent_again_until_it_changes() -> None:
    server = Server(("route", "a", b"1"))
    server.settle(server.subscribe("route"))
    (bad,) = server.edit("route", "a", b"bad")
    problem = Problem("a", "no")
    assert server.ack(bad, problem) == []
    assert server.session.refused() == {"route": {"a": problem}}
    (other,) = server.edit("route", "b", b"1")
    assert names([other]) == [("route", ["b"], [])]
    assert server.ack(other) == []
    (good,) = server.edit("route", "a", b"good")
    server.ack(good)
    assert server.session.refused() == {}


def test_the_others_of_a_refused_push_count_as_held() -> None:
    server = Server(("route", "a", b"bad"), ("route", "b", b"1"))
    (push,) = server.subscribe("route")
    assert server.ack(push, Problem("a", "no")) == []
    assert names(server.edit("route", "b", None)) == [("route", [], ["b"])]


def test_going_back_to_the_held_version_clears_the_refusal() -> None:
    server = Server(("route", "a", b"1"))
    server.settle(server.subscribe("route"))
    (bad,) = server.edit("route", "a", b"bad")
    server.ack(bad, Problem("a", "no"))
    assert server.edit("route", "a", b"1") == []
    assert server.session.refused() == {}


@pytest.mark.parametrize("fix", [b"good", None])
def test_what_waits_for_another_is_offered_again_after_it(fix: bytes | None) -> None:
    server = Server(("cluster", "c", b"1"), ("route", "r", b"1"))
    server.settle(server.subscribe("cluster") + server.subscribe("route"))
    (cluster,) = server.edit("cluster", "c", b"bad")
    server.ack(cluster, Problem("c", "no"))
    (route,) = server.edit("route", "r", b"2")
    assert server.ack(route, Problem("r", "c is refused", Reference("cluster", "c"))) == []
    assert names(server.settle(server.edit("cluster", "c", fix))) == [("route", ["r"], [])]


def test_types_are_made_before_they_are_referred_to() -> None:
    server = Server(*((type, "x", b"1") for type in reversed(TYPES)))
    for type in reversed(TYPES):
        server.session.handle_message(Subscribe(type, [WILDCARD]))
    assert [push.type for push in server.pushes()] == list(TYPES)


def test_a_route_waits_while_its_cluster_cannot_be_sent() -> None:
    server = Server(("cluster", "old", b"1"))
    (under_way,) = server.subscribe("cluster")
    server.settle(server.subscribe("route"))
    assert server.edit("cluster", "new", b"1") == []
    assert server.edit("route", "to new", b"1") == []
    assert [push.type for push in server.ack(under_way)] == ["cluster", "route"]


def test_a_cluster_is_removed_after_the_routes_to_it() -> None:
    server = Server(*((type, "x", b"1") for type in TYPES))
    for type in TYPES:
        server.settle(server.subscribe(type))
    changes = {type: ["x"] for type in TYPES}
    for type in TYPES:
        server.world.set(type, "x", None)
    server.session.notify(server.world, changes)
    pushes = server.pushes()
    assert names(pushes) == [("route", [], ["x"])], "one at a time, the last type first"
    assert [push.type for push in server.settle(pushes)] == ["listener", "endpoint", "cluster"]


def test_a_cluster_stays_until_the_route_has_moved() -> None:
    server = Server(("cluster", "old", b"1"), ("route", "r", b"to old"))
    server.settle(server.subscribe("cluster") + server.subscribe("route"))
    server.world.set("cluster", "new", b"1")
    server.world.set("cluster", "old", None)
    server.world.set("route", "r", b"to new")
    server.session.notify(server.world, {"cluster": ["new", "old"], "route": ["r"]})
    cluster, route = server.pushes()
    assert names([cluster, route]) == [("cluster", ["new"], []), ("route", ["r"], [])]
    assert server.ack(cluster) == []
    assert names(server.ack(route)) == [("cluster", [], ["old"])]


def test_a_large_set_comes_in_several_pushes() -> None:
    body = b"x" * (PUSH_BYTES_MAX // 2)
    server = Server(*(("cluster", f"c{i}", body) for i in range(5)), ("route", "r", b"1"))
    server.session.handle_message(Subscribe("cluster", [WILDCARD]))
    server.session.handle_message(Subscribe("route", [WILDCARD]))
    pushes = server.pushes()
    assert [push.complete for push in pushes] == [False]
    pushes += server.settle(pushes)
    assert [(p.type, len(p.resources), p.complete) for p in pushes] == [
        ("cluster", 2, False),
        ("cluster", 2, False),
        ("cluster", 1, True),
        ("route", 1, True),
    ]


def test_a_resource_larger_than_a_push_is_sent_alone() -> None:
    body = b"x" * (PUSH_BYTES_MAX + 1)
    server = Server(("route", "a", body), ("route", "b", b"1"))
    (push,) = server.subscribe("route")
    assert names([push, *server.settle([push])]) == [("route", ["a"], []), ("route", ["b"], [])]


def test_what_is_not_subscribed_to_is_not_sent() -> None:
    server = Server()
    server.settle(server.subscribe("route", "a"))
    assert server.edit("route", "b", b"1") == []
    assert server.edit("cluster", "a", b"1") == []
    server.session.handle_message(Unsubscribe("route", ["a"]))
    assert server.edit("route", "a", b"1") == []


def test_a_name_subscribed_to_again_is_sent_again() -> None:
    server = Server(("route", "a", b"1"))
    server.settle(server.subscribe("route", "a"))
    server.session.handle_message(Unsubscribe("route", ["a"]))
    assert names(server.subscribe("route", "a")) == [("route", ["a"], [])]


@pytest.mark.parametrize(
    ("body", "expected"), [(b"1", ("route", ["a"], [])), (None, ("route", [], ["a"]))]
)
def test_a_name_left_and_asked_for_again_during_its_push_is_settled_for_sure(
    body: bytes | None, expected: tuple[str, list[str], list[str]]
) -> None:
    server = Server(("route", "a", b"1"))
    (under_way,) = server.subscribe("route")
    server.session.handle_message(Unsubscribe("route", [WILDCARD]))
    server.session.handle_message(Subscribe("route", [WILDCARD]))
    server.edit("route", "a", body)
    assert expected in names(server.settle([under_way]))


def test_an_answer_after_unsubscribing_is_taken() -> None:
    server = Server(("route", "a", b"bad"))
    (push,) = server.subscribe("route", "a")
    server.session.handle_message(Unsubscribe("route", ["a"]))
    assert server.ack(push, Problem("a", "no")) == []
    assert server.session.refused() == {}


def test_an_older_view_pushes_nothing_to_a_newer_sidecar() -> None:
    hello = Hello(1, NODE, {"route": {"a": "held"}}, revision=Revision(1, 2))
    server = Server(("route", "b", b"1"), hello=hello)
    assert server.subscribe("route") == []
    server.session.heartbeat()
    assert server.session.poll_messages() == [Heartbeat(None)]
    pushes = server.edit("route", "c", b"1")
    assert names(pushes + server.settle(pushes)) == [
        ("route", ["b", "c"], []),
        ("route", [], ["a"]),
    ]


def test_a_heartbeat_carries_the_revision_when_all_is_offered() -> None:
    server = Server(("route", "a", b"1"))
    (push,) = server.subscribe("route")
    server.session.heartbeat()
    assert server.session.poll_messages() == [Heartbeat(Revision(1, 1))]
    server.edit("route", "a", b"2")
    server.session.heartbeat()
    assert server.session.poll_messages() == [Heartbeat(None)]
    server.ack(push)
    server.session.heartbeat()
    assert server.session.poll_messages() == [Heartbeat(Revision(1, 2))]


def test_passes_on_what_is_for_the_owner() -> None:
    server = Server(("route", "a", b"1"))
    (push,) = server.subscribe("route")
    server.session.take_received()
    messages: list[Message] = [
        CertificateRequest(1, b"csr"),
        Status(3, "serving"),
        Ack("route", push.nonce),
    ]
    for message in messages:
        server.session.handle_message(message)
    assert server.session.take_received() == messages
    reply: list[FromServer] = [CertificateResponse(1, [b"leaf"]), Goodbye("drain")]
    for answer in (CertificateResponse(1, [b"leaf"]), Goodbye("drain")):
        server.session.send(answer)
    assert server.session.poll_messages() == reply


@pytest.mark.parametrize(
    "message",
    [Subscribe("route", ["a"]), Ack("route", 1), Status(1, "serving")],
    ids=lambda message: type(message).__name__,
)
def test_refuses_messages_before_hello(message: Message) -> None:
    session = ServerSession(World())
    with pytest.raises(DiscoveryError) as refused:
        session.handle_message(message)
    assert refused.value.code is Code.UNEXPECTED


def test_refuses_a_second_hello_and_its_own_words() -> None:
    for message in (Hello(1, NODE), Welcome(1), Push("route", 1, Revision(1, 1))):
        assert refusal(Server(), message).code is Code.UNEXPECTED


def test_refuses_an_answer_to_nothing_and_a_second_answer() -> None:
    server = Server()
    (push,) = server.subscribe("route")
    assert refusal(server, Ack("route", push.nonce + 1)).code is Code.UNEXPECTED
    assert refusal(server, Ack("cluster", push.nonce)).code is Code.UNEXPECTED
    server.ack(push)
    assert refusal(server, Ack("route", push.nonce)).code is Code.UNEXPECTED


def test_refuses_a_type_of_resources_that_does_not_exist() -> None:
    assert refusal(Server(), Subscribe("teapot", ["a"])).code is Code.UNKNOWN_TYPE
    session = ServerSession(World())
    with pytest.raises(DiscoveryError):
        session.handle_message(Hello(1, NODE, {"teapot": {"a": "1"}}))
