"""The resources by name, and what is wrong between those that share a name.

Two resources of one kind and name, and two services of one host, are refused with both places:
which of them counts would be decided by the order of the file.

Tests: tests/core/test_golden.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from meshfast.errors import Problem
from meshfast.policy import names
from meshfast.resources import Loaded, Origin
from meshfast.resources.decode import nearest_name
from meshfast.resources.kinds import (
    ForwardProxy,
    Gateway,
    ServiceEntry,
    ServicePort,
    VirtualService,
)

__all__ = ["Entry", "Index", "ServiceHost", "nearest"]

CHOICES_MAX = 1000  # comparing a name with more takes tens of milliseconds
LISTED_MAX = 10

T = TypeVar("T", ForwardProxy, Gateway, ServiceEntry, VirtualService)


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
    """All resources by kind, in file order, and services by the key of their host."""

    forward_proxies: list[Entry[ForwardProxy]] = field(default_factory=list)
    gateways: dict[str, Entry[Gateway]] = field(default_factory=dict)
    services: dict[str, ServiceHost] = field(default_factory=dict)
    entries: list[Entry[ServiceEntry]] = field(default_factory=list)
    virtual_services: list[Entry[VirtualService]] = field(default_factory=list)
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
        return index

    def _add(self, item: Loaded) -> None:
        match item.resource:
            case ForwardProxy() as resource:
                self.forward_proxies.append(Entry(resource, item.origin))
            case Gateway() as resource:
                gateway = Entry(resource, item.origin)
                self.gateways[gateway.full_name] = gateway
            case VirtualService() as resource:
                self.virtual_services.append(Entry(resource, item.origin))
            case ServiceEntry() as resource:
                self._add_services(Entry(resource, item.origin))

    def _add_services(self, entry: Entry[ServiceEntry]) -> None:
        self.entries.append(entry)
        for position, host in enumerate(entry.resource.spec.hosts):
            key = names.service_key(host, entry.namespace)
            if key in self.services:
                first = self.services[key].entry
                message = f"the service {key} is defined twice"
                hint = f"the first is at {first.origin.place('spec', 'hosts')}"
                path = ("spec", "hosts", position)
                self.problems.append(entry.origin.problem(message, *path, hint=hint))
                continue
            self.services[key] = ServiceHost(names.qualified(host, entry.namespace), host, entry)


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
