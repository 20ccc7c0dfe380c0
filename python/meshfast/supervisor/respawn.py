"""When a dead child may be replaced: at once, unless it keeps dying.

Times are arguments (monotonic seconds), so the tests need no clock. Ten deaths within ten seconds
start a back-off that doubles from 100 ms to 5 s; it ends when a replacement has lived for ten
seconds. Tests: tests/supervisor/test_respawn.py.
"""

from __future__ import annotations

__all__ = ["Respawn"]

DEATHS_MAX = 10
WINDOW_S = 10.0
DELAY_S_MIN = 0.1
DELAY_S_MAX = 5.0


class Respawn:
    """The deaths of one child's post. `not_before` is when the next one may start.

    `boot_deaths` counts the deaths since a child of this post last became ready.
    """

    __slots__ = ("_deaths", "boot_deaths", "delay_s", "not_before")

    def __init__(self) -> None:
        """Begin with a clean record."""
        self._deaths: list[float] = []
        self.delay_s = 0.0
        self.not_before = 0.0
        self.boot_deaths = 0

    def on_ready(self) -> None:
        """Forget failed boots: one has succeeded."""
        self.boot_deaths = 0

    def on_death(self, now: float, was_ready: bool) -> None:
        """Record a death that nobody asked for and set `not_before`."""
        if not was_ready:
            self.boot_deaths += 1
        if self.delay_s and now - self.not_before >= WINDOW_S:
            self.delay_s = 0.0
            self._deaths.clear()
        self._deaths = [death for death in self._deaths if death > now - WINDOW_S]
        self._deaths.append(now)
        if self.delay_s:
            self.delay_s = min(2 * self.delay_s, DELAY_S_MAX)
        elif len(self._deaths) >= DEATHS_MAX:
            self.delay_s = DELAY_S_MIN
        self.not_before = now + self.delay_s

    def hold(self, now: float) -> None:
        """Wait the longest delay: the cause will not go away by itself."""
        self.delay_s = DELAY_S_MAX
        self.not_before = now + self.delay_s
