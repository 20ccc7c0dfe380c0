"""`meshfast completion`: the script that makes a shell complete commands and options.

Tests: tests/core/test_cli.py.
"""

from __future__ import annotations

import rich_click as click
from click.shell_completion import get_completion_class

from meshfast.cli import app

__all__ = ["completion"]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "fish", "zsh"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    \b
        eval "$(meshfast completion bash)"
    """
    script = get_completion_class(shell)
    assert script is not None, "click has a class for each shell that is a choice"
    print(script(app, {}, "meshfast", "_MESHFAST_COMPLETE").source())
