"""Judges resources before they are stored: alone, against one another, and against what is stored.

What is refused here never becomes a revision. What may become right by itself, a destination that
nobody serves yet or a subset that no endpoint is in, is a warning. What is stored is not judged
again, but nothing new may take away what it needs.

Does not do: reading the store, writing.

Invariants: everything wrong with a file is reported at once, each problem at its place in it.

Tests: tests/control/translate/test_check.py.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from meshfast.control.translate.hosts import Hosts, completed, destinations, mesh_bound
from meshfast.control.translate.services import MeshService, labels_of
from meshfast.errors import ConfigError, Problem, in_file_order
from meshfast.policy import names
from meshfast.policy.clusters import check_entries, check_selected, selects, warn_of_selection
from meshfast.policy.destination_rules import check_subsets, warn_of_subsets
from meshfast.policy.expressions import check_expressions
from meshfast.policy.index import Entry, Index, nearest
from meshfast.policy.routes import Router
from meshfast.resources import Loaded, certain
from meshfast.resources.kinds import (
    Destination,
    DestinationRule,
    ForwardProxy,
    Gateway,
    ServiceEntry,
    VirtualService,
)

__all__ = ["Orphan", "check", "orphans"]

Build = Callable[[bytes], bytes]


def check(
    new: Sequence[Loaded],
    stored: Sequence[Loaded],
    services: Mapping[str, MeshService],
    build: Build,
    *,
    replaced: Sequence[Loaded] = (),
    refused: Sequence[Problem] = (),
    unread: frozenset[str] = frozenset(),
) -> list[Problem]:
    """Return warnings about the new resources; `stored` are all others that would remain.

    `replaced` are the stored ones in whose place new ones come. `build` is
    `meshfast._core.Snapshot.build`, the judge of regular expressions. `refused` is what was wrong
    with resources that could not be read, `unread` the kinds of which one may be missing. Raises
    `ConfigError` with everything that is wrong.
    """
    all = [*stored, *new]
    hosts, index = Hosts.of(all, services), Index.of(all)
    files = {item.origin.file for item in new}  # what is stored is of others
    entries = [
        Entry(item.resource, item.origin)
        for item in new
        if isinstance(item.resource, VirtualService) and mesh_bound(item.resource)
    ]
    found = [
        *_check_kinds(new),
        *(one for one in index.problems if one.file in files),  # names and hosts that occur twice
        *_check_service_entries(new, hosts),
        *_check_selected(index, files),
        *_check_hosts_once(entries, stored),
        *_check_routes(entries, hosts, unread),
        *_check_rules(new, hosts, files, [*stored, *replaced], unread),
        *check_expressions(entries, build),
    ]
    problems = [*refused, *certain(found)]
    if problems:
        raise ConfigError(in_file_order(problems))
    warnings = [
        *(problem for item in new for problem in item.warnings),
        *_warn_of_routes(entries, hosts),
        *_warn_of_rules(new, hosts),
        *(one for one in warn_of_selection(index.entries, index.workloads) if one.file in files),
    ]
    return in_file_order(warnings)


class Orphan(NamedTuple):
    """A subset that a rule sends to and that there is not."""

    rule: str  # NAMESPACE/NAME of the VirtualService
    host: str  # the key of it
    subset: str


def orphans(resources: Sequence[Loaded]) -> set[Orphan]:
    """Find the rules that send to a subset that there is not."""
    hosts = Hosts.of(resources, {})
    named = (
        Orphan(rule.full_name, names.service_key(one.host, rule.namespace), one.subset)
        for rule in hosts.rules
        for one in destinations(rule)
        if one.subset
    )
    return {one for one in named if hosts.index.lacks(one.host, one.subset)}


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


def _check_service_entries(new: Iterable[Loaded], hosts: Hosts) -> Iterator[Problem]:
    for item in new:
        if not isinstance(item.resource, ServiceEntry):
            continue
        entry = Entry(item.resource, item.origin)
        yield from check_entries([entry])
        for position, host in enumerate(item.resource.spec.hosts):
            key = names.service_key(host, entry.namespace)
            if key in hosts.services:
                message = f"{key} is a service of the mesh: workloads are registered for it"
                hint = ""
                if not hosts.services[key].is_served:
                    message = f"{key} is a service of the mesh: workloads were registered for it"
                    hint = "`meshfast service forget` gives the name free"
                yield item.origin.problem(message, "spec", "hosts", position, hint=hint)


def _check_selected(index: Index, files: Container[str]) -> Iterator[Problem]:
    """Refuse selectors and WorkloadEntries that do not go together, at the one that is new."""
    for entry in index.entries:
        for problem in check_selected([entry], index.workloads):
            if problem.file in files:
                yield problem
            elif entry.origin.file in files:
                message = f"selects {problem.file}, which has no IP address"
                hint = "write resolution: DNS to have names resolved"
                yield entry.origin.problem(message, "spec", "workloadSelector", hint=hint)


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
        if not entry.origin.is_named:
            continue  # it may come in the place of the other one
        for position, host in enumerate(entry.resource.spec.hosts):
            key = names.service_key(host, entry.namespace)
            here = entry.origin.place("spec", "hosts", position)
            first = owners.setdefault(key, here)
            if first != here:
                message = f"the host {host!r} is routed twice"
                hint = f"the first is at {first}"
                yield entry.origin.problem(message, "spec", "hosts", position, hint=hint)


def _check_routes(
    entries: Iterable[Entry[VirtualService]], hosts: Hosts, unread: frozenset[str]
) -> Iterator[Problem]:
    for entry in entries:
        router = Router(hosts.index, unread)
        router.check(completed(entry, hosts, 0))
        yield from router.problems
        for path, destination in _destinations(entry):
            key = names.service_key(destination.host, entry.namespace)
            number = None if destination.port is None else destination.port.number
            ports = hosts.served.get(key)
            external = key in hosts.external
            known = external and hosts.index.has_all_ports(hosts.external[key])
            if known and ports is not None and number is not None and number not in ports:
                listed = ", ".join(map(str, ports))
                message = f"no port {number}: the service {key} has the ports {listed}"
                yield entry.origin.problem(message, *path, "port")


def _check_rules(
    new: Sequence[Loaded],
    hosts: Hosts,
    files: Container[str],
    before: Sequence[Loaded],
    unread: frozenset[str],
) -> Iterator[Problem]:
    """Look at DestinationRules; refuse to take away a subset that a stored rule sends to.

    What was not there `before` either is not taken away.
    """
    rules = list(_destination_rules(new))
    for rule in rules:
        yield from check_subsets(rule)
    if not rules or "DestinationRule" in unread:
        return
    mine = {rule.full_name for rule in hosts.rules if rule.origin.file in files}
    for orphan in sorted(orphans(_loaded(hosts)) - orphans(before)):
        if orphan.rule in mine:
            continue  # said at its own place
        found = hosts.index.destination_rules.get(orphan.host)
        blamed = found if found is not None and found.origin.file in files else rules[0]
        message = (
            f"VirtualService {orphan.rule} sends to the subset {orphan.subset!r} of {orphan.host}"
        )
        hint = "keep the subset, or change the VirtualService in the same file"
        yield blamed.origin.problem(message, "spec", "subsets", hint=hint)


def _loaded(hosts: Hosts) -> list[Loaded]:
    rules = [Loaded(one.resource, one.origin) for one in hosts.rules]
    return rules + [
        Loaded(one.resource, one.origin) for one in hosts.index.destination_rules.values()
    ]


def _destination_rules(new: Iterable[Loaded]) -> Iterator[Entry[DestinationRule]]:
    for item in new:
        if isinstance(item.resource, DestinationRule):
            yield Entry(item.resource, item.origin)


def _warn_of_routes(entries: Iterable[Entry[VirtualService]], hosts: Hosts) -> Iterator[Problem]:
    for entry in entries:
        for path, destination in _destinations(entry):
            key = names.service_key(destination.host, entry.namespace)
            number = None if destination.port is None else destination.port.number
            ports = hosts.served.get(key)
            if ports is None or not _is_served(key, hosts):
                message = f"nobody serves {key} now: its share is answered 503 until then"
                hint = nearest(key, list(hosts.served), "hosts")
                yield entry.origin.problem(message, *path, "host", hint=hint)
            elif number is not None and number not in ports:
                listed = ", ".join(map(str, ports))
                message = f"no workload of {key} serves port {number} now, only {listed}"
                yield entry.origin.problem(message, *path, "port")
            elif destination.subset:
                subset = hosts.index.subset(key, destination.subset)
                if not any(selects(subset, labels) for labels in _labels(key, hosts)):
                    message = (
                        f"no endpoint of {key} is in the subset {destination.subset!r} now: its "
                        "share is answered 503 until then"
                    )
                    yield entry.origin.problem(message, *path, "subset")


def _warn_of_rules(new: Iterable[Loaded], hosts: Hosts) -> Iterator[Problem]:
    for rule in _destination_rules(new):
        key = names.service_key(rule.resource.spec.host, rule.namespace)
        if key in hosts.served and _is_served(key, hosts):
            yield from warn_of_subsets(rule, _labels(key, hosts))
        else:
            message = f"nobody serves {key} now"
            hint = nearest(key, list(hosts.served), "hosts")
            yield rule.origin.problem(message, "spec", "host", hint=hint)


def _is_served(key: str, hosts: Hosts) -> bool:
    """Tell whether anybody is there now, of a host that is known."""
    return key not in hosts.services or hosts.services[key].is_served


def _labels(key: str, hosts: Hosts) -> list[dict[str, str]]:
    """Give the labels of all endpoints of a host that is served."""
    service = hosts.services.get(key)
    if service is not None:
        return [labels_of(one) for port in service.ports for one in port.workloads]
    spec = hosts.external[key].entry.resource.spec
    return [one.labels for one in spec.endpoints]


def _destinations(
    entry: Entry[VirtualService],
) -> Iterator[tuple[tuple[str | int, ...], Destination]]:
    """Give every destination with its place."""
    for position, route in enumerate(entry.resource.spec.http):
        for at, item in enumerate(route.route):
            yield ("spec", "http", position, "route", at, "destination"), item.destination
