"""`meshfast version`: what is installed; `meshfast --version` prints the same line.

Tests: tests/core/test_cli.py.
"""

from __future__ import annotations

import platform

import rich_click as click

import meshfast
from meshfast.cli.output import show

__all__ = ["version", "version_line"]


@click.command()
@click.option("-o", "--output", type=click.Choice(["text", "json", "yaml"]), default="text")
def version(output: str) -> None:
    """Print the version of meshfast, and with -o json or yaml what it runs on."""
    facts = {
        "version": meshfast.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "release": platform.release(),
    }
    show(facts, output, version_line)


def version_line() -> str:
    """Say the version to people."""
    return f"meshfast {meshfast.__version__}"
