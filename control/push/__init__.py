"""Push: what changes in the store reaches every sidecar, and what each of them holds is known.

    Mesh        the state that sidecars see, read from the store and kept up by its watch
    Pusher      debounces changes, translates once, tells every stream
    Streams     all streams: one per sidecar instance, with who it is and what it holds
    Stream      one connection: authenticates, registers, pushes, renews
    SidecarStatus   what an operator is shown of one

Tests: tests/control/push/; over real sockets in tests/control/server/.
"""

from meshfast.control.push.mesh import RESOURCES_PREFIX, Mesh, resource_key
from meshfast.control.push.pusher import Pusher
from meshfast.control.push.status import SidecarStatus, TypeStatus
from meshfast.control.push.stream import Stream, StreamLimits
from meshfast.control.push.streams import Streams

__all__ = [
    "RESOURCES_PREFIX",
    "Mesh",
    "Pusher",
    "SidecarStatus",
    "Stream",
    "StreamLimits",
    "Streams",
    "TypeStatus",
    "resource_key",
]
