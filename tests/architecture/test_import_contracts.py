"""The import contracts of pyproject.toml catch what they forbid.

`make test` holds the sources to them (`lint-imports`). Here a skeleton of empty rooms gets one
forbidden import at a time and must be refused: a contract that names a room wrongly passes
everything.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repository import ROOT

ROOMS = [
    "agent",
    "cli",
    "control",
    "discovery",
    "errors",
    "policy",
    "resources",
    "supervisor",
    "telemetry",
    "worker",
]

# (importing room, imported module); the layers of the contract "rooms" unless said otherwise.
FORBIDDEN = [
    ("errors", "meshfast.resources"),
    ("resources", "meshfast.discovery"),
    ("discovery", "meshfast.policy"),
    ("policy", "meshfast.agent"),
    ("policy", "meshfast.control"),
    ("policy", "meshfast.telemetry"),
    ("telemetry", "meshfast.policy"),
    ("worker", "meshfast.agent"),
    ("agent", "meshfast.control"),
    ("agent", "meshfast.cli"),
    ("control", "meshfast.agent"),
    ("control", "meshfast.telemetry"),  # contract "control"
    ("supervisor", "meshfast.errors"),  # contract "supervisor"
    ("supervisor", "msgspec"),  # contract "supervisor"
    ("newroom", "meshfast.errors"),  # a room without a place among the layers
]

ALLOWED = [
    ("cli", "meshfast.control"),
    ("cli", "meshfast.supervisor"),
    ("agent", "meshfast.telemetry"),
    ("agent", "meshfast.policy"),
    ("control", "meshfast.policy"),
    ("policy", "meshfast.resources"),
    ("telemetry", "meshfast.errors"),
]


def lint(folder: Path, room: str, imported: str) -> subprocess.CompletedProcess[str]:
    """Lay out the empty rooms, let *room* import *imported*, and run import-linter."""
    for name in {*ROOMS, room}:
        (folder / "meshfast" / name).mkdir(parents=True)
        (folder / "meshfast" / name / "__init__.py").touch()
    (folder / "meshfast" / "__init__.py").touch()
    (folder / "meshfast" / room / "walk.py").write_text(f"import {imported}\n")
    shutil.copy(ROOT / "pyproject.toml", folder)
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(("room", "imported"), FORBIDDEN)
def test_a_forbidden_import_is_refused(tmp_path: Path, room: str, imported: str) -> None:
    done = lint(tmp_path, room, imported)
    assert done.returncode == 1, done.stdout
    assert room in done.stdout


@pytest.mark.parametrize(("room", "imported"), ALLOWED)
def test_an_import_downwards_is_allowed(tmp_path: Path, room: str, imported: str) -> None:
    done = lint(tmp_path, room, imported)
    assert done.returncode == 0, done.stdout
