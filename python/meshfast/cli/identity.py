"""`meshfast identity`: end the identity of a service account, and take that back.

A revoked identity gets no certificate and no configuration, its streams to the control plane end,
and nobody is sent to its workloads any more. Sidecars do not learn who is revoked: others take its
calls, over old and new connections, until its last certificate ends. `revoke` says when that is.

Tests: tests/mesh/test_operator.py.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import rich_click as click

from meshfast.cli.operator import LABEL, NAMESPACE, OperatorApi, operator_options, table
from meshfast.cli.output import show

__all__ = ["identity"]

UNKNOWN_HINT = "was another name meant? `meshfast identity restore` takes this one back"


@click.group()
def identity() -> None:
    """Revoke and restore identities."""


@identity.command()
@click.argument("service_account", type=LABEL)
@NAMESPACE
@operator_options
def revoke(service_account: str, namespace: str, state_dir: Path | None, output: str) -> None:
    """End an identity: no certificates, no configuration, no calls to it.

    Its own calls to others are taken until its last certificate ends, which is printed. To end them
    at once, stop its workloads; a lower `control --cert-ttl` makes the time shorter in future.
    """
    revoked = OperatorApi(state_dir).ask("PUT", "revoked", namespace, service_account)
    name = f"{namespace}/{service_account}"
    until_s = revoked["certified_until_s"]
    known, note = revoked["known"], _note(until_s)
    if not known:  # it may be wanted beforehand
        note = f"no workload and no certificate of {name} is known"
        print(f"warning: {note} ({UNKNOWN_HINT})", file=sys.stderr)
    answer = {"revoked": name, "certified_until_s": until_s, "known": known, "note": note}
    show(answer, output, lambda: _text(answer))


@identity.command()
@click.argument("service_account", type=LABEL)
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


def _note(until_s: int | None) -> str:
    """Say what the identity can still do, and what to do about it."""
    if until_s is None:
        return "no certificate of it is valid any more"
    until = datetime.fromtimestamp(until_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return (
        f"its last certificate ends at {until}: until then others take its calls, and connections "
        "that are open then stay open; stop its workloads to end them now (a lower --cert-ttl of "
        "`meshfast control` shortens this for certificates to come)"
    )


def _text(answer: dict[str, Any]) -> str:
    return f"identity {answer['revoked']} revoked\n{answer['note']}"
