"""How many a second: a bucket of tokens per key, refilled as time passes.

Does not do: wait. Whoever gets nothing is refused and comes back later.

Invariants:
1. Over any time t while it is remembered no key takes more than `burst + per_s * t`.
2. Memory is bounded: at most `KEYS_MAX` keys; when there are more, those that are full again go
   first (forgetting a full bucket changes nothing), then those that were used longest ago.

Tests: tests/control/ca/test_rate.py.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

__all__ = ["KEYS_MAX", "Rates"]

KEYS_MAX: Final = 65_536


class Rates:
    """Buckets by key. May be called from any thread."""

    def __init__(
        self,
        per_s: float,
        burst: int,
        *,
        clock_s: Callable[[], float] = time.monotonic,
        keys_max: int = KEYS_MAX,
    ) -> None:
        """Let each key take `burst` at once and `per_s` a second from then on."""
        self._per_s = per_s
        self._burst = burst
        self._clock_s = clock_s
        self._keys_max = keys_max
        self._guard = threading.Lock()
        # Key → (tokens, when they were counted), least recently used first.
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        """Count the keys that are remembered."""
        return len(self._buckets)

    def take(self, key: str) -> bool:
        """Take one; `False` when there is none left."""
        with self._guard:
            now = self._clock_s()
            left, then = self._buckets.get(key, (float(self._burst), now))
            left = min(self._burst, left + (now - then) * self._per_s)
            taken = left >= 1
            self._buckets[key] = (left - 1 if taken else left, now)
            self._buckets.move_to_end(key)
            if len(self._buckets) > self._keys_max:
                self._forget(now)
        return taken

    def _forget(self, now: float) -> None:
        full_again_s = self._burst / self._per_s
        while self._buckets:
            key, (_, then) = next(iter(self._buckets.items()))
            if len(self._buckets) <= self._keys_max and now - then < full_again_s:
                return
            del self._buckets[key]
