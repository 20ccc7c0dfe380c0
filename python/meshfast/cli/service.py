"""`meshfast service`: what becomes of a service that nobody serves any more.

Its name stays one of the mesh, and calls to it are answered 503: otherwise they would go, in plain
text, to whatever else has the name.

Tests: tests/mesh/test_operator.py.
"""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from meshfast.cli.operator import LABEL, NAMESPACE, OperatorApi, operator_options
from meshfast.cli.output import show

__all__ = ["service"]


@click.group()
def service() -> None:
    """Have services forgotten."""


@service.command()
@click.argument("name", type=LABEL)
@NAMESPACE
@operator_options
def forget(name: str, namespace: str, state_dir: Path | None, output: str) -> None:
    """Give the name of a service free that no workload is registered for."""
    OperatorApi(state_dir).ask("DELETE", "services", namespace, name)
    full = f"{namespace}/{name}"
    show({"forgotten": full}, output, lambda: f"service {full} forgotten")
