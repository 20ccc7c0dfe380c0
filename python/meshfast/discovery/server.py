"""The control plane's end of a discovery stream, as a state machine without I/O.

The push room makes one session per stream, hands it messages (`handle_message`), tells it which
names changed (`notify`), and sends what `poll_messages` returns. The session remembers per type
what the sidecar holds and which names may differ; it looks each of them up in its `View` when it
may send, so any number of changes during one outstanding push become one next push.

States: `GREETING` (no Hello yet) → `OPEN`; a `DiscoveryError` ends the stream. Which message is
taken in which state is the table `TAKEN`.

What this module does not do: authenticate (the owner compares `hello.node` with the TLS identity
before it feeds anything else), decide what a node may see (its `View` does), debounce, keep time.

Invariants:
1. At most one push per type is outstanding; nonces grow over the stream.
2. A push carries only what differs: never a version that the sidecar holds, and never one that it
   refused, until the resource changes or what the refusal waits for has been applied or removed.
3. Make before break. New and changed resources go out in the order of types; a type waits while an
   earlier one has changes that are not sent. A name goes only after everything that could refer to
   it, all types behind its own, has no change left and nothing outstanding.
4. Nothing is pushed from a view older than the revision the sidecar has seen: a control plane that
   lags behind, or lost its store, does not take its sidecars back.
5. Each `Subscribe` is answered by a push, if only by an empty one.

Tests: tests/discovery/test_server.py, tests/discovery/test_convergence.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final, Protocol

from meshfast.discovery.error import Code, DiscoveryError
from meshfast.discovery.messages import (
    PROTOCOL_VERSION,
    TYPES,
    WILDCARD,
    Ack,
    CertificateRequest,
    CertificateResponse,
    FromServer,
    Goodbye,
    Heartbeat,
    Hello,
    Message,
    Nack,
    Problem,
    Push,
    Registration,
    Resource,
    Status,
    Subscribe,
    Unsubscribe,
    Welcome,
)
from meshfast.discovery.revision import ORIGIN, Revision

__all__ = ["PUSH_BYTES_MAX", "Received", "ServerSession", "ServerState", "View"]

#: Bodies in one push. Small enough that a slow sidecar acknowledges something every few seconds,
#: far below the frame limit. At least one resource is always sent.
PUSH_BYTES_MAX: Final = 1 << 20
#: Names in one push, resources and removals each.
PUSH_NAMES_MAX: Final = 10_000

#: What `known` says of a name that was asked for, is absent, and was reported so.
ABSENT: Final = ""
#: What `known` says of a name of which the sidecar may hold some version or none. Not a version
#: (`content_version`), so it differs from every resource.
DOUBTFUL: Final = "?"

#: What the owner gets to see of the dialogue, besides what it asks the session.
Received = Hello | Ack | Nack | CertificateRequest | Registration | Status | Heartbeat | Goodbye


class View(Protocol):
    """What one node may see, at one revision. Shared bodies are shared objects."""

    @property
    def revision(self) -> Revision:
        """The revision that all answers belong to."""

    def names(self, type: str) -> Collection[str]:
        """All names of a type."""

    def resource(self, type: str, name: str) -> Resource | None:
        """Look one up."""


class ServerState(Enum):
    """Where the stream is."""

    GREETING = auto()
    OPEN = auto()


TAKEN: Final[Mapping[ServerState, tuple[type, ...]]] = {
    ServerState.GREETING: (Hello, Goodbye),
    ServerState.OPEN: (
        Subscribe,
        Unsubscribe,
        Ack,
        Nack,
        CertificateRequest,
        Registration,
        Status,
        Heartbeat,
        Goodbye,
    ),
}


@dataclass(slots=True)
class _Refusal:
    """A version that the sidecar refused, with its reason."""

    version: str
    problem: Problem


@dataclass(slots=True)
class _Outstanding:
    """What a push offered. A name moves to `doubtful` when it is unsubscribed from meanwhile: if
    it is asked for again, nobody here can tell whether the sidecar took it from this push."""

    nonce: int
    versions: dict[str, str]
    removed: set[str]
    doubtful: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Subscription:
    """One type's state. `dirty` are the names that may differ from `known`."""

    wanted: set[str] = field(default_factory=set)
    known: dict[str, str] = field(default_factory=dict)
    refused: dict[str, _Refusal] = field(default_factory=dict)
    dirty: set[str] = field(default_factory=set)
    outstanding: _Outstanding | None = None
    subscribes: int = 0
    answered: int = 0

    def wants(self, name: str) -> bool:
        return WILDCARD in self.wanted or name in self.wanted

    def expected(self, name: str) -> str | None:
        """Return the version that the sidecar holds once it has taken what is outstanding."""
        if self.outstanding is not None:
            if name in self.outstanding.versions:
                return self.outstanding.versions[name]
            if name in self.outstanding.removed:
                return ABSENT
        return self.known.get(name)


@dataclass(slots=True)
class _Differences:
    """What `dirty` comes to when it is looked up: disjoint, in the order of names."""

    changed: list[Resource] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)


class ServerSession:
    """One stream's dialogue with one sidecar."""

    def __init__(
        self, view: View, *, types: Sequence[str] = TYPES, heartbeat_ms: int = 10_000
    ) -> None:
        """Wait for Hello. `types` are all that can be subscribed to, in make-before-break order."""
        self.state = ServerState.GREETING
        self.hello: Hello | None = None
        self._view = view
        self._heartbeat_ms = heartbeat_ms
        self._subscriptions = {type: _Subscription() for type in types}
        self._held: dict[str, dict[str, str]] = {}
        self._floor = ORIGIN
        self._nonce = 0
        self._out: list[FromServer] = []
        self._received: list[Received] = []

    def handle_message(self, message: Message) -> None:
        """Take a message of the sidecar. Raises `DiscoveryError`; then say goodbye and close."""
        if not isinstance(message, TAKEN[self.state]):
            raise DiscoveryError(
                Code.UNEXPECTED, f"{type(message).__name__} in state {self.state.name}"
            )
        match message:
            case Hello():
                self._handle_hello(message)
            case Subscribe():
                self._handle_subscribe(message)
            case Unsubscribe():
                self._handle_unsubscribe(message)
            case Ack():
                self._handle_answer(message, ())
            case Nack():
                self._handle_answer(message, message.problems)
            case CertificateRequest() | Registration() | Status() | Heartbeat() | Goodbye():
                self._received.append(message)

    def notify(self, view: View, changes: Mapping[str, Iterable[str]]) -> None:
        """Move to a newer view, in which at most the named resources (by type) differ."""
        assert view.revision >= self._view.revision, "views go forward"
        self._view = view
        for type, names in changes.items():
            subscription = self._subscriptions[type]
            subscription.dirty.update(name for name in names if subscription.wants(name))

    def send(self, message: CertificateResponse | Goodbye) -> None:
        """Queue a message that has no state here."""
        self._out.append(message)

    def heartbeat(self) -> None:
        """Queue a heartbeat; it carries the revision when all up to it has been offered."""
        synced = self.state is ServerState.OPEN and self._may_push() and not self._has_unsent()
        self._out.append(Heartbeat(self._view.revision if synced else None))

    def poll_messages(self) -> list[FromServer]:
        """Take what has to be sent now, in order. Call it after every other call."""
        if self.state is ServerState.OPEN and self._may_push():
            self._push_changes()
            self._push_removals()
        out, self._out = self._out, []
        return out

    def take_received(self) -> list[Received]:
        """Take the messages that the owner acts on or shows."""
        received, self._received = self._received, []
        return received

    def outstanding(self, type: str) -> int | None:
        """Return the nonce of the type's outstanding push."""
        outstanding = self._subscriptions[type].outstanding
        return None if outstanding is None else outstanding.nonce

    def refused(self) -> Mapping[str, Mapping[str, Problem]]:
        """What the sidecar refuses at present, type → name → problem, for the operator's view."""
        return {
            type: {name: refusal.problem for name, refusal in subscription.refused.items()}
            for type, subscription in self._subscriptions.items()
            if subscription.refused
        }

    def _handle_hello(self, hello: Hello) -> None:
        for type in hello.held:
            self._subscription(type)
        self.hello = hello
        self.state = ServerState.OPEN
        self._held = {type: dict(versions) for type, versions in hello.held.items()}
        self._floor = hello.revision or ORIGIN
        self._out.append(Welcome(min(PROTOCOL_VERSION, hello.version), self._heartbeat_ms))
        self._received.append(hello)

    def _handle_subscribe(self, subscribe: Subscribe) -> None:
        subscription = self._subscription(subscribe.type)
        held = self._held.get(subscribe.type, {})
        subscription.subscribes += 1
        subscription.wanted.update(subscribe.names)
        if WILDCARD in subscribe.names:
            resumed = dict(held)
            subscription.dirty.update(self._view.names(subscribe.type))
        else:
            resumed = {name: held[name] for name in subscribe.names if name in held}
            subscription.dirty.update(subscribe.names)
        for name, version in resumed.items():
            del held[name]
            subscription.known.setdefault(name, version)
            subscription.dirty.add(name)

    def _handle_unsubscribe(self, unsubscribe: Unsubscribe) -> None:
        """Forget names; if they are asked for again, they are sent again."""
        subscription = self._subscription(unsubscribe.type)
        subscription.wanted.difference_update(unsubscribe.names)
        outstanding = subscription.outstanding
        tracked = {*subscription.known, *subscription.refused, *subscription.dirty}
        offered: set[str] = set()
        if outstanding is not None:
            offered = {*outstanding.versions, *outstanding.removed}
            tracked |= offered
        for name in tracked:
            if subscription.wants(name):
                continue
            subscription.known.pop(name, None)
            subscription.refused.pop(name, None)
            subscription.dirty.discard(name)
            if outstanding is not None and name in offered:
                outstanding.versions.pop(name, None)
                outstanding.removed.discard(name)
                outstanding.doubtful.add(name)

    def _handle_answer(self, answer: Ack | Nack, problems: Sequence[Problem]) -> None:
        subscription = self._subscription(answer.type)
        outstanding = subscription.outstanding
        if outstanding is None or outstanding.nonce != answer.nonce:
            raise DiscoveryError(
                Code.UNEXPECTED, f"an answer to push {answer.nonce} of {answer.type}"
            )
        subscription.outstanding = None
        for problem in problems:
            version = outstanding.versions.pop(problem.name, None)
            if version is not None:  # else unsubscribed from meanwhile
                subscription.refused[problem.name] = _Refusal(version, problem)
        for name, version in outstanding.versions.items():
            subscription.known[name] = version
            subscription.refused.pop(name, None)
        for name in outstanding.removed:
            if name in subscription.wanted:
                subscription.known[name] = ABSENT
            else:
                subscription.known.pop(name, None)
            subscription.refused.pop(name, None)
        for name in outstanding.doubtful:
            if subscription.wants(name):
                subscription.known[name] = DOUBTFUL
                subscription.dirty.add(name)
        self._offer_again(answer.type, {*outstanding.versions, *outstanding.removed})
        self._received.append(answer)

    def _offer_again(self, type: str, settled: set[str]) -> None:
        """Forget refusals that waited for what has just been applied or removed."""
        for subscription in self._subscriptions.values():
            for name, refusal in list(subscription.refused.items()):
                reference = refusal.problem.waits_for
                if reference is not None and reference.type == type and reference.name in settled:
                    del subscription.refused[name]
                    subscription.dirty.add(name)

    def _subscription(self, type: str) -> _Subscription:
        try:
            return self._subscriptions[type]
        except KeyError:
            raise DiscoveryError(Code.UNKNOWN_TYPE, f"no resources of type {type!r}") from None

    def _may_push(self) -> bool:
        return self._view.revision >= self._floor

    def _has_unsent(self) -> bool:
        return any(
            subscription.dirty or subscription.answered < subscription.subscribes
            for subscription in self._subscriptions.values()
        )

    def _push_changes(self) -> None:
        """Offer new and changed resources, up to the first type that has to wait."""
        for type, subscription in self._subscriptions.items():
            differences = self._differences(type, subscription)
            unanswered = subscription.answered < subscription.subscribes
            if not (differences.changed or differences.absent or unanswered):
                continue
            if subscription.outstanding is not None:
                return
            changed = _portion(differences.changed)
            absent = differences.absent[:PUSH_NAMES_MAX]
            whole = changed == differences.changed and absent == differences.absent
            complete = whole and not differences.gone
            self._push(type, subscription, changed, absent, complete=complete)
            if not whole:
                return

    def _push_removals(self) -> None:
        """Take names away, last type first, up to the first type that is not at rest."""
        for type, subscription in reversed(self._subscriptions.items()):
            differences = self._differences(type, subscription)
            if subscription.outstanding is not None or differences.changed:
                return
            if differences.gone:
                gone = differences.gone[:PUSH_NAMES_MAX]
                complete = len(gone) == len(differences.gone)
                self._push(type, subscription, [], gone, complete=complete)
                return

    def _push(
        self,
        type: str,
        subscription: _Subscription,
        resources: list[Resource],
        removed: list[str],
        *,
        complete: bool,
    ) -> None:
        self._nonce += 1
        versions = {resource.name: resource.version for resource in resources}
        subscription.outstanding = _Outstanding(self._nonce, versions, set(removed))
        subscription.dirty.difference_update(versions, removed)
        subscription.answered = subscription.subscribes
        self._out.append(
            Push(
                type=type,
                nonce=self._nonce,
                revision=self._view.revision,
                resources=resources,
                removed=removed,
                complete=complete,
                subscribes=subscription.subscribes,
            )
        )

    def _differences(self, type: str, subscription: _Subscription) -> _Differences:
        """Look up the dirty names; those that do not differ are not dirty any more."""
        differences = _Differences()
        for name in sorted(subscription.dirty):
            resource = self._view.resource(type, name)
            refusal = subscription.refused.get(name)
            if refusal is not None and (resource is None or resource.version != refusal.version):
                del subscription.refused[name]  # it changed, so it may be offered again
                refusal = None
            expected = subscription.expected(name)
            if resource is not None:
                if resource.version != expected and refusal is None:
                    differences.changed.append(resource)
                    continue
            elif expected:
                differences.gone.append(name)
                continue
            elif expected is None and name in subscription.wanted:
                differences.absent.append(name)
                continue
            subscription.dirty.discard(name)
        return differences


def _portion(resources: list[Resource]) -> list[Resource]:
    """Return the first resources that make up one push."""
    size = 0
    for count, resource in enumerate(resources[:PUSH_NAMES_MAX]):
        size += len(resource.body)
        if size > PUSH_BYTES_MAX and count > 0:
            return resources[:count]
    return resources[:PUSH_NAMES_MAX]
