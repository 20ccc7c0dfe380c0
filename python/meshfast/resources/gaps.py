"""What of a document could not be read, so that the rest is judged and nothing false is said of it.

A resource with a wrong field is decoded all the same, with something in the place of what is
wrong: a default, or a stand-in that is like nothing else. The paths of those places are its gaps.
Whoever looks at such a resource asks whether what a finding rests on is whole; a problem *at* a gap
is made as a `Doubtful` one and dropped by `certain`, because the gap itself was reported.

Invariant: a resource with gaps comes with a problem for each of them, so it is never served.

Tests: tests/core/test_gaps.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from meshfast.errors import Problem

__all__ = ["Doubtful", "Gaps", "certain"]


@dataclass(frozen=True, slots=True)
class Doubtful(Problem):
    """A problem at a place that could not be read: it may only follow from that."""


@dataclass(frozen=True, slots=True)
class Gaps:
    """Paths that could not be read, as they are written in problems."""

    places: frozenset[str] = frozenset()
    around: frozenset[str] = frozenset()  # every path that leads to one of them

    @classmethod
    def at(cls, places: Iterable[str]) -> Gaps:
        """Take the paths; the empty one is the whole document."""
        found = frozenset(places)
        return cls(found, frozenset(way for place in found for way in _ways_to(place)))

    def hide(self, path: str) -> bool:
        """Tell whether what stands at the path is not what was written."""
        if not self.places:
            return False
        return path in self.places or any(way in self.places for way in _ways_to(path))

    def touch(self, path: str) -> bool:
        """Tell whether it, or something below it, is not what was written."""
        return path in self.around or self.hide(path)


def certain(problems: Iterable[Problem]) -> list[Problem]:
    """Leave out what may only follow from something that was reported."""
    return [problem for problem in problems if not isinstance(problem, Doubtful)]


def _ways_to(path: str) -> Iterator[str]:
    """Give the paths of everything around a path; a name with a dot is taken for two."""
    for at, character in enumerate(path):
        if character in ".[":
            yield path[:at]
    if path:
        yield ""
