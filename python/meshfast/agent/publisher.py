"""Reload: one configuration after the other from the source to every worker.

    idle -> leaving -> compiling -> binding -> applying -> idle

A reload (SIGHUP) and a changed DNS answer take the same way. The configuration is taken whole or
not at all: what does not compile, and a listener that cannot be bound, leave the running one as it
is, and the agent says all problems in one log line.

Does not do: deciding what a configuration means (policy), unbinding listeners.

Invariants:
1. One snapshot is on its way at a time; what is asked for meanwhile is done once, afterwards.
2. A compilation begins when every worker serves from the last snapshot and none holds an older
   one: only then may slots of endpoints that went away be given to others.
3. An address of the configuration that does not resolve keeps its last good answer, for ever.
4. A snapshot is published in a sealed memfd; nobody can change it under a worker.

Tests: tests/agent/test_reload.py.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys

from meshfast.agent.loop import READ

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Protocol

    from meshfast.agent.channel import Message
    from meshfast.agent.log import Log
    from meshfast.agent.loop import Loop, Timer
    from meshfast.agent.resolver import Resolver
    from meshfast.agent.settings import Settings
    from meshfast.telemetry.families import AgentFacts
    from meshfast.telemetry.source import Source

    class Supervisor(Protocol):
        """Where messages go: the control channel."""

        def send(self, message: Message, fds: Sequence[int] = ()) -> None: ...


__all__ = ["COMPILER", "Publisher"]

COMPILER = (sys.executable, "-I", "-m", "meshfast.agent.compiler")

COMPILE_S = 35.0  # the compiler ends itself after 30 s
BIND_S = 10.0
SLOW_S = 30.0  # a worker that has not applied a snapshot by then is worth a warning
LEAVING_POLL_S = 0.05

_IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


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
        self._listeners = set(settings.bound)
        self._hosts: dict[str, list[str]] | None = None  # not known before the first compilation
        self._attempt: _Attempt | None = None
        self._wanted: str | None = None
        self._watchdog: Timer | None = None
        self._stopped = False
        self._take_over(settings.snapshot_fd)
        if settings.source:
            self._loop.call_later(settings.dns_refresh_s, self._refresh)

    def request(self, reason: str) -> None:
        """Compile and publish, now or after what is on its way; `reload` outranks `names`."""
        if self._stopped or not self._settings.source:
            self._log.warning("reload ignored", reason=reason)
        elif self._attempt is not None:
            self._wanted = "reload" if "reload" in (reason, self._wanted) else reason
        else:
            self._begin(reason)

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
        else:
            attempt.problems.append(f"{name}: cannot be bound: {error}")
        if not attempt.unbound:
            self._publish_or_refuse(attempt)

    def on_applied(self, message: Message) -> None:
        """Count the reload when every worker runs the snapshot, then wait for old ones to go."""
        attempt = self._attempt
        if attempt is None or not attempt.published:
            return
        if message.get("generation") == attempt.generation and not attempt.applied:
            attempt.applied = True
            self._succeed(attempt)

    # leaving and compiling

    def _begin(self, reason: str) -> None:
        attempt = self._attempt = _Attempt(reason, self._facts.generation + 1)
        self._watch_over(SLOW_S, lambda: self._on_slow(attempt))
        self._compile_when_left(attempt)

    def _compile_when_left(self, attempt: _Attempt) -> None:
        holding = [
            worker.slot
            for worker in self._source.workers()
            if worker.state in ("serving", "draining")
            and worker.oldest_generation < self._facts.generation
        ]
        if holding:
            self._loop.call_later(LEAVING_POLL_S, lambda: self._compile_when_left(attempt))
        else:
            self._compile(attempt)

    def _compile(self, attempt: _Attempt) -> None:
        self._watch_over(0, None)
        request = {
            "generation": attempt.generation,
            "hosts": self._hosts or {},
            "source": self._settings.source,
        }
        os.write(attempt.request_fd, json.dumps(request).encode())
        pid = _spawn(self._compiler, attempt, self._snapshot_fd)
        pidfd = os.pidfd_open(pid)
        watchdog = self._loop.call_later(COMPILE_S, lambda: os.kill(pid, signal.SIGKILL))

        def on_exit(_ready: int) -> None:
            watchdog.cancel()
            self._loop.watch(pidfd, 0, on_exit)
            os.close(pidfd)
            self._on_compiled(attempt, os.waitpid(pid, 0)[1])

        self._loop.watch(pidfd, READ, on_exit)

    def _on_compiled(self, attempt: _Attempt, status: int) -> None:
        response = attempt.response() if status == 0 else None
        if response is None:
            attempt.problems.append(f"the compiler failed ({_ending(status)})")
            return self._refuse(attempt)
        attempt.problems.extend(response.get("problems", ()))
        if attempt.problems:
            return self._refuse(attempt)
        attempt.hosts = response["hosts"]
        if attempt.reason != "reload" and not response["changed"]:
            self._hosts = attempt.hosts
            return self._finish(attempt)
        self._bind(attempt, response["listeners"])

    # binding

    def _bind(self, attempt: _Attempt, listeners: dict[str, str]) -> None:
        attempt.unbound = set(listeners) - self._listeners
        for name in sorted(attempt.unbound):
            self._supervisor.send({"type": "bind", "name": name, "address": listeners[name]})
        if not attempt.unbound:
            return self._publish(attempt)
        self._watch_over(BIND_S, lambda: self._on_unbound(attempt))

    def _on_unbound(self, attempt: _Attempt) -> None:
        names = ", ".join(sorted(attempt.unbound))
        attempt.problems.append(f"{names}: the supervisor did not answer")
        attempt.unbound.clear()
        self._refuse(attempt)

    def _publish_or_refuse(self, attempt: _Attempt) -> None:
        if attempt.problems:
            self._refuse(attempt)
        else:
            self._publish(attempt)

    # applying

    def _publish(self, attempt: _Attempt) -> None:
        _seal(attempt.blob_fd)
        attempt.published = True
        self._facts.generation = attempt.generation
        self._supervisor.send(
            {"type": "snapshot", "generation": attempt.generation}, [attempt.blob_fd]
        )
        self._watch_over(SLOW_S, lambda: self._on_slow(attempt))

    def _on_slow(self, attempt: _Attempt) -> None:
        self._log.warning(
            "a worker still serves from an older snapshot", generation=self._facts.generation
        )
        self._watch_over(SLOW_S, lambda: self._on_slow(attempt))

    # endings

    def _succeed(self, attempt: _Attempt) -> None:
        old_fd, self._snapshot_fd = self._snapshot_fd, os.dup(attempt.blob_fd)
        os.close(old_fd)
        self._hosts = attempt.hosts
        self._take_over(self._snapshot_fd)
        self._facts.last_reload_success = True
        self._facts.reloads["success"] += 1
        self._log.info("reload applied", reason=attempt.reason, generation=attempt.generation)
        self._finish(attempt)

    def _refuse(self, attempt: _Attempt) -> None:
        self._hosts = self._hosts or {}  # the next reload tells; not every few seconds from now on
        self._facts.last_reload_success = False
        self._facts.reloads["refused"] += 1
        self._log.error(
            "reload refused",
            reason=attempt.reason,
            generation=self._facts.generation,
            problems=attempt.problems,
        )
        self._finish(attempt)

    def _finish(self, attempt: _Attempt) -> None:
        attempt.close()
        self._watch_over(0, None)
        self._attempt = None
        wanted, self._wanted = self._wanted, None
        if wanted is not None and not self._stopped:
            self._begin(wanted)

    def _watch_over(self, seconds: float, call: Callable[[], None] | None) -> None:
        """One watchdog at a time: what to do when the step that just began takes too long."""
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._watchdog = None if call is None else self._loop.call_later(seconds, call)

    def _take_over(self, snapshot_fd: int) -> None:
        """Learn the listeners and the endpoints' slots from a snapshot."""
        blob = os.pread(snapshot_fd, os.fstat(snapshot_fd).st_size, 0)
        document = json.loads(self._describe(blob))
        self._listeners.update(listener["name"] for listener in document["listeners"])
        self._facts.endpoints = {
            endpoint["slot"]: (cluster["name"], endpoint["address"])
            for cluster in document["clusters"]
            for endpoint in cluster["endpoints"]
        }

    # names

    def _refresh(self) -> None:
        """Look all names of the configuration up, and compile when an answer differs."""
        if self._stopped:
            return
        self._loop.call_later(self._settings.dns_refresh_s, self._refresh)
        if self._hosts is None:
            return self.request("names") if self._attempt is None else None
        answers = _Answers(len(self._hosts), self._on_answers)
        for host in self._hosts:
            self._resolver.resolve(host, answers.taker(host))

    def _on_answers(self, answers: dict[str, list[str]]) -> None:
        hosts = self._hosts or {}
        changed = {
            host: addresses
            for host, addresses in answers.items()
            if host in hosts and addresses and addresses != hosts[host]
        }
        if changed:
            self._hosts = hosts | changed
            self._log.info("addresses changed", hosts=sorted(changed))
            self.request("names")


class _Attempt:
    """One configuration on its way, with its memory files."""

    def __init__(self, reason: str, generation: int) -> None:
        self.reason = reason
        self.generation = generation
        self.request_fd = os.memfd_create("meshfast-compile-request")
        self.response_fd = os.memfd_create("meshfast-compile-response")
        self.blob_fd = os.memfd_create(
            f"meshfast-snapshot-{generation}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        )
        self.hosts: dict[str, list[str]] = {}
        self.problems: list[str] = []
        self.unbound: set[str] = set()
        self.published = False
        self.applied = False

    def response(self) -> dict[str, Any] | None:
        try:
            response = json.loads(os.pread(self.response_fd, os.fstat(self.response_fd).st_size, 0))
        except ValueError:
            return None
        return response if isinstance(response, dict) else None

    def close(self) -> None:
        for fd in (self.request_fd, self.response_fd, self.blob_fd):
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


def _spawn(compiler: Sequence[str], attempt: _Attempt, snapshot_fd: int) -> int:
    """Start the compiler with its descriptors; what the agent ignores is back to default there."""
    fds = {0: attempt.request_fd, 1: attempt.response_fd, 3: snapshot_fd, 4: attempt.blob_fd}
    # First out of the way of 3 and 4, which are the agent's own descriptors for something else.
    moved = {to: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for to, fd in fds.items()}
    try:
        return os.posix_spawn(
            compiler[0],
            list(compiler),
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, to) for to, fd in moved.items()],
            setsigdef=_IGNORED,
        )
    finally:
        for fd in moved.values():
            os.close(fd)


def _seal(fd: int) -> None:
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)


def _ending(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"signal {-code}" if code < 0 else f"exit code {code}"
