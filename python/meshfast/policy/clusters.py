"""ServiceEntries to clusters: which addresses, ports, weights and workloads a service has.

A cluster exists for each service port that a route names, so that nothing is resolved that nobody
dials. `check_entries` looks at every ServiceEntry, used or not.

Tests: tests/core/test_golden.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache

from meshfast.errors import Problem
from meshfast.policy import names
from meshfast.policy.document import Cluster, Endpoint, Workload
from meshfast.policy.index import Entry, ServiceHost, nearest
from meshfast.policy.slots import SlotAllocator
from meshfast.resources.kinds import Resolution, ServiceEntry, ServicePort, WorkloadEntry
from meshfast.resources.texts import is_address

__all__ = ["Upstream", "build_clusters", "check_entries"]

CONNECT_TIMEOUT_MS = 10_000  # Istio's default connectTimeout
IDLE_TIMEOUT_MS = 3_000  # below the keep-alive of common servers; Linkerd's default

Resolve = Callable[[str], list[str]]
Upstream = tuple[ServiceHost, ServicePort]  # what a route names


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
            service=names.service(upstreams[name][0].host, upstreams[name][0].entry.namespace),
            subset="",
            balancer="LEAST_REQUEST",
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
    )


def _endpoints(upstream: Upstream, resolve: Resolve) -> dict[str, tuple[int, Workload]]:
    """Give weight and workload by address; a name that resolves to an address again is dropped."""
    service, port = upstream
    spec = service.entry.resource.spec
    endpoints = spec.endpoints or (WorkloadEntry(address=service.written),)
    found: dict[str, tuple[int, Workload]] = {}
    for endpoint in endpoints:
        workload = names.workload(endpoint.labels, service.entry.namespace)
        for address in _addresses(endpoint, port, resolve):
            found.setdefault(address, (endpoint.weight, workload))
    return found


def _addresses(endpoint: WorkloadEntry, port: ServicePort, resolve: Resolve) -> Iterator[str]:
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
    if spec.resolution is Resolution.STATIC and not spec.endpoints:
        yield entry.origin.problem("resolution STATIC needs endpoints", "spec", "endpoints")
    seen: dict[tuple[str, frozenset[tuple[str, int]]], int] = {}
    for position, endpoint in enumerate(spec.endpoints):
        path: tuple[str | int, ...] = ("spec", "endpoints", position)
        address = endpoint.address
        named = not is_address(address) and not address.startswith("unix://")
        if named and spec.resolution is Resolution.STATIC:
            message = f"resolution STATIC needs an IP address, got {address!r}"
            hint = "write resolution: DNS to have names resolved"
            yield entry.origin.problem(message, *path, "address", hint=hint)
        for name in endpoint.ports.keys() - ports:
            message = f"the service has no port named {name!r}"
            hint = nearest(name, ports, "ports")
            yield entry.origin.problem(message, *path, "ports", name, hint=hint)
        key = (address, frozenset(endpoint.ports.items()))
        first = seen.setdefault(key, position)
        if first != position:
            hint = f"the first is at {entry.origin.place('spec', 'endpoints', first, 'address')}"
            message = f"the endpoint {address} occurs twice"
            yield entry.origin.problem(message, *path, "address", hint=hint)
