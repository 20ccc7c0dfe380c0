"""The snapshot document: what policy hands to the snapshot compiler, as structs and as JSON.

The layout is version 1 of the contract with `rust/mesh`, which reads it with unknown fields denied.
The structs only hold and encode; every decision is made in `meshfast.policy.compile` and, for what
the control plane sends in parts, in `meshfast.policy.sidecar`. A member that is UNSET is left out.

Invariants: a member that may be left out is UNSET also when it was null, so that what the snapshot
compiler describes is equal to the document that it was built from.

Tests: tests/core/test_golden.py, test_sidecar.py.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import msgspec
from msgspec import UNSET, UnsetType

__all__ = [
    "Abort",
    "Balancer",
    "Cluster",
    "ClusterTls",
    "Delay",
    "Destination",
    "Document",
    "Endpoint",
    "Fault",
    "Header",
    "HeaderEdits",
    "HostPort",
    "HttpRoute",
    "Listener",
    "ListenerTls",
    "Match",
    "NamedMatch",
    "Retry",
    "Service",
    "StringMatch",
    "TcpRoute",
    "Tracing",
    "VirtualHost",
    "Workload",
    "decode_document",
    "encode_document",
]

VERSION = 1

Balancer = Literal["LEAST_REQUEST", "RANDOM", "ROUND_ROBIN"]
Direction = Literal["gateway", "inbound", "outbound"]
Protocol = Literal["HTTP", "TCP"]

StringMatch = dict[str, str | bool]  # one entry: exact, prefix, regex (RE2, full match) or present


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the document: frozen, named arguments, closed against unknown fields."""


class _WithAbsent(_Part, frozen=True, kw_only=True):
    """A part with members that may be left out; null says the same as nothing."""

    absent: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        """Take null for nothing."""
        for name in self.absent:
            if getattr(self, name) is None:
                msgspec.structs.force_setattr(self, name, UNSET)


class Workload(_Part, frozen=True, kw_only=True):
    """One running instance, as the telemetry labels name it; an empty string is "unknown"."""

    name: str
    namespace: str
    app: str
    revision: str
    principal: str = ""


class Service(_Part, frozen=True, kw_only=True):
    """What an operator calls a cluster's service: its host, its name and its namespace."""

    host: str
    name: str
    namespace: str


class Endpoint(_WithAbsent, frozen=True, kw_only=True):
    """One address of a cluster; `0 <= slot < 4096`, `weight >= 1`.

    `port` is what the workload's sidecar is asked for; without it, the port in the cluster's name.
    """

    absent = ("port",)

    slot: int
    address: str
    weight: int
    workload: Workload
    port: int | UnsetType | None = UNSET


class ClusterTls(_Part, frozen=True, kw_only=True):
    """Mutual TLS with the principal of each endpoint's workload, and `meshfast/1` over it."""

    mode: Literal["ISTIO_MUTUAL"]


class ListenerTls(_Part, frozen=True, kw_only=True):
    """Mutual TLS and nothing else is accepted."""

    mode: Literal["STRICT"]


class Cluster(_WithAbsent, frozen=True, kw_only=True):
    """A named upstream: endpoints and how to choose among them; times in milliseconds."""

    absent = ("tls",)

    name: str
    service: Service
    subset: str
    balancer: Balancer
    connect_timeout_ms: int
    idle_timeout_ms: int
    endpoints: tuple[Endpoint, ...]
    tls: ClusterTls | UnsetType | None = UNSET


class Header(_Part, frozen=True, kw_only=True):
    """A header that is written as it is."""

    name: str
    value: str


class HeaderEdits(_Part, frozen=True, kw_only=True):
    """First `remove` takes all of a name away, then `set` replaces all, then `add` appends one."""

    set: tuple[Header, ...] = ()
    add: tuple[Header, ...] = ()
    remove: tuple[str, ...] = ()


class Destination(_WithAbsent, frozen=True, kw_only=True):
    """A cluster and its part of the traffic: weight / sum of the weights.

    A destination of a TCP route has no header edits.
    """

    absent = ("request_headers", "response_headers")

    cluster: str
    weight: int
    request_headers: HeaderEdits | UnsetType | None = UNSET
    response_headers: HeaderEdits | UnsetType | None = UNSET


class Retry(_Part, frozen=True, kw_only=True):
    """When a request is sent again, `1 + attempts` times in all; times in milliseconds.

    `per_try_timeout_ms` 0 is none. `on` names conditions, `statuses` status codes of the endpoint.
    """

    attempts: int
    per_try_timeout_ms: int
    on: tuple[str, ...]
    statuses: tuple[int, ...]
    backoff_ms: int
    avoid_tried: bool


class Delay(_Part, frozen=True, kw_only=True):
    """A share of the requests waits."""

    fixed_ms: int
    parts_per_million: int


class Abort(_Part, frozen=True, kw_only=True):
    """A share of the requests is answered at once; calls of gRPC with `grpc_status`, if any."""

    status: int
    grpc_status: int | None
    parts_per_million: int


class Fault(_Part, frozen=True, kw_only=True):
    """Faults on purpose; the delay comes before the abort."""

    delay: Delay | None
    abort: Abort | None


class NamedMatch(_Part, frozen=True, kw_only=True):
    """A condition on one header or query parameter; `invert` turns the answer round."""

    name: str
    match: StringMatch
    invert: bool = False


class Match(_Part, frozen=True, kw_only=True):
    """Conditions that must all hold; None means that nothing is asked of that part."""

    uri: StringMatch | None = None
    ignore_uri_case: bool = False
    method: StringMatch | None = None
    scheme: StringMatch | None = None
    authority: StringMatch | None = None
    headers: tuple[NamedMatch, ...] = ()
    query_params: tuple[NamedMatch, ...] = ()


class HttpRoute(_WithAbsent, frozen=True, kw_only=True):
    """The first route of a virtual host with a match that holds is taken; no matches = always.

    Without `retry` the default of the mesh holds.
    """

    absent = ("retry", "fault", "request_headers", "response_headers")

    name: str
    matches: tuple[Match, ...]
    timeout_ms: int | None
    destinations: tuple[Destination, ...]
    retry: Retry | UnsetType | None = UNSET
    fault: Fault | UnsetType | None = UNSET
    request_headers: HeaderEdits | UnsetType | None = UNSET
    response_headers: HeaderEdits | UnsetType | None = UNSET


class HostPort(_Part, frozen=True, kw_only=True):
    """A port of a service, and the cluster for bytes that are not HTTP."""

    number: int
    cluster: str


class VirtualHost(_Part, frozen=True, kw_only=True):
    """The routes for some domains; a domain occurs once per listener.

    With `ports` it is a service, called by no other ones; the first is for callers that name none.
    An `external` one is no service of the mesh: by other ports it is a host that nobody knows.
    """

    name: str
    domains: tuple[str, ...]
    routes: tuple[HttpRoute, ...]
    ports: tuple[HostPort, ...] = ()
    external: bool = False


class TcpRoute(_Part, frozen=True, kw_only=True):
    """Where the connections of a TCP listener go."""

    name: str
    destinations: tuple[Destination, ...]


class Listener(_WithAbsent, frozen=True, kw_only=True):
    """One bound address; `name` is the direction, a slash, and the address to bind.

    `credential_sha256` is the hash, in hexadecimal digits, of the base64 text that callers have to
    send in `Proxy-Authorization: Basic`. `workload` is whom the listener stands for, when that is
    not the document's workload.
    """

    absent = ("tls", "credential_sha256", "workload")

    name: str
    direction: Direction
    protocol: Protocol
    forward_proxy: bool = False
    virtual_hosts: tuple[VirtualHost, ...] = ()
    tcp_routes: tuple[TcpRoute, ...] = ()
    tls: ListenerTls | UnsetType | None = UNSET
    credential_sha256: str | UnsetType | None = UNSET
    workload: Workload | UnsetType | None = UNSET

    @property
    def address(self) -> str:
        """The address to bind: `ip:port` or `[ip6]:port`."""
        return self.name.partition("/")[2]


class Tracing(_Part, frozen=True, kw_only=True):
    """Spans are recorded; of the traces that begin here this share, 0 to 1,000,000, is sampled."""

    sampling_parts_per_million: int


class Document(_WithAbsent, frozen=True, kw_only=True):
    """Everything that workers need to know of one generation."""

    absent = ("tracing",)

    version: int = VERSION
    generation: int
    workload: Workload
    listeners: tuple[Listener, ...]
    clusters: tuple[Cluster, ...]
    access_log_disabled: bool = False
    tracing: Tracing | UnsetType | None = UNSET


def encode_document(document: Document) -> bytes:
    """Encode as JSON, the same bytes for the same document."""
    return msgspec.json.encode(document)


def decode_document(data: bytes) -> Document:
    """Decode what `encode_document` wrote; raises msgspec.ValidationError on anything else."""
    return msgspec.json.decode(data, type=Document)
