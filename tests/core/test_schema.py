"""The JSON Schema for editors is closed, complete and the one that the loader follows."""

from __future__ import annotations

import json
import subprocess
import sys

from meshfast.resources import json_schema, kinds


def test_names_every_kind() -> None:
    schema = json_schema()
    assert [entry["$ref"] for entry in schema["oneOf"]] == [
        f"#/$defs/{name}" for name in sorted(kinds.KINDS)
    ]


def test_every_object_is_closed_and_described() -> None:
    for name, definition in json_schema()["$defs"].items():
        if "properties" in definition:
            assert definition["additionalProperties"] is False, name
        assert definition["description"], name


def test_every_reference_leads_somewhere() -> None:
    text = json.dumps(json_schema())
    references = {part.split('"')[0] for part in text.split('"#/$defs/')[1:]}
    assert references <= set(json_schema()["$defs"])


def test_the_command_prints_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "meshfast", "schema"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == json.loads(json.dumps(json_schema()))
