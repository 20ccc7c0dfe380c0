"""Addresses of the hosts that ServiceEntries name, looked up again and again.

Names are resolved where the control plane runs, and every sidecar gets the same answer. A name that
does not resolve for a while keeps its last addresses.

Does not do: blocking the event loop; an answer comes with the next push.

Invariants: `addresses` never waits; `keep` forgets the hosts that nobody names any more; no end of
the process waits for an answer, since the threads are daemons.

Tests: tests/control/push/test_resolver.py.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Final

__all__ = ["Resolver"]

REFRESH_S: Final = 5.0
#: Look-ups at a time: a few names that take long keep the others waiting little.
LOOK_UPS_MAX: Final = 16


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
        self._asked = asyncio.Event()

    def addresses(self, host: str) -> list[str]:
        """Return what is known now, and see to it that the host is looked up."""
        if host not in self._wanted:
            self._wanted.add(host)
            self._asked.set()
        return self._known.get(host, [])

    def keep(self, hosts: Collection[str]) -> None:
        """Forget all other hosts."""
        self._wanted.intersection_update(hosts)
        self._known = {host: found for host, found in self._known.items() if host in hosts}

    async def run(self, on_change: Callable[[], None]) -> None:
        """Look hosts up until cancelled; `on_change` follows when an answer differs."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            if await self._refresh():
                on_change()
            try:
                async with asyncio.timeout(self._refresh_s):
                    await self._asked.wait()
            except TimeoutError:
                if self._wanted:
                    self._asked.set()

    async def _refresh(self) -> bool:
        places = asyncio.Semaphore(LOOK_UPS_MAX)
        return any(
            await asyncio.gather(*(self._ask(host, places) for host in sorted(self._wanted)))
        )

    async def _ask(self, host: str, places: asyncio.Semaphore) -> bool:
        """Look a host up; say whether the answer is another one."""
        async with places:
            found = await self._answer(host)
        if not found or host not in self._wanted or found == self._known.get(host):
            return False
        self._known[host] = found
        return True

    async def _answer(self, host: str) -> list[str]:
        """Ask in a thread of its own, which nobody has to wait for."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[str]] = loop.create_future()

        def take(found: list[str]) -> None:
            if not answer.done():
                answer.set_result(found)

        def ask() -> None:
            found = self._look_up(host)
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(take, found)

        threading.Thread(target=ask, name=f"resolve {host}", daemon=True).start()
        return await answer


def look_up_host(host: str) -> list[str]:
    """Ask the system; an empty list when there is no answer. The order is stable."""
    try:
        answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    return sorted({str(answer[4][0]) for answer in answers})
