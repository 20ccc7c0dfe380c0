"""The kinds of resources, as frozen structs: the single source of their schema.

The names and meanings are Istio's (`networking.istio.io`), cut down to what meshfast serves: a
field that is missing here is refused by name, see `meshfast.resources.istio`. The structs give
types, ranges and required fields to `meshfast.resources.decode`, to the JSON Schema for editors,
and to whoever builds resources in Python. `text` names a check of `meshfast.resources.texts`.

Defaults are Istio's, with one exception that is a refusal: `ServiceEntry.resolution` is required,
since Istio's default NONE is not served yet.

Tests: tests/core/test_decode.py, test_golden.py; the schema in tests/core/test_schema.py.
"""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

__all__ = [
    "KINDS",
    "Abort",
    "Balancer",
    "Delay",
    "Destination",
    "DestinationRule",
    "DestinationRuleSpec",
    "ForwardProxy",
    "ForwardProxySpec",
    "Gateway",
    "GatewaySpec",
    "HTTPFaultInjection",
    "HTTPMatchRequest",
    "HTTPRetry",
    "HTTPRoute",
    "HTTPRouteDestination",
    "HeaderOperations",
    "Headers",
    "L4MatchAttributes",
    "LoadBalancerSettings",
    "Location",
    "Metadata",
    "Percent",
    "Port",
    "PortSelector",
    "Protocol",
    "Resolution",
    "Resource",
    "RouteDestination",
    "Server",
    "ServiceEntry",
    "ServiceEntrySpec",
    "ServicePort",
    "StringMatch",
    "Subset",
    "TCPRoute",
    "TrafficPolicy",
    "VirtualService",
    "VirtualServiceSpec",
    "WorkloadEntry",
    "WorkloadEntrySpec",
    "WorkloadSelector",
    "json_schema",
]

IstioVersion = Literal[
    "networking.istio.io/v1", "networking.istio.io/v1alpha3", "networking.istio.io/v1beta1"
]

UINT32_MAX = 2**32 - 1
INT32_MAX = 2**31 - 1


def _text(check: str, description: str) -> Any:
    """Mark a string that the named check of `meshfast.resources.texts` has to accept."""
    return Meta(description=description, extra={"text": check})


Address = Annotated[str, _text("address", "an IPv4 or IPv6 address")]
Attempts = Annotated[
    int, Meta(ge=0, le=100, description="retries after the first request; 0 turns retries off")
]
Bind = Annotated[str, _text("address", "the IP address to listen on; all of them without it")]
Duration = Annotated[str, _text("duration", "1h, 1m, 1s, 1ms, or sums such as 1m30s; 0s is off")]
EndpointAddress = Annotated[
    str, _text("endpoint_address", "an IP address, a host name (resolution DNS), or unix:///path")
]
FieldName = Annotated[str, _text("field_name", "a header name, in any case")]
FieldValue = Annotated[str, _text("field_value", "text for a header; %% is one %")]
GatewayName = Annotated[str, _text("gateway_name", "NAME or NAMESPACE/NAME of a Gateway; mesh")]
Host = Annotated[str, _text("host", "a DNS name")]
HostPattern = Annotated[str, _text("host_pattern", "a DNS name, *.SUFFIX, or *")]
GrpcStatus = Annotated[str, _text("grpc_status", "a status of gRPC by its name: UNAVAILABLE")]
HeaderName = Annotated[str, _text("header_name", "in lower case, as Istio asks")]
HttpStatus = Annotated[int, Meta(ge=200, le=599)]
Interval = Annotated[str, _text("interval", "1h, 1m, 1s, 1ms, or sums; at least 1ms")]
Labels = Annotated[dict[str, str], Meta(min_length=1, description="all of them have to match")]
Name = Annotated[str, _text("name", "a DNS name in lower case, as Kubernetes object names are")]
Namespace = Annotated[str, _text("label", "a DNS label, as Kubernetes namespaces are")]
Percentage = Annotated[float, Meta(ge=0, le=100, description="in per cent: 0.1 is 1 in 1000")]
PortName = Annotated[str, _text("label", "a DNS label")]
PortNumber = Annotated[int, Meta(ge=1, le=65535)]
RetryOn = Annotated[
    str, _text("retry_on", "conditions and status codes, with commas: gateway-error,reset,503")
]
ServerHost = Annotated[str, _text("server_host", "[NAMESPACE/]HOST; HOST may be * or *.SUFFIX")]
SubsetName = Annotated[str, _text("label", "a DNS label")]
Weight = Annotated[int, Meta(ge=0, le=INT32_MAX, description="share = weight / sum of weights")]


class Protocol(Enum):
    """What a port speaks; written in any case, as in Istio."""

    HTTP = "HTTP"
    TCP = "TCP"


class Balancer(Enum):
    """How one of several endpoints is chosen; LEAST_CONN is Istio's old word for LEAST_REQUEST."""

    LEAST_CONN = "LEAST_CONN"
    LEAST_REQUEST = "LEAST_REQUEST"
    RANDOM = "RANDOM"
    ROUND_ROBIN = "ROUND_ROBIN"


class Location(Enum):
    """Whether the service is part of the mesh; its endpoints are called in plain text anyway."""

    MESH_EXTERNAL = "MESH_EXTERNAL"
    MESH_INTERNAL = "MESH_INTERNAL"


class Resolution(Enum):
    """How the addresses of a service are found."""

    DNS = "DNS"
    STATIC = "STATIC"


class _Part(
    msgspec.Struct,
    forbid_unknown_fields=True,
    frozen=True,
    kw_only=True,
    omit_defaults=True,
    rename="camel",
):
    """A part of a resource: frozen, built by name, written without its defaults."""


class Metadata(_Part, frozen=True, kw_only=True):
    """Name, namespace and labels; annotations are kept and mean nothing."""

    name: Name
    namespace: Namespace = "default"
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


# Gateway


class Port(_Part, frozen=True, kw_only=True):
    """A port that a gateway listens on."""

    number: PortNumber
    name: PortName
    protocol: Protocol


class Server(_Part, frozen=True, kw_only=True):
    """A port and the hosts served on it."""

    port: Port
    hosts: Annotated[tuple[ServerHost, ...], Meta(min_length=1)]
    bind: Bind = ""
    name: str = ""


class GatewaySpec(_Part, frozen=True, kw_only=True):
    """The servers of a gateway.

    `selector` chooses gateway workloads by label in a cluster. `meshfast proxy` is every gateway of
    its file, so it is accepted with any value.
    """

    servers: Annotated[tuple[Server, ...], Meta(min_length=1)]
    selector: dict[str, str] = {}


class Gateway(_Part, frozen=True, kw_only=True):
    """Ports at the edge of the mesh."""

    api_version: IstioVersion
    kind: Literal["Gateway"]
    metadata: Metadata
    spec: GatewaySpec


# VirtualService


class StringMatch(_Part, frozen=True, kw_only=True):
    """One of `exact`, `prefix`, `regex` (RE2 syntax, the whole string); none = is present."""

    exact: str | None = None
    prefix: str | None = None
    regex: str | None = None


class HTTPMatchRequest(_Part, frozen=True, kw_only=True):
    """Conditions on a request that must all hold. An empty header condition asks for presence."""

    name: str = ""
    uri: StringMatch | None = None
    scheme: StringMatch | None = None
    method: StringMatch | None = None
    authority: StringMatch | None = None
    headers: dict[HeaderName, StringMatch] = {}
    without_headers: dict[HeaderName, StringMatch] = {}
    query_params: dict[str, StringMatch] = {}
    ignore_uri_case: bool = False
    port: PortNumber | None = None


class PortSelector(_Part, frozen=True, kw_only=True):
    """A port of a service by its number."""

    number: PortNumber


class Destination(_Part, frozen=True, kw_only=True):
    """A service; a host without a dot is one of the namespace of the rule.

    `subset` is one of those that the DestinationRule of the host names.
    """

    host: Host
    port: PortSelector | None = None
    subset: SubsetName = ""


class HeaderOperations(_Part, frozen=True, kw_only=True):
    """Changes of headers: `set` replaces, `add` appends another, `remove` takes all away."""

    set: dict[FieldName, FieldValue] = {}
    add: dict[FieldName, FieldValue] = {}
    remove: tuple[FieldName, ...] = ()


class Headers(_Part, frozen=True, kw_only=True):
    """Changes on the way to the destination, and on the way back."""

    request: HeaderOperations | None = None
    response: HeaderOperations | None = None


class HTTPRouteDestination(_Part, frozen=True, kw_only=True):
    """A destination and its share of the requests, 0 if not given; a single one takes all."""

    destination: Destination
    weight: Weight | None = None
    headers: Headers | None = None


class HTTPRetry(_Part, frozen=True, kw_only=True):
    """When a request is sent again; requests in all = 1 + `attempts`.

    Whatever `retryOn` says, a method that is not idempotent (RFC 9110, section 9.2.2) is sent again
    only if the application cannot have seen it.
    """

    attempts: Attempts
    per_try_timeout: Duration | None = None
    retry_on: RetryOn = ""
    backoff: Interval | None = None
    retry_ignore_previous_hosts: bool = True


class Percent(_Part, frozen=True, kw_only=True):
    """A share of the requests."""

    value: Percentage = 0.0


class Delay(_Part, frozen=True, kw_only=True):
    """Requests wait; without `percentage` none does."""

    fixed_delay: Interval
    percentage: Percent | None = None


class Abort(_Part, frozen=True, kw_only=True):
    """Requests are answered at once; one of the statuses is given. 0 % without `percentage`."""

    http_status: HttpStatus | None = None
    grpc_status: GrpcStatus | None = None
    percentage: Percent | None = None


class HTTPFaultInjection(_Part, frozen=True, kw_only=True):
    """Faults on purpose, drawn independently; timeout and retries of the route are off with one."""

    delay: Delay | None = None
    abort: Abort | None = None


class HTTPRoute(_Part, frozen=True, kw_only=True):
    """Requests that match go to one of the destinations; the first route that matches wins.

    Without `retries`, 2 further attempts are made where nothing can have reached the application.
    """

    route: Annotated[tuple[HTTPRouteDestination, ...], Meta(min_length=1)]
    match: tuple[HTTPMatchRequest, ...] = ()
    name: str = ""
    timeout: Duration | None = None
    retries: HTTPRetry | None = None
    fault: HTTPFaultInjection | None = None
    headers: Headers | None = None


class L4MatchAttributes(_Part, frozen=True, kw_only=True):
    """Conditions on a connection."""

    port: PortNumber | None = None


class RouteDestination(_Part, frozen=True, kw_only=True):
    """A destination and its share of the connections, 0 if not given; a single one takes all."""

    destination: Destination
    weight: Weight | None = None


class TCPRoute(_Part, frozen=True, kw_only=True):
    """Connections that match go to one of the destinations."""

    route: Annotated[tuple[RouteDestination, ...], Meta(min_length=1)]
    match: tuple[L4MatchAttributes, ...] = ()


class VirtualServiceSpec(_Part, frozen=True, kw_only=True):
    """Hosts and where their traffic goes.

    A file may leave `hosts` out: the name of the resource is the host then, with a warning.
    """

    hosts: Annotated[tuple[HostPattern, ...], Meta(min_length=1)] = ()
    gateways: tuple[GatewayName, ...] = ()
    http: tuple[HTTPRoute, ...] = ()
    tcp: tuple[TCPRoute, ...] = ()


class VirtualService(_Part, frozen=True, kw_only=True):
    """Routing rules for hosts, bound to gateways."""

    api_version: IstioVersion
    kind: Literal["VirtualService"]
    metadata: Metadata
    spec: VirtualServiceSpec


# DestinationRule


class LoadBalancerSettings(_Part, frozen=True, kw_only=True):
    """How endpoints are chosen."""

    simple: Balancer


class TrafficPolicy(_Part, frozen=True, kw_only=True):
    """What holds for the connections to a destination."""

    load_balancer: LoadBalancerSettings | None = None


class Subset(_Part, frozen=True, kw_only=True):
    """The endpoints with all of the labels; `trafficPolicy` goes before that of the rule."""

    name: SubsetName
    labels: dict[str, str] = {}
    traffic_policy: TrafficPolicy | None = None


class DestinationRuleSpec(_Part, frozen=True, kw_only=True):
    """A host, what holds for it, and its subsets; a host has one rule."""

    host: Host
    traffic_policy: TrafficPolicy | None = None
    subsets: tuple[Subset, ...] = ()


class DestinationRule(_Part, frozen=True, kw_only=True):
    """Subsets of a service, and how an endpoint is chosen."""

    api_version: IstioVersion
    kind: Literal["DestinationRule"]
    metadata: Metadata
    spec: DestinationRuleSpec


# ServiceEntry


class ServicePort(_Part, frozen=True, kw_only=True):
    """A port of a service; `targetPort` is the port of the endpoints when it differs."""

    number: PortNumber
    name: PortName
    protocol: Protocol
    target_port: PortNumber | None = None


class WorkloadEntrySpec(_Part, frozen=True, kw_only=True):
    """One endpoint; `ports` gives another port number by the name of the service port."""

    address: EndpointAddress
    ports: dict[str, PortNumber] = {}
    labels: dict[str, str] = {}
    weight: Annotated[int, Meta(ge=1, le=UINT32_MAX)] = 1


class WorkloadEntry(_Part, frozen=True, kw_only=True):
    """An endpoint of the ServiceEntries of its namespace that select it.

    Its labels are those of the metadata and of the spec; the metadata go before.
    """

    api_version: IstioVersion
    kind: Literal["WorkloadEntry"]
    metadata: Metadata
    spec: WorkloadEntrySpec


class WorkloadSelector(_Part, frozen=True, kw_only=True):
    """Chooses WorkloadEntries of the same namespace."""

    labels: Labels


class ServiceEntrySpec(_Part, frozen=True, kw_only=True):
    """Hosts, their ports, and their endpoints, written here or selected."""

    hosts: Annotated[tuple[Host, ...], Meta(min_length=1)]
    ports: Annotated[tuple[ServicePort, ...], Meta(min_length=1)]
    resolution: Resolution
    location: Location = Location.MESH_EXTERNAL
    endpoints: tuple[WorkloadEntrySpec, ...] = ()
    workload_selector: WorkloadSelector | None = None


class ServiceEntry(_Part, frozen=True, kw_only=True):
    """A service by its hosts, ports and endpoints."""

    api_version: IstioVersion
    kind: Literal["ServiceEntry"]
    metadata: Metadata
    spec: ServiceEntrySpec


# ForwardProxy


class ForwardProxySpec(_Part, frozen=True, kw_only=True):
    """Where the forward proxy listens; only this machine reaches it unless `bind` says so."""

    port: PortNumber
    bind: Address = "127.0.0.1"


class ForwardProxy(_Part, frozen=True, kw_only=True):
    """An HTTP forward proxy: absolute-form requests and CONNECT go where they say."""

    api_version: Literal["meshfast.dev/v1"]
    kind: Literal["ForwardProxy"]
    metadata: Metadata
    spec: ForwardProxySpec


Resource = DestinationRule | ForwardProxy | Gateway | ServiceEntry | VirtualService | WorkloadEntry

KINDS: dict[str, type[Resource]] = {
    "DestinationRule": DestinationRule,
    "ForwardProxy": ForwardProxy,
    "Gateway": Gateway,
    "ServiceEntry": ServiceEntry,
    "VirtualService": VirtualService,
    "WorkloadEntry": WorkloadEntry,
}


def json_schema() -> dict[str, Any]:
    """Give the JSON Schema (2020-12) of one document of a configuration file, for editors."""
    schemas, components = msgspec.json.schema_components(
        tuple(KINDS.values()), ref_template="#/$defs/{name}"
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "meshfast resource",
        "oneOf": list(schemas),
        "$defs": components,
    }
