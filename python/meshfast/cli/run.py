"""`meshfast run -- CMD`: an application with its sidecar, started together and ended in order.

Tests: tests/core/test_sidecar_cli.py; the running mesh in tests/mesh.
"""

from __future__ import annotations

import os
from typing import Any

import rich_click as click

from meshfast.cli.sidecar import explicit_options, make_plan, options, print_plan, serve

__all__ = ["run"]


@click.command(context_settings={"ignore_unknown_options": False})
@options
@click.option(
    "--access-log",
    metavar="FILE",
    default="off",
    show_default=True,
    help="File for one JSON line per request; the application has stdout.",
)
@click.argument("command", nargs=-1, required=True, metavar="-- CMD [ARGS]...")
@click.pass_context
def run(ctx: click.Context, /, command: tuple[str, ...], **given: Any) -> None:
    """Run an application in the mesh: its calls and those to it go through a sidecar.

    The command starts when the sidecar is ready, finds it by HTTP_PROXY and HTTPS_PROXY, and is
    told to end before it. Its exit code is ours.

    \b
        meshfast run --service payment --port 8080 --label version=v2 -- python app.py
    """
    plan = make_plan(given, explicit_options(ctx), os.environ, command=command)
    if given["output"] != "text":
        return print_plan(plan, given["output"])
    serve(plan, os.environ)
