"""From a problem of the snapshot compiler back to the line that an operator wrote.

The snapshot compiler is the only judge of regular expressions (RE2 syntax), and knows paths of the
document, as in `listeners[0].virtual_hosts[1].routes[2].matches[0].uri.regex`. Here such a path is
followed to the VirtualService that the route came from. A path that leads elsewhere is a document
that policy should not have made; its problem is passed on as it is.

Tests: tests/core/test_blame.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from meshfast.errors import ConfigError, Problem
from meshfast.policy.document import Document
from meshfast.policy.routes import conditions_on, route_name
from meshfast.resources import Loaded
from meshfast.resources.kinds import HTTPMatchRequest, VirtualService

__all__ = ["locate"]

_CONDITION = re.compile(
    r"listeners\[(?P<listener>\d+)\]\.virtual_hosts\[(?P<host>\d+)\]\.routes\[(?P<route>\d+)\]"
    r"\.matches\[(?P<match>\d+)\]\.(?P<part>\w+)(\[(?P<item>\d+)\]\.match)?(\.(?P<leaf>\w+))?"
    r": (?P<text>.*)",
    re.DOTALL,
)


def locate(error: ConfigError, document: Document, resources: Sequence[Loaded]) -> ConfigError:
    """Give the same problems, with file, line and column where they can be found."""
    return ConfigError([_located(problem, document, resources) for problem in error.problems])


def _located(problem: Problem, document: Document, resources: Sequence[Loaded]) -> Problem:
    found = _CONDITION.fullmatch(problem.message)
    if found is None:
        return problem
    listener = document.listeners[int(found["listener"])]
    host = listener.virtual_hosts[int(found["host"])]
    route = host.routes[int(found["route"])]
    for loaded in resources:
        resource = loaded.resource
        full_name = f"{resource.metadata.namespace}/{resource.metadata.name}"
        if not isinstance(resource, VirtualService) or full_name != host.name:
            continue
        for position, written in enumerate(resource.spec.http):
            if route_name(full_name, position, written) != route.name:
                continue
            port = int(listener.address.rpartition(":")[2])
            at = conditions_on(written, port)[int(found["match"])]
            item = None if found["item"] is None else int(found["item"])
            part = _part(written.match[at], found["part"], item)
            leaf = (found["leaf"],) if found["leaf"] else ()
            path = ("spec", "http", position, "match", at, *part, *leaf)
            return loaded.origin.problem(found["text"], *path)
    return problem


def _part(match: HTTPMatchRequest, part: str, item: int | None) -> tuple[str, ...]:
    """Give the way to a part of a condition, as it was written."""
    if item is None:
        return (part,)
    if part == "query_params":
        return ("queryParams", list(match.query_params)[item])
    if item < len(match.headers):
        return ("headers", list(match.headers)[item])
    return ("withoutHeaders", list(match.without_headers)[item - len(match.headers)])
