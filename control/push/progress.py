"""How far one sidecar is: which revision of each type it has confirmed, and what is under way.

A session knows what it would send; this remembers what that means for an operator. A type is STALE
from the moment a change is known until the sidecar has answered all of it.

Does not do: talk, or decide what is sent.

Invariants: a type is SYNCED only if nothing of it is unsent or unanswered.

Tests: tests/control/push/test_status.py.
"""

from __future__ import annotations

from collections.abc import Iterable

from meshfast.control.push.status import State, TypeStatus, refused, text
from meshfast.discovery import TYPES, Push, Revision, ServerSession

__all__ = ["Progress"]


class Progress:
    """The progress of one stream, beside its session."""

    def __init__(self, session: ServerSession) -> None:
        """Start with nothing subscribed."""
        self._session = session
        self._subscribed: set[str] = set()
        self._pushed: dict[str, Push] = {}
        self._confirmed: dict[str, Revision] = {}
        self._changed: set[str] = set()

    def subscribed(self, type: str) -> None:
        """The sidecar has asked for resources of the type."""
        if type in TYPES:
            self._subscribed.add(type)
            self._changed.add(type)

    def changed(self, types: Iterable[str]) -> None:
        """The view has changed."""
        self._changed.update(self._subscribed.intersection(types))

    def pushed(self, push: Push) -> None:
        """A push goes out."""
        self._pushed[push.type] = push

    def answered(self, type: str) -> None:
        """The push that was outstanding is answered."""
        self._confirmed[type] = self._pushed[type].revision
        if self._pushed[type].complete:
            self._changed.discard(type)

    def settle(self, revision: Revision) -> None:
        """Everything that may be sent is out: when nothing is under way, all is up to date."""
        if all(self._session.outstanding(type) is None for type in self._subscribed):
            self._changed.clear()
            self._confirmed |= dict.fromkeys(self._subscribed, revision)

    def synced(self) -> Revision | None:
        """The newest revision of which everything was confirmed; `None` before the first."""
        found = [self._confirmed.get(type) for type in self._subscribed]
        known = [revision for revision in found if revision is not None]
        return min(known) if known and len(known) == len(found) else None

    def types(self) -> dict[str, TypeStatus]:
        """Show every type that is subscribed to."""
        problems = self._session.refused()
        return {
            type: TypeStatus(
                state=self._state(type, type in problems),
                revision=text(self._confirmed.get(type)),
                refused=refused(problems.get(type, {})),
            )
            for type in TYPES
            if type in self._subscribed
        }

    def _state(self, type: str, has_problems: bool) -> State:
        if has_problems:
            return "NACK"
        waits = type in self._changed or self._session.outstanding(type) is not None
        return "STALE" if waits else "SYNCED"
