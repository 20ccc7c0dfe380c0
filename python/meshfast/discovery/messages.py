"""The verbs between control plane and sidecar, as data. Isomorphic to delta-ADS.

| here | delta-ADS |
|---|---|
| `Hello.held` | `initial_resource_versions` of the first request of each type |
| `Subscribe`, `Unsubscribe` | `resource_names_subscribe`, `…_unsubscribe`; `*` likewise |
| `Push.resources`, `removed`, `nonce` | `resources`, `removed_resources`, `nonce` |
| `Push.revision` | `system_version_info` |
| `Ack` | a request with `response_nonce` and no `error_detail` |
| `Nack` | the same with `error_detail`; the names in `problems` have no field there |

What differs from Envoy's meaning: a nack refuses the named resources only, and all others of that
push are applied. (xDS refuses the push as a whole in form, and most of it in practice.) A removal
cannot be refused; what a kept resource still needs is kept by the agent, privately.

What this module does not do: say when a message may be sent (client.py, server.py), turn messages
into bytes (framer.py), or give bodies a meaning: a body is bytes, encoded once for all subscribers.

Growing without breaking, the rule:
1. `Hello` offers the highest protocol version that the sidecar speaks, `Welcome` answers with the
   highest one that both speak. A control plane speaks all versions from 1 to its own.
2. A field may be added if it has a default and may be ignored. Unknown fields are ignored by an
   older peer. Whatever must be understood raises the version.
3. A message type raises the version; an unknown one is refused, by name, and the stream ends.
4. No field changes its meaning or type, ever. `Revision` is an array and is complete.

Invariants: every text, list and map has a bound, named in this module and checked at decoding.

Tests: tests/discovery/test_messages.py.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from meshfast.discovery.revision import Revision

__all__ = [
    "PROTOCOL_VERSION",
    "TYPES",
    "WILDCARD",
    "Ack",
    "CertificateRequest",
    "CertificateResponse",
    "FromClient",
    "FromServer",
    "Goodbye",
    "Heartbeat",
    "Hello",
    "Message",
    "Nack",
    "Node",
    "Port",
    "Problem",
    "Push",
    "Reference",
    "Registration",
    "Resource",
    "Status",
    "Subscribe",
    "Unsubscribe",
    "Welcome",
]

PROTOCOL_VERSION = 1

#: The types of resources in the order of make-before-break: each may refer to those before it.
#: The order is that of Envoy's ADS; a route that comes before its cluster answers 503 NC.
TYPES = ("cluster", "endpoint", "listener", "route")

#: Subscribes to every resource of a type that the node may see.
WILDCARD = "*"

#: A Kubernetes name has 253 characters, a cluster name joins direction, port, subset and host.
NAME_CHARACTERS_MAX = 512
#: Enough for one sentence and a path; a reason is shown in one line of a table.
REASON_CHARACTERS_MAX = 1024
VERSION_CHARACTERS_MAX = 64
#: As many names as fit the frame limit with room: 16 MiB / 100,000 = 167 bytes each.
NAMES_MAX = 100_000
#: Kubernetes has no limit below 256 KiB of annotations; more than this is a mistake.
LABELS_MAX = 64
PORTS_MAX = 64
#: An RSA-4096 request with a SPIFFE name has 1.7 KiB; beyond this something is wrong.
CSR_BYTES_MAX = 8 << 10
#: A leaf for an RSA-4096 key has 1.2 KiB; a request with both fits a stranger's frame of 16 KiB.
PREVIOUS_BYTES_MAX = 4 << 10
CERTIFICATE_BYTES_MAX = 64 << 10
CERTIFICATES_MAX = 32
#: The store's limit of a value, four times: a translated resource joins several of them.
BODY_BYTES_MAX = 4 << 20

#: JSON readers keep integers exactly up to 2^53 (RFC 8259 §6), and the twin is JSON.
Count = Annotated[int, Meta(ge=0, lt=1 << 53)]
Name = Annotated[str, Meta(min_length=1, max_length=NAME_CHARACTERS_MAX)]
Text = Annotated[str, Meta(max_length=REASON_CHARACTERS_MAX)]
Version = Annotated[str, Meta(min_length=1, max_length=VERSION_CHARACTERS_MAX)]
Names = Annotated[list[Name], Meta(max_length=NAMES_MAX)]
Labels = Annotated[dict[Name, Text], Meta(max_length=LABELS_MAX)]
Versions = Annotated[dict[Name, Version], Meta(max_length=NAMES_MAX)]
Certificate = Annotated[bytes, Meta(max_length=CERTIFICATE_BYTES_MAX)]
Certificates = Annotated[list[Certificate], Meta(max_length=CERTIFICATES_MAX)]


class _Tagged(Struct, frozen=True, tag_field="kind"):
    """A message: its name travels under `kind`, beside its fields."""


class Node(Struct, frozen=True):
    """What a sidecar says about itself. Claims: the server believes the TLS identity only.

    `instance` is unique per running sidecar, so that two of one workload can be told apart.
    """

    instance: Name
    workload: Name
    namespace: Name
    labels: Labels = {}


class Resource(Struct, frozen=True):
    """A named body and the hash of its bytes (`content_version`)."""

    name: Name
    version: Version
    body: Annotated[bytes, Meta(max_length=BODY_BYTES_MAX)]


class Reference(Struct, frozen=True):
    """Names a resource of some type."""

    type: Name
    name: Name


class Problem(Struct, frozen=True):
    """Why one resource was refused.

    `waits_for` is set when the resource is right in itself and only another one is missing or
    refused: it is offered again, unchanged, once that other one has been applied or removed.
    """

    name: Name
    reason: Text
    waits_for: Reference | None = None


class Port(Struct, frozen=True):
    """A port that a workload serves. `protocol` is in Istio's words: http, http2, grpc, tcp."""

    number: Annotated[int, Meta(ge=1, le=65535)]
    name: Text = ""
    protocol: Text = ""


# From the sidecar.


class Hello(_Tagged, frozen=True, tag="hello"):
    """Opens the stream. `held` is type → name → version of what the sidecar serves with.

    `revision` is the newest that it has seen, `None` when it starts with nothing. `generation`
    is the snapshot that its workers run, for the operator's view.
    """

    version: Annotated[int, Meta(ge=1, lt=1 << 16)]
    node: Node
    held: Annotated[dict[Name, Versions], Meta(max_length=LABELS_MAX)] = {}
    revision: Revision | None = None
    generation: Count = 0


class Subscribe(_Tagged, frozen=True, tag="subscribe"):
    """Asks for resources of a type, by name or all with `WILDCARD`. Adds to what was asked."""

    type: Name
    names: Names


class Unsubscribe(_Tagged, frozen=True, tag="unsubscribe"):
    """Takes names back. The sidecar has forgotten them already; nothing is sent for it."""

    type: Name
    names: Names


class Ack(_Tagged, frozen=True, tag="ack"):
    """Every resource of the push is applied: all workers serve with it."""

    type: Name
    nonce: Count


class Nack(_Tagged, frozen=True, tag="nack"):
    """The named resources keep what they were; all others of the push are applied."""

    type: Name
    nonce: Count
    problems: Annotated[list[Problem], Meta(min_length=1, max_length=NAMES_MAX)]


class CertificateRequest(_Tagged, frozen=True, tag="certificate_request"):
    """A PKCS #10 request in DER. The key stays where it is. `id` pairs request and response.

    On a stream without a client certificate it is the only message that is taken, with the name of
    the instance that joins and either the id and the secret of a join token or, in `previous`, the
    certificate that it had (DER): one that expired not long ago, for the key of the request. With a
    client certificate it renews for the same identity, and these fields are left out.
    """

    id: Count
    csr: Annotated[bytes, Meta(max_length=CSR_BYTES_MAX)]
    token_id: Text = ""
    token_secret: Text = ""
    instance: Text = ""
    previous: Annotated[bytes, Meta(max_length=PREVIOUS_BYTES_MAX)] = b""

    def __repr__(self) -> str:
        """Render without the secret: a message that is refused may be written to a log."""
        return f"CertificateRequest(id={self.id}, token_id={self.token_id!r})"


class Registration(_Tagged, frozen=True, tag="registration"):
    """A workload runs here, or (`ports` empty) does no longer. Replaces what was said before."""

    workload: Name
    namespace: Name
    service: Name
    address: Name
    ports: Annotated[list[Port], Meta(max_length=PORTS_MAX)]
    labels: Labels = {}
    healthy: bool = False


class Status(_Tagged, frozen=True, tag="status"):
    """What the data plane does: the generation that all workers run, and its state in a word."""

    generation: Count
    state: Name
    detail: Text = ""


# From the control plane.


class Welcome(_Tagged, frozen=True, tag="welcome"):
    """Answers `Hello` with the protocol version of the stream and the pace of heartbeats."""

    version: Annotated[int, Meta(ge=1, lt=1 << 16)]
    heartbeat_ms: Annotated[int, Meta(ge=100, le=600_000)] = 10_000


class Push(_Tagged, frozen=True, tag="push"):
    """Resources that are new or changed, and names that are gone.

    Also names that were asked for and do not exist are in `removed`, so that their absence is
    known. `nonce` grows over the stream. `complete`: nothing more of this type is waiting, so the
    sidecar holds all it asked for at `revision`; a large set comes in several pushes. `subscribes`
    counts the `Subscribe` messages of this type that had arrived; each is answered, if only by an
    empty push, so that a sidecar knows when it holds what it asked for.
    """

    type: Name
    nonce: Count
    revision: Revision
    resources: Annotated[list[Resource], Meta(max_length=NAMES_MAX)] = []
    removed: Names = []
    complete: bool = True
    subscribes: Count = 0


class CertificateResponse(_Tagged, frozen=True, tag="certificate_response"):
    """A chain (leaf first) with the trust bundle, DER; or `refusal` and neither of them."""

    id: Count
    chain: Certificates = []
    bundle: Certificates = []
    refusal: Text = ""


# From both.


class Heartbeat(_Tagged, frozen=True, tag="heartbeat"):
    """The sender lives. From the server: all up to `revision` has been offered."""

    revision: Revision | None = None


class Goodbye(_Tagged, frozen=True, tag="goodbye"):
    """The last message: why the stream ends. `code` is one of `Code`, or `drain`."""

    code: Name
    detail: Text = ""


FromClient = (
    Hello
    | Subscribe
    | Unsubscribe
    | Ack
    | Nack
    | CertificateRequest
    | Registration
    | Status
    | Heartbeat
    | Goodbye
)
FromServer = Welcome | Push | CertificateResponse | Heartbeat | Goodbye
Message = FromClient | FromServer
