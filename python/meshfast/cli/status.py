"""`meshfast status`: the services of the mesh, and whether its sidecars hold what they should.

Tests: tests/mesh/test_operator.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich_click as click

from meshfast.cli.operator import OperatorApi, operator_options, table
from meshfast.cli.output import show

__all__ = ["reason_of", "status"]

#: A reason has up to 1024 characters; all of it is in -o json.
REASON_CHARACTERS_MAX = 100


@click.command()
@operator_options
def status(state_dir: Path | None, output: str) -> None:
    """Show services, workloads and sidecars; the tables leave out the workloads."""
    mesh = OperatorApi(state_dir).ask("GET", "status")
    show(mesh, output, lambda: _tables(mesh))


def _tables(mesh: dict[str, Any]) -> str:
    services = table(
        ("NAMESPACE", "SERVICE", "PORTS", "HEALTHY"),
        (
            (one["namespace"], one["name"], ",".join(map(str, one["ports"])),
             f"{one['healthy']}/{one['workloads']}")
            for one in mesh["services"]
        ),
    )  # fmt: skip
    sidecars = table(
        ("NAMESPACE", "SIDECAR", "CONNECTED", "STATE", "REVISION", "REASON"),
        (
            (one["namespace"], one["instance"], "yes" if one["connected"] else "no",
             one["state"], one["revision"], reason_of(one["types"]))
            for one in mesh["sidecars"]
        ),
    )  # fmt: skip
    return f"revision {mesh['revision']}\n\n{services}\n\n{sidecars}"


def reason_of(types: dict[str, Any]) -> str:
    """Say why a sidecar is not in sync: what it refuses, else what it has not confirmed."""
    refused = [f"{type} {one['name']}: {one['reason']}"
               for type, held in types.items() for one in held["refused"]]  # fmt: skip
    if refused:
        first = " ".join(refused[0].split())
        if len(first) > REASON_CHARACTERS_MAX:
            first = first[: REASON_CHARACTERS_MAX - 1] + "…"
        more = f" (and {len(refused) - 1} more)" if refused[1:] else ""
        return f"refuses {first}{more}"
    waiting = [type for type, held in types.items() if held["state"] == "STALE"]
    return f"has not confirmed: {', '.join(waiting)}" if waiting else ""
