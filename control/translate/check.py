"""Judges resources before they are stored: alone, against one another, and against what is stored.

What is refused here never becomes a revision. What may become right by itself, a destination that
nobody serves yet, is a warning.

Does not do: reading the store, writing.

Invariants: everything wrong with a file is reported at once, each problem at its place in it.

Tests: tests/control/translate/test_check.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from msgspec import UNSET
from msgspec.structs import replace

from meshfast.control.translate.hosts import Hosts, completed, mesh_bound
from meshfast.control.translate.services import MeshService
from meshfast.control.translate.translation import cluster_shells
from meshfast.errors import ConfigError, Problem
from meshfast.policy import names
from meshfast.policy.blame import locate
from meshfast.policy.clusters import check_entries
from meshfast.policy.document import Document, Listener, VirtualHost, Workload, encode_document
from meshfast.policy.index import Entry, Index, nearest
from meshfast.policy.routes import Router
from meshfast.resources import Loaded
from meshfast.resources.kinds import ForwardProxy, Gateway, ServiceEntry, VirtualService

__all__ = ["check"]

Build = Callable[[bytes], bytes]


def check(
    new: Sequence[Loaded],
    stored: Sequence[Loaded],
    services: Mapping[str, MeshService],
    build: Build,
) -> list[Problem]:
    """Return warnings about the new resources; `stored` are all others that would remain.

    `build` is `meshfast._core.Snapshot.build`, the judge of regular expressions. Raises
    `ConfigError` with everything that is wrong.
    """
    hosts = Hosts.of([*stored, *new], services)
    entries = [
        Entry(item.resource, item.origin)
        for item in new
        if isinstance(item.resource, VirtualService) and mesh_bound(item.resource)
    ]
    problems = [
        *_check_kinds(new),
        *_check_duplicates(new, stored),
        *_check_service_entries(new, services),
        *_check_hosts_once(entries, stored),
        *_check_routes(entries, hosts),
    ]
    if not problems:
        problems += _check_expressions(entries, new, hosts, build)
    if problems:
        raise ConfigError(sorted(problems, key=lambda one: (one.file, one.line, one.column)))
    return list(_warnings(entries, hosts))


def _check_kinds(new: Iterable[Loaded]) -> Iterator[Problem]:
    """Refuse what no sidecar would serve."""
    for item in new:
        match item.resource:
            case Gateway() | ForwardProxy():
                message = f"the control plane does not serve the kind {item.resource.kind}"
                hint = "`meshfast proxy -c FILE` does"
                yield item.origin.problem(message, "kind", hint=hint)
            case VirtualService() as resource:
                for position, gateway in enumerate(resource.spec.gateways):
                    if gateway != "mesh":
                        message = f"the control plane does not serve the Gateway {gateway!r}"
                        hint = "`meshfast proxy -c FILE` does; `mesh` stands for all sidecars"
                        path = ("spec", "gateways", position)
                        yield item.origin.problem(message, *path, hint=hint)
                if resource.spec.tcp:
                    message = "tcp routes are not served by sidecars yet"
                    yield item.origin.problem(message, "spec", "tcp")


def _check_duplicates(new: Sequence[Loaded], stored: Sequence[Loaded]) -> Iterator[Problem]:
    """Refuse two resources of a name, and two ServiceEntries of a host."""
    files = {item.origin.file for item in new}
    yield from (one for one in Index.of([*stored, *new]).problems if one.file in files)


def _check_service_entries(
    new: Iterable[Loaded], services: Mapping[str, MeshService]
) -> Iterator[Problem]:
    for item in new:
        if not isinstance(item.resource, ServiceEntry):
            continue
        entry = Entry(item.resource, item.origin)
        yield from check_entries([entry])
        for position, host in enumerate(item.resource.spec.hosts):
            key = names.service_key(host, entry.namespace)
            if key in services:
                message = f"{key} is a service of the mesh: workloads are registered for it"
                yield item.origin.problem(message, "spec", "hosts", position)


def _check_hosts_once(
    entries: Sequence[Entry[VirtualService]], stored: Iterable[Loaded]
) -> Iterator[Problem]:
    """Refuse a second VirtualService for a host: order would decide between them."""
    owners: dict[str, str] = {}
    for item in stored:
        if isinstance(item.resource, VirtualService) and mesh_bound(item.resource):
            stored_entry = Entry(item.resource, item.origin)
            for host in item.resource.spec.hosts:
                key = names.service_key(host, stored_entry.namespace)
                owners[key] = f"VirtualService {stored_entry.full_name}"
    for entry in entries:
        for position, host in enumerate(entry.resource.spec.hosts):
            key = names.service_key(host, entry.namespace)
            here = entry.origin.place("spec", "hosts", position)
            first = owners.setdefault(key, here)
            if first != here:
                message = f"the host {host!r} is routed twice"
                hint = f"the first is at {first}"
                yield entry.origin.problem(message, "spec", "hosts", position, hint=hint)


def _check_routes(entries: Iterable[Entry[VirtualService]], hosts: Hosts) -> Iterator[Problem]:
    for entry in entries:
        router = Router(hosts.index)
        router.check(completed(entry, hosts, 0))
        yield from router.problems
        for path, host, number in _named_ports(entry):
            key = names.service_key(host, entry.namespace)
            ports = hosts.served.get(key)
            external = key in hosts.external
            if external and ports is not None and number is not None and number not in ports:
                listed = ", ".join(map(str, ports))
                message = f"no port {number}: the service {key} has the ports {listed}"
                yield entry.origin.problem(message, *path, "port")


def _check_expressions(
    entries: Sequence[Entry[VirtualService]],
    new: Sequence[Loaded],
    hosts: Hosts,
    build: Build,
) -> Iterable[Problem]:
    """Let the snapshot compiler look at every condition, each under the port that it asks for."""
    listeners: list[Listener] = []
    for entry in entries:
        asked = {match.port for route in entry.resource.spec.http for match in route.match}
        for port in sorted(port or 1 for port in asked) or [1]:
            router = Router(hosts.index)
            routes = tuple(router.http_routes(completed(entry, hosts, port), port))
            host = VirtualHost(name=entry.full_name, domains=("*",), routes=routes)
            listeners.append(
                Listener(
                    name=f"outbound/127.0.0.{len(listeners) % 250 + 1}:{port}",
                    direction="outbound",
                    protocol="HTTP",
                    virtual_hosts=(host,),
                )
            )
    document = Document(
        generation=1,
        workload=Workload(name="check", namespace="", app="", revision=""),
        listeners=tuple(listeners),
        # Which legs are encrypted is no matter of expressions.
        clusters=tuple(replace(one, tls=UNSET) for one in cluster_shells(hosts)),
    )
    try:
        build(encode_document(document))
    except ConfigError as error:
        return locate(error, document, new).problems
    return ()


def _warnings(entries: Iterable[Entry[VirtualService]], hosts: Hosts) -> Iterator[Problem]:
    for entry in entries:
        for path, host, number in _named_ports(entry):
            key = names.service_key(host, entry.namespace)
            ports = hosts.served.get(key)
            if ports is None:
                message = f"nobody serves {key} now: its share is answered 503 until then"
                hint = nearest(key, list(hosts.served), "hosts")
                yield entry.origin.problem(message, *path, "host", hint=hint)
            elif number is not None and number not in ports:
                listed = ", ".join(map(str, ports))
                message = f"no workload of {key} serves port {number} now, only {listed}"
                yield entry.origin.problem(message, *path, "port")


def _named_ports(
    entry: Entry[VirtualService],
) -> Iterator[tuple[tuple[str | int, ...], str, int | None]]:
    """Give place, host and port of every destination."""
    for position, route in enumerate(entry.resource.spec.http):
        for at, item in enumerate(route.route):
            path = ("spec", "http", position, "route", at, "destination")
            port = item.destination.port
            yield path, item.destination.host, None if port is None else port.number
