"""ServiceEntries to clusters: which addresses, ports, weights and workloads a service has.

A cluster exists for each service port that a route names, and for each subset of it, so that
nothing is resolved that nobody dials. `check_entries` looks at every ServiceEntry, used or not.

Tests: tests/core/test_golden.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

from meshfast.errors import Problem
from meshfast.policy import names
from meshfast.policy.document import Balancer, Cluster, Endpoint, Workload
from meshfast.policy.index import Entry, ServiceHost, nearest, selected
from meshfast.policy.slots import SlotAllocator
from meshfast.resources import kinds
from meshfast.resources.kinds import (
    DestinationRule,
    Resolution,
    ServiceEntry,
    ServicePort,
    Subset,
    TrafficPolicy,
    WorkloadEntry,
    WorkloadEntrySpec,
)
from meshfast.resources.texts import is_address

__all__ = [
    "Upstream",
    "balancer",
    "build_clusters",
    "check_entries",
    "check_selected",
    "selects",
    "warn_of_selection",
]

CONNECT_TIMEOUT_MS = 10_000  # Istio's default connectTimeout
IDLE_TIMEOUT_MS = 3_000  # below the keep-alive of common servers; Linkerd's default

_BALANCERS: dict[kinds.Balancer, Balancer] = {
    kinds.Balancer.LEAST_CONN: "LEAST_REQUEST",
    kinds.Balancer.LEAST_REQUEST: "LEAST_REQUEST",
    kinds.Balancer.RANDOM: "RANDOM",
    kinds.Balancer.ROUND_ROBIN: "ROUND_ROBIN",
}

Resolve = Callable[[str], list[str]]


class Upstream(NamedTuple):
    """What a route names: a port of a service, or of a subset of it, and the rule of its host."""

    service: ServiceHost
    port: ServicePort
    rule: DestinationRule | None = None
    subset: Subset | None = None

    @property
    def cluster(self) -> str:
        """The name of the cluster."""
        subset = self.subset.name if self.subset is not None else ""
        return names.cluster_name(self.port.number, self.service.host, subset)


def balancer(rule: DestinationRule | None, subset: Subset | None) -> Balancer:
    """Give the balancer: of the subset, or else of the rule, or else Istio's default."""
    policies: list[TrafficPolicy | None] = []
    if subset is not None:
        policies.append(subset.traffic_policy)
    if rule is not None:
        policies.append(rule.spec.traffic_policy)
    for policy in policies:
        if policy is not None and policy.load_balancer is not None:
            return _BALANCERS[policy.load_balancer.simple]
    return _BALANCERS[kinds.Balancer.LEAST_REQUEST]


def selects(subset: Subset | None, labels: dict[str, str]) -> bool:
    """Tell whether an endpoint with these labels is in the subset; without one it is."""
    return subset is None or subset.labels.items() <= labels.items()


def build_clusters(
    upstreams: dict[str, Upstream], resolve: Resolve, allocator: SlotAllocator, generation: int
) -> tuple[Cluster, ...]:
    """Build the clusters by their names; raises ConfigError when the slots do not suffice."""
    resolve = cache(resolve)
    found = {name: _endpoints(upstream, resolve) for name, upstream in sorted(upstreams.items())}
    keys = [(name, address) for name, endpoints in found.items() for address in endpoints]
    slots = allocator.assign(keys, generation)
    return tuple(
        Cluster(
            name=name,
            service=names.service(one.service.host, one.service.entry.namespace),
            subset=one.subset.name if one.subset is not None else "",
            balancer=balancer(one.rule, one.subset),
            connect_timeout_ms=CONNECT_TIMEOUT_MS,
            idle_timeout_ms=IDLE_TIMEOUT_MS,
            endpoints=tuple(
                Endpoint(
                    slot=slots[name, address], address=address, weight=weight, workload=workload
                )
                for address, (weight, workload) in endpoints.items()
            ),
        )
        for name, endpoints in found.items()
        for one in [upstreams[name]]
    )


def _endpoints(upstream: Upstream, resolve: Resolve) -> dict[str, tuple[int, Workload]]:
    """Give weight and workload by address; a name that resolves to an address again is dropped."""
    service, port = upstream.service, upstream.port
    spec = service.entry.resource.spec
    endpoints = spec.endpoints
    if not endpoints and spec.workload_selector is None:
        endpoints = (WorkloadEntrySpec(address=service.written),)
    found: dict[str, tuple[int, Workload]] = {}
    for endpoint in endpoints:
        if not selects(upstream.subset, endpoint.labels):
            continue
        workload = names.workload(endpoint.labels, service.entry.namespace)
        for address in _addresses(endpoint, port, resolve):
            found.setdefault(address, (endpoint.weight, workload))
    return found


def _addresses(endpoint: WorkloadEntrySpec, port: ServicePort, resolve: Resolve) -> Iterator[str]:
    if endpoint.address.startswith("unix://"):
        yield "unix:" + endpoint.address.removeprefix("unix://")
        return
    number = endpoint.ports.get(port.name, port.target_port or port.number)
    ips = [endpoint.address] if is_address(endpoint.address) else resolve(endpoint.address)
    # A name with both kinds of addresses is dialled by IPv4, as in Istio: the answer ::1 for
    # "localhost" does not mean that the service listens there.
    ipv4 = [ip for ip in ips if ":" not in ip]
    for ip in ipv4 or ips:
        yield names.socket_address(ip, number)


def check_entries(entries: Iterable[Entry[ServiceEntry]]) -> Iterator[Problem]:
    """Find what is wrong inside each ServiceEntry beyond its schema."""
    for entry in entries:
        yield from _check_ports(entry)
        yield from _check_endpoints(entry)


def _check_ports(entry: Entry[ServiceEntry]) -> Iterator[Problem]:
    for what in ("number", "name"):
        seen: dict[object, int] = {}
        for position, port in enumerate(entry.resource.spec.ports):
            value = getattr(port, what)
            first = seen.setdefault(value, position)
            if first != position:
                hint = f"the first is at {entry.origin.place('spec', 'ports', first, what)}"
                path = ("spec", "ports", position, what)
                yield entry.origin.problem(
                    f"the port {what} {value!r} occurs twice", *path, hint=hint
                )


def _check_endpoints(entry: Entry[ServiceEntry]) -> Iterator[Problem]:
    spec = entry.resource.spec
    ports = {port.name for port in spec.ports}
    has_all_ports = entry.origin.has_all("name", spec.ports, "spec", "ports")
    if spec.workload_selector is not None and spec.endpoints:
        message = "a service has endpoints or a workloadSelector, not both"
        yield entry.origin.problem(message, "spec", "workloadSelector")
    elif spec.resolution is Resolution.STATIC and not spec.endpoints and not spec.workload_selector:
        if not entry.origin.is_whole("spec", "workloadSelector"):
            return
        message = "resolution STATIC needs endpoints or a workloadSelector"
        yield entry.origin.problem(message, "spec", "endpoints")
    seen: dict[tuple[str, frozenset[tuple[str, int]]], int] = {}
    for position, endpoint in enumerate(spec.endpoints):
        path: tuple[str | int, ...] = ("spec", "endpoints", position)
        address = endpoint.address
        if not _is_static(address) and spec.resolution is Resolution.STATIC:
            message = f"resolution STATIC needs an IP address, got {address!r}"
            hint = "write resolution: DNS to have names resolved"
            yield entry.origin.problem(message, *path, "address", hint=hint)
        for name in endpoint.ports.keys() - ports if has_all_ports else ():
            message = f"the service has no port named {name!r}"
            hint = nearest(name, ports, "ports")
            yield entry.origin.problem(message, *path, "ports", name, hint=hint)
        key = (address, frozenset(endpoint.ports.items()))
        first = seen.setdefault(key, position) if entry.origin.is_whole(*path) else position
        if first != position:
            hint = f"the first is at {entry.origin.place('spec', 'endpoints', first, 'address')}"
            message = f"the endpoint {address} occurs twice"
            yield entry.origin.problem(message, *path, "address", hint=hint)


def check_selected(
    entries: Iterable[Entry[ServiceEntry]], workloads: Sequence[Entry[WorkloadEntry]]
) -> Iterator[Problem]:
    """Find WorkloadEntries that a ServiceEntry selects and cannot use."""
    for entry in entries:
        spec = entry.resource.spec
        if spec.workload_selector is None or spec.resolution is not Resolution.STATIC:
            continue
        for workload in workloads:
            address = workload.resource.spec.address
            if selected(entry, workload) and not _is_static(address):
                message = f"ServiceEntry {entry.full_name} selects it, and needs an IP address"
                hint = "write resolution: DNS there to have names resolved"
                yield workload.origin.problem(message, "spec", "address", hint=hint)


def warn_of_selection(
    entries: Sequence[Entry[ServiceEntry]], workloads: Sequence[Entry[WorkloadEntry]]
) -> Iterator[Problem]:
    """Find selectors that select nothing, and WorkloadEntries that nothing selects."""
    for entry in entries:
        selector = entry.resource.spec.workload_selector
        if selector and not any(selected(entry, workload) for workload in workloads):
            message = "selects no WorkloadEntry of its namespace, so the service has no endpoint"
            yield entry.origin.problem(message, "spec", "workloadSelector")
    for workload in workloads:
        if not any(selected(entry, workload) for entry in entries):
            message = "no ServiceEntry of its namespace selects it, so nothing is sent to it"
            yield workload.origin.problem(message, "metadata", "name")


def _is_static(address: str) -> bool:
    return is_address(address) or address.startswith("unix://")
