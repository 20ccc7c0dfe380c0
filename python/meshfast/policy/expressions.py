"""The regular expressions of rules, judged apart from everything else that may be wrong.

The snapshot compiler is the only judge of RE2 syntax. So that a file takes one round, conditions
are shown to it in a document of their own, in which nothing else can be refused: one listener for
each rule and port that its conditions ask for, one cluster for all routes.

Tests: tests/core/test_blame.py, tests/control/translate/test_check.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from meshfast.errors import ConfigError, Problem
from meshfast.policy.blame import locate
from meshfast.policy.document import (
    Cluster,
    Destination,
    Document,
    HttpRoute,
    Listener,
    Service,
    VirtualHost,
    Workload,
    encode_document,
)
from meshfast.policy.index import Entry
from meshfast.policy.routes import matches_on, route_name
from meshfast.resources import Loaded
from meshfast.resources.kinds import VirtualService

__all__ = ["check_expressions"]

_ANY_PORT = 1
_CLUSTER = Cluster(
    name="any",
    service=Service(host="any", name="any", namespace="any"),
    subset="",
    balancer="LEAST_REQUEST",
    connect_timeout_ms=1,
    idle_timeout_ms=1,
    endpoints=(),
)


def check_expressions(
    rules: Iterable[Entry[VirtualService]], build: Callable[[bytes], bytes]
) -> list[Problem]:
    """Find what is no regular expression; `build` is `meshfast._core.Snapshot.build`."""
    listeners: list[Listener] = []
    loaded: list[Loaded] = []
    for rule in rules:
        loaded.append(Loaded(rule.resource, rule.origin))
        for port in _ports(rule.resource):
            listeners.append(_listener(rule, port, len(listeners)))
    document = Document(
        generation=1,
        workload=Workload(name="any", namespace="", app="", revision=""),
        listeners=tuple(listeners),
        clusters=(_CLUSTER,),
    )
    try:
        if listeners:
            build(encode_document(document))
    except ConfigError as error:
        located = locate(error, document, loaded).problems
        return list(dict.fromkeys(problem for problem in located if problem.file))
    return []


def _ports(resource: VirtualService) -> list[int]:
    asked = {match.port for route in resource.spec.http for match in route.match}
    return sorted({port or _ANY_PORT for port in asked})


def _listener(rule: Entry[VirtualService], port: int, number: int) -> Listener:
    routes = tuple(
        HttpRoute(
            name=route_name(rule.full_name, position, route),
            matches=matches,
            timeout_ms=None,
            destinations=(Destination(cluster=_CLUSTER.name, weight=1),),
        )
        for position, route in enumerate(rule.resource.spec.http)
        for matches in [matches_on(route, port)]
        if matches is not None
    )
    host = VirtualHost(name=rule.full_name, domains=("*",), routes=routes)
    ip = f"127.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    return Listener(
        name=f"outbound/{ip}:{port}",
        direction="outbound",
        protocol="HTTP",
        virtual_hosts=(host,),
    )
