"""What destinations can name: services of the mesh and ServiceEntries, as one index for `policy`.

`policy` compiles rules against ServiceEntries. A registered service becomes one here, so that the
same code serves both. A destination that nobody serves now gets a port without endpoints: its share
is answered 503, as in Istio, until somebody registers, and a rule may be written before that.

Where a ServiceEntry has the host of a registered service, the service wins: its identity was
verified. (`check` refuses such a ServiceEntry when the service is there already.)

Tests: tests/control/translate/test_translation.py, test_check.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from meshfast.control.translate.services import MeshService
from meshfast.policy import names
from meshfast.policy.index import Entry, Index, ServiceHost, with_selected
from meshfast.resources import Loaded, Origin, kinds
from meshfast.resources.kinds import DestinationRule, ServiceEntry, VirtualService, WorkloadEntry
from meshfast.resources.nodes import Mapping as MappingNode

__all__ = ["Hosts", "completed", "destinations", "mesh_bound", "named_subsets"]

MESH: Final = "mesh"
#: Where a destination names no port, and nobody serves its host.
PORT_UNKNOWN: Final = 80
#: Of what was not written by anybody.
_NOWHERE: Final = Origin("", MappingNode(0, 0, {}, {}, 0, 0))


@dataclass(frozen=True, slots=True)
class Hosts:
    """All hosts by key. `index` has ports that rules name and nobody serves; `served` does not.

    `rules` are the VirtualServices for sidecars, in the order of their names. `index` has the
    DestinationRules and WorkloadEntries, too.
    """

    index: Index
    served: Mapping[str, tuple[int, ...]]
    external: Mapping[str, ServiceHost]
    services: Mapping[str, MeshService]
    rules: Sequence[Entry[VirtualService]]

    @classmethod
    def of(cls, resources: Sequence[Loaded], services: Mapping[str, MeshService]) -> Hosts:
        """Join resources and services."""
        by_name = sorted(resources, key=_full_name)
        rules_of_hosts, other_rules, workloads = _rules_and_workloads(by_name)
        external = _external(by_name, services, workloads)
        rules = [
            Entry(item.resource, item.origin)
            for item in by_name
            if isinstance(item.resource, VirtualService) and mesh_bound(item.resource)
        ]
        index = Index(
            destination_rules=rules_of_hosts,
            virtual_services=rules,
            workloads=workloads,
            other_rules=other_rules,
        )
        index.services |= {key: _host_of(service) for key, service in services.items()}
        index.services |= external
        served = {
            key: tuple(port.number for port in host.entry.resource.spec.ports)
            for key, host in index.services.items()
        }
        for rule in rules:
            for destination in destinations(rule):
                _add_missing(index, destination, rule.namespace)
        return cls(index, served, external, services, rules)


def mesh_bound(resource: VirtualService) -> bool:
    """Tell whether the rules are for sidecars."""
    return not resource.spec.gateways or MESH in resource.spec.gateways


def destinations(rule: Entry[VirtualService]) -> Iterator[kinds.Destination]:
    """Give every destination of the rule's HTTP routes."""
    for route in rule.resource.spec.http:
        for item in route.route:
            yield item.destination


def named_subsets(hosts: Hosts) -> dict[str, list[str]]:
    """Give the subsets that rules send to, by the key of the host."""
    found: dict[str, set[str]] = {}
    for rule in hosts.rules:
        for destination in destinations(rule):
            if destination.subset:
                key = names.service_key(destination.host, rule.namespace)
                found.setdefault(key, set()).add(destination.subset)
    return {key: sorted(subsets) for key, subsets in found.items()}


def completed(rule: Entry[VirtualService], hosts: Hosts, port: int) -> Entry[VirtualService]:
    """Write the ports that destinations leave out: the one that was called, or else the first."""

    def complete(item: kinds.HTTPRouteDestination) -> kinds.HTTPRouteDestination:
        destination = item.destination
        ports = hosts.served.get(names.service_key(destination.host, rule.namespace), ())
        if destination.port is not None or len(ports) < 2:
            return item
        number = port if port in ports else ports[0]
        selector = kinds.PortSelector(number=number)
        return replace(item, destination=replace(destination, port=selector))

    spec = rule.resource.spec
    http = tuple(replace(one, route=tuple(map(complete, one.route))) for one in spec.http)
    return Entry(replace(rule.resource, spec=replace(spec, http=http)), rule.origin)


def _rules_and_workloads(
    resources: Iterable[Loaded],
) -> tuple[
    dict[str, Entry[DestinationRule]],
    dict[str, list[Entry[DestinationRule]]],
    list[Entry[WorkloadEntry]],
]:
    """Give DestinationRules by the key of their host: the first by name, others; and endpoints."""
    rules: dict[str, Entry[DestinationRule]] = {}
    others: dict[str, list[Entry[DestinationRule]]] = {}
    workloads = []
    for item in resources:
        match item.resource:
            case DestinationRule() as resource:
                entry = Entry(resource, item.origin)
                key = names.service_key(resource.spec.host, entry.namespace)
                if rules.setdefault(key, entry) is not entry:
                    others.setdefault(key, []).append(entry)
            case WorkloadEntry() as workload:
                workloads.append(Entry(workload, item.origin))
    return rules, others, workloads


def _external(
    resources: Iterable[Loaded],
    services: Mapping[str, MeshService],
    workloads: Sequence[Entry[WorkloadEntry]],
) -> dict[str, ServiceHost]:
    """Give the hosts of ServiceEntries; the first by name has a host, and a service before all."""
    found: dict[str, ServiceHost] = {}
    for item in resources:
        if not isinstance(item.resource, ServiceEntry):
            continue
        entry = with_selected(Entry(item.resource, item.origin), workloads)
        for host in item.resource.spec.hosts:
            key = names.service_key(host, entry.namespace)
            if key not in services:
                full = names.qualified(host, entry.namespace)
                found.setdefault(key, ServiceHost(full, host, entry))
    return found


def _host_of(service: MeshService) -> ServiceHost:
    ports = tuple(
        kinds.ServicePort(number=port.number, name=port.name, protocol=port.protocol)
        for port in service.ports
    )
    return _made_up(service.host, service.namespace, ports)


def _made_up(host: str, namespace: str, ports: tuple[kinds.ServicePort, ...]) -> ServiceHost:
    spec = kinds.ServiceEntrySpec(hosts=(host,), ports=ports, resolution=kinds.Resolution.STATIC)
    entry = ServiceEntry(
        api_version="networking.istio.io/v1",
        kind="ServiceEntry",
        metadata=kinds.Metadata(name=host, namespace=namespace),
        spec=spec,
    )
    return ServiceHost(host, host, Entry(entry, _NOWHERE))


def _add_missing(index: Index, destination: kinds.Destination, namespace: str) -> None:
    """Make the host and the port of a destination known, if they are not."""
    key = names.service_key(destination.host, namespace)
    number = destination.port.number if destination.port is not None else None
    known = index.services.get(key)
    if known is None:
        host = names.qualified(destination.host, namespace)
        index.services[key] = _made_up(host, namespace, (_port(number or PORT_UNKNOWN),))
    elif number is not None and known.port(number) is None:
        resource = known.entry.resource
        spec = replace(resource.spec, ports=(*resource.spec.ports, _port(number)))
        entry = Entry(replace(resource, spec=spec), known.entry.origin)
        index.services[key] = ServiceHost(known.host, known.written, entry)


def _port(number: int) -> kinds.ServicePort:
    return kinds.ServicePort(number=number, name=f"port-{number}", protocol=kinds.Protocol.HTTP)


def _full_name(item: Loaded) -> tuple[str, str]:
    return item.resource.metadata.namespace, item.resource.metadata.name
