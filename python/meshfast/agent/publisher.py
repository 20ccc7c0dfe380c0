"""Reload: one configuration after the other from the source to every worker.

    idle -> leaving -> compiling -> binding -> applying -> idle

A reload (SIGHUP) and a changed DNS answer take the same way. The configuration is taken whole or
not at all: what does not compile, and a listener that cannot be bound, leave the running one as it
is, and the agent says all problems in one log line.

What a configuration no longer listens on is unbound when every worker has left it.

Does not do: deciding what a configuration means (policy).

Invariants:
1. One snapshot is on its way at a time; what is asked for meanwhile is done once, afterwards.
2. A compilation begins when every worker serves from the last snapshot. A slot of an endpoint that
   went away is given to another when no exchange is counted in it and none can begin there any
   more: exchanges choose an endpoint within `SETTLE_S` of their snapshot's end. What snapshots from
   before this agent had is not known to it, so for as long it waits until they are left.
3. A name of the configuration that does not resolve keeps its last good addresses, for ever.
4. A changed DNS answer changes endpoints only: an edited file waits for its SIGHUP, because names
   are compiled with a copy of the file that was loaded last.
5. A snapshot is published in a sealed memfd; nobody can change it under a worker.

Tests: tests/agent/test_reload.py.
"""

from __future__ import annotations

import json
import os
from time import monotonic

from meshfast.agent.compilation import COMPILER, Compilation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from meshfast.agent.channel import Message
    from meshfast.agent.log import Log
    from meshfast.agent.loop import Loop, Timer
    from meshfast.agent.resolver import Resolver
    from meshfast.agent.settings import Settings
    from meshfast.telemetry.families import AgentFacts
    from meshfast.telemetry.source import Source, WorkerStats

    class Supervisor(Protocol):
        """Where messages go: the control channel."""

        def send(self, message: Message, fds: Sequence[int] = ()) -> None: ...


__all__ = ["Publisher"]

RELOAD = "reload"  # an operator asked
NAMES = "names"  # DNS answers changed, or are not known yet

BIND_S = 10.0
SLOW_S = 30.0  # a worker that does not take a snapshot for so long is worth a warning
LEAVING_POLL_S = 0.05
SETTLE_S = 40.0  # three connects of 10 s, and the resolver


class Publisher:
    """Compiles and publishes; told of messages by the process, of time by the loop."""

    def __init__(
        self,
        loop: Loop,
        settings: Settings,
        supervisor: Supervisor,
        resolver: Resolver,
        source: Source,
        facts: AgentFacts,
        log: Log,
        describe: Callable[[bytes], str],
        compiler: Sequence[str] = COMPILER,
    ) -> None:
        """Take over the snapshot that workers start with."""
        self._loop = loop
        self._settings = settings
        self._supervisor = supervisor
        self._resolver = resolver
        self._source = source
        self._facts = facts
        self._log = log
        self._describe = describe
        self._compiler = compiler
        self._snapshot_fd = settings.snapshot_fd
        self._kept_fd: int | None = None  # the configuration file as it was loaded last
        self._listeners = set(settings.bound)
        self._hosts: dict[str, list[str]] | None = None  # not known before the first compilation
        self._answers: dict[str, list[str]] = {}  # the last good ones
        self._attempt: _Attempt | None = None
        self._reload_wanted = False
        self._known_since = facts.generation  # what older snapshots have is not known here
        self._settled_at = monotonic() + SETTLE_S
        # What replaced snapshots had: until when an exchange may begin there, slot -> endpoint.
        self._older: list[tuple[float, dict[int, tuple[str, str]]]] = []
        self._watchdog: Timer | None = None
        self._stopped = False
        self._take_over(settings.snapshot_fd)
        if settings.source:
            self._loop.call_later(settings.dns_refresh_s, self._refresh)

    def reload(self) -> None:
        """Load the source again, now or after what is on its way."""
        self._request(RELOAD)

    def stop(self) -> None:
        """Publish nothing more: the sidecar is draining."""
        self._stopped = True

    def on_bound(self, message: Message) -> None:
        """Go on when every new listener is bound; refuse the configuration when one is not."""
        attempt = self._attempt
        name = message.get("name")
        if attempt is None or name not in attempt.unbound:
            return
        attempt.unbound.discard(str(name))
        error = message.get("error")
        if error is None:
            self._listeners.add(str(name))
            attempt.bound.add(str(name))
        else:
            attempt.problems.append(f"{name}: cannot be bound: {error}")
        if attempt.unbound:
            return
        if attempt.problems:
            self._refuse(attempt)
        else:
            self._publish(attempt)

    def on_applied(self, message: Message) -> None:
        """Count the reload when every worker serves from the snapshot."""
        attempt = self._attempt
        if attempt is not None and attempt.blob_fd >= 0:
            generation = message.get("generation")
            if isinstance(generation, int) and generation >= attempt.generation:
                self._succeed(attempt)

    def _request(self, reason: str) -> None:
        if self._stopped or not self._settings.source:
            self._log.warning("reload ignored", reason=reason, draining=self._stopped)
        elif self._attempt is not None:
            self._reload_wanted = True  # names are only asked for when nothing is on its way
        else:
            self._begin(reason)

    # leaving: older snapshots

    def _begin(self, reason: str) -> None:
        attempt = self._attempt = _Attempt(reason, self._facts.generation + 1)
        self._watch_over(SLOW_S, self._on_slow)
        self._compile_when_left(attempt)

    def _compile_when_left(self, attempt: _Attempt) -> None:
        holding = [
            worker.slot
            for worker in self._source.workers()
            if is_alive(worker) and worker.oldest_generation < self._known_since
        ]
        if holding and monotonic() < self._settled_at:
            self._loop.call_later(LEAVING_POLL_S, lambda: self._compile_when_left(attempt))
        else:
            self._compile(attempt)

    def _on_slow(self) -> None:
        self._log.warning(
            "a worker still serves from an older snapshot", generation=self._facts.generation
        )
        self._watch_over(SLOW_S, self._on_slow)

    # compiling

    def _compile(self, attempt: _Attempt) -> None:
        self._watch_over(0, None)
        request = {
            "generation": attempt.generation,
            "hosts": self._answers,
            "reserved": self._reserved(),
            "source": self._settings.source,
        }
        kept_fd = self._kept_fd if attempt.reason == NAMES else None
        run = Compilation(request, self._snapshot_fd, kept_fd)
        run.run(self._loop, self._compiler, lambda: self._on_compiled(attempt, run))

    def _reserved(self) -> list[tuple[str, str, int]]:
        """The slots of older snapshots that are not free yet, with the endpoints they belong to."""
        now = monotonic()
        self._older = [(until, slots) for until, slots in self._older if until > now]
        reserved = {slot: endpoint for _, slots in self._older for slot, endpoint in slots.items()}
        for line in self._source.endpoints():
            if line.active and line.slot not in self._facts.endpoints:
                # Whose it was may be forgotten; it is not free all the same.
                reserved.setdefault(line.slot, ("", f"slot {line.slot}"))
        return [(cluster, address, slot) for slot, (cluster, address) in reserved.items()]

    def _on_compiled(self, attempt: _Attempt, run: Compilation) -> None:
        attempt.hosts = run.hosts
        attempt.problems = run.problems
        if run.problems:
            self._refuse(attempt)
        elif attempt.reason == NAMES and run.changed == "nothing":
            attempt.copy_fd = run.take_copy()
            self._keep(attempt)
            self._finish()
        elif attempt.reason == NAMES and run.changed == "more":
            self._leave_to_a_reload(attempt)
        else:
            attempt.copy_fd = run.take_copy()
            attempt.blob_fd = run.take_blob()
            self._bind(attempt, run.listeners)
        run.close()

    def _leave_to_a_reload(self, attempt: _Attempt) -> None:
        """Only an agent that took over comes here: it has no copy of the file that was loaded."""
        self._hosts = attempt.hosts
        self._log.warning(
            "the configuration was edited and not reloaded; names are not followed until it is"
        )
        self._finish()

    # binding

    def _bind(self, attempt: _Attempt, listeners: dict[str, str]) -> None:
        attempt.unbound = set(listeners) - self._listeners
        if not attempt.unbound:
            return self._publish(attempt)
        self._watch_over(BIND_S, lambda: self._on_unbound(attempt))
        for name in sorted(attempt.unbound):
            self._supervisor.send({"type": "bind", "name": name, "address": listeners[name]})

    def _on_unbound(self, attempt: _Attempt) -> None:
        names = ", ".join(sorted(attempt.unbound))
        attempt.problems.append(f"{names}: the supervisor did not answer")
        self._refuse(attempt)

    # applying

    def _publish(self, attempt: _Attempt) -> None:
        self._facts.generation = attempt.generation
        self._watch_over(SLOW_S, self._on_slow)
        self._supervisor.send(
            {"type": "snapshot", "generation": attempt.generation}, [attempt.blob_fd]
        )

    # endings

    def _succeed(self, attempt: _Attempt) -> None:
        os.close(self._snapshot_fd)
        self._snapshot_fd, attempt.blob_fd = attempt.blob_fd, -1
        self._older.append((monotonic() + SETTLE_S, self._facts.endpoints))
        self._unbind(self._listeners - self._take_over(self._snapshot_fd))
        self._keep(attempt)
        self._facts.last_reload_success = True
        self._facts.reloads["success"] += 1
        self._log.info("reload applied", reason=attempt.reason, generation=attempt.generation)
        self._finish()

    def _keep(self, attempt: _Attempt) -> None:
        """What this attempt loaded is what names are compiled with from now on."""
        if self._kept_fd is not None:
            os.close(self._kept_fd)
        self._kept_fd, attempt.copy_fd = attempt.copy_fd, -1
        self._hosts = attempt.hosts
        self._answers = {host: found for host, found in attempt.hosts.items() if found}

    def _refuse(self, attempt: _Attempt) -> None:
        self._hosts = self._hosts or {}  # the next reload tells; not every few seconds from now on
        self._unbind(attempt.bound)
        self._facts.last_reload_success = False
        self._facts.reloads["refused"] += 1
        self._log.error(
            "reload refused",
            reason=attempt.reason,
            generation=self._facts.generation,
            problems=attempt.problems,
        )
        self._finish()

    def _unbind(self, names: set[str]) -> None:
        """Have listeners closed that the running configuration does not name."""
        for name in sorted(names):
            self._listeners.discard(name)
            self._supervisor.send({"type": "unbind", "name": name})

    def _finish(self) -> None:
        if self._attempt is not None:
            self._attempt.close()
        self._watch_over(0, None)
        self._attempt = None
        wanted, self._reload_wanted = self._reload_wanted, False
        if wanted:
            self._request(RELOAD)

    def _watch_over(self, seconds: float, call: Callable[[], None] | None) -> None:
        """One watchdog at a time: what to do when the step that just began takes too long."""
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._watchdog = None if call is None else self._loop.call_later(seconds, call)

    def _take_over(self, snapshot_fd: int) -> set[str]:
        """Learn the endpoints' slots and the listeners of a snapshot; return the listeners."""
        blob = os.pread(snapshot_fd, os.fstat(snapshot_fd).st_size, 0)
        document = json.loads(self._describe(blob))
        listeners = {str(listener["name"]) for listener in document["listeners"]}
        self._listeners |= listeners
        self._facts.endpoints = {
            endpoint["slot"]: (cluster["name"], endpoint["address"])
            for cluster in document["clusters"]
            for endpoint in cluster["endpoints"]
        }
        return listeners

    # names

    def _refresh(self) -> None:
        """Look all names of the configuration up, and compile when an answer differs."""
        if self._stopped:
            return
        self._loop.call_later(self._settings.dns_refresh_s, self._refresh)
        if self._hosts is None and self._attempt is None:
            self._request(NAMES)
        if not self._hosts:
            return
        answers = _Answers(len(self._hosts), self._on_answers)
        for host in self._hosts:
            self._resolver.resolve(host, answers.taker(host), anew=True)

    def _on_answers(self, answers: dict[str, list[str]]) -> None:
        self._answers.update((host, found) for host, found in answers.items() if found)
        hosts = self._hosts or {}
        changed = sorted(
            host for host, found in answers.items() if found and found != hosts.get(host, found)
        )
        if changed and self._kept_fd is not None and self._attempt is None:
            self._log.info("addresses changed", hosts=changed)
            self._request(NAMES)


def is_alive(worker: WorkerStats) -> bool:
    """Whether the slot's worker may hold snapshots."""
    return worker.state in ("serving", "draining")


class _Attempt:
    """One configuration on its way. `blob_fd` is its snapshot, -1 before it is compiled."""

    def __init__(self, reason: str, generation: int) -> None:
        self.reason = reason
        self.generation = generation
        self.blob_fd = -1
        self.copy_fd = -1
        self.hosts: dict[str, list[str]] = {}
        self.problems: list[str] = []
        self.unbound: set[str] = set()
        self.bound: set[str] = set()

    def close(self) -> None:
        for fd in (self.blob_fd, self.copy_fd):
            if fd >= 0:
                os.close(fd)


class _Answers:
    """Gathers the answers for some names, and gives them when the last has come."""

    def __init__(self, expected: int, done: Callable[[dict[str, list[str]]], None]) -> None:
        self._expected = expected
        self._done = done
        self._answers: dict[str, list[str]] = {}

    def taker(self, host: str) -> Callable[[list[str], str | None], None]:
        def take(addresses: list[str], _error: str | None) -> None:
            self._answers[host] = sorted(addresses)
            if len(self._answers) == self._expected:
                self._done(self._answers)

        return take
