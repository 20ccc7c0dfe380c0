"""Whatever happens in between, a sidecar ends with what the control plane has.

Hypothesis edits, subscribes, cuts streams, moves single bytes and lets the agent apply late and
out of step. Checked after each step: at most one outstanding push per type, no version offered
again after its refusal while nothing changed, nothing held that is not wanted. Checked at the end,
after the bad resources have been fixed: both sides are equal, with routes that were refused only
for want of a cluster among them.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from meshfast.discovery import TYPES, WILDCARD, ClientSession, Push
from tests.discovery.world import NODE, Agent, Stream, World

NAMES = ("a", "b")
BODIES = (b"1", b"2", b"bad", None, None)

types = st.sampled_from(TYPES)
names = st.sampled_from(NAMES)
# Mostly whole messages, so that much happens; sometimes parts, so that they are cut anywhere.
bytes_moved = st.sampled_from((None, None, None, 0, 100))
wanted = st.sampled_from(((WILDCARD,), ("a",), ("b",), NAMES))


class Convergence(RuleBasedStateMachine):
    """One world, one sidecar, many streams."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.client = ClientSession(NODE)
        self.agent = Agent(self.client)
        self.stream: Stream | None = None
        self.in_hand: list[Push] = []

    @initialize()
    def start(self) -> None:
        self.client.subscribe("cluster")
        self.client.subscribe("route")
        self.client.subscribe("endpoint", NAMES)

    def edit(self, type: str, name: str, body: bytes | None) -> None:
        changes = self.world.set(type, name, body)
        if self.stream is not None:
            self.stream.server.notify(self.world, changes)

    @rule(type=types, name=names, body=st.sampled_from(BODIES))
    def write(self, type: str, name: str, body: bytes | None) -> None:
        self.edit(type, name, body)

    @rule(name=names, other=names)
    def write_dependent(self, name: str, other: str) -> None:
        self.edit("route", name, f"needs cluster {other}".encode())

    @rule(type=types, names=wanted)
    def subscribe(self, type: str, names: tuple[str, ...]) -> None:
        self.client.subscribe(type, names)

    @rule(type=types, names=wanted)
    def unsubscribe(self, type: str, names: tuple[str, ...]) -> None:
        self.client.unsubscribe(type, names)
        self.agent.forget_unwanted()

    @rule(up=bytes_moved, down=bytes_moved)
    def move(self, up: int | None, down: int | None) -> None:
        if self.stream is None:
            self.stream = Stream(self.client, self.world)
        while self.stream.move(up, down) and up is None and down is None:
            continue

    @rule()
    def cut(self) -> None:
        if self.stream is not None:
            self.client.disconnected()
            self.stream = None

    @rule()
    def take(self) -> None:
        self.in_hand += self.agent.take()

    @rule()
    def apply(self) -> None:
        if self.in_hand:
            self.agent.apply(self.in_hand.pop(0))

    @rule()
    def take_then_cut(self) -> None:
        """Lose the stream while a push is being applied."""
        self.move(None, None)
        self.take()
        self.cut()
        self.move(None, None)

    @rule()
    def exchange(self) -> None:
        """Bring all that is on its way to its end, as happens most of the time."""
        self.move(None, None)
        self.take()
        while self.in_hand:
            self.apply()
        self.move(None, None)

    @invariant()
    def holds_only_what_it_applied(self) -> None:
        held = {(type, name) for type, versions in self.client.held.items() for name in versions}
        assert held == set(self.agent.applied)

    def teardown(self) -> None:
        """Fix what is bad, let everything arrive, compare."""
        for type in TYPES:
            for name in NAMES:
                found = self.world.resource(type, name)
                if found is not None and found.body == b"bad":
                    self.edit(type, name, b"fixed")
        for name in NAMES:  # what routes need; the routes themselves stay as they are
            self.edit("cluster", name, b"fixed")
        self.client.subscribe("cluster")
        while self.in_hand:
            self.agent.apply(self.in_hand.pop(0))
        if self.stream is None:
            self.stream = Stream(self.client, self.world)
        self.stream.settle(self.agent)
        expected = {
            (type, name): found.body
            for type in TYPES
            for name, found in self.world.resources.get(type, {}).items()
            if {name, WILDCARD} & self.client._wanted.get(type, set())
        }
        assert self.agent.applied == expected
        assert self.stream.server.refused() == {}
        for type, wanted in self.client._wanted.items():
            assert self.stream.server.outstanding(type) is None
            assert not wanted or self.client.is_complete(type)


TestConvergence = Convergence.TestCase
TestConvergence.settings = settings(max_examples=400, stateful_step_count=40, deadline=None)
