"""`meshfast version`: what is installed.

Tests: tests/core/test_cli.py.
"""

from __future__ import annotations

import platform

import msgspec
import rich_click as click

import meshfast

__all__ = ["version"]


@click.command()
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text")
def version(output: str) -> None:
    """Print the version of meshfast, and with -o json what it runs on."""
    if output == "text":
        print(f"meshfast {meshfast.__version__}")
        return
    facts = {
        "version": meshfast.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "release": platform.release(),
    }
    print(msgspec.json.format(msgspec.json.encode(facts)).decode())
