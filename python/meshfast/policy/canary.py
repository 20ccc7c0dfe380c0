"""A canary: the share of one subset of a service, set and taken back in its VirtualService.

`set_shares` gives subsets their percentages and lets the others share the rest in the proportions
that they had; `roll_back` gives the share of one subset back to the others. Both edit every route
that splits the service among subsets, and leave alone a route that sends all of its requests to one
place on purpose, such as testers by a header.

Which subset is the canary is written down in an annotation by `set_shares`. In a rule that was
applied by hand it is the lighter one of two.

Pure: documents in, documents out. Reading, writing and telling are for whoever calls.

Invariants: the weights of an edited route add up to what was asked for, 100 when set, what they
were when rolled back; a subset of weight 0 stays in the rule.

Tests: tests/core/test_canary.py; the command in tests/mesh/test_canary.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain, count
from typing import Final, NamedTuple, NoReturn

from msgspec.structs import replace

from meshfast.errors import ConfigError, Problem
from meshfast.policy import names
from meshfast.resources import kinds
from meshfast.resources.kinds import DestinationRule, HTTPRoute, VirtualService

__all__ = [
    "ANNOTATION",
    "RolledBack",
    "Service",
    "find_destination_rule",
    "find_rule",
    "roll_back",
    "rule_of_versions",
    "set_shares",
    "weights_of",
]

ANNOTATION: Final = "meshfast.dev/canary"
VERSION: Final = "version"
_WHOLE: Final = 100
_Split = tuple[kinds.HTTPRouteDestination, ...]


class Service(NamedTuple):
    """A service as the operator named it, in a namespace."""

    host: str
    namespace: str

    @property
    def key(self) -> str:
        """What all spellings of it have in common."""
        return names.service_key(self.host, self.namespace)


class RolledBack(NamedTuple):
    """The rule without its canary, and the routes that still send everything there, by place."""

    rule: VirtualService
    subset: str
    left: tuple[int, ...]


def find_rule(rules: Iterable[VirtualService], service: Service) -> VirtualService | None:
    """Find the VirtualService that routes the calls of sidecars to the service."""
    for rule in rules:
        gateways, namespace = rule.spec.gateways, rule.metadata.namespace
        for host in rule.spec.hosts if not gateways or "mesh" in gateways else ():
            if names.service_key(host, namespace) == service.key and rule.spec.http:
                return rule
    return None


def find_destination_rule(
    rules: Iterable[DestinationRule], service: Service
) -> DestinationRule | None:
    """Find the DestinationRule of the service."""
    for rule in rules:
        if names.service_key(rule.spec.host, rule.metadata.namespace) == service.key:
            return rule
    return None


def rule_of_versions(
    service: Service, labels: Iterable[Mapping[str, str]], taken: Collection[str] = ()
) -> DestinationRule:
    """Make a DestinationRule with a subset for each label `version` of the workloads.

    `taken` are the names of other DestinationRules of the namespace. Raises ConfigError when there
    are not two versions.
    """
    found = sorted({one[VERSION] for one in labels if VERSION in one})
    if len(found) < 2:
        listed = ", ".join(found) or "none"
        _refuse(
            f"{service.key} has no DestinationRule, and its workloads have fewer than two versions "
            f"({listed})",
            "start them with `meshfast run --label version=V`, or apply a DestinationRule",
        )
    return DestinationRule(
        api_version="networking.istio.io/v1",
        kind="DestinationRule",
        metadata=kinds.Metadata(name=_free_name(service, taken), namespace=service.namespace),
        spec=kinds.DestinationRuleSpec(
            host=service.host,
            subsets=tuple(
                kinds.Subset(name=version.lower().replace(".", "-"), labels={VERSION: version})
                for version in found
            ),
        ),
    )


def set_shares(
    rule: VirtualService | None,
    subsets: DestinationRule,
    service: Service,
    shares: Mapping[str, int],
    taken: Collection[str] = (),
) -> VirtualService:
    """Give subsets their shares in per cent; the first one is the canary.

    Without a rule, one is made, and not called as any other of the namespace, which are `taken`.
    Raises ConfigError when a subset is not in the DestinationRule, or
    no route can be edited.
    """
    _check_shares(subsets, shares)
    known = [subset.name for subset in subsets.spec.subsets]
    if rule is None:
        plain = kinds.HTTPRouteDestination(destination=kinds.Destination(host=service.host))
        rule = VirtualService(
            api_version="networking.istio.io/v1",
            kind="VirtualService",
            metadata=kinds.Metadata(name=_free_name(service, taken), namespace=service.namespace),
            spec=kinds.VirtualServiceSpec(hosts=(service.host,), http=(HTTPRoute(route=(plain,)),)),
        )
    canary = next(iter(shares))
    places = _splits(rule, service, canary) or _catch_all(rule, service)
    http = list(rule.spec.http)
    for place in places:
        http[place] = replace(http[place], route=_shared(http[place].route, known, shares))
    annotations = rule.metadata.annotations | {ANNOTATION: canary}
    return replace(
        rule,
        metadata=replace(rule.metadata, annotations=annotations),
        spec=replace(rule.spec, http=tuple(http)),
    )


def roll_back(rule: VirtualService, service: Service, subset: str = "") -> RolledBack:
    """Give the share of the canary back; `subset` names it where the rule does not say.

    Raises ConfigError when it is not clear which one it is, or there is no other.
    """
    canary = subset or _canary_of(rule, service)
    places = _splits(rule, service, canary)
    if not places:
        _refuse(
            f"no route of {_name(rule)} splits {service.key} between {canary!r} and others",
            _listed(weights_of(rule, service)),
        )
    http = list(rule.spec.http)
    for place in places:
        route = http[place].route
        total = sum(item.weight or 0 for item in route)
        others = [_subset(item) for item in route if _subset(item) != canary]
        if len(others) > 1 and not any(item.weight for item in route if _subset(item) != canary):
            hint = f"say it with `meshfast canary set {service.host} {others[0]}=100`"
            _refuse(f"which of {', '.join(others)} takes the requests of {canary!r}?", hint)
        http[place] = replace(http[place], route=_weighted(route, {canary: 0}, total))
    left = tuple(
        at
        for at, route in enumerate(http)
        if len(route.route) == 1
        and _is_of(route.route[0], rule, service)
        and _subset(route.route[0]) == canary
    )
    return RolledBack(replace(rule, spec=replace(rule.spec, http=tuple(http))), canary, left)


def weights_of(rule: VirtualService, service: Service) -> dict[str, int]:
    """Give the weight of each subset in the first route that splits the service."""
    places = _splits(rule, service) or _catch_all(rule, service, strict=False)
    for place in places:
        route = rule.spec.http[place].route
        if len(route) == 1:
            return {_subset(route[0]): _WHOLE}
        return {_subset(item): item.weight or 0 for item in route}
    return {}


def _check_shares(subsets: DestinationRule, shares: Mapping[str, int]) -> None:
    known = [subset.name for subset in subsets.spec.subsets]
    for name in shares:
        if name not in known:
            _refuse(
                f"{_name(subsets)} has no subset {name!r}, only {', '.join(known) or 'none'}",
                f"add {{name: {name}, labels: {{version: {name}}}}} to its subsets: "
                f"`meshfast get DestinationRule {subsets.metadata.name} -n "
                f"{subsets.metadata.namespace} -o yaml`, then `meshfast apply -f`",
            )
    total = sum(shares.values())
    if total > _WHOLE:
        _refuse(f"the shares add up to {total} %")


def _canary_of(rule: VirtualService, service: Service) -> str:
    """Give the subset that is noted in the rule, or the lighter one of two."""
    weights = weights_of(rule, service)
    noted = rule.metadata.annotations.get(ANNOTATION)
    if noted in weights:
        return noted
    ordered = sorted(weights, key=lambda subset: weights[subset])
    if len(ordered) == 2 and weights[ordered[0]] < weights[ordered[1]]:
        return ordered[0]
    message = f"it is not clear which subset of {service.key} is the canary"
    _refuse(message, f"{_listed(weights)}; say it with --subset")


def _splits(rule: VirtualService, service: Service, subset: str = "") -> list[int]:
    """Find the routes that split the service among subsets, with the one that is asked for."""
    return [
        at
        for at, route in enumerate(rule.spec.http)
        if len(route.route) > 1
        and all(_is_of(item, rule, service) and _subset(item) for item in route.route)
        and (not subset or subset in map(_subset, route.route))
    ]


def _catch_all(rule: VirtualService, service: Service, *, strict: bool = True) -> list[int]:
    """Find the route for what no other one takes; it has to send to this service only."""
    for at, route in enumerate(rule.spec.http):
        if not route.match:
            if all(_is_of(item, rule, service) for item in route.route):
                return [at]
            break
    if strict:
        message = f"no route of {_name(rule)} can be split among subsets of {service.key}"
        _refuse(message, "write one with `meshfast apply`; later changes of shares find it")
    return []


def _shared(route: _Split, known: Sequence[str], shares: Mapping[str, int]) -> _Split:
    """Give the route with the shares; subsets that are needed and not in it are added."""
    present = {_subset(item) for item in route} - {""}
    added = [name for name in shares if name not in present]
    if present <= shares.keys() and sum(shares.values()) < _WHOLE:
        others = [name for name in known if name not in shares]
        if len(others) > 1:
            hint = f"give each of them a share, as in {others[0]}=50"
            _refuse(f"which of {', '.join(others)} takes the rest?", hint)
        added = [*others, *added]
    template = route[0] if not present else replace(route[0], headers=None)
    if len(route) == 1:  # whatever its weight is, it takes all
        route = (replace(route[0], weight=_WHOLE),)
    kept = tuple(item for item in route if _subset(item))
    for name in added:
        destination = replace(template.destination, subset=name)
        kept += (replace(template, destination=destination, weight=0),)
    return _weighted(kept, shares, _WHOLE)


def _weighted(route: _Split, shares: Mapping[str, int], total: int) -> _Split:
    """Set the weights of some subsets; the others share the rest in the proportions they had."""
    others = [item.weight or 0 for item in route if _subset(item) not in shares]
    rest = _divided(total - sum(shares.values()), others)
    weights = [shares[_subset(item)] if _subset(item) in shares else rest.pop(0) for item in route]
    if sum(weights) != total:
        _refuse(f"the shares add up to {sum(weights)} %, and there is no other subset")
    return tuple(replace(item, weight=weight) for item, weight in zip(route, weights, strict=True))


def _divided(total: int, weights: Sequence[int]) -> list[int]:
    """Divide in the proportions of the weights, equally if all are 0, in whole numbers."""
    whole = sum(weights)
    parts = list(weights) if whole else [1] * len(weights)
    whole = whole or len(parts)
    given = [total * part // whole for part in parts]
    by_remainder = sorted(range(len(parts)), key=lambda at: (-(total * parts[at] % whole), at))
    for at in by_remainder[: total - sum(given)]:
        given[at] += 1
    return given


def _is_of(item: kinds.HTTPRouteDestination, rule: VirtualService, service: Service) -> bool:
    return names.service_key(item.destination.host, rule.metadata.namespace) == service.key


def _subset(item: kinds.HTTPRouteDestination) -> str:
    return item.destination.subset


def _free_name(service: Service, taken: Collection[str]) -> str:
    name = service.host.partition(".")[0].lower()
    others = (f"{name}-canary-{at}" for at in count(2))
    names = chain((name, f"{name}-canary"), others)
    return next(one for one in names if one not in taken)


def _name(resource: VirtualService | DestinationRule) -> str:
    return f"{resource.kind} {resource.metadata.namespace}/{resource.metadata.name}"


def _listed(weights: Mapping[str, int]) -> str:
    return "its weights: " + ", ".join(f"{name} {weight}" for name, weight in weights.items())


def _refuse(message: str, hint: str = "") -> NoReturn:
    raise ConfigError([Problem(message, hint=hint)])
