"""`meshfast apply`, `diff`, `get` and `delete`: the policy of a running mesh.

The files of one `apply` are applied together or not at all; they are read by the control plane with
the readers of `meshfast.resources`, and a problem names the file, line and column.

Tests: tests/mesh/test_operator.py.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import rich_click as click

from meshfast.cli.operator import OperatorApi, difference, operator_options, show, table, warn
from meshfast.errors import ConfigError, Problem
from meshfast.resources.kinds import KINDS

__all__ = ["apply", "delete", "diff", "get"]

KIND = click.Choice(sorted(KINDS), case_sensitive=False)
FILES = click.option(
    "-f", "--filename", "files", metavar="FILE", multiple=True, required=True,
    help="A file of resources, or - for standard input; may be repeated.",
)  # fmt: skip


@click.command()
@FILES
@operator_options
def apply(files: tuple[str, ...], state_dir: Path | None, output: str) -> None:
    """Apply resources: all of the files, or nothing."""
    applied = OperatorApi(state_dir).ask("PUT", "resources", body=_texts(files))
    warn(applied)
    show(applied, output, lambda: _changes(applied))


@click.command()
@FILES
@operator_options
def diff(files: tuple[str, ...], state_dir: Path | None, output: str) -> None:
    """Show what `apply` would change. Exits with 1 when that is something."""
    planned = OperatorApi(state_dir).ask("POST", "diff", body=_texts(files))
    warn(planned)
    changes = [one for one in planned["changes"] if one["action"] != "unchanged"]
    show(planned, output, lambda: difference(changes))
    sys.exit(1 if changes else 0)


@click.command()
@click.argument("kind", type=KIND, required=False)
@click.argument("name", required=False)
@click.option("-n", "--namespace", help="[default: all; with a name: default]")
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
@click.argument("kind", type=KIND)
@click.argument("name")
@click.option("-n", "--namespace", default="default", show_default=True)
@operator_options
def delete(kind: str, name: str, namespace: str, state_dir: Path | None, output: str) -> None:
    """Remove a resource."""
    applied = OperatorApi(state_dir).ask("DELETE", "resources", kind, namespace, name)
    warn(applied)
    show(applied, output, lambda: _changes(applied))


def _texts(files: tuple[str, ...]) -> dict[str, Any]:
    texts, problems = [], []
    for file in files:
        try:
            data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
            texts.append({"file": file, "text": data.decode()})
        except OSError as error:
            problems.append(Problem(f"cannot be read: {error.strerror}", file))
        except UnicodeDecodeError:
            problems.append(Problem("is not UTF-8", file))
    if problems:
        raise ConfigError(problems)
    return {"texts": texts}


def _changes(applied: dict[str, Any]) -> str:
    return "\n".join(
        f"{one['kind']} {one['namespace']}/{one['name']} {one['action']}"
        for one in applied["changes"]
    )
