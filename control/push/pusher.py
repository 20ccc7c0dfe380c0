"""From a change in the store to every stream: watch, debounce, translate once, notify.

Does not do: sending (each stream does, at its own pace), judging.

Invariants:
1. A namespace's view is made once per change, however many sidecars it has.
2. A change that cannot be translated changes nothing: the last good views stay, and it is logged.
3. Revoking ends streams at once, without debounce.

Tests: tests/control/push/test_pusher.py.
"""

from __future__ import annotations

import asyncio
import logging

from meshfast.control.push.debounce import Debounce
from meshfast.control.push.mesh import Mesh
from meshfast.control.push.resolver import Resolver
from meshfast.control.push.streams import Streams
from meshfast.control.push.view import NamespaceView
from meshfast.control.translate import Translation
from meshfast.discovery import Revision
from meshfast.errors import MeshfastError

__all__ = ["Pusher"]

log = logging.getLogger(__name__)


class Pusher:
    """The one task that turns changes into views. Belongs to one event loop."""

    def __init__(
        self,
        mesh: Mesh,
        resolver: Resolver,
        *,
        debounce: Debounce | None = None,
    ) -> None:
        """Translate what is there now. `resolver` is asked for the hosts of ServiceEntries."""
        self._mesh = mesh
        self._resolver = resolver
        self._debounce = debounce or Debounce()
        self._woken = asyncio.Event()
        self._views: dict[str, NamespaceView] = {}
        self.translation = self._translate()
        self._revision = mesh.revision
        self.pushes = 0

    @property
    def revision(self) -> Revision:
        """The revision that sidecars are brought to."""
        return self._revision

    def view(self, namespace: str) -> NamespaceView:
        """Give what the sidecars of a namespace see."""
        found = self._views.get(namespace)
        if found is None:
            found = NamespaceView(self._revision, self.translation.bodies(namespace))
            self._views[namespace] = found
        return found

    def note(self) -> None:
        """Something outside the store has changed: a name resolves to other addresses."""
        self._debounce.note(asyncio.get_running_loop().time())
        self._woken.set()

    async def run(self, streams: Streams) -> None:
        """Watch and push until cancelled."""
        loop = asyncio.get_running_loop()
        watched, readings = self._mesh.fileno(), self._mesh.readings

        def readable() -> None:
            nonlocal watched, readings
            if self._mesh.poll():
                self.note()
                streams.end_revoked()
            if self._mesh.readings != readings:
                # Everything was read again. The number of the new descriptor may be the old one's,
                # which the kernel has forgotten with it.
                loop.remove_reader(watched)
                watched, readings = self._mesh.fileno(), self._mesh.readings
                loop.add_reader(watched, readable)

        loop.add_reader(watched, readable)
        try:
            while True:
                await self._wait(loop)
                self._debounce.take()
                self._push(streams)
        finally:
            loop.remove_reader(watched)

    async def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        """Return when a push is due."""
        while True:
            due_s = self._debounce.due_s()
            if due_s is None:
                self._woken.clear()
                await self._woken.wait()
                continue
            left_s = due_s - loop.time()
            if left_s <= 0:
                return
            await asyncio.sleep(left_s)

    def _push(self, streams: Streams) -> None:
        try:
            self.translation = self._translate()
        except MeshfastError as error:
            log.error("not translated, the last good configuration stays: %s", error)
            return
        self._revision = self._mesh.revision
        self.pushes += 1
        wanted = {stream.namespace for stream in streams}
        self._views = {
            namespace: NamespaceView(self._revision, self.translation.bodies(namespace), before)
            for namespace, before in self._views.items()
            if namespace in wanted
        }
        for stream in streams:
            stream.notify(self.view(stream.namespace))

    def _translate(self) -> Translation:
        resources = [stored.loaded for _, stored in sorted(self._mesh.resources.items())]
        asked: set[str] = set()

        def resolve(host: str) -> list[str]:
            asked.add(host)
            return self._resolver.addresses(host)

        mesh = self._mesh
        translation = Translation(resources, mesh.workloads(), resolve, mesh.services())
        self._resolver.keep(asked)
        return translation
