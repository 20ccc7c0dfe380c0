"""The `meshfast` command: arguments in, exit codes out.

Exit codes: 0 is done, 1 is a refused configuration or a failed check, 2 is wrong usage (click's, or
a `UsageError` about an option); of `diff`, as kubectl's, 1 is a difference and 2 any error.
Problems go to stderr, one per line as `file:line:column: path: message (hint)`; what a command was
asked for goes to stdout, in the form that `-o` names.

Each command is a module of this package and is imported when it is used, so that no command pays
for the rooms of another. Nothing is decided here: a command turns arguments into the data of the
room that does the work.

Tests: tests/core/test_cli.py.
"""

from __future__ import annotations

import importlib
import sys
from typing import NoReturn

import rich_click as click

from meshfast.errors import MeshfastError, UsageError

__all__ = ["app", "main"]

# Command → module, and the attribute of that name in it.
COMMANDS = {
    "apply": "meshfast.cli.resource",
    "canary": "meshfast.cli.canary",
    "check": "meshfast.cli.check",
    "completion": "meshfast.cli.completion",
    "control": "meshfast.cli.control",
    "delete": "meshfast.cli.resource",
    "demo": "meshfast.cli.demo",
    "diff": "meshfast.cli.resource",
    "get": "meshfast.cli.resource",
    "identity": "meshfast.cli.identity",
    "proxy": "meshfast.cli.proxy",
    "run": "meshfast.cli.run",
    "schema": "meshfast.cli.schema",
    "service": "meshfast.cli.service",
    "sidecar": "meshfast.cli.sidecar",
    "status": "meshfast.cli.status",
    "token": "meshfast.cli.token",
    "version": "meshfast.cli.version",
}


class _LazyGroup(click.RichGroup):
    """A group whose commands are imported by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the commands without importing them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None when there is no such command."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(COMMANDS[cmd_name]), cmd_name)
        return command


def _say_version(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        from meshfast.cli.version import version_line

        click.echo(version_line())
        context.exit()


@click.group(
    cls=_LazyGroup,
    context_settings={"auto_envvar_prefix": "MESHFAST", "help_option_names": ["-h", "--help"]},
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_say_version,
    allow_from_autoenv=False,  # MESHFAST_VERSION in an environment is somebody's build, no question
    help="Print the version, as the command does.",
)
def app() -> None:
    """A service mesh in one pip install: HTTP/1.1 and TCP, with mutual TLS between services."""


def main() -> NoReturn:
    """Run the command line; the console script."""
    try:
        app(prog_name="meshfast")
    except MeshfastError as error:
        print(error, file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    sys.exit(0)
