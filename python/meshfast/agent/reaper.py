"""The lines of workers that are gone and left no successor.

A worker that takes a slot over resets the gauges its predecessor left. A slot of a hot restart's
overlap may stay without a successor, and a worker killed while it drained would count its
connections and active requests there for ever. A line is reset when its process has been gone twice
in a row: a successor that is just starting does it itself.

Tests: tests/agent/test_reaper.py.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from meshfast.agent.loop import Loop
    from meshfast.telemetry.source import Source

__all__ = ["Reaper"]

LOOK_S = 1.0


class Reaper:
    """Looks once a second; reading a line costs microseconds."""

    def __init__(self, loop: Loop, source: Source) -> None:
        """Begin to look."""
        self._loop = loop
        self._source = source
        self._gone: set[tuple[int, int]] = set()
        self._look()

    def _look(self) -> None:
        self._loop.call_later(LOOK_S, self._look)
        gone = {
            (worker.slot, worker.pid)
            for worker in self._source.workers()
            if worker.state != "gone" and not os.path.exists(f"/proc/{worker.pid}")
        }
        for slot, pid in gone & self._gone:
            self._source.reap(slot, pid)
        self._gone = gone
