"""The sidecar's end of a discovery stream, as a state machine without I/O.

The agent connects, calls `connected`, moves bytes through a `Framer`, hands messages to
`handle_message`, sends what `poll_messages` returns, applies what `take_pushes` returns and reports
with `answer`. What it holds outlives streams: after a reconnect only differences come.

States: `OFFLINE` (no stream) → `GREETING` (Hello is due or sent) → `OPEN` (Welcome came), and back
to `OFFLINE` at `disconnected`. Which message is taken in which state is the table `TAKEN`.

What this module does not do: reconnect, keep time (send `Heartbeat` by `send`), look into bodies,
or store anything on disk.

Invariants:
1. `held` changes only in `answer` and `unsubscribe`, so it is what the workers run with.
2. Hello waits until every push in hand is answered: otherwise it would report versions that change
   a moment later, and the server would compare with the wrong ones for ever.
3. Nothing that is not subscribed to is held.
4. A push that is older than what was seen is refused (`OUTDATED`), over reconnects too: a control
   plane that lost its memory cannot take a sidecar back.
5. A body whose hash is not its version is refused (`MALFORMED`).

Tests: tests/discovery/test_client.py, tests/discovery/test_convergence.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum, auto
from typing import Final

from msgspec.structs import replace

from meshfast.discovery.error import Code, DiscoveryError
from meshfast.discovery.messages import (
    PROTOCOL_VERSION,
    REASON_CHARACTERS_MAX,
    WILDCARD,
    Ack,
    CertificateRequest,
    CertificateResponse,
    FromClient,
    Goodbye,
    Heartbeat,
    Hello,
    Message,
    Nack,
    Node,
    Problem,
    Push,
    Registration,
    Status,
    Subscribe,
    Unsubscribe,
    Welcome,
)
from meshfast.discovery.revision import Revision, content_version

__all__ = ["ClientSession", "ClientState"]


class ClientState(Enum):
    """Where the stream is."""

    GREETING = auto()
    OFFLINE = auto()
    OPEN = auto()


TAKEN: Final[Mapping[ClientState, tuple[type, ...]]] = {
    ClientState.GREETING: (Welcome, Goodbye),
    ClientState.OFFLINE: (),
    ClientState.OPEN: (Push, Heartbeat, CertificateResponse, Goodbye),
}


class ClientSession:
    """One sidecar's dialogue with the control plane, over any number of streams."""

    def __init__(
        self,
        node: Node,
        *,
        held: Mapping[str, Mapping[str, str]] | None = None,
        revision: Revision | None = None,
    ) -> None:
        """Start offline, with what is on disk: type → name → version, and its revision."""
        self.node = node
        self.state = ClientState.OFFLINE
        self.revision = revision
        self.generation = 0
        self.heartbeat_ms = 0
        self._held = {type: dict(versions) for type, versions in (held or {}).items()}
        self._wanted: dict[str, set[str]] = {}
        self._complete: set[str] = set()
        # Subscribe messages sent on this stream, by type; a push says how many it answers.
        self._subscribes: Counter[str] = Counter()
        self._greeted = False
        self._out: list[FromClient] = []
        self._queued: list[Push] = []
        # Pushes that the agent is applying; `True` when their stream is still the current one.
        self._in_hand: dict[int, tuple[Push, bool]] = {}
        self._received: list[CertificateResponse | Goodbye] = []
        self._nonce = 0

    @property
    def held(self) -> Mapping[str, Mapping[str, str]]:
        """What is applied: type → name → version."""
        return self._held

    def is_complete(self, type: str) -> bool:
        """Say whether all that is subscribed of the type has been offered and answered.

        Stays true while later changes come, and over a lost stream: it is for readiness.
        """
        return type in self._complete

    def subscribe(self, type: str, names: Iterable[str] = (WILDCARD,)) -> None:
        """Ask for resources; what is asked for is asked again on every stream."""
        wanted = self._wanted.setdefault(type, set())
        new = set(names) - wanted
        wanted.update(new)
        if new:
            self._complete.discard(type)
            if self._greeted:
                self._subscribe(type, new)

    def unsubscribe(self, type: str, names: Iterable[str]) -> None:
        """Take names back and forget what is held of them."""
        wanted = self._wanted.get(type, set())
        gone = sorted(wanted.intersection(names))
        wanted.difference_update(gone)
        if gone:
            held = self._held.get(type, {})
            for name in [name for name in held if not self._wants(type, name)]:
                del held[name]
            if self._greeted:
                self._out.append(Unsubscribe(type, gone))

    def send(self, message: CertificateRequest | Heartbeat | Registration | Status) -> None:
        """Queue a message that has no state here. Raises `DiscoveryError` unless `OPEN`."""
        if self.state is not ClientState.OPEN:
            raise DiscoveryError(Code.UNEXPECTED, "there is no open stream to send on")
        self._out.append(message)

    def connected(self) -> None:
        """Start a stream."""
        assert self.state is ClientState.OFFLINE, "one stream at a time"
        self.state = ClientState.GREETING
        self._nonce = 0
        self._subscribes.clear()

    def disconnected(self) -> None:
        """Forget the stream. Pushes in hand are still to be answered; others are dropped."""
        self.state = ClientState.OFFLINE
        self._greeted = False
        self._out.clear()
        self._queued.clear()
        self._in_hand = {nonce: (push, False) for nonce, (push, _) in self._in_hand.items()}

    def handle_message(self, message: Message) -> None:
        """Take a message from the server. Raises `DiscoveryError`; then close and reconnect."""
        if not isinstance(message, TAKEN[self.state]):
            raise DiscoveryError(
                Code.UNEXPECTED, f"{type(message).__name__} in state {self.state.name}"
            )
        match message:
            case Welcome():
                self._handle_welcome(message)
            case Push():
                self._handle_push(message)
            case Heartbeat():
                self._see(message.revision)
            case CertificateResponse() | Goodbye():
                self._received.append(message)

    def poll_messages(self) -> list[FromClient]:
        """Take what has to be sent now, in order."""
        if self.state is not ClientState.OFFLINE and not self._greeted and not self._in_hand:
            self._greet()
        out, self._out = self._out, []
        return out

    def take_pushes(self) -> list[Push]:
        """Take the pushes that came, in order. Each has to be answered, and applied in this order.

        Names that are no longer subscribed to have been left out.
        """
        pushes = [self._wanted_part(push) for push in self._queued]
        self._queued.clear()
        self._in_hand.update({push.nonce: (push, True) for push in pushes})
        return pushes

    def take_received(self) -> list[CertificateResponse | Goodbye]:
        """Take the messages that are for the agent as they are."""
        received, self._received = self._received, []
        return received

    def answer(self, push: Push, problems: Sequence[Problem] = ()) -> None:
        """Report that a push is applied, all of it but the resources named in `problems`."""
        taken, current = self._in_hand.pop(push.nonce)
        assert taken is push, "a push is answered once, with the object that was taken"
        refused = {problem.name for problem in problems}
        assert refused <= {r.name for r in push.resources}, "only a resource can be refused"
        held = self._held.setdefault(push.type, {})
        for resource in push.resources:
            if resource.name not in refused and self._wants(push.type, resource.name):
                held[resource.name] = resource.version
        for name in push.removed:
            held.pop(name, None)
        if not current:
            return
        if push.complete and push.subscribes == self._subscribes[push.type]:
            self._complete.add(push.type)
        if problems:
            self._out.append(Nack(push.type, push.nonce, [_clipped(p) for p in problems]))
        else:
            self._out.append(Ack(push.type, push.nonce))

    def _greet(self) -> None:
        """Say Hello with what is held of what is wanted, and ask for all that is wanted."""
        self._greeted = True
        self._held = {
            type: {name: held[name] for name in held if self._wants(type, name)}
            for type, held in self._held.items()
            if type in self._wanted
        }
        self._out.append(
            Hello(
                version=PROTOCOL_VERSION,
                node=self.node,
                held={type: dict(versions) for type, versions in self._held.items()},
                revision=self.revision,
                generation=self.generation,
            )
        )
        for type, names in self._wanted.items():
            if names:
                self._subscribe(type, names)

    def _subscribe(self, type: str, names: Iterable[str]) -> None:
        self._subscribes[type] += 1
        self._out.append(Subscribe(type, sorted(names)))

    def _handle_welcome(self, welcome: Welcome) -> None:
        if welcome.version > PROTOCOL_VERSION:
            raise DiscoveryError(
                Code.VERSION, f"the server chose version {welcome.version} of {PROTOCOL_VERSION}"
            )
        if not self._greeted:
            raise DiscoveryError(Code.UNEXPECTED, "Welcome before Hello")
        self.heartbeat_ms = welcome.heartbeat_ms
        self.state = ClientState.OPEN

    def _handle_push(self, push: Push) -> None:
        if push.nonce <= self._nonce:
            raise DiscoveryError(Code.UNEXPECTED, f"nonce {push.nonce} after {self._nonce}")
        waiting = [*self._queued, *(taken for taken, _ in self._in_hand.values())]
        if any(other.type == push.type for other in waiting):
            raise DiscoveryError(Code.UNEXPECTED, f"a second push of {push.type} before the answer")
        names = [r.name for r in push.resources] + push.removed
        if len(set(names)) < len(names):
            raise DiscoveryError(Code.MALFORMED, f"a push of {push.type} has a name twice")
        for resource in push.resources:
            if content_version(resource.body) != resource.version:
                raise DiscoveryError(
                    Code.MALFORMED, f"{push.type} {resource.name} is not its version's content"
                )
        self._see(push.revision)
        self._nonce = push.nonce
        self._queued.append(push)

    def _see(self, revision: Revision | None) -> None:
        if revision is None:
            return
        if self.revision is not None and revision < self.revision:
            raise DiscoveryError(
                Code.OUTDATED, f"the server is at {revision}, this sidecar has seen {self.revision}"
            )
        self.revision = revision

    def _wants(self, type: str, name: str) -> bool:
        wanted = self._wanted.get(type, set())
        return WILDCARD in wanted or name in wanted

    def _wanted_part(self, push: Push) -> Push:
        return replace(
            push,
            resources=[r for r in push.resources if self._wants(push.type, r.name)],
            removed=[name for name in push.removed if self._wants(push.type, name)],
        )


def _clipped(problem: Problem) -> Problem:
    """Keep a long reason within its bound: a stream must not end over the length of a text."""
    return replace(problem, reason=problem.reason[:REASON_CHARACTERS_MAX])
