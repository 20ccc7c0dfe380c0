"""What the sidecars of one namespace see: the bodies of a translation with their versions.

Resources are shared objects, and a body that did not change keeps the one it had, so that versions
are computed once per change and not once per sidecar.

Tests: tests/control/push/test_view.py.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from meshfast.control.translate.translation import Bodies
from meshfast.discovery import TYPES, Resource, Revision, content_version

__all__ = ["NamespaceView"]


class NamespaceView:
    """A `discovery.View` at one revision. Not changed after it was made."""

    def __init__(
        self, revision: Revision, bodies: Bodies, before: NamespaceView | None = None
    ) -> None:
        """Version the bodies; `before` is the view that this one replaces."""
        self.revision = revision
        self._resources = {
            type: {
                name: _resource(name, body, None if before is None else before.resource(type, name))
                for name, body in bodies[type].items()
            }
            for type in TYPES
        }

    def names(self, type: str) -> Collection[str]:
        """All names of a type."""
        return self._resources[type].keys()

    def resource(self, type: str, name: str) -> Resource | None:
        """Look one up."""
        return self._resources[type].get(name)

    def changes(self, before: NamespaceView) -> Mapping[str, list[str]]:
        """Name what differs from an earlier view, by type."""
        found: dict[str, list[str]] = {}
        for type, mine in self._resources.items():
            theirs = before._resources[type]
            differing = [name for name, one in mine.items() if theirs.get(name) is not one]
            differing += [name for name in theirs if name not in mine]
            if differing:
                found[type] = differing
        return found


def _resource(name: str, body: bytes, before: Resource | None) -> Resource:
    if before is not None and before.body == body:
        return before
    return Resource(name, content_version(body), body)
