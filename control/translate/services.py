"""Services from registrations, present and past: which ports they have, and who serves them.

Workloads of one service may listen on different ports: two versions on one host have to. So ports
of a service are told apart by name, as in Kubernetes, where each workload may map a name to a
port of its own. Without names, the only port of each workload is the same port of the service. The
port of the service has the lowest number that a workload gave it, and is called by all of them.

Each endpoint carries the number that its own workload registered: whoever calls the port of the
service asks the workload's sidecar for that one.

A service that nobody is registered for now keeps the ports that it had, without endpoints: they are
joined from the same registrations by the same rules.

Invariants: the outcome depends on the set of workloads and the order of their registrations only;
of two registrations of one address the later one counts, since an address is served by one sidecar.

Tests: tests/control/translate/test_services.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from meshfast.control.registry import ServiceRecord, WorkloadRecord
from meshfast.discovery import Port
from meshfast.policy import names
from meshfast.policy.clusters import selects
from meshfast.policy.sidecar import SidecarEndpoint
from meshfast.resources.kinds import Protocol, Subset

__all__ = ["MeshService", "ServicePort", "labels_of", "mesh_services"]

_TCP = frozenset({"mongo", "mysql", "redis", "tcp", "tls"})  # Istio's words for what is not HTTP


@dataclass(frozen=True, slots=True)
class ServicePort:
    """A port of a service, and who serves it: each workload with its own number, by address.

    `others` are further numbers that workloads gave it: callers may use those, too.
    """

    number: int
    name: str
    protocol: Protocol
    served: tuple[tuple[WorkloadRecord, int], ...]
    others: tuple[int, ...] = ()

    @property
    def workloads(self) -> tuple[WorkloadRecord, ...]:
        """The workloads that serve it."""
        return tuple(workload for workload, _ in self.served)

    def endpoints(self, subset: Subset | None = None) -> tuple[SidecarEndpoint, ...]:
        """Give the endpoints, of a subset or all: the sidecars' addresses with their identities."""
        return tuple(
            _endpoint(workload, number)
            for workload, number in self.served
            if selects(subset, labels_of(workload))
        )


@dataclass(frozen=True, slots=True)
class MeshService:
    """A service of the mesh; `host` is `name.namespace`, its ports are in the order of numbers."""

    name: str
    namespace: str
    ports: tuple[ServicePort, ...]

    @property
    def is_served(self) -> bool:
        """Tell whether workloads are registered for it now."""
        return any(port.served for port in self.ports)

    @property
    def numbers(self) -> tuple[int, ...]:
        """Every port that it can be called by, in order."""
        return tuple(sorted(one for port in self.ports for one in (port.number, *port.others)))

    @property
    def host(self) -> str:
        """The name that clusters carry."""
        return f"{self.name}.{self.namespace}"


@dataclass(slots=True)
class _Port:
    numbers: set[int] = field(default_factory=set)
    protocol: str = ""
    served: list[tuple[WorkloadRecord, int]] = field(default_factory=list)


def mesh_services(
    workloads: Iterable[WorkloadRecord], known: Iterable[ServiceRecord] = ()
) -> dict[str, MeshService]:
    """Group workloads, oldest registration first, to services by `host`, in the order of hosts.

    `known` are services that are there without workloads, too.
    """
    grouped: dict[tuple[str, str], dict[str, WorkloadRecord]] = {}
    for workload in workloads:
        if workload.ports:
            of_service = grouped.setdefault((workload.service, workload.namespace), {})
            of_service[workload.address] = workload
    services = [
        MeshService(name, namespace, _ports((one, one.ports) for _, one in sorted(found.items())))
        for (name, namespace), found in grouped.items()
    ]
    services += [
        MeshService(one.name, one.namespace, _ports((None, ports) for ports in one.registered))
        for one in known
        if (one.name, one.namespace) not in grouped
    ]
    return {service.host: service for service in sorted(services, key=lambda one: one.host)}


def _ports(
    registered: Iterable[tuple[WorkloadRecord | None, tuple[Port, ...]]],
) -> tuple[ServicePort, ...]:
    """Join what was registered, in the order of addresses; without a workload nobody serves it."""
    found: dict[str, _Port] = {}
    for workload, registered_ports in registered:
        unnamed = sum(not port.name for port in registered_ports)
        for port in registered_ports:
            # Only names join ports, except where there is nothing to mix up.
            key = port.name or ("" if unnamed == 1 else str(port.number))
            one = found.setdefault(key, _Port())
            one.numbers.add(port.number)
            one.protocol = one.protocol or port.protocol
            if workload is not None:
                one.served.append((workload, port.number))
    numbered: dict[int, tuple[str, _Port]] = {}
    for key, one in sorted(found.items(), key=lambda item: (min(item[1].numbers), item[0])):
        free = one.numbers - numbered.keys()
        if free:
            numbered[min(free)] = (key, one)
        else:  # two names for one number: the first name stays
            numbered[min(one.numbers)][1].served += one.served
    taken = set(numbered)
    ports = []
    for number in sorted(numbered):
        key, one = numbered[number]
        others = sorted(one.numbers - taken)
        taken.update(others)
        ports.append(_port(number, tuple(others), key, one))
    return tuple(ports)


def _port(number: int, others: tuple[int, ...], key: str, port: _Port) -> ServicePort:
    protocol = Protocol.TCP if port.protocol.lower() in _TCP else Protocol.HTTP
    name = key if key and not key.isdigit() else f"port-{number}"
    by_address = {workload.address: (workload, own) for workload, own in port.served}
    return ServicePort(number, name, protocol, tuple(by_address.values()), others)


def labels_of(workload: WorkloadRecord) -> dict[str, str]:
    """Give the labels that subsets match: the service is the label `app` unless it has one."""
    return {"app": workload.service} | workload.labels


def _endpoint(workload: WorkloadRecord, port: int) -> SidecarEndpoint:
    named = names.workload(workload.labels, workload.namespace, workload.workload)
    app = workload.service if named.app == workload.workload else named.app
    return SidecarEndpoint(
        address=workload.address,
        weight=1,
        workload=msgspec.structs.replace(named, app=app, principal=workload.identity),
        healthy=workload.healthy,
        port=port,
    )
