"""Whatever happens in between, a sidecar ends with what the control plane has.

Hypothesis edits, subscribes, cuts streams, moves single bytes and lets the agent apply late and
out of step. Checked after each step: at most one outstanding push per type, no version offered
again after its refusal while nothing changed, nothing held that is not wanted. Checked at the end,
after the bad resources have been fixed: both sides are equal.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from meshfast.discovery import TYPES, WILDCARD, ClientSession, Push
from tests.discovery.world import NODE, Agent, Stream, World

NAMES = ("a", "b", "c")
BODIES = (b"1", b"2", b"bad", b"bad 2", None)

types = st.sampled_from(TYPES)
names = st.sampled_from(NAMES)
bytes_moved = st.one_of(st.none(), st.integers(0, 200))


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
        self.client.subscribe("route", ["a", "b"])

    def edit(self, type: str, name: str, body: bytes | None) -> None:
        changes = self.world.set(type, name, body)
        if self.stream is not None:
            self.stream.server.notify(self.world, changes)

    @rule(type=types, name=names, body=st.sampled_from(BODIES))
    def write(self, type: str, name: str, body: bytes | None) -> None:
        self.edit(type, name, body)

    @rule(name=names, needed=st.sampled_from(TYPES[:3]), other=names)
    def write_dependent(self, name: str, needed: str, other: str) -> None:
        self.edit("route", name, f"needs {needed} {other}".encode())

    @rule(type=types, names=st.lists(st.sampled_from((*NAMES, WILDCARD)), min_size=1, max_size=2))
    def subscribe(self, type: str, names: list[str]) -> None:
        self.client.subscribe(type, names)

    @rule(type=types, names=st.lists(st.sampled_from((*NAMES, WILDCARD)), min_size=1, max_size=2))
    def unsubscribe(self, type: str, names: list[str]) -> None:
        self.client.unsubscribe(type, names)
        self.agent.forget_unwanted()

    @rule(up=bytes_moved, down=bytes_moved)
    def move(self, up: int | None, down: int | None) -> None:
        if self.stream is None:
            self.stream = Stream(self.client, self.world)
        self.stream.move(up, down)

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

    @invariant()
    def holds_only_what_it_applied(self) -> None:
        held = {(type, name) for type, versions in self.client.held.items() for name in versions}
        assert held == set(self.agent.applied)

    def teardown(self) -> None:
        """Fix what is bad, let everything arrive, compare."""
        for type in TYPES:
            for name in NAMES:
                found = self.world.resource(type, name)
                if found is not None and found.body[:3] in (b"bad", b"nee"):
                    self.edit(type, name, b"fixed")
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
TestConvergence.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
