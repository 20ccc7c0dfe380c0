"""The whole translation of one state of the mesh: clusters, endpoints, listener, routes.

Clusters and endpoints are the same for all sidecars and are encoded once; routes are encoded once a
namespace, when the first sidecar of it asks.

Invariants: pure; the same state and the same answers of `resolve` give the same bytes, so versions
(hashes of bodies) change only where something changed.

Tests: tests/control/translate/test_translation.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from meshfast.control.registry import WorkloadRecord
from meshfast.control.translate.hosts import Hosts
from meshfast.control.translate.routes import Routed, routed_hosts, virtual_hosts
from meshfast.control.translate.services import MeshService, mesh_services
from meshfast.policy import names
from meshfast.policy.clusters import CONNECT_TIMEOUT_MS, IDLE_TIMEOUT_MS, Upstream, build_clusters
from meshfast.policy.document import Cluster, ClusterTls, Listener
from meshfast.policy.sidecar import SidecarEndpoint
from meshfast.policy.slots import SlotAllocator
from meshfast.resources import Loaded

__all__ = ["OUTBOUND", "Bodies", "Translation", "cluster_shells"]

OUTBOUND: Final = "outbound"
#: Only for the pass through `policy`; a sidecar numbers its own, of which it has 4096.
_SLOTS_MAX: Final = 1 << 16
_LISTENER: Final = Listener(
    name=OUTBOUND, direction="outbound", protocol="HTTP", forward_proxy=True
)

Bodies = Mapping[str, Mapping[str, bytes]]
Resolve = Callable[[str], list[str]]


class Translation:
    """One state of the mesh as sidecars see it."""

    services: Mapping[str, MeshService]

    def __init__(
        self, resources: Sequence[Loaded], workloads: Iterable[WorkloadRecord], resolve: Resolve
    ) -> None:
        """Translate. `workloads` come oldest registration first.

        `resolve` gives the addresses of a host name that a ServiceEntry with resolution DNS names,
        as it is known now; an empty list is a name that is not known.
        """
        self.services = mesh_services(workloads)
        hosts = Hosts.of(resources, self.services)
        endpoints = _endpoints(hosts, resolve)
        clusters = {cluster.name: cluster for cluster in cluster_shells(hosts)}
        self._shared: dict[str, dict[str, bytes]] = {
            "cluster": {name: msgspec.json.encode(one) for name, one in clusters.items()},
            "endpoint": {name: msgspec.json.encode(endpoints.get(name, ())) for name in clusters},
            "listener": {OUTBOUND: msgspec.json.encode(_LISTENER)},
        }
        self._routed: list[Routed] = routed_hosts(hosts)
        self._by_namespace: dict[str, Bodies] = {}

    def bodies(self, namespace: str) -> Bodies:
        """Give type → name → body for the workloads of a namespace."""
        found = self._by_namespace.get(namespace)
        if found is None:
            routes = msgspec.json.encode(virtual_hosts(self._routed, namespace))
            found = {**self._shared, "route": {OUTBOUND: routes}}
            self._by_namespace[namespace] = found
        return found


def cluster_shells(hosts: Hosts) -> Iterable[Cluster]:
    """Give a cluster without endpoints for every port of every host, in the order of hosts."""
    for key, host in sorted(hosts.index.services.items()):
        for port in host.entry.resource.spec.ports:
            yield Cluster(
                name=names.cluster_name(port.number, host.host),
                service=names.service(host.host, host.entry.namespace),
                subset="",
                balancer="LEAST_REQUEST",
                connect_timeout_ms=CONNECT_TIMEOUT_MS,
                idle_timeout_ms=IDLE_TIMEOUT_MS,
                endpoints=(),
                tls=msgspec.UNSET if key in hosts.external else ClusterTls(mode="ISTIO_MUTUAL"),
            )


def _endpoints(hosts: Hosts, resolve: Resolve) -> dict[str, tuple[SidecarEndpoint, ...]]:
    """Give the endpoints of every port that is served, by the name of its cluster."""
    found = {
        names.cluster_name(port.number, service.host): port.endpoints()
        for service in hosts.services.values()
        for port in service.ports
    }
    upstreams: dict[str, Upstream] = {
        names.cluster_name(port.number, host.host): Upstream(host, port)
        for host in hosts.external.values()
        for port in host.entry.resource.spec.ports
    }
    if upstreams:
        for cluster in build_clusters(upstreams, resolve, SlotAllocator(_SLOTS_MAX), 1):
            found[cluster.name] = tuple(
                SidecarEndpoint(address=one.address, weight=one.weight, workload=one.workload)
                for one in cluster.endpoints
            )
    return found
