"""Gateways to listeners: which address serves which VirtualService under which domains.

Servers with one bind address and port are one listener, whichever Gateway they stand in. On a
listener a domain belongs to one VirtualService: a second one is refused with both places, because
the order of a file is no way to decide between them.

Tests: tests/core/test_golden.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from meshfast.errors import Problem
from meshfast.policy import names
from meshfast.policy.document import Listener, TcpRoute, VirtualHost, Workload
from meshfast.policy.index import Entry, Index, nearest
from meshfast.policy.routes import Router, takes_port
from meshfast.resources.kinds import (
    ForwardProxy,
    Gateway,
    Protocol,
    Server,
    VirtualService,
    VirtualServiceSpec,
)

__all__ = ["build_listeners", "stands_for"]

ANY_ADDRESS = "0.0.0.0"
_WILDCARDS = (ANY_ADDRESS, "[::]")


@dataclass(frozen=True, slots=True)
class _Place:
    """A server and where it stands."""

    gateway: Entry[Gateway]
    position: int

    @property
    def server(self) -> Server:
        return self.gateway.resource.spec.servers[self.position]

    def path(self, *rest: str | int) -> tuple[str | int, ...]:
        return ("spec", "servers", self.position, *rest)

    def problem(self, message: str, *rest: str | int, hint: str = "") -> Problem:
        return self.gateway.origin.problem(message, *self.path(*rest), hint=hint)

    def is_whole(self, *rest: str | int) -> bool:
        return self.gateway.origin.is_whole(*self.path(*rest))

    def domain(self, host: str, namespace: str) -> Iterator[str]:
        """Give the domains under which a host of a VirtualService is served here."""
        for server_host in self.server.hosts:
            scope, slash, pattern = server_host.rpartition("/")
            scope = self.gateway.namespace if scope == "." else scope
            if slash and scope not in ("*", namespace):
                continue
            domain = names.intersection(pattern, host)
            if domain is not None:
                yield domain


@dataclass(slots=True)
class _Bound:
    """An address and the servers on it; all have the protocol of the first."""

    address: str
    port: int
    places: list[_Place] = field(default_factory=list)
    hosts: dict[str, str] = field(default_factory=dict)  # as written → where

    @property
    def protocol(self) -> Protocol:
        return self.places[0].server.port.protocol


def build_listeners(index: Index, router: Router) -> tuple[tuple[Listener, ...], list[Problem]]:
    """Build the listeners of all gateways and forward proxies, and find what is wrong with them."""
    builder = _Builder(index, router)
    builder.bind_gateways()
    builder.bind_virtual_services()
    listeners = [builder.listener(bound) for bound in builder.bound.values()]
    listeners += builder.forward_proxies()
    is_nothing = not index.gateways and not index.forward_proxies
    if is_nothing and not router.unread:
        problem = Problem("nothing to serve: there is no Gateway and no ForwardProxy")
        builder.problems.append(problem)
    return tuple(listeners), builder.problems


def stands_for(edge: Gateway | ForwardProxy) -> Workload:
    """Name the workload that telemetry shows for what a resource has a proxy listen on."""
    metadata = edge.metadata
    return names.workload(metadata.labels, metadata.namespace, metadata.name)


class _Builder:
    """Holds what is bound so far, and the problems."""

    def __init__(self, index: Index, router: Router) -> None:
        self.index = index
        self.router = router
        self.problems: list[Problem] = []
        self.bound: dict[str, _Bound] = {}
        # Address family and port → ip → where it is written.
        self._taken: dict[str, dict[str, str]] = {}
        # Gateway → VirtualService → entry, by full names.
        self._served: dict[str, dict[str, Entry[VirtualService]]] = {}
        # Gateways, by full names, that miss TCP routes of which a problem says why.
        self._routed_amiss: set[str] = set()

    def bind_gateways(self) -> None:
        """Group servers by address; refuse what cannot share one."""
        for gateway in self.index.gateways.values():
            for position in range(len(gateway.resource.spec.servers)):
                self._bind(_Place(gateway, position))

    def _bind(self, place: _Place) -> None:
        if not place.is_whole("port") or not place.is_whole("bind"):
            return  # what it would be bound to is not known
        port = place.server.port
        address = names.socket_address(place.server.bind or ANY_ADDRESS, port.number)
        bound = self.bound.get(address)
        if bound is None:
            where = place.gateway.origin.place(*place.path("port", "number"))
            complaint = self._take(address, where)
            if complaint is not None:
                message, hint = complaint
                self.problems.append(place.problem(message, "port", "number", hint=hint))
                return
            bound = self.bound[address] = _Bound(address, port.number)
        bound.places.append(place)
        self._check_protocol(place, bound)
        self._check_hosts(place, bound)

    def _take(self, address: str, where: str) -> tuple[str, str] | None:
        """Note that an address is bound; message and hint when another listener is in its way."""
        ip, _, port = address.rpartition(":")
        family = "[" if ip.startswith("[") else ""
        others = self._taken.setdefault(f"{family}:{port}", {})
        for other, first in others.items():
            if ip in (other, *_WILDCARDS) or other in _WILDCARDS:
                message = f"{address} and {other}:{port} cannot both be bound"
                return message, f"the first is at {first}"
        others[ip] = where
        return None

    def _check_protocol(self, place: _Place, bound: _Bound) -> None:
        first = bound.places[0]
        mine, theirs = place.server.port.protocol, bound.protocol
        if mine is not theirs:
            message = f"{bound.address} has the protocol {theirs.value}, not {mine.value}"
            where = first.gateway.origin.place(*first.path("port", "protocol"))
            hint = f"the first is at {where}"
            self.problems.append(place.problem(message, "port", "protocol", hint=hint))

    def _check_hosts(self, place: _Place, bound: _Bound) -> None:
        for at, host in enumerate(place.server.hosts):
            where = place.gateway.origin.place(*place.path("hosts", at))
            first = bound.hosts.setdefault(host, where)
            if first != where:
                message = f"the host {host!r} is served on {bound.address} twice"
                hint = f"the first is at {first}"
                self.problems.append(place.problem(message, "hosts", at, hint=hint))

    def bind_virtual_services(self) -> None:
        """Find the gateways of each VirtualService and check that they serve its hosts."""
        for entry in self.index.virtual_services:
            self.router.check(entry)
            wanted = [name for name in entry.resource.spec.gateways if name != "mesh"]
            if not wanted:
                message = "the VirtualService names no Gateway, so nothing here serves it"
                hint = "`mesh`, the default, stands for sidecars, which are not supported yet"
                self._refuse(entry, self.index.gateways, message, "spec", "gateways", hint=hint)
            for position, name in enumerate(entry.resource.spec.gateways):
                if name != "mesh":
                    self._bind_virtual_service(entry, position, name)
            self._check_ports(entry)

    def _check_ports(self, entry: Entry[VirtualService]) -> None:
        """Refuse conditions on ports that are not there, and TCP routes that nothing can reach."""
        gateways = [name for name, served in self._served.items() if entry.full_name in served]
        ports = {
            server.port.number: server.port.protocol
            for name in gateways
            for server in self.index.gateways[name].resource.spec.servers
        }
        are_read = all(_has_all(self.index.gateways[name], "port") for name in gateways)
        if not ports or not are_read or "Gateway" in self.router.unread:
            return
        for protocol, path, port in _match_ports(entry.resource.spec):
            if port is not None and ports.get(port) is not protocol:
                message = f"no {protocol.value} server of its gateways has the port {port}"
                self._refuse(entry, gateways, message, *path, "port")
        reached: dict[int, int] = {}  # port → the first route for it
        for position, route in enumerate(entry.resource.spec.tcp):
            mine = [port for port, protocol in ports.items() if protocol is Protocol.TCP]
            mine = [port for port in mine if takes_port(route, port)]
            first = [reached.setdefault(port, position) for port in mine]
            if mine and position not in first:
                message = "the route is never reached"
                where = entry.origin.place("spec", "tcp", first[0])
                hint = f"the route at {where} takes its connections"
                path = ("spec", "tcp", position)
                self.problems.append(entry.origin.problem(message, *path, hint=hint))

    def _bind_virtual_service(self, entry: Entry[VirtualService], position: int, name: str) -> None:
        full_name = name if "/" in name else f"{entry.namespace}/{name}"
        gateway = self.index.gateways.get(full_name)
        is_placed = entry.origin.is_whole("metadata", "namespace")  # where short names resolve
        if gateway is None and (not is_placed or "Gateway" in self.router.unread):
            return
        if gateway is None:
            message = f"there is no Gateway {full_name}"
            hint = nearest(full_name, self.index.gateways, "gateways")
            path = ("spec", "gateways", position)
            self._refuse(entry, self.index.gateways, message, *path, hint=hint)
            return
        self._served.setdefault(full_name, {})[entry.full_name] = entry
        places = [_Place(gateway, at) for at in range(len(gateway.resource.spec.servers))]
        if not is_placed or not _has_all(gateway, "port") or not _has_all(gateway, "hosts"):
            return
        spec = entry.resource.spec
        for protocol, routes in ((Protocol.HTTP, spec.http), (Protocol.TCP, spec.tcp)):
            if not routes:
                continue
            server = f"{protocol.value} server of the Gateway {full_name}"
            mine = [place for place in places if place.server.port.protocol is protocol]
            if not mine:
                message = f"there is no {server}"
                self._refuse(entry, [full_name], message, "spec", protocol.value.lower())
                continue
            for at, host in enumerate(spec.hosts):
                if not any(list(place.domain(host, entry.namespace)) for place in mine):
                    message = f"no {server} serves the host {host!r}"
                    self._refuse(entry, [full_name], message, "spec", "hosts", at)

    def _refuse(
        self,
        entry: Entry[VirtualService],
        gateways: Iterable[str],
        message: str,
        *path: str | int,
        hint: str = "",
    ) -> None:
        """Refuse where a VirtualService is to be served, at what may be one of these gateways."""
        self.problems.append(entry.origin.problem(message, *path, hint=hint))
        if entry.resource.spec.tcp:
            self._routed_amiss.update(gateways)

    def listener(self, bound: _Bound) -> Listener:
        """Build one listener with everything that is served on it.

        Where several Gateways share an address it stands for the first of them.
        """
        is_tcp = bound.protocol is Protocol.TCP
        return Listener(
            name=f"gateway/{bound.address}",
            direction="gateway",
            protocol="TCP" if is_tcp else "HTTP",
            virtual_hosts=() if is_tcp else tuple(self._virtual_hosts(bound)),
            tcp_routes=tuple(self._tcp_routes(bound)) if is_tcp else (),
            workload=stands_for(bound.places[0].gateway.resource),
        )

    def _virtual_services(self, bound: _Bound) -> dict[str, Entry[VirtualService]]:
        merged: dict[str, Entry[VirtualService]] = {}
        for place in bound.places:
            merged |= self._served.get(place.gateway.full_name, {})
        return merged

    def _domains(self, bound: _Bound, entry: Entry[VirtualService]) -> dict[str, int]:
        """Give the domains of a VirtualService on a listener, and which of its hosts they are."""
        domains: dict[str, int] = {}
        for place in bound.places:
            if entry.full_name in self._served.get(place.gateway.full_name, {}):
                for at, host in enumerate(entry.resource.spec.hosts):
                    for domain in place.domain(host, entry.namespace):
                        domains.setdefault(domain, at)
        return domains

    def _virtual_hosts(self, bound: _Bound) -> Iterator[VirtualHost]:
        owners: dict[str, tuple[Entry[VirtualService], int]] = {}
        for entry in self._virtual_services(bound).values():
            domains = self._domains(bound, entry)
            if not entry.resource.spec.http or not domains:
                continue
            for domain, at in domains.items():
                first, first_at = owners.setdefault(domain, (entry, at))
                if first is not entry:
                    message = f"the host {domain!r} on {bound.address} is routed twice"
                    place = first.origin.place("spec", "hosts", first_at)
                    path = ("spec", "hosts", at)
                    hint = f"the first is at {place}"
                    self.problems.append(entry.origin.problem(message, *path, hint=hint))
            routes = tuple(self.router.http_routes(entry, bound.port))
            yield VirtualHost(name=entry.full_name, domains=tuple(domains), routes=routes)

    def _tcp_routes(self, bound: _Bound) -> Iterator[TcpRoute]:
        """Give the one route of a TCP listener: without TLS nothing tells connections apart."""
        first: Entry[VirtualService] | None = None
        for entry in self._virtual_services(bound).values():
            route = self.router.tcp_route(entry, bound.port)
            if route is None or not self._domains(bound, entry):
                continue
            if first is None:
                first = entry
                yield route
                continue
            message = f"the connections to {bound.address} are routed twice"
            hint = f"the first is at {first.origin.place('spec', 'tcp')}"
            self.problems.append(entry.origin.problem(message, "spec", "tcp", hint=hint))
        are_read = all(
            place.is_whole("hosts") and place.gateway.origin.is_named for place in bound.places
        )
        is_read = are_read and "VirtualService" not in self.router.unread
        served_by = {place.gateway.full_name for place in bound.places}
        if first is None and is_read and not served_by & self._routed_amiss:
            message = f"no VirtualService has a tcp route for {bound.address}"
            self.problems.append(bound.places[0].problem(message, "port"))

    def forward_proxies(self) -> Iterator[Listener]:
        """Build the listeners of the forward proxies."""
        for entry in self.index.forward_proxies:
            spec = entry.resource.spec
            address = names.socket_address(spec.bind, spec.port)
            is_read = entry.origin.is_whole("spec")
            complaint = self._take(address, entry.origin.place("spec", "port")) if is_read else None
            if complaint is not None:
                message, hint = complaint
                self.problems.append(entry.origin.problem(message, "spec", "port", hint=hint))
            yield Listener(
                name=f"outbound/{address}",
                direction="outbound",
                protocol="HTTP",
                forward_proxy=True,
                workload=stands_for(entry.resource),
            )


def _has_all(gateway: Entry[Gateway], part: str) -> bool:
    """Tell whether a part of every server of the gateway is what was written."""
    return gateway.origin.has_all(part, gateway.resource.spec.servers, "spec", "servers")


def _match_ports(
    spec: VirtualServiceSpec,
) -> Iterator[tuple[Protocol, tuple[str | int, ...], int | None]]:
    """Give the protocol, the path and the port of every condition."""
    for position, http_route in enumerate(spec.http):
        for at, http_match in enumerate(http_route.match):
            yield Protocol.HTTP, ("spec", "http", position, "match", at), http_match.port
    for position, tcp_route in enumerate(spec.tcp):
        for at, tcp_match in enumerate(tcp_route.match):
            yield Protocol.TCP, ("spec", "tcp", position, "match", at), tcp_match.port
