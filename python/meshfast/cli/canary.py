"""`meshfast canary set` and `rollback`: the share of one version of a service.

What is decided is written only if nobody meanwhile changed what it was decided from; then it is
read again, after a pause of random length, until a deadline. What is to be changed is decided by
`meshfast.policy.canary`.

Tests: tests/mesh/test_canary.py; the decisions in tests/core/test_canary.py.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec
import rich_click as click

from meshfast.cli.operator import (
    NAME,
    NAMESPACE,
    ChangedError,
    OperatorApi,
    difference,
    operator_options,
    warn,
)
from meshfast.cli.output import show
from meshfast.errors import ConfigError, Problem
from meshfast.policy.canary import (
    Service,
    find_destination_rule,
    find_rule,
    roll_back,
    rule_of_versions,
    set_shares,
    weights_of,
)
from meshfast.resources import render_yaml
from meshfast.resources.kinds import DestinationRule, Resource, VirtualService

__all__ = ["canary"]

#: How long changes of others are taken into account before giving up.
DEADLINE_S = 5.0
#: Between two tries: full jitter, from 0 to a bound that doubles. One change takes milliseconds.
PAUSE_S = 0.02
PAUSE_MAX_S = 0.5
T = TypeVar("T", DestinationRule, VirtualService)


class _Share(click.ParamType[tuple[str, int]]):
    """`SUBSET=PERCENT`."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Split the text; a tuple is one that was split already."""
        if isinstance(value, tuple):
            return value
        subset, equals, percent = value.removesuffix("%").partition("=")
        if not subset or not equals or not percent.isdecimal() or int(percent[:4]) > 100:
            self.fail(f"expected SUBSET=PERCENT with 0 to 100, as in v2=10, got {value!r}", param)
        return subset, int(percent)


class _Plan(NamedTuple):
    """What is to be applied, what that was decided from besides, and what to say of it."""

    resources: Sequence[Resource]
    read: Sequence[Resource]
    services: Sequence[Mapping[str, str]]
    rule: VirtualService
    subset: str
    notes: Sequence[str] = ()


class _Stored:
    """The resources of the mesh at the moment, with their revisions."""

    def __init__(self, api: OperatorApi) -> None:
        self.revisions: dict[tuple[str, str, str], str] = {}
        self._documents: list[dict[str, Any]] = []
        for one in api.ask("GET", "resources"):
            self.revisions[one["kind"], one["namespace"], one["name"]] = one["revision"]
            self._documents.append(one["document"])

    def of(self, kind: type[T]) -> list[T]:
        """Give all resources of a kind."""
        return [
            msgspec.convert(document, kind)
            for document in self._documents
            if document["kind"] == kind.__name__
        ]

    def names(self, kind: type[Resource], namespace: str) -> set[str]:
        """Give the names of a kind in a namespace."""
        place = (kind.__name__, namespace)
        return {name for found, of, name in self.revisions if (found, of) == place}

    def expected(self, resources: Sequence[Resource]) -> list[dict[str, str]]:
        """Say at which revisions the resources were read; the empty one is not there yet."""
        names = {(one.kind, one.metadata.namespace, one.metadata.name): None for one in resources}
        return [
            {"kind": kind, "namespace": namespace, "name": name,
             "revision": self.revisions.get((kind, namespace, name), "")}
            for kind, namespace, name in names
        ]  # fmt: skip


@click.group()
def canary() -> None:
    """Give one version of a service a share of its requests, and take it back."""


@canary.command(name="set")
@click.argument("service", type=NAME)
@click.argument("shares", nargs=-1, required=True, type=_Share(), metavar="SUBSET=PERCENT...")
@NAMESPACE
@operator_options
def set_(
    service: str,
    shares: tuple[tuple[str, int], ...],
    namespace: str,
    state_dir: Path | None,
    output: str,
) -> None:
    """Set the share of a subset in per cent; the others share the rest as before.

    \b
        meshfast canary set payment v2=10

    The first subset is the canary, which `rollback` takes back. Without a DestinationRule one is
    made, with a subset for every label `version` of the workloads; without a VirtualService, too.
    """
    wanted = dict(shares)
    if len(wanted) < len(shares):
        raise click.UsageError("a subset is given twice")
    asked = Service(service, namespace)

    def plan(api: OperatorApi, stored: _Stored) -> _Plan:
        versions = find_destination_rule(stored.of(DestinationRule), asked)
        made: list[Resource] = []
        services: list[Mapping[str, str]] = []
        notes = []
        if versions is None:
            taken = stored.names(DestinationRule, namespace)
            labels, expected = _labels(api, asked)
            versions = rule_of_versions(asked, labels, taken)
            made.append(versions)
            services.append(expected)
            names = ", ".join(subset.name for subset in versions.spec.subsets)
            notes.append(f"made a DestinationRule from the labels version: {names}")
        found = find_rule(stored.of(VirtualService), asked)
        taken = stored.names(VirtualService, namespace)
        rule = set_shares(found, versions, asked, wanted, taken)
        read = [one for one in (versions, found) if one is not None]
        return _Plan([*made, rule], read, services, rule, shares[0][0], notes)

    _change(plan, asked, state_dir, output)


@canary.command()
@click.argument("service", type=NAME)
@click.option("--subset", help="Which subset is the canary, where the rule does not say.")
@NAMESPACE
@operator_options
def rollback(
    service: str, subset: str | None, namespace: str, state_dir: Path | None, output: str
) -> None:
    """Give the canary's share back to the others; the rule stays, with a weight of 0."""
    asked = Service(service, namespace)

    def plan(_: OperatorApi, stored: _Stored) -> _Plan:
        rule = find_rule(stored.of(VirtualService), asked)
        if rule is None:
            raise ConfigError(
                [Problem(f"no VirtualService routes {asked.key}, so it has no canary")]
            )
        done = roll_back(rule, asked, subset or "")
        notes = [f"http[{at}] still sends all of its requests to {done.subset}" for at in done.left]
        return _Plan([done.rule], [rule], [], done.rule, done.subset, notes)

    _change(plan, asked, state_dir, output)


def _change(
    plan: Callable[[OperatorApi, _Stored], _Plan],
    service: Service,
    state_dir: Path | None,
    output: str,
) -> None:
    """Plan and apply, again when somebody else was faster, and show what has become of it."""
    api = OperatorApi(state_dir)
    end = time.monotonic() + DEADLINE_S
    for bound in _pause_bounds():
        stored = _Stored(api)
        planned = plan(api, stored)
        text = {"file": "canary", "text": render_yaml(planned.resources)}
        expected = [
            *stored.expected([*planned.resources, *planned.read]),
            *planned.services,
        ]
        try:
            applied = api.ask("PUT", "resources", body={"texts": [text], "expected": expected})
            break
        except ChangedError as error:
            pause = random.uniform(0, bound)
            if time.monotonic() + pause > end:
                raise _overtaken(error, service) from None
            time.sleep(pause)
    warn(applied, places=False)
    weights = weights_of(planned.rule, service)
    answer = {
        "service": service.key,
        "subset": planned.subset,
        "weights": weights,
        "notes": list(planned.notes),
        **applied,
    }
    show(answer, output, lambda: _text(answer))


def _pause_bounds() -> Iterator[float]:
    bound = PAUSE_S
    while True:
        yield bound
        bound = min(2 * bound, PAUSE_MAX_S)


def _overtaken(error: ChangedError, service: Service) -> ChangedError:
    hint = (
        f"others have changed the rules of {service.key} for {DEADLINE_S:g} s, and nothing was "
        "written; see `meshfast get VirtualService -o yaml` for what they made of it, and run the "
        "command again"
    )
    return ChangedError([replace(problem, hint=hint) for problem in error.problems])


def _text(answer: Mapping[str, Any]) -> str:
    changes = [one for one in answer["changes"] if one["action"] != "unchanged"]
    shares = ", ".join(f"{subset} {weight}" for subset, weight in answer["weights"].items())
    lines = [difference(changes, new="canary")] if changes else ["nothing changed"]
    return "\n".join([*lines, *answer["notes"], f"{answer['service']}: {shares}"])


def _labels(api: OperatorApi, service: Service) -> tuple[list[dict[str, str]], dict[str, str]]:
    """Give the labels of the workloads of the service, and what says that they are still those."""
    status = api.ask("GET", "status")
    name, _, namespace = service.key.rpartition(".")
    is_mine = {"namespace": namespace, "name": name}.items()
    revision = next(
        (
            one["revision"]
            for one in status["services"]
            if all(one[key] == value for key, value in is_mine)
        ),
        "",
    )
    expected = {"kind": "Service", "namespace": namespace, "name": name, "revision": revision}
    workloads = [one["workload"] for one in status["workloads"]]
    mine = [one for one in workloads if (one["namespace"], one["service"]) == (namespace, name)]
    return [one.get("labels", {}) for one in mine], expected
