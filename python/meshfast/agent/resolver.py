"""Host names to addresses: for workers that ask, and for the names of the configuration.

getaddrinfo blocks, so it runs in at most four threads. They take names from one socket pair and put
answers into another: the kernel is the bounded queue, the wake-up and the lock.

Does not do: DNS itself, TTLs (getaddrinfo does not tell them), search-list tricks.

Invariants:
1. A question is answered within 5 s, whatever the system's resolver does: with addresses, with the
   last good ones when they are not older than 60 s, or with an error.
2. A name is looked up once at a time; an answer is good for 5 s, a failure for 1 s.
3. At most 64 questions of one worker are open; the agent reads no further ones meanwhile.

Tests: tests/agent/test_resolver.py.
"""

from __future__ import annotations

import _thread
import os
import re
import socket
import time

from meshfast.agent.channel import Channel
from meshfast.agent.loop import READ

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from meshfast.agent.channel import Message
    from meshfast.agent.loop import Loop, Timer
    from meshfast.telemetry.families import AgentFacts

    Done = Callable[[list[str], str | None], None]
    Lookup = Callable[[str], list[str]]

__all__ = ["Resolver", "WorkerQuestions", "look_up"]

ANSWER_S = 5.0
GOOD_S = 5.0
BAD_S = 1.0
LAST_GOOD_S = 60.0
NAMES_MAX = 1024
OPEN_MAX = 64
# A lookup holds its thread for as long as the system's resolver tries: see `SYSTEM_TRIES`. Names
# whose servers do not answer must not keep everybody else's names waiting.
THREADS_MAX = 32
THREAD_STACK_BYTES = 256 * 1024
# resolv.conf(5): per server 2 s and two tries, instead of 5 s; a thread is free again in seconds.
SYSTEM_TRIES = "timeout:2 attempts:2"

_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})")


def look_up(host: str) -> list[str]:
    """Ask the system, now; addresses in the order to try them (RFC 6724). Raises OSError."""
    # As bytes: a str goes through the idna codec, which loads 1 MB of tables.
    found = socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class _Name:
    """What is known of one name. Times are monotonic; `error` is None while addresses are fresh."""

    __slots__ = ("addresses", "error", "fresh_until", "good_at", "looking", "timer", "waiting")

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.error: str | None = None
        self.fresh_until = 0.0
        self.good_at = float("-inf")
        self.looking = False
        self.timer: Timer | None = None
        self.waiting: list[Done] = []


class Resolver:
    """Answers `resolve`, from what it knows or from the system."""

    def __init__(self, loop: Loop, facts: AgentFacts, lookup: Lookup = look_up) -> None:
        """`lookup` runs in threads of this resolver."""
        os.environ.setdefault("RES_OPTIONS", SYSTEM_TRIES)
        _thread.stack_size(THREAD_STACK_BYTES)
        self._loop = loop
        self._facts = facts
        self._lookup = lookup
        self._names: dict[str, _Name] = {}
        self._threads = 0
        self._looking = 0
        self._jobs, self._jobs_taken = _pair()
        self._answers_given, self._answers = _pair()
        self._jobs.setblocking(False)
        self._answers.setblocking(False)
        loop.watch(self._answers.fileno(), READ, self._on_answer)

    def resolve(self, host: str, done: Done, *, anew: bool = False) -> None:
        """Call `done(addresses, error)`, now or later, exactly once; addresses may be stale.

        `anew` asks the system although an answer is kept.
        """
        host = host.lower()
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if _is_address(bare):
            return done([bare], None)
        if not _NAME.fullmatch(host):
            return done([], "not a host name")
        name = self._names.get(host)
        if name is None:
            name = self._remember(host)
            if name is None:
                return done([], "too many names are being looked up")
        if time.monotonic() < name.fresh_until and not anew:
            return self._tell(name, done)
        name.waiting.append(done)
        if name.timer is None:
            name.timer = self._loop.call_later(ANSWER_S, lambda: self._on_timeout(name))
        if not name.looking:
            self._look(host, name)

    def _remember(self, host: str) -> _Name | None:
        if len(self._names) >= NAMES_MAX:
            oldest = next((key for key, name in self._names.items() if not name.looking), None)
            if oldest is None:
                return None
            del self._names[oldest]
        name = self._names[host] = _Name()
        return name

    def _look(self, host: str, name: _Name) -> None:
        try:
            self._jobs.send(host.encode("ascii"))
        except BlockingIOError:
            return self._settle(name, "too many names are being looked up")
        name.looking = True
        self._looking += 1
        if self._threads < min(self._looking, THREADS_MAX):
            self._threads += 1
            _thread.start_new_thread(_serve, (self._jobs_taken, self._answers_given, self._lookup))

    def _on_answer(self, _ready: int) -> None:
        host, _, answer = self._answers.recv(65536).decode("ascii").partition(" ")
        self._looking -= 1
        name = self._names[host]  # looked-up names are not forgotten
        name.looking = False
        if answer.startswith("!"):
            self._facts.lookups["failure"] += 1
            return self._settle(name, answer[1:])
        self._facts.lookups["success"] += 1
        name.addresses = answer.split()
        name.error = None
        name.good_at = time.monotonic()
        name.fresh_until = name.good_at + GOOD_S
        self._answer_waiting(name)

    def _on_timeout(self, name: _Name) -> None:
        name.timer = None
        self._facts.lookups["timeout"] += 1
        self._settle(name, "no answer in time")

    def _settle(self, name: _Name, error: str) -> None:
        name.error = error
        name.fresh_until = time.monotonic() + BAD_S
        self._answer_waiting(name)

    def _answer_waiting(self, name: _Name) -> None:
        if name.timer is not None:
            name.timer.cancel()
            name.timer = None
        waiting, name.waiting = name.waiting, []
        for done in waiting:
            self._tell(name, done)

    def _tell(self, name: _Name, done: Done) -> None:
        if name.addresses and time.monotonic() - name.good_at <= LAST_GOOD_S:
            done(name.addresses, None)
        else:
            done([], name.error or "no addresses")


def _serve(jobs: socket.socket, answers: socket.socket, lookup: Lookup) -> None:
    """A thread's life: one name at a time, until the process or the other end is gone."""
    while host := jobs.recv(512).decode("ascii"):
        try:
            answer = " ".join(lookup(host)) or "!no addresses"
        except OSError as error:
            answer = "!" + (error.strerror or "lookup failed")
        answers.send(f"{host} {answer}".encode("ascii", "replace")[:65536])


def _pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _is_address(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return True
    return False


class WorkerQuestions:
    """The questions of one worker slot: `resolve` messages in, `resolved` messages out."""

    def __init__(self, loop: Loop, fd: int, resolver: Resolver) -> None:
        """Own `fd`, whose other end the supervisor keeps for the slot."""
        self._resolver = resolver
        self._open = 0
        self._channel = Channel(loop, fd, self._on_message, lambda: None)

    def _on_message(self, message: Message) -> None:
        number, host = message.get("id"), message.get("host")
        if message.get("type") != "resolve" or not isinstance(host, str):
            return
        self._open += 1
        self._limit()
        self._resolver.resolve(host, lambda found, error: self._answer(number, found, error))

    def _answer(self, number: object, addresses: list[str], error: str | None) -> None:
        self._open -= 1
        self._channel.send(
            {"type": "resolved", "id": number, "addresses": addresses, "error": error}
        )
        self._limit()

    def _limit(self) -> None:
        self._channel.pause(self._open >= OPEN_MAX)
