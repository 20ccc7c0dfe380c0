"""A sidecar's snapshot document: what the control plane sends in parts, and what the host knows.

The control plane sends fragments by type and name (`cluster`, `endpoint`, `listener`, `route`),
each a piece of the document in JSON. The host adds the inbound listener to the application's port,
the TCP listeners of `--upstream`, and the addresses to bind. `compose` puts both together; `apply`
takes changes of fragments as a transaction: what is refused keeps its last good version together
with all that it needs, and everything else goes through.

    apply(sidecar, held, changes, …) -> Applied    the next resources, the document, the refusals

Does not do: speaking to the control plane, writing files, publishing. Slots and the snapshot
compiler are arguments.

Invariants:
1. A document that comes out was built by the snapshot compiler: workers cannot refuse it.
2. A refused fragment never keeps another one of the same offer out, unless that one names it.
3. New endpoints for which there are no slots are refused, the largest sets first: whoever registers
   very many keeps out nobody but itself.
4. A removal is never refused. What a kept route still needs stays, privately, until nothing does.

Tests: tests/core/test_sidecar.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import msgspec
from msgspec import UNSET, UnsetType

from meshfast.errors import ConfigError
from meshfast.policy import names
from meshfast.policy.document import (
    Cluster,
    Destination,
    Document,
    Endpoint,
    HttpRoute,
    Listener,
    ListenerTls,
    Service,
    TcpRoute,
    Tracing,
    VirtualHost,
    Workload,
    encode_document,
)
from meshfast.policy.slots import SlotAllocator, SlotsError

__all__ = [
    "Applied",
    "Change",
    "Held",
    "Refusal",
    "Sidecar",
    "SidecarEndpoint",
    "Upstream",
    "apply",
    "compose",
]

CLUSTER, ENDPOINT, LISTENER, ROUTE = "cluster", "endpoint", "listener", "route"
OUTBOUND = "outbound"

CONNECT_TIMEOUT_MS = 10_000  # Istio's default connectTimeout
IDLE_TIMEOUT_MS = 3_000  # below the keep-alive of common servers; Linkerd's default

_PATH = re.compile(
    r"(?:clusters\[(?P<cluster>\d+)\](?P<endpoint>\.endpoints\[\d+\])?"
    r"|listeners\[(?P<listener>\d+)\](?:\.virtual_hosts\[(?P<host>\d+)\])?)"
)


class Upstream(msgspec.Struct, frozen=True, kw_only=True):
    """`--upstream NAME=ADDR:PORT`: `service` as a host, `listener` as `outbound/ADDR:PORT`.

    `port` is the service's, 0 for the only one it has.
    """

    service: str
    listener: str
    port: int = 0


class Sidecar(msgspec.Struct, frozen=True, kw_only=True):
    """What the host knows: who the application is, and where it and the listeners are.

    `inbound` and `outbound` are names of listeners, `principal` is the SPIFFE id. Callers name
    `service_port`, 0 for the application's own; it names the inbound cluster.
    """

    service: str
    namespace: str
    workload: str
    principal: str
    app_port: int
    inbound: str
    outbound: str
    service_port: int = 0
    labels: dict[str, str] = {}
    upstreams: tuple[Upstream, ...] = ()
    credential_sha256: str | None = None
    access_log_disabled: bool = False
    tracing: Tracing | None = None


class SidecarEndpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An endpoint as the control plane sends it: without slot, with what it knows of its health.

    `port` is the workload's own, which may be another one than the service's.
    """

    address: str
    weight: int
    workload: Workload
    healthy: bool = True
    port: int | UnsetType = UNSET


#: type → name → body.
Held = dict[str, dict[str, bytes]]


class Change(msgspec.Struct, frozen=True):
    """New or changed fragments of one type (name → body), and the names that are gone."""

    type: str
    bodies: dict[str, bytes]
    removed: frozenset[str] = frozenset()


class Refusal(msgspec.Struct, frozen=True):
    """A fragment that is not taken; `waits_for` names the cluster that is missing, if any is."""

    type: str
    name: str
    reason: str
    waits_for: str = ""


class Applied(msgspec.Struct, frozen=True):
    """The outcome: what is held from now on, what of it privately, the snapshot, the refusals."""

    held: Held
    private: frozenset[tuple[str, str]]
    document: Document
    blob: bytes
    refusals: tuple[Refusal, ...]


class _Parts(msgspec.Struct):
    """Fragments, decoded."""

    clusters: dict[str, Cluster] = {}
    endpoints: dict[str, tuple[SidecarEndpoint, ...]] = {}
    listeners: dict[str, Listener] = {}
    routes: dict[str, tuple[VirtualHost, ...]] = {}


_DECODERS: dict[str, msgspec.json.Decoder[object]] = {
    CLUSTER: msgspec.json.Decoder(Cluster),
    ENDPOINT: msgspec.json.Decoder(tuple[SidecarEndpoint, ...]),
    LISTENER: msgspec.json.Decoder(Listener),
    ROUTE: msgspec.json.Decoder(tuple[VirtualHost, ...]),
}


def compose(
    sidecar: Sidecar,
    held: Mapping[str, Mapping[str, bytes]],
    *,
    generation: int,
    allocator: SlotAllocator,
) -> Document:
    """Put fragments and local facts together. The fragments have been decoded before.

    Raises SlotsError when the endpoints do not fit into the slots.
    """
    parts = _decode_all(held)
    inbound = _inbound_cluster(sidecar)
    placeholders = _placeholders(sidecar, parts.clusters)
    clusters = {**parts.clusters, **placeholders, inbound.name: inbound}
    endpoints = {name: _usable(parts.endpoints.get(name, ())) for name in sorted(parts.clusters)}
    endpoints[inbound.name] = (
        SidecarEndpoint(
            address=f"127.0.0.1:{sidecar.app_port}", weight=1, workload=_workload(sidecar)
        ),
    )
    keys = [(name, one.address) for name, found in endpoints.items() for one in found]
    slots = allocator.assign(keys, generation)
    return Document(
        generation=generation,
        workload=_workload(sidecar),
        listeners=(
            _outbound_listener(sidecar, parts),
            _inbound_listener(sidecar, inbound.name),
            *(_upstream_listener(one, clusters, sidecar) for one in sidecar.upstreams),
        ),
        clusters=tuple(
            msgspec.structs.replace(
                cluster,
                endpoints=tuple(
                    Endpoint(
                        slot=slots[name, one.address],
                        address=one.address,
                        weight=one.weight,
                        workload=one.workload,
                        port=one.port,
                    )
                    for one in endpoints.get(name, ())
                ),
            )
            for name, cluster in sorted(clusters.items())
        ),
        access_log_disabled=sidecar.access_log_disabled,
        tracing=sidecar.tracing,
    )


def apply(
    sidecar: Sidecar,
    held: Held,
    private: frozenset[tuple[str, str]],
    changes: Iterable[Change],
    *,
    generation: int,
    allocator: SlotAllocator,
    build: Callable[[bytes], bytes],
) -> Applied:
    """Take changes; `held` and `private` are what the last call gave, and are left alone.

    `build` is `meshfast._core.Snapshot.build`. Raises ConfigError when even what is held does not
    build, which is a bug of ours or a full slot table.
    """
    offer = _Offer(held, private, changes)
    while True:
        offer.settle_references()
        document = None
        try:
            document = compose(sidecar, offer.next, generation=generation, allocator=allocator)
            blob = build(encode_document(document))
        except SlotsError as error:
            if not offer.refuse_beyond(allocator, str(error)):
                raise
            continue
        except ConfigError as error:
            if not offer.refuse_for(error, document):
                raise
            continue
        return Applied(
            held=offer.next,
            private=frozenset(offer.private),
            document=document,
            blob=blob,
            refusals=tuple(offer.refusals.values()),
        )


class _Offer:
    """Changes under judgement: `next` is what would be held, `fresh` what is new in it."""

    def __init__(
        self, held: Held, private: frozenset[tuple[str, str]], changes: Iterable[Change]
    ) -> None:
        self._held = held
        self.private: set[tuple[str, str]] = set()
        self.refusals: dict[tuple[str, str], Refusal] = {}
        self.fresh: set[tuple[str, str]] = set()
        self.next: Held = {
            type: {
                name: body
                for name, body in held.get(type, {}).items()
                if (type, name) not in private
            }
            for type in _DECODERS
        }
        for change in changes:
            self._take(change)

    def _take(self, change: Change) -> None:
        for name, body in change.bodies.items():
            try:
                fragment = _DECODERS[change.type].decode(body)
            except (KeyError, msgspec.DecodeError) as error:
                reason = str(error) if change.type in _DECODERS else "unknown type"
                self._refuse(change.type, name, reason)
                continue
            if isinstance(fragment, Cluster) and fragment.name != name:
                self._refuse(change.type, name, f"the cluster in it is called {fragment.name!r}")
                continue
            self.fresh.add((change.type, name))
            self.next[change.type][name] = body
        for name in change.removed:
            self.next.get(change.type, {}).pop(name, None)

    def settle_references(self) -> None:
        """Refuse new routes to clusters that are not there; keep what kept routes need."""
        for name in sorted(self.next[ROUTE]):
            missing = self._missing(name)
            if missing and (ROUTE, name) in self.fresh:
                reason = f"no cluster is called {missing[0]!r}"
                self._revert(ROUTE, name, reason, missing[0])
                missing = self._missing(name)
            for cluster in missing:
                self._keep(CLUSTER, cluster)
                self._keep(ENDPOINT, cluster)

    def refuse_for(self, error: ConfigError, document: Document | None) -> bool:
        """Refuse what the compiler complains about, or all that is new; False if nothing is new."""
        culprits: dict[tuple[str, str], str] = {}
        for problem in error.problems:
            culprit = None if document is None else self._culprit(problem.message, document)
            if culprit in self.fresh:
                culprits.setdefault(culprit, str(problem))
        if not culprits:
            culprits = dict.fromkeys(self.fresh, str(error))
        for (type, name), reason in culprits.items():
            self._revert(type, name, reason)
        return bool(culprits)

    def refuse_beyond(self, allocator: SlotAllocator, reason: str) -> bool:
        """Refuse new endpoints that do not fit; False if there are none."""
        room = allocator.free - 1  # one is for the application itself
        needs: list[tuple[int, str]] = []
        for name in self.next[ENDPOINT].keys() & self.next[CLUSTER].keys():
            need = self._slots_needed(name, allocator)
            if (ENDPOINT, name) in self.fresh:
                needs.append((need, name))
            else:
                room -= need
        beyond = []
        for need, name in sorted(needs):
            if need > max(room, 0):
                beyond.append(name)
            room -= need
        for name in beyond:
            self._revert(ENDPOINT, name, reason)
        return bool(beyond)

    def _slots_needed(self, name: str, allocator: SlotAllocator) -> int:
        body = self.next[ENDPOINT][name]
        found = _usable(msgspec.json.decode(body, type=tuple[SidecarEndpoint, ...]))
        addresses = {one.address for one in found}
        return sum(not allocator.owns((name, address)) for address in addresses)

    def _missing(self, route: str) -> list[str]:
        body = self.next[ROUTE].get(route)
        if body is None:
            return []
        hosts = msgspec.json.decode(body, type=tuple[VirtualHost, ...])
        wanted = {
            destination.cluster
            for host in hosts
            for one in host.routes
            for destination in one.destinations
        }
        wanted |= {port.cluster for host in hosts for port in host.ports}
        return sorted(wanted - self.next[CLUSTER].keys())

    def _culprit(self, message: str, document: Document) -> tuple[str, str] | None:
        found = _PATH.match(message)
        if found is None:
            return None
        if found["cluster"] is not None:
            name = document.clusters[int(found["cluster"])].name
            return (ENDPOINT if found["endpoint"] else CLUSTER), name
        if int(found["listener"]) != 0:
            return None
        if found["host"] is None:
            return LISTENER, OUTBOUND
        return ROUTE, self._route_of(int(found["host"]))

    def _route_of(self, host: int) -> str:
        """Name the route fragment that the virtual host at this place came from."""
        for name in sorted(self.next[ROUTE]):
            hosts = msgspec.json.decode(self.next[ROUTE][name], type=tuple[VirtualHost, ...])
            if host < len(hosts):
                return name
            host -= len(hosts)
        raise AssertionError("the document has the virtual hosts of the routes")

    def _keep(self, type: str, name: str) -> None:
        body = self._held.get(type, {}).get(name)
        if body is not None and name not in self.next[type]:
            self.next[type][name] = body
            self.private.add((type, name))

    def _revert(self, type: str, name: str, reason: str, waits_for: str = "") -> None:
        self._refuse(type, name, reason, waits_for)
        self.fresh.discard((type, name))
        self.next[type].pop(name, None)
        body = self._held.get(type, {}).get(name)
        if body is not None:
            self.next[type][name] = body

    def _refuse(self, type: str, name: str, reason: str, waits_for: str = "") -> None:
        self.refusals[type, name] = Refusal(type, name, reason, waits_for)


def _decode_all(held: Mapping[str, Mapping[str, bytes]]) -> _Parts:
    decoded = {
        type: {name: decoder.decode(body) for name, body in held.get(type, {}).items()}
        for type, decoder in _DECODERS.items()
    }
    return _Parts(
        clusters=decoded[CLUSTER],  # type: ignore[arg-type]
        endpoints=decoded[ENDPOINT],  # type: ignore[arg-type]
        listeners=decoded[LISTENER],  # type: ignore[arg-type]
        routes=decoded[ROUTE],  # type: ignore[arg-type]
    )


def _usable(endpoints: tuple[SidecarEndpoint, ...]) -> tuple[SidecarEndpoint, ...]:
    """Only healthy ones, unless none is: then any may have come back (Envoy's panic mode)."""
    return tuple(one for one in endpoints if one.healthy) or endpoints


def _workload(sidecar: Sidecar) -> Workload:
    named = names.workload(sidecar.labels, sidecar.namespace, sidecar.workload)
    app = named.app if named.app != sidecar.workload else sidecar.service
    return msgspec.structs.replace(named, app=app, principal=sidecar.principal)


def _outbound_listener(sidecar: Sidecar, parts: _Parts) -> Listener:
    listener = parts.listeners.get(OUTBOUND) or Listener(
        name=OUTBOUND, direction="outbound", protocol="HTTP", forward_proxy=True
    )
    hosts = [host for _, hosts in sorted(parts.routes.items()) for host in hosts]
    credential = sidecar.credential_sha256 or UNSET
    return msgspec.structs.replace(
        listener,
        name=sidecar.outbound,
        virtual_hosts=tuple(hosts),
        credential_sha256=credential,
    )


def _inbound_cluster(sidecar: Sidecar) -> Cluster:
    return Cluster(
        name=f"inbound|{sidecar.service_port or sidecar.app_port}||",
        service=Service(
            host=f"{sidecar.service}.{sidecar.namespace}",
            name=sidecar.service,
            namespace=sidecar.namespace,
        ),
        subset="",
        balancer="LEAST_REQUEST",
        connect_timeout_ms=CONNECT_TIMEOUT_MS,
        idle_timeout_ms=IDLE_TIMEOUT_MS,
        endpoints=(),
    )


def _inbound_listener(sidecar: Sidecar, cluster: str) -> Listener:
    route = HttpRoute(
        name="default",
        matches=(),
        timeout_ms=None,
        destinations=(Destination(cluster=cluster, weight=1),),
    )
    return Listener(
        name=sidecar.inbound,
        direction="inbound",
        protocol="HTTP",
        virtual_hosts=(VirtualHost(name=cluster, domains=("*",), routes=(route,)),),
        tls=ListenerTls(mode="STRICT"),
    )


def _upstream_listener(
    upstream: Upstream, clusters: Mapping[str, Cluster], sidecar: Sidecar
) -> Listener:
    cluster = _find(upstream, clusters, sidecar) or _placeholder_name(upstream, sidecar)
    route = TcpRoute(
        name=f"upstream/{upstream.service}",
        destinations=(Destination(cluster=cluster, weight=1),),
    )
    return Listener(
        name=upstream.listener, direction="outbound", protocol="TCP", tcp_routes=(route,)
    )


def _find(upstream: Upstream, clusters: Mapping[str, Cluster], sidecar: Sidecar) -> str | None:
    """Name the cluster of the upstream's service: of its port, or the first one by name."""
    wanted = names.service_key(upstream.service, sidecar.namespace)
    for name, cluster in sorted(clusters.items()):
        direction, _, rest = name.partition("|")
        port = rest.partition("|")[0]
        key = names.service_key(cluster.service.host, cluster.service.namespace)
        if (
            direction == "outbound"
            and key == wanted
            and not cluster.subset
            and (not upstream.port or port == str(upstream.port))
        ):
            return name
    return None


def _placeholder_name(upstream: Upstream, sidecar: Sidecar) -> str:
    host = names.qualified(upstream.service, sidecar.namespace)
    return names.cluster_name(upstream.port, host)


def _placeholders(sidecar: Sidecar, clusters: Mapping[str, Cluster]) -> dict[str, Cluster]:
    """Clusters without endpoints for upstreams that nobody serves: connects to them are reset."""
    found = {}
    for upstream in sidecar.upstreams:
        if _find(upstream, clusters, sidecar) is None:
            name = _placeholder_name(upstream, sidecar)
            found[name] = Cluster(
                name=name,
                service=names.service(upstream.service, sidecar.namespace),
                subset="",
                balancer="LEAST_REQUEST",
                connect_timeout_ms=CONNECT_TIMEOUT_MS,
                idle_timeout_ms=IDLE_TIMEOUT_MS,
                endpoints=(),
            )
    return found
