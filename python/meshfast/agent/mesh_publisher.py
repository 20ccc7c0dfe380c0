"""From held fragments to every worker: one snapshot after the other, and what was refused.

    idle -> apply (decode, compose, build) -> publish -> `applied` -> idle

All of it happens in the agent, in milliseconds for a mesh of hundreds of services: a process as for
a file of resources would cost a tenth of a second for every push.

Invariants:
1. One snapshot is on its way at a time.
2. `done` is called when all workers serve with the outcome, at once when nothing changed for them.
3. A slot of an endpoint that went away is given to another one only after no worker holds a
   generation that used it.

Tests: tests/agent/test_mesh.py.
"""

from __future__ import annotations

import fcntl
import os

import msgspec

from meshfast.errors import ConfigError
from meshfast.policy.document import Document, decode_document
from meshfast.policy.sidecar import Applied, Change, Refusal, Sidecar, apply
from meshfast.policy.slots import SlotAllocator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from meshfast.agent.channel import Message
    from meshfast.agent.log import Log
    from meshfast.agent.loop import Loop, Timer
    from meshfast.agent.settings import Settings
    from meshfast.policy.sidecar import Held
    from meshfast.telemetry.families import AgentFacts
    from meshfast.telemetry.source import Source

    Done = Callable[[tuple[Refusal, ...]], None]

    class Supervisor(Protocol):
        """Where messages go: the control channel."""

        def send(self, message: Message, fds: Sequence[int] = ()) -> None: ...


__all__ = ["MeshPublisher"]

SLOW_S = 30.0  # a worker that does not take a snapshot for so long is worth a warning
LEAVING_POLL_S = 1.0
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class MeshPublisher:
    """`held` is what workers serve with, and `private` the part of it that was taken away."""

    def __init__(
        self,
        loop: Loop,
        settings: Settings,
        sidecar: Sidecar,
        supervisor: Supervisor,
        source: Source,
        facts: AgentFacts,
        log: Log,
        describe: Callable[[bytes], str],
        build: Callable[[bytes], bytes],
    ) -> None:
        """Take over the snapshot that workers start with."""
        self.held: Held = {}
        self.private: frozenset[tuple[str, str]] = frozenset()
        self._loop = loop
        self._sidecar = sidecar
        self._supervisor = supervisor
        self._source = source
        self._facts = facts
        self._log = log
        self._build = build
        blob = os.pread(settings.snapshot_fd, os.fstat(settings.snapshot_fd).st_size, 0)
        self._running = decode_document(describe(blob).encode())
        self._allocator = SlotAllocator.from_document(self._running)
        self._next: Applied | None = None
        self._done: Done | None = None
        self._slow: Timer | None = None
        self._stopped = False
        self._show_endpoints()

    @property
    def is_busy(self) -> bool:
        """Tell whether a snapshot is on its way."""
        return self._next is not None

    def apply(self, changes: Sequence[Change], done: Done) -> None:
        """Take changes; never while busy."""
        assert self._next is None, "one snapshot at a time"
        generation = self._facts.generation + 1
        try:
            outcome = apply(
                self._sidecar,
                self.held,
                self.private,
                changes,
                generation=generation,
                allocator=self._allocator,
                build=self._build,
            )
        except ConfigError as error:
            self._log.error("configuration cannot be composed", problems=str(error))
            return done(_all_refused(changes, str(error)))
        if outcome.refusals:
            self._facts.reloads["refused"] += 1
            self._facts.last_reload_success = False
            self._log.error(
                "resources refused",
                resources=[f"{one.type} {one.name}: {one.reason}" for one in outcome.refusals],
            )
        self._next, self._done = outcome, done
        if _same(outcome.document, self._running):
            return self._settle(outcome)
        self._publish(outcome)

    def on_applied(self, message: Message) -> None:
        """Go on when every worker serves from the snapshot."""
        generation = message.get("generation")
        outcome = self._next
        if outcome is None or not isinstance(generation, int):
            return
        if generation >= outcome.document.generation:
            self._running = outcome.document
            self._show_endpoints()
            if not outcome.refusals:
                self._facts.last_reload_success = True
                self._facts.reloads["success"] += 1
            self._log.info("configuration applied", generation=outcome.document.generation)
            self._release_when_left(outcome.document.generation)
            self._settle(outcome)

    def on_bound(self, message: Message) -> None:
        """Hear of a listener nobody here asked for: a sidecar's are all bound at start."""
        self._log.warning("listener bound that was not asked for", name=message.get("name"))

    def reload(self) -> None:
        """Hear SIGHUP: there is no file to read again."""
        self._log.info("reload ignored: configuration comes from the control plane")

    def stop(self) -> None:
        """Keep publishing: the application's own calls go on while the sidecar drains."""
        self._stopped = True

    def _publish(self, outcome: Applied) -> None:
        generation = self._facts.generation = outcome.document.generation
        fd = os.memfd_create(
            f"meshfast-snapshot-{generation}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        )
        with open(fd, "wb") as file:
            file.write(outcome.blob)
            file.flush()
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            self._supervisor.send({"type": "snapshot", "generation": generation}, [fd])
        self._slow = self._loop.call_later(SLOW_S, self._on_slow)

    def _settle(self, outcome: Applied) -> None:
        if self._slow is not None:
            self._slow.cancel()
        self.held, self.private = outcome.held, outcome.private
        done, self._done, self._next = self._done, None, None
        if done is not None:
            done(outcome.refusals)

    def _on_slow(self) -> None:
        self._log.warning(
            "a worker still serves from an older snapshot", generation=self._facts.generation
        )
        self._slow = self._loop.call_later(SLOW_S, self._on_slow)

    def _release_when_left(self, generation: int) -> None:
        """Free the slots that this generation does not use once no worker holds an older one."""
        if generation < self._facts.generation:
            return  # the newer one frees what this one would have
        holds_older = any(
            worker.state in ("serving", "draining") and worker.oldest_generation < generation
            for worker in self._source.workers()
        )
        if holds_older:
            self._loop.call_later(LEAVING_POLL_S, lambda: self._release_when_left(generation))
        else:
            self._allocator.release(generation)

    def _show_endpoints(self) -> None:
        self._facts.endpoints = {
            endpoint.slot: (cluster.name, endpoint.address)
            for cluster in self._running.clusters
            for endpoint in cluster.endpoints
        }


def _same(one: Document, other: Document) -> bool:
    return msgspec.structs.replace(one, generation=0) == msgspec.structs.replace(
        other, generation=0
    )


def _all_refused(changes: Sequence[Change], reason: str) -> tuple[Refusal, ...]:
    return tuple(Refusal(change.type, name, reason) for change in changes for name in change.bodies)
