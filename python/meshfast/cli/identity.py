"""`meshfast identity`: end the identity of a service account, and take that back.

A revoked identity gets no certificate and no configuration, its streams end, and nobody is sent to
its workloads any more. What it has connected to ends as connections are checked again.

Tests: tests/mesh/test_operator.py.
"""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from meshfast.cli.operator import OperatorApi, operator_options, table
from meshfast.cli.output import show

__all__ = ["identity"]

NAMESPACE = click.option("-n", "--namespace", default="default", show_default=True)


@click.group()
def identity() -> None:
    """Revoke and restore identities."""


@identity.command()
@click.argument("service_account")
@NAMESPACE
@operator_options
def revoke(service_account: str, namespace: str, state_dir: Path | None, output: str) -> None:
    """End an identity: no certificates, no configuration, no calls to it."""
    OperatorApi(state_dir).ask("PUT", "revoked", namespace, service_account)
    name = f"{namespace}/{service_account}"
    show({"revoked": name}, output, lambda: f"identity {name} revoked")


@identity.command()
@click.argument("service_account")
@NAMESPACE
@operator_options
def restore(service_account: str, namespace: str, state_dir: Path | None, output: str) -> None:
    """Take a revocation back."""
    OperatorApi(state_dir).ask("DELETE", "revoked", namespace, service_account)
    name = f"{namespace}/{service_account}"
    show({"restored": name}, output, lambda: f"identity {name} restored")


@identity.command("list")
@operator_options
def list_revoked(state_dir: Path | None, output: str) -> None:
    """List revoked identities."""
    found = OperatorApi(state_dir).ask("GET", "revoked")
    rows = ((one["namespace"], one["service_account"]) for one in found)
    show(found, output, lambda: table(("NAMESPACE", "SERVICE ACCOUNT"), rows))
