"""`meshfast schema`: the JSON Schema of a resource, for editors that complete YAML.

Tests: tests/core/test_schema.py.
"""

from __future__ import annotations

import msgspec
import rich_click as click

from meshfast.resources import json_schema

__all__ = ["schema"]


@click.command()
def schema() -> None:
    """Print the JSON Schema of the resources, for editors."""
    print(msgspec.json.format(msgspec.json.encode(json_schema())).decode())
