"""Addresses of the hosts that ServiceEntries name, looked up again and again.

Names are resolved where the control plane runs, and every sidecar gets the same answer. A name that
does not resolve for a while keeps its last addresses.

    addresses(host) → a task of the host → a thread per look-up → `on_change` → the next push

Does not do: blocking the event loop; ending a look-up, which the system's resolver bounds.

Invariants:
1. `addresses` never waits, and `keep` forgets the hosts that nobody names any more.
2. No host waits for the answer of another while there are places, nor does `on_change`.
3. Every look-up answers, whatever comes of it. Its place is free then and not before, so there are
   never more threads than places.
4. No end of the process waits for an answer, since the threads are daemons.

Tests: tests/control/push/test_resolver.py.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Final

__all__ = ["Resolver"]

REFRESH_S: Final = 5.0
#: Look-ups at a time: a few names that take long keep the others waiting little.
LOOK_UPS_MAX: Final = 16

log = logging.getLogger(__name__)


class Resolver:
    """Known addresses by host. Belongs to one event loop."""

    def __init__(
        self,
        look_up: Callable[[str], list[str]] | None = None,
        *,
        refresh_s: float = REFRESH_S,
    ) -> None:
        """`look_up` gives the addresses of a host and may block; it runs in a thread."""
        self._look_up = look_up or look_up_host
        self._refresh_s = refresh_s
        self._known: dict[str, list[str]] = {}
        self._wanted: set[str] = set()
        self._tasks: dict[str, asyncio.Task[None]] = {}  # of wanted hosts only
        self._asked = asyncio.Event()

    def addresses(self, host: str) -> list[str]:
        """Return what is known now, and see to it that the host is looked up."""
        if host not in self._wanted:
            self._wanted.add(host)
            self._asked.set()
        return self._known.get(host, [])

    def keep(self, hosts: Collection[str]) -> None:
        """Forget all other hosts."""
        for host in self._wanted.difference(hosts):
            self._wanted.remove(host)
            self._known.pop(host, None)
            task = self._tasks.pop(host, None)
            if task is not None:
                task.cancel()

    async def run(self, on_change: Callable[[], None]) -> None:
        """Look hosts up until cancelled; `on_change` follows each answer that differs."""
        places = asyncio.Semaphore(LOOK_UPS_MAX)
        async with asyncio.TaskGroup() as group:
            while True:
                await self._asked.wait()
                self._asked.clear()
                for host in sorted(self._wanted - self._tasks.keys()):
                    following = self._follow(host, places, on_change)
                    self._tasks[host] = group.create_task(following)

    async def _follow(
        self, host: str, places: asyncio.Semaphore, on_change: Callable[[], None]
    ) -> None:
        """Look one host up until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            found = await self._answer(host, places)
            if found and found != self._known.get(host):
                self._known[host] = found
                on_change()
            # All hosts at the same moments: answers that keep changing come as one push.
            await asyncio.sleep(self._refresh_s - loop.time() % self._refresh_s)

    async def _answer(self, host: str, places: asyncio.Semaphore) -> list[str]:
        """Ask in a thread of its own, which nobody has to wait for."""
        await places.acquire()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[str]] = loop.create_future()

        def take(found: list[str]) -> None:
            places.release()
            if not answer.done():  # the host was forgotten meanwhile
                answer.set_result(found)

        def ask() -> None:
            found: list[str] = []
            try:
                found = self._look_up(host)
            except Exception:
                log.exception("the look-up of %s failed unexpectedly", host)
            finally:
                with suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(take, found)

        try:
            threading.Thread(target=ask, name=f"resolve {host}", daemon=True).start()
        except RuntimeError as error:  # the system has no thread left
            log.warning("%s was not looked up: %s", host, error)
            take([])
        return await answer


def look_up_host(host: str) -> list[str]:
    """Ask the system; an empty list when there is no answer. The order is stable."""
    try:
        answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return sorted({str(answer[4][0]) for answer in answers})
