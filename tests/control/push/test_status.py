"""SYNCED, STALE and NACK, from the dialogue of a session."""

from meshfast.control.push.progress import Progress
from meshfast.control.push.status import TypeStatus, overall
from meshfast.discovery import (
    TYPES,
    Ack,
    Hello,
    Nack,
    Node,
    Problem,
    Push,
    Revision,
    ServerSession,
    Subscribe,
)
from tests.discovery.world import World


class Dialogue:
    """A session with its progress, as a stream drives them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.session = ServerSession(world)
        self.progress = Progress(self.session)
        self.pushes: dict[str, Push] = {}
        self.session.handle_message(Hello(1, Node("i", "w", "default")))

    def subscribe(self, *types: str) -> None:
        for type in types:
            self.session.handle_message(Subscribe(type, ["*"]))
            self.progress.subscribed(type)
        self.poll()

    def change(self, type: str, name: str, body: bytes | None) -> None:
        changes = self.world.set(type, name, body)
        self.session.notify(self.world, changes)
        self.progress.changed(changes)
        self.poll()

    def answer(self, type: str, *problems: Problem) -> None:
        nonce = self.pushes[type].nonce
        said = Nack(type, nonce, list(problems)) if problems else Ack(type, nonce)
        self.session.handle_message(said)
        self.progress.answered(type)
        self.poll()

    def poll(self) -> None:
        for message in self.session.poll_messages():
            if isinstance(message, Push):
                self.pushes[message.type] = message
                self.progress.pushed(message)
        self.progress.settle(self.world.revision)

    def states(self) -> dict[str, str]:
        return {type: one.state for type, one in self.progress.types().items()}


def test_a_type_is_stale_from_the_change_to_the_answer() -> None:
    dialogue = Dialogue(World())
    dialogue.subscribe("cluster", "endpoint")
    assert dialogue.states() == {"cluster": "STALE", "endpoint": "STALE"}
    assert dialogue.progress.synced() is None
    for type in ("cluster", "endpoint"):
        dialogue.answer(type)
    assert dialogue.states() == {"cluster": "SYNCED", "endpoint": "SYNCED"}
    dialogue.change("endpoint", "e", b"1")
    assert dialogue.states() == {"cluster": "SYNCED", "endpoint": "STALE"}
    assert dialogue.progress.synced() == Revision(0, 0)
    dialogue.answer("endpoint")
    assert dialogue.progress.synced() == Revision(1, 1)
    assert dialogue.states()["endpoint"] == "SYNCED"


def test_a_change_that_waits_for_another_type_is_stale_before_it_is_sent() -> None:
    dialogue = Dialogue(World())
    dialogue.subscribe(*TYPES)
    for type in TYPES:
        dialogue.answer(type)
    dialogue.change("cluster", "c", b"1")
    dialogue.change("cluster", "c", b"2")  # waits for the answer to the first
    dialogue.change("route", "r", b"1")  # and so does this
    assert dialogue.states() == {
        "cluster": "STALE",
        "endpoint": "SYNCED",
        "listener": "SYNCED",
        "route": "STALE",
    }
    dialogue.answer("cluster")
    dialogue.answer("cluster")
    dialogue.answer("route")
    assert set(dialogue.states().values()) == {"SYNCED"}
    assert dialogue.progress.synced() == Revision(1, 3)


def test_a_refusal_is_shown_until_it_is_settled() -> None:
    dialogue = Dialogue(World())
    dialogue.subscribe("cluster")
    dialogue.answer("cluster")
    dialogue.change("cluster", "c", b"bad")
    dialogue.answer("cluster", Problem("c", "it is bad"))
    shown = dialogue.progress.types()["cluster"]
    assert (shown.state, [(one.name, one.reason) for one in shown.refused]) == (
        "NACK",
        [("c", "it is bad")],
    )
    dialogue.change("cluster", "c", b"good")
    dialogue.answer("cluster")
    assert dialogue.states() == {"cluster": "SYNCED"}


def test_types_that_were_not_asked_for_are_not_shown() -> None:
    dialogue = Dialogue(World())
    dialogue.subscribe("cluster")
    dialogue.change("route", "r", b"1")
    dialogue.answer("cluster")
    assert dialogue.states() == {"cluster": "SYNCED"}


def test_the_worst_type_is_the_sidecar_s_state() -> None:
    synced = TypeStatus(state="SYNCED", revision="")
    stale = TypeStatus(state="STALE", revision="")
    nack = TypeStatus(state="NACK", revision="")
    assert overall({}) == "STALE"
    assert overall({"a": synced}) == "SYNCED"
    assert overall({"a": synced, "b": stale}) == "STALE"
    assert overall({"a": stale, "b": nack, "c": synced}) == "NACK"
