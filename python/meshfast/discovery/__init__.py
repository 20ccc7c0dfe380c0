"""The verbs between control plane and sidecar: subscribe, push, ack, nack. Sans-I/O.

`messages` is the language, `framer` its bytes, `client` and `server` the two ends as state
machines; `revision` numbers what they speak about. Nothing here opens a socket or reads a clock.

`server` and `token` are imported when they are used: an agent is no server, and a token's checks
come with YAML, which would cost it 2.3 MB.
"""

from importlib import import_module

from meshfast.discovery.client import ClientSession, ClientState
from meshfast.discovery.error import Code, DiscoveryError
from meshfast.discovery.framer import FRAME_BYTES_MAX, Encoding, Framer
from meshfast.discovery.messages import (
    PROTOCOL_VERSION,
    TYPES,
    WILDCARD,
    Ack,
    CertificateRequest,
    CertificateResponse,
    FromClient,
    FromServer,
    Goodbye,
    Heartbeat,
    Hello,
    Message,
    Nack,
    Node,
    Port,
    Problem,
    Push,
    Reference,
    Registration,
    Resource,
    Status,
    Subscribe,
    Unsubscribe,
    Welcome,
)
from meshfast.discovery.revision import ORIGIN, Revision, content_version

TYPE_CHECKING = False
if TYPE_CHECKING:
    from meshfast.discovery.server import ServerSession, ServerState, View
    from meshfast.discovery.token import JoinToken, TokenError

__all__ = [
    "FRAME_BYTES_MAX",
    "ORIGIN",
    "PROTOCOL_VERSION",
    "TYPES",
    "WILDCARD",
    "Ack",
    "CertificateRequest",
    "CertificateResponse",
    "ClientSession",
    "ClientState",
    "Code",
    "DiscoveryError",
    "Encoding",
    "Framer",
    "FromClient",
    "FromServer",
    "Goodbye",
    "Heartbeat",
    "Hello",
    "JoinToken",
    "Message",
    "Nack",
    "Node",
    "Port",
    "Problem",
    "Push",
    "Reference",
    "Registration",
    "Resource",
    "Revision",
    "ServerSession",
    "ServerState",
    "Status",
    "Subscribe",
    "TokenError",
    "Unsubscribe",
    "View",
    "Welcome",
    "content_version",
]

_HOMES = {
    "JoinToken": "meshfast.discovery.token",
    "ServerSession": "meshfast.discovery.server",
    "ServerState": "meshfast.discovery.server",
    "TokenError": "meshfast.discovery.token",
    "View": "meshfast.discovery.server",
}


def __getattr__(name: str) -> object:
    """Import what is asked for from its home (PEP 562)."""
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return getattr(import_module(home), name)
