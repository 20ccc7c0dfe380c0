"""The resources by name, and what is wrong between those that share a name.

Two resources of one kind and name, and two services of one host, are refused with both places:
which of them counts would be decided by the order of the file.

Tests: tests/core/test_golden.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from msgspec.structs import replace

from meshfast.errors import Problem
from meshfast.policy import names
from meshfast.resources import Loaded, Origin
from meshfast.resources.kinds import (
    DestinationRule,
    ForwardProxy,
    Gateway,
    ServiceEntry,
    ServicePort,
    Subset,
    VirtualService,
    WorkloadEntry,
)
from meshfast.resources.texts import nearest_name

__all__ = ["Entry", "Index", "ServiceHost", "nearest", "selected", "with_selected"]

CHOICES_MAX = 1000  # comparing a name with more takes tens of milliseconds
LISTED_MAX = 10

T = TypeVar(
    "T", DestinationRule, ForwardProxy, Gateway, ServiceEntry, VirtualService, WorkloadEntry
)


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """A resource of a known kind, with its origin."""

    resource: T
    origin: Origin

    @property
    def namespace(self) -> str:
        """The namespace in which its short names resolve."""
        return self.resource.metadata.namespace

    @property
    def full_name(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.resource.metadata.name}"


@dataclass(frozen=True, slots=True)
class ServiceHost:
    """One host of a ServiceEntry, what a destination names: in full, and as it was written."""

    host: str
    written: str
    entry: Entry[ServiceEntry]

    def port(self, number: int | None) -> ServicePort | None:
        """Find the port; without a number the only one, if there is only one."""
        ports = self.entry.resource.spec.ports
        if number is None:
            return ports[0] if len(ports) == 1 else None
        return next((port for port in ports if port.number == number), None)


@dataclass(slots=True)
class Index:
    """All resources by kind, in file order; services and their rules by the key of their host.

    `entries` are as written; in `services` those with a selector have what they select. `contested`
    are keys of which another service was written too, and `other_rules` further rules of a host:
    what seems to be missing may be there.
    """

    destination_rules: dict[str, Entry[DestinationRule]] = field(default_factory=dict)
    forward_proxies: list[Entry[ForwardProxy]] = field(default_factory=list)
    gateways: dict[str, Entry[Gateway]] = field(default_factory=dict)
    services: dict[str, ServiceHost] = field(default_factory=dict)
    entries: list[Entry[ServiceEntry]] = field(default_factory=list)
    virtual_services: list[Entry[VirtualService]] = field(default_factory=list)
    workloads: list[Entry[WorkloadEntry]] = field(default_factory=list)
    contested: set[str] = field(default_factory=set)
    other_rules: dict[str, list[Entry[DestinationRule]]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @classmethod
    def of(cls, loaded: Iterable[Loaded]) -> Index:
        """Index the resources; what clashes is in `problems`, the first one is kept."""
        index = cls()
        seen: dict[tuple[str, str, str], Origin] = {}
        for item in loaded:
            metadata = item.resource.metadata
            key = (item.resource.kind, metadata.namespace, metadata.name)
            if key in seen:
                message = f"{key[0]} {key[1]}/{key[2]} is defined twice"
                hint = f"the first is at {seen[key].place('metadata', 'name')}"
                index.problems.append(item.origin.problem(message, "metadata", "name", hint=hint))
                continue
            seen[key] = item.origin
            index._add(item)
        for service, host in index.services.items():
            entry = with_selected(host.entry, index.workloads)
            index.services[service] = ServiceHost(host.host, host.written, entry)
        return index

    def subset(self, key: str, name: str) -> Subset | None:
        """Find a subset of the service with this key by its name."""
        rule = self.destination_rules.get(key)
        subsets = () if rule is None else rule.resource.spec.subsets
        return next((subset for subset in subsets if subset.name == name), None)

    def has_all_ports(self, service: ServiceHost) -> bool:
        """Tell whether a port that is not in the service is nowhere."""
        entry = service.entry
        key = names.service_key(service.host, entry.namespace)
        ports = entry.resource.spec.ports
        is_all = entry.origin.has_all("number", ports, "spec", "ports")
        return key not in self.contested and is_all

    def lacks(self, key: str, subset: str) -> bool:
        """Tell whether no rule of a service has the subset, nor may have it."""
        first = self.destination_rules.get(key)
        rules = [*(() if first is None else (first,)), *self.other_rules.get(key, ())]
        return not any(
            not rule.origin.has_all("name", rule.resource.spec.subsets, "spec", "subsets")
            or any(one.name == subset for one in rule.resource.spec.subsets)
            for rule in rules
        )

    def _add(self, item: Loaded) -> None:
        match item.resource:
            case DestinationRule() as resource:
                self._add_rule(Entry(resource, item.origin))
            case WorkloadEntry() as resource:
                self.workloads.append(Entry(resource, item.origin))
            case ForwardProxy() as resource:
                self.forward_proxies.append(Entry(resource, item.origin))
            case Gateway() as resource:
                gateway = Entry(resource, item.origin)
                self.gateways[gateway.full_name] = gateway
            case VirtualService() as resource:
                self.virtual_services.append(Entry(resource, item.origin))
            case ServiceEntry() as resource:
                self._add_services(Entry(resource, item.origin))

    def _add_rule(self, entry: Entry[DestinationRule]) -> None:
        key = names.service_key(entry.resource.spec.host, entry.namespace)
        first = self.destination_rules.setdefault(key, entry)
        if first is not entry:
            self.other_rules.setdefault(key, []).append(entry)
            if not entry.origin.is_named or not first.origin.is_named:
                return  # they may be one
            message = f"{key} has two DestinationRules: one rule has all subsets of a host"
            hint = f"the first is at {first.origin.place('spec', 'host')}"
            self.problems.append(entry.origin.problem(message, "spec", "host", hint=hint))

    def _add_services(self, entry: Entry[ServiceEntry]) -> None:
        self.entries.append(entry)
        for position, host in enumerate(entry.resource.spec.hosts):
            key = names.service_key(host, entry.namespace)
            if key in self.services:
                first = self.services[key].entry
                self.contested.add(key)
                if not entry.origin.is_named or not first.origin.is_named:
                    continue  # they may be one
                message = f"the service {key} is defined twice"
                hint = f"the first is at {first.origin.place('spec', 'hosts')}"
                path = ("spec", "hosts", position)
                self.problems.append(entry.origin.problem(message, *path, hint=hint))
                continue
            self.services[key] = ServiceHost(names.qualified(host, entry.namespace), host, entry)


def with_selected(
    entry: Entry[ServiceEntry], workloads: Iterable[Entry[WorkloadEntry]]
) -> Entry[ServiceEntry]:
    """Give a ServiceEntry with the endpoints that its selector selects; others as they are."""
    if entry.resource.spec.workload_selector is None:
        return entry
    found = tuple(
        replace(workload.resource.spec, labels=_labels(workload))
        for workload in workloads
        if selected(entry, workload)
    )
    completed = replace(entry.resource.spec, endpoints=found)
    return Entry(replace(entry.resource, spec=completed), entry.origin)


def selected(entry: Entry[ServiceEntry], workload: Entry[WorkloadEntry]) -> bool:
    """Tell whether the ServiceEntry selects the WorkloadEntry."""
    selector = entry.resource.spec.workload_selector
    return (
        selector is not None
        and workload.namespace == entry.namespace
        and selector.labels.items() <= _labels(workload).items()
    )


def _labels(workload: Entry[WorkloadEntry]) -> dict[str, str]:
    return workload.resource.spec.labels | workload.resource.metadata.labels


def nearest(name: str, choices: Collection[str], what: str) -> str:
    """Suggest the nearest of the choices, or list some of them; nothing when there are many."""
    if len(choices) > CHOICES_MAX:
        return ""
    close = nearest_name(name, choices)
    if close:
        return f"did you mean {close[0]!r}?"
    if not choices:
        return f"there are no {what}"
    return f"{what}: {', '.join(sorted(choices)[:LISTED_MAX])}"
