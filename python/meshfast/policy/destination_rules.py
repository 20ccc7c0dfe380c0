"""What is wrong with DestinationRules, alone and beside the services that they are for.

Two subsets of one name are refused. A subset without an endpoint is a warning: endpoints come and
go. Two rules for one host are found where they are indexed.

Tests: tests/core/test_golden.py, test_source.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from meshfast.errors import Problem
from meshfast.policy import names
from meshfast.policy.clusters import selects
from meshfast.policy.index import Entry, Index, nearest
from meshfast.resources.kinds import DestinationRule

__all__ = ["check_rules", "check_subsets", "warn_of_rules", "warn_of_subsets"]


def check_rules(index: Index, unread: frozenset[str]) -> Iterator[Problem]:
    """Find what is wrong with the rules of a file that says everything about its services."""
    for key, rule in index.destination_rules.items():
        yield from check_subsets(rule)
        is_placed = rule.origin.is_whole("metadata", "namespace")  # where short names resolve
        if key not in index.services and is_placed and "ServiceEntry" not in unread:
            hosts = [service.host for service in index.services.values()]
            wanted = names.qualified(rule.resource.spec.host, rule.namespace)
            message = f"no ServiceEntry has the host {key!r}"
            hint = nearest(wanted, hosts, "hosts")
            yield rule.origin.problem(message, "spec", "host", hint=hint)


def check_subsets(rule: Entry[DestinationRule]) -> Iterator[Problem]:
    """Refuse two subsets of one name."""
    seen: dict[str, int] = {}
    for position, subset in enumerate(rule.resource.spec.subsets):
        first = seen.setdefault(subset.name, position)
        if first != position:
            message = f"the subset {subset.name!r} occurs twice"
            hint = f"the first is at {rule.origin.place('spec', 'subsets', first, 'name')}"
            yield rule.origin.problem(message, "spec", "subsets", position, "name", hint=hint)


def warn_of_rules(index: Index) -> Iterator[Problem]:
    """Find subsets that no endpoint is in."""
    for key, rule in index.destination_rules.items():
        service = index.services.get(key)
        if service is None:
            continue
        labels = [one.labels for one in service.entry.resource.spec.endpoints] or [{}]
        yield from warn_of_subsets(rule, labels)


def warn_of_subsets(
    rule: Entry[DestinationRule], endpoints: Iterable[dict[str, str]]
) -> Iterator[Problem]:
    """Find subsets that none of the endpoints with these labels is in."""
    found = list(endpoints)
    for position, subset in enumerate(rule.resource.spec.subsets):
        if not any(selects(subset, labels) for labels in found):
            wanted = ", ".join(f"{name}={value}" for name, value in subset.labels.items())
            message = f"no endpoint of {rule.resource.spec.host} has the labels {wanted}"
            yield rule.origin.problem(message, "spec", "subsets", position, "labels")
