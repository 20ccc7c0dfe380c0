"""`meshfast token`: join tokens, with which a workload gets its first certificate.

The text of a token is shown once, when it is made, and alone on stdout, so that
`meshfast token create --service payment > token` makes the file that `run --token-file` reads.

Tests: tests/mesh/test_operator.py.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import rich_click as click

from meshfast.cli.operator import LABEL, OperatorApi, operator_options, table
from meshfast.cli.output import show
from meshfast.cli.proxy import Duration

__all__ = ["token"]


@click.group()
def token() -> None:
    """Make, list and revoke join tokens."""


@token.command()
@click.option("--service", type=LABEL, required=True, help="The service that joins with it.")
@click.option("--namespace", type=LABEL, default="default", show_default=True)
@click.option("--service-account", default="", help="Its identity.  [default: the service's name]")
@click.option("--uses", type=click.IntRange(min=1), default=1, show_default=True,
              help="How many workloads may join with it.")  # fmt: skip
@click.option("--ttl", "ttl_ms", type=Duration(), default="24h", show_default=True,
              help="How long it can be used.")  # fmt: skip
@operator_options
def create(
    service: str,
    namespace: str,
    service_account: str,
    uses: int,
    ttl_ms: int,
    state_dir: Path | None,
    output: str,
) -> None:
    """Make a join token and print it. It cannot be shown again."""
    if ttl_ms < 1000:
        raise click.BadParameter("a token lives 1s at least", param_hint="--ttl")
    body = {
        "service": service,
        "namespace": namespace,
        "service_account": service_account,
        "uses": uses,
        "ttl_s": ttl_ms // 1000,
    }
    created = OperatorApi(state_dir).ask("POST", "tokens", body=body)
    show(created, output, lambda: str(created["text"]))


@token.command("list")
@operator_options
def list_tokens(state_dir: Path | None, output: str) -> None:
    """List join tokens, without their secrets."""
    found = OperatorApi(state_dir).ask("GET", "tokens")
    now = time.time()
    titles = ("ID", "NAMESPACE", "SERVICE", "SERVICE ACCOUNT", "USES", "STATE")
    rows = (
        (one["id"], one["namespace"], one["service"], one["service_account"],
         f"{one['uses']}/{one['uses_max']}", _state(one, now))
        for one in found
    )  # fmt: skip
    show(found, output, lambda: table(titles, rows))


@token.command()
@click.argument("id", type=LABEL)
@operator_options
def revoke(id: str, state_dir: Path | None, output: str) -> None:
    """End a join token. Workloads that joined with it stay."""
    OperatorApi(state_dir).ask("DELETE", "tokens", id)
    show({"revoked": id}, output, lambda: f"token {id} revoked")


def _state(one: dict[str, Any], now: float) -> str:
    if one["revoked"]:
        return "revoked"
    if one["expires_s"] <= now:
        return "expired"
    if one["uses"] >= one["uses_max"]:
        return "used up"
    return f"expires in {int(one['expires_s'] - now)}s"
