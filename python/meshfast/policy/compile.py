"""Resources to a snapshot document: the whole translation, in order.

    resources → index (by name) → listeners and routes → the clusters they name → slots

The document stands for the first Gateway or ForwardProxy of the resources, and each listener of
another one for that one.

Every problem of every step is raised together, except that slots are given only when there is
none. Pure: the same resources, slots and answers of `resolve` give the same document.

Tests: tests/core/test_golden.py, with the documents in tests/core/golden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import UNSET
from msgspec.structs import replace

from meshfast.errors import ConfigError, Problem, in_file_order
from meshfast.policy.clusters import build_clusters, check_entries, check_selected
from meshfast.policy.destination_rules import check_rules
from meshfast.policy.document import Document, Listener, Workload
from meshfast.policy.index import Index
from meshfast.policy.listeners import build_listeners, stands_for
from meshfast.policy.routes import Router
from meshfast.policy.slots import SlotAllocator
from meshfast.resources import Loaded, certain
from meshfast.resources.kinds import ForwardProxy, Gateway

__all__ = ["compile", "problems_among"]


def compile(
    resources: Sequence[Loaded],
    *,
    generation: int,
    allocator: SlotAllocator,
    resolve: Callable[[str], list[str]],
) -> Document:
    """Translate the resources; `generation >= 1` numbers the snapshot.

    `resolve` gives the IP addresses of a host name now; it is called once per name.

    Raises ConfigError with every problem; the allocator is unchanged then.
    """
    router = Router(Index.of(resources))
    listeners, problems = _routed(router)
    if problems:
        raise ConfigError(in_file_order(problems))
    edges = (one.resource for one in resources if isinstance(one.resource, Gateway | ForwardProxy))
    workload = stands_for(next(edges))
    return Document(
        generation=generation,
        workload=workload,
        listeners=tuple(_without(workload, listener) for listener in listeners),
        clusters=build_clusters(router.upstreams, resolve, allocator, generation),
    )


def problems_among(resources: Sequence[Loaded], unread: frozenset[str]) -> list[Problem]:
    """Find what is wrong with and between resources, as far as they could be read.

    What may only follow from their gaps, or from others of the kinds `unread`, is left out.
    """
    return certain(_routed(Router(Index.of(resources), unread))[1])


def _routed(router: Router) -> tuple[tuple[Listener, ...], list[Problem]]:
    index = router.index
    listeners, problems = build_listeners(index, router)
    return listeners, [
        *index.problems,
        *check_entries(index.entries),
        *check_selected(index.entries, index.workloads),
        *check_rules(index, router.unread),
        *router.problems,
        *problems,
    ]


def _without(workload: Workload, listener: Listener) -> Listener:
    """Leave out whom a listener stands for where that is said of the whole document."""
    return replace(listener, workload=UNSET) if listener.workload == workload else listener
