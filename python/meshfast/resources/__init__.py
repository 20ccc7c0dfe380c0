"""Resources: the nouns of the contract, loaded from YAML or JSON, validated and frozen.

    load_file(path) -> list[Loaded]         every problem of the file in one ConfigError
    render_yaml(resources) -> str           and back

The kinds and their schema are in `kinds`, what Istio has beyond them in `istio`. A field that is
not served is refused by name with line and column; nothing is silently ignored. Relations between
resources are checked by `meshfast.policy`.

Tests: tests/core/test_nodes.py, test_decode.py, test_gaps.py, test_relations.py, test_load.py,
test_texts.py, test_render.py, test_schema.py, test_golden.py.
"""

from meshfast.resources.gaps import certain
from meshfast.resources.kinds import json_schema
from meshfast.resources.load import (
    Loaded,
    Origin,
    Reading,
    load_bytes,
    load_file,
    load_text,
    read_bytes,
    read_file,
)
from meshfast.resources.nodes import utf8_problem
from meshfast.resources.render import render_json, render_yaml

__all__ = [
    "Loaded",
    "Origin",
    "Reading",
    "certain",
    "json_schema",
    "load_bytes",
    "load_file",
    "load_text",
    "read_bytes",
    "read_file",
    "render_json",
    "render_yaml",
    "utf8_problem",
]
