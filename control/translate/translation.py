"""The whole translation of one state of the mesh: clusters, endpoints, listener, routes.

Clusters and endpoints are the same for all sidecars and are encoded once; routes are encoded once a
namespace, when the first sidecar of it asks.

Invariants: pure; the same state and the same answers of `resolve` give the same bytes, so versions
(hashes of bodies) change only where something changed.

Tests: tests/control/translate/test_translation.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from meshfast.control.registry import ServiceRecord, WorkloadRecord
from meshfast.control.translate.hosts import Hosts, named_subsets
from meshfast.control.translate.routes import Routed, routed_hosts, virtual_hosts
from meshfast.control.translate.services import MeshService, mesh_services
from meshfast.policy import names
from meshfast.policy.clusters import (
    CONNECT_TIMEOUT_MS,
    IDLE_TIMEOUT_MS,
    Upstream,
    balancer,
    build_clusters,
)
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
        self,
        resources: Sequence[Loaded],
        workloads: Iterable[WorkloadRecord],
        resolve: Resolve,
        known: Iterable[ServiceRecord] = (),
    ) -> None:
        """Translate. `workloads` come oldest registration first, `known` services without them too.

        `resolve` gives the addresses of a host name that a ServiceEntry with resolution DNS names,
        as it is known now; an empty list is a name that is not known.
        """
        self.services = mesh_services(workloads, known)
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
    """Give a cluster without endpoints for every port of every host, in the order of hosts.

    A subset has clusters when a rule sends to it: endpoints have few slots in a sidecar.
    """
    for key, upstream in _upstreams(hosts):
        yield Cluster(
            name=upstream.cluster,
            service=names.service(upstream.service.host, upstream.service.entry.namespace),
            subset=upstream.subset.name if upstream.subset is not None else "",
            balancer=balancer(upstream.rule, upstream.subset),
            connect_timeout_ms=CONNECT_TIMEOUT_MS,
            idle_timeout_ms=IDLE_TIMEOUT_MS,
            endpoints=(),
            tls=msgspec.UNSET if key in hosts.external else ClusterTls(mode="ISTIO_MUTUAL"),
        )


def _upstreams(hosts: Hosts) -> Iterator[tuple[str, Upstream]]:
    """Give what has a cluster, with the key of its host."""
    index, named = hosts.index, named_subsets(hosts)
    for key, host in sorted(index.services.items()):
        rule = index.destination_rules.get(key)
        resource = None if rule is None else rule.resource
        subsets = [index.subset(key, name) for name in named.get(key, ())]
        for port in host.entry.resource.spec.ports:
            for subset in (None, *(one for one in subsets if one is not None)):
                yield key, Upstream(host, port, resource, subset)


def _endpoints(hosts: Hosts, resolve: Resolve) -> dict[str, tuple[SidecarEndpoint, ...]]:
    """Give the endpoints of every port that is served, by the name of its cluster."""
    found: dict[str, tuple[SidecarEndpoint, ...]] = {}
    external: dict[str, Upstream] = {}
    for key, upstream in _upstreams(hosts):
        number = upstream.port.number
        if number not in hosts.served.get(key, ()):
            continue
        if key in hosts.external:
            external[upstream.cluster] = upstream
            continue
        [port] = [one for one in hosts.services[key].ports if one.number == number]
        found[upstream.cluster] = port.endpoints(upstream.subset)
    if external:
        for cluster in build_clusters(external, resolve, SlotAllocator(_SLOTS_MAX), 1):
            found[cluster.name] = tuple(
                SidecarEndpoint(address=one.address, weight=one.weight, workload=one.workload)
                for one in cluster.endpoints
            )
    return found
