"""VirtualServices to routes: conditions, destinations and their shares.

Order is kept: the first route that matches wins. A condition on another port than the listener's
can never hold there, so it is left out of that listener; a route left without any is too.

Tests: tests/core/test_golden.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypedDict

from msgspec import UnsetType

from meshfast.errors import Problem
from meshfast.policy import actions, names
from meshfast.policy.clusters import Upstream
from meshfast.policy.document import (
    Destination,
    HeaderEdits,
    HttpRoute,
    Match,
    NamedMatch,
    StringMatch,
    TcpRoute,
)
from meshfast.policy.index import Entry, Index, nearest
from meshfast.resources import kinds
from meshfast.resources.kinds import VirtualService
from meshfast.resources.texts import duration_ms

__all__ = ["Router", "conditions_on", "matches_on", "route_name", "takes_port"]

WEIGHTS_MAX = 2**32 - 1  # the sum of a route's weights, as in Envoy

_Weighted = Sequence[kinds.HTTPRouteDestination | kinds.RouteDestination]


class _Missing(NamedTuple):
    """What a destination names and is not there: the field, and the kind that would have it.

    It is not certain when what would have it could not be read whole.
    """

    message: str
    field: str
    kind: str = ""
    hint: str = ""
    is_certain: bool = True


@dataclass(slots=True)
class Router:
    """Turns rules into routes; collects the clusters that they name, and the problems.

    `unread` are kinds of which one may be missing, because it could not be read.
    """

    index: Index
    unread: frozenset[str] = frozenset()
    upstreams: dict[str, Upstream] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def check(self, entry: Entry[VirtualService]) -> None:
        """Look at all routes of a VirtualService once, wherever they are served."""
        spec, origin = entry.resource.spec, entry.origin
        are_read = origin.is_whole("spec", "http") and origin.is_whole("spec", "tcp")
        if not spec.http and not spec.tcp and are_read:
            self.problems.append(entry.origin.problem("there is no http or tcp route", "spec"))
        self._check_http(entry)
        for position, route in enumerate(spec.tcp):
            self._check_destinations(entry, route.route, "tcp", position)

    def _check_http(self, entry: Entry[VirtualService]) -> None:
        """Refuse two routes of one name, and routes behind one that takes every request."""
        named: dict[str, int] = {}
        takes_all: int | None = None
        for position, route in enumerate(entry.resource.spec.http):
            first = named.setdefault(route_name(entry.full_name, position, route), position)
            if first != position:
                hint = f"the first is at {entry.origin.place('spec', 'http', first)}"
                message = "two routes have the same name"
                problem = entry.origin.problem(message, "spec", "http", position, "name", hint=hint)
                self.problems.append(problem)
            if takes_all is not None:
                where = entry.origin.place("spec", "http", takes_all)
                hint = f"the route at {where} takes every request"
                message = "the route is never reached"
                problem = entry.origin.problem(message, "spec", "http", position, hint=hint)
                self.problems.append(problem)
            elif _takes_all(route) and entry.origin.is_whole("spec", "http", position, "match"):
                takes_all = position
            self._check_destinations(entry, route.route, "http", position)

    def http_routes(self, entry: Entry[VirtualService], port: int) -> Iterator[HttpRoute]:
        """Give the routes that can match on a listener of this port."""
        for position, route in enumerate(entry.resource.spec.http):
            matches = matches_on(route, port)
            if matches is None:
                continue
            yield HttpRoute(
                name=route_name(entry.full_name, position, route),
                matches=() if Match() in matches else matches,
                timeout_ms=None if route.timeout is None else duration_ms(route.timeout),
                destinations=self._destinations(entry, route.route),
                retry=actions.retry(route.retries),
                fault=actions.fault(route.fault),
                **_route_edits(route),
            )

    def tcp_route(self, entry: Entry[VirtualService], port: int) -> TcpRoute | None:
        """Give the route for all connections to this port: the first that takes them."""
        for position, route in enumerate(entry.resource.spec.tcp):
            if takes_port(route, port):
                name = f"{entry.full_name}/tcp/{position}"
                return TcpRoute(name=name, destinations=self._destinations(entry, route.route))
        return None

    def _destinations(
        self, entry: Entry[VirtualService], weighted: _Weighted
    ) -> tuple[Destination, ...]:
        """Give the clusters and weights; a destination that was refused in `check` is left out."""
        single = len(weighted) == 1
        found = []
        for item in weighted:
            upstream = self._upstream(entry, item.destination)
            if isinstance(upstream, _Missing):
                continue
            self.upstreams[upstream.cluster] = upstream
            # Those of a single destination are in the route: see `_route_edits`.
            headers = None if single else getattr(item, "headers", None)
            edits = _header_edits(headers)
            weight = 1 if single else item.weight or 0
            found.append(Destination(cluster=upstream.cluster, weight=weight, **edits))
        return tuple(found)

    def _upstream(
        self, entry: Entry[VirtualService], destination: kinds.Destination
    ) -> Upstream | _Missing:
        """Find the service, port and subset of a destination, or say what there is not."""
        key = names.service_key(destination.host, entry.namespace)
        service = self.index.services.get(key)
        if service is None:
            wanted = names.qualified(destination.host, entry.namespace)
            hosts = [service.host for service in self.index.services.values()]
            hint = nearest(wanted, hosts, "hosts")
            return _Missing(f"no ServiceEntry has the host {key!r}", "host", "ServiceEntry", hint)
        number = destination.port.number if destination.port else None
        port = service.port(number)
        if port is None:
            ports = ", ".join(str(port.number) for port in service.entry.resource.spec.ports)
            asked = "which port is meant" if number is None else f"no port {number}"
            message = f"{asked}: the service {key} has the ports {ports}"
            is_certain = self.index.has_all_ports(service)
            return _Missing(message, "port", is_certain=is_certain)
        rule = self.index.destination_rules.get(key)
        resource = None if rule is None else rule.resource
        if not destination.subset:
            return Upstream(service, port, resource)
        subset = self.index.subset(key, destination.subset)
        if resource is None:
            message = f"no DestinationRule has the host {key!r}, so it has no subsets"
            return _Missing(message, "subset", "DestinationRule")
        if subset is None:
            message = f"the DestinationRule of {key} has no subset {destination.subset!r}"
            known = [one.name for one in resource.spec.subsets]
            hint = nearest(destination.subset, known, "subsets")
            is_certain = self.index.lacks(key, destination.subset)
            return _Missing(message, "subset", "DestinationRule", hint, is_certain)
        return Upstream(service, port, resource, subset)

    def _check_destinations(
        self, entry: Entry[VirtualService], weighted: _Weighted, protocol: str, position: int
    ) -> None:
        path = ("spec", protocol, position, "route")
        is_placed = entry.origin.is_whole("metadata", "namespace")  # where short names resolve
        for at, item in enumerate(weighted if is_placed else ()):
            place = (*path, at, "destination")
            missing = self._upstream(entry, item.destination)
            if not isinstance(missing, _Missing) or not entry.origin.is_whole(*place, "host"):
                continue
            if missing.is_certain and missing.kind not in self.unread:
                message, hint = missing.message, missing.hint
                problem = entry.origin.problem(message, *place, missing.field, hint=hint)
                self.problems.append(problem)
        total = sum(item.weight or 0 for item in weighted)
        are_read = entry.origin.has_all("weight", weighted, *path)
        if len(weighted) > 1 and are_read and not 0 < total <= WEIGHTS_MAX:
            message = f"the weights add up to {total}; they must add up to 1 to {WEIGHTS_MAX}"
            self.problems.append(entry.origin.problem(message, *path))


def takes_port(route: kinds.TCPRoute, port: int) -> bool:
    """Tell whether the route takes connections to the port."""
    return not route.match or any(match.port in (None, port) for match in route.match)


def matches_on(route: kinds.HTTPRoute, port: int) -> tuple[Match, ...] | None:
    """Give the conditions that can hold on a listener of this port; None when no request can."""
    mine = conditions_on(route, port)
    if route.match and not mine:
        return None
    return tuple(_match(route.match[at]) for at in mine)


def conditions_on(route: kinds.HTTPRoute, port: int) -> list[int]:
    """Give the positions of the conditions that can hold on a listener of this port."""
    return [at for at, match in enumerate(route.match) if match.port in (None, port)]


def route_name(full_name: str, position: int, route: kinds.HTTPRoute) -> str:
    """Name a route after its VirtualService and its own name, or else its position."""
    return f"{full_name}/{route.name or position}"


class _Edits(TypedDict):
    request_headers: HeaderEdits | UnsetType
    response_headers: HeaderEdits | UnsetType


def _header_edits(headers: kinds.Headers | None) -> _Edits:
    headers = headers or kinds.Headers()
    return {
        "request_headers": actions.header_edits(headers.request),
        "response_headers": actions.header_edits(headers.response),
    }


def _route_edits(route: kinds.HTTPRoute) -> _Edits:
    """Give the changes of a route, and after them those of its only destination.

    Istio writes the headers of a single destination behind those of the route, on the route, so the
    destination has the last word. Of several, each has its own in Envoy, where they come first
    (`most_specific_header_mutations_wins` is off) and the route has it.
    """
    mine = _header_edits(route.headers)
    if len(route.route) != 1:
        return mine
    theirs = _header_edits(route.route[0].headers)
    return {
        "request_headers": actions.in_turn(mine["request_headers"], theirs["request_headers"]),
        "response_headers": actions.in_turn(mine["response_headers"], theirs["response_headers"]),
    }


def _takes_all(route: kinds.HTTPRoute) -> bool:
    """Tell whether every request matches."""
    return not route.match or any(
        match == kinds.HTTPMatchRequest(name=match.name) for match in route.match
    )


def _match(match: kinds.HTTPMatchRequest) -> Match:
    headers = [(name, condition, False) for name, condition in match.headers.items()]
    headers += [(name, condition, True) for name, condition in match.without_headers.items()]
    return Match(
        uri=_condition(match.uri),
        ignore_uri_case=match.ignore_uri_case,
        method=_condition(match.method),
        scheme=_condition(match.scheme),
        authority=_condition(match.authority),
        headers=tuple(
            NamedMatch(name=name, match=_string_match(condition), invert=invert)
            for name, condition, invert in headers
        ),
        query_params=tuple(
            NamedMatch(name=name, match=_string_match(condition))
            for name, condition in match.query_params.items()
        ),
    )


def _condition(match: kinds.StringMatch | None) -> StringMatch | None:
    return None if match is None else _string_match(match)


def _string_match(match: kinds.StringMatch) -> StringMatch:
    for name in ("exact", "prefix", "regex"):
        value = getattr(match, name)
        if value is not None:
            return {name: value}
    return {"present": True}
