"""Resources back to the text they are loaded from: YAML documents, or JSON.

What is written loads to equal resources (tests/core/test_render.py).
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import yaml

from meshfast.resources.kinds import Resource
from meshfast.resources.nodes import core_type

__all__ = ["render_json", "render_yaml"]


class _Dumper(yaml.SafeDumper):
    """Writes lists indented under their field, as the documentation of Istio does."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent sequences too."""
        super().increase_indent(flow, False)


def _represent_string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """Quote what would load as another type; PyYAML quotes what YAML 1.1 would misread."""
    style = None if core_type(text) == "a string" else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_string)


def render_yaml(resources: Iterable[Resource]) -> str:
    """Write one YAML document per resource, without the fields that have their default."""
    documents = [msgspec.to_builtins(resource) for resource in resources]
    return yaml.dump_all(
        documents, Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=100
    )


def render_json(resources: Iterable[Resource]) -> str:
    """Write the resources as a `List`, indented."""
    items = [msgspec.to_builtins(resource) for resource in resources]
    data = msgspec.json.encode({"apiVersion": "v1", "kind": "List", "items": items})
    return msgspec.json.format(data, indent=2).decode() + "\n"
