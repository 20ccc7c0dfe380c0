"""`meshfast apply`, `diff`, `get` and `delete`: the policy of a running mesh.

The files of one `apply` are applied together or not at all, and so is what the files of a `delete`
name, but for what is not there. They are read by the control plane with
the readers of `meshfast.resources`, and a problem names the file, line and column.

Tests: tests/mesh/test_operator.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import rich_click as click

from meshfast.cli.operator import (
    LABEL,
    NAME,
    NAMESPACE,
    OperatorApi,
    difference,
    operator_options,
    table,
    warn,
)
from meshfast.cli.output import show
from meshfast.control.api import BODY_BYTES_MAX
from meshfast.errors import ConfigError, MeshfastError, Problem
from meshfast.resources import read_bytes, utf8_problem
from meshfast.resources.kinds import KINDS

__all__ = ["apply", "delete", "diff", "get"]

F = TypeVar("F", bound=Callable[..., Any])

#: Istio's short names and plurals, as kubectl takes them.
ALIASES = {
    "dr": "DestinationRule",
    "gw": "Gateway",
    "se": "ServiceEntry",
    "serviceentries": "ServiceEntry",
    "vs": "VirtualService",
    "we": "WorkloadEntry",
    "workloadentries": "WorkloadEntry",
    **{f"{kind.lower()}s": kind for kind in KINDS if not kind.endswith("y") or kind == "Gateway"},
}
#: As of kubectl: 1 is a difference.
DIFF_FAILED = 2


class _Kind(click.Choice[str]):
    """A kind in any case, or one of `ALIASES`."""

    def __init__(self) -> None:
        super().__init__(sorted(KINDS), case_sensitive=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(ALIASES.get(str(value).lower(), value), param, ctx)


KIND = _Kind()


def _files(*, required: bool) -> Callable[[F], F]:
    return click.option(
        "-f", "--filename", "files", metavar="FILE", multiple=True, required=required,
        type=click.Path(dir_okay=False, allow_dash=True),  # which shells complete
        help="A file of resources, or - for standard input; may be repeated.",
    )  # fmt: skip


@click.command()
@_files(required=True)
@operator_options
def apply(files: tuple[str, ...], state_dir: Path | None, output: str) -> None:
    """Apply resources: all of the files, or nothing."""
    applied = OperatorApi(state_dir).ask("PUT", "resources", body=_texts(files))
    warn(applied)
    show(applied, output, lambda: _changes(applied))


@click.command()
@_files(required=True)
@operator_options
def diff(files: tuple[str, ...], state_dir: Path | None, output: str) -> None:
    """Show what `apply` would change. Exits with 1 when that is something, with 2 on an error."""
    try:
        planned = OperatorApi(state_dir).ask("POST", "diff", body=_texts(files))
    except MeshfastError as error:
        print(error, file=sys.stderr)
        sys.exit(DIFF_FAILED)
    warn(planned)
    changes = [one for one in planned["changes"] if one["action"] != "unchanged"]
    show(planned, output, lambda: difference(changes))
    sys.exit(1 if changes else 0)


@click.command()
@click.argument("kind", type=KIND, required=False)
@click.argument("name", type=NAME, required=False)
@click.option("-n", "--namespace", type=LABEL, help="[default: all; with a name: default]")
@operator_options
def get(
    kind: str | None, name: str | None, namespace: str | None, state_dir: Path | None, output: str
) -> None:
    """Show resources as they were applied; -o yaml is what `apply` reads."""
    api = OperatorApi(state_dir)
    answer: object
    if kind is not None and name is not None:
        found = [api.ask("GET", "resources", kind, namespace or "default", name)]
        answer = found[0]["document"]
    else:
        query = {"kind": kind or "", "namespace": namespace or ""}
        found = api.ask("GET", "resources", query=query)
        documents = [one["document"] for one in found]
        answer = {"apiVersion": "v1", "kind": "List", "items": documents}
    titles = ("KIND", "NAMESPACE", "NAME", "REVISION")
    rows = ([one["kind"], one["namespace"], one["name"], one["revision"]] for one in found)
    show(answer, output, lambda: table(titles, rows))


@click.command()
@click.argument("kind", type=KIND, required=False)
@click.argument("name", type=NAME, required=False)
@NAMESPACE
@_files(required=False)
@operator_options
def delete(
    kind: str | None,
    name: str | None,
    namespace: str,
    files: tuple[str, ...],
    state_dir: Path | None,
    output: str,
) -> None:
    """Remove a resource, or those of files: together, or none while one that stays needs any.

    \b
        meshfast delete vs payment
        meshfast delete -f canary.yaml
    """
    if bool(files) == (kind is not None) or (kind is None) != (name is None):
        raise click.UsageError("give either KIND and NAME, or -f FILE")
    api = OperatorApi(state_dir)
    if kind is not None and name is not None:
        applied = api.ask("DELETE", "resources", kind, namespace, name)
        warn(applied)
        return show(applied, output, lambda: _changes(applied))
    named = _named(files)
    gone = api.ask("POST", "delete", body={"resources": named})
    if gone["changes"]:
        show(gone, output, lambda: _changes(gone))
    names_gone = [_name_of(one) for one in gone["changes"]]
    missing = [one for one in named if one not in names_gone]
    if missing:
        raise ConfigError(
            Problem(f"there is no {one['kind']} {one['namespace']}/{one['name']}")
            for one in missing
        )


def _named(files: tuple[str, ...]) -> list[dict[str, str]]:
    """Read which resources files name. Raises ConfigError with every problem."""
    readings = [read_bytes(one["text"].encode(), one["file"]) for one in _texts(files)["texts"]]
    problems = [problem for reading in readings for problem in reading.problems]
    if problems:
        raise ConfigError(problems)
    return [
        {
            "kind": item.resource.kind,
            "namespace": item.resource.metadata.namespace,
            "name": item.resource.metadata.name,
        }
        for reading in readings
        for item in reading.resources
    ]


def _name_of(change: dict[str, Any]) -> dict[str, str]:
    return {part: change[part] for part in ("kind", "namespace", "name")}


def _texts(files: tuple[str, ...]) -> dict[str, Any]:
    texts, problems = [], []
    for file in files:
        try:
            data = _read(file)
            if len(data) > BODY_BYTES_MAX:
                problems.append(Problem(f"has more than {BODY_BYTES_MAX} bytes", file))
                continue
        except OSError as error:
            problems.append(Problem(f"cannot be read: {error.strerror}", file))
            continue
        wrong = utf8_problem(data)
        if wrong is not None:
            problems.append(replace(wrong, file=file))
            continue
        texts.append({"file": file, "text": data.decode()})
    if problems:
        raise ConfigError(problems)
    return {"texts": texts}


def _read(file: str) -> bytes:
    """Read a file, and no more of it than tells that it is too long."""
    if file == "-":
        return sys.stdin.buffer.read(BODY_BYTES_MAX + 1)
    with open(file, "rb") as opened:
        return opened.read(BODY_BYTES_MAX + 1)


def _changes(applied: dict[str, Any]) -> str:
    return "\n".join(
        f"{one['kind']} {one['namespace']}/{one['name']} {one['action']}"
        for one in applied["changes"]
    )
