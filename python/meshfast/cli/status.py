"""`meshfast status`: the services of the mesh, and whether its sidecars hold what they should.

Tests: tests/mesh/test_operator.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import rich_click as click

from meshfast.cli.operator import OperatorApi, operator_options, show, table

__all__ = ["status"]


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
        ("NAMESPACE", "SIDECAR", "CONNECTED", "STATE", "REVISION"),
        (
            (one["namespace"], one["instance"], "yes" if one["connected"] else "no",
             one["state"], one["revision"])
            for one in mesh["sidecars"]
        ),
    )  # fmt: skip
    return f"revision {mesh['revision']}\n\n{services}\n\n{sidecars}"
