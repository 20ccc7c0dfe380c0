"""The virtual hosts of the outbound listener: every service under every spelling of its name.

A rule of a VirtualService replaces the default route of its host, as in Istio: what no rule takes
is answered 404. A service with several ports is routed by the port in the authority; without one,
the first port is meant. A service of the mesh is not called by ports that it does not have; the
host of a ServiceEntry is passed through by those, as if nobody had declared it. A condition on the
authority that a rule brings sees the port itself and is taken as written.

Invariants: a domain stands in one virtual host only; of two rules for a host the first by name
counts (`check` refuses the second one).

Tests: tests/control/translate/test_translation.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from msgspec.structs import replace

from meshfast.control.translate.hosts import Hosts, completed
from meshfast.policy import names
from meshfast.policy.document import Destination, HostPort, HttpRoute, Match, VirtualHost
from meshfast.policy.index import Entry
from meshfast.policy.routes import Router
from meshfast.resources.kinds import VirtualService

__all__ = ["Routed", "routed_hosts", "virtual_hosts"]

_DEFAULT = "default"
_SUFFIXES = ("", ".svc", ".svc.cluster.local")


@dataclass(frozen=True, slots=True)
class Routed:
    """A virtual host before its domains: those differ by who asks."""

    name: str
    service: str  # the short name; empty when there is none
    namespace: str
    pattern: str  # the domain, when there is no short name
    routes: tuple[HttpRoute, ...]
    ports: tuple[HostPort, ...]  # empty where any port will do
    external: bool

    def domains(self, namespace: str) -> Iterator[str]:
        """Give the spellings that a workload of the namespace may use."""
        if not self.service:
            yield self.pattern
            return
        if self.namespace == namespace:
            yield self.service
        for suffix in _SUFFIXES:
            yield f"{self.service}.{self.namespace}{suffix}"


def routed_hosts(hosts: Hosts) -> list[Routed]:
    """Compute all routes once; they are the same for everybody."""
    router = Router(hosts.index)
    rules: dict[str, Entry[VirtualService]] = {}
    written: dict[str, tuple[str, str]] = {}
    for rule in hosts.rules:
        if rule.resource.spec.http:
            for host in rule.resource.spec.hosts:
                key = names.service_key(host, rule.namespace)
                rules.setdefault(key, rule)
                written.setdefault(key, (host, rule.namespace))
    routed = []
    for key in sorted(hosts.served.keys() | rules.keys()):
        known = hosts.index.services.get(key) if key in hosts.served else None
        if known is not None:
            written[key] = (known.written, known.entry.namespace)
        mine = rules.get(key)
        ports = hosts.served.get(key, ())
        service = hosts.services.get(key)
        own = service.ports if service is not None else ()
        others = {port.number: port.others for port in own}
        if mine is None:
            assert known is not None, "a host without a rule is one that is served"
            routes = tuple(_default_routes(known.host, ports, others))
        else:
            routes = tuple(_ruled_routes(router, mine, hosts, ports or (0,), others))
        called = tuple(_host_ports(ports, others, known.host)) if known is not None else ()
        external = key in hosts.external
        routed.append(_routed(*written[key], mine, routes, called, external))
    return routed


def virtual_hosts(routed: list[Routed], namespace: str) -> tuple[VirtualHost, ...]:
    """Give what a workload of the namespace is sent."""
    taken: set[str] = set()
    found = []
    for host in routed:
        domains = tuple(one for one in host.domains(namespace) if one not in taken)
        taken.update(domains)
        if domains:
            found.append(
                VirtualHost(
                    name=host.name,
                    domains=domains,
                    routes=host.routes,
                    ports=host.ports,
                    external=host.external,
                )
            )
    return tuple(found)


def _routed(
    host: str,
    namespace: str,
    rule: Entry[VirtualService] | None,
    routes: tuple[HttpRoute, ...],
    ports: tuple[HostPort, ...],
    external: bool,
) -> Routed:
    service = names.service(host, namespace)
    short = "" if "." in service.name or "*" in host else service.name
    pattern = host.lower().removesuffix(".")
    name = rule.full_name if rule is not None else f"{service.namespace}/{service.name}"
    return Routed(name, short, service.namespace, pattern, routes, ports, external)


def _host_ports(
    ports: tuple[int, ...], others: Mapping[int, tuple[int, ...]], host: str
) -> Iterator[HostPort]:
    """Give the ports of a host by all their numbers, each with the cluster for what is not HTTP.

    The first is for callers of a service that name none.
    """
    for port in ports:
        cluster = names.cluster_name(port, host)
        for number in (port, *others.get(port, ())):
            yield HostPort(number=number, cluster=cluster)


def _default_routes(
    host: str, ports: tuple[int, ...], others: Mapping[int, tuple[int, ...]]
) -> Iterator[HttpRoute]:
    for port in (*ports[1:], ports[0]):
        first = port == ports[0]
        yield HttpRoute(
            name=_DEFAULT if first else f"{_DEFAULT}:{port}",
            matches=() if first else (_on_port(Match(), port, others),),
            timeout_ms=None,
            destinations=(Destination(cluster=names.cluster_name(port, host), weight=1),),
        )


def _ruled_routes(
    router: Router,
    rule: Entry[VirtualService],
    hosts: Hosts,
    ports: tuple[int, ...],
    others: Mapping[int, tuple[int, ...]],
) -> Iterator[HttpRoute]:
    """Give the rule's routes, for the other ports first: those are asked for by number."""
    for port in ports[1:]:
        for route in router.http_routes(completed(rule, hosts, port), port):
            matches = tuple(_on_port(match, port, others) for match in route.matches or (Match(),))
            yield replace(route, name=f"{route.name}:{port}", matches=matches)
    yield from router.http_routes(completed(rule, hosts, ports[0]), ports[0])


def _on_port(match: Match, port: int, others: Mapping[int, tuple[int, ...]]) -> Match:
    """Add the port, by each of its numbers, to what a match asks for."""
    if match.authority is not None:
        return match
    also = others.get(port, ())
    numbers = f"({'|'.join(map(str, (port, *also)))})" if also else port
    return replace(match, authority={"regex": f".*:{numbers}"})
