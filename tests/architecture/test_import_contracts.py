"""The import contracts of pyproject.toml catch what they forbid.

`make test` holds the sources to them (`lint-imports`); here a copy of the sources gets one
forbidden import at a time and must be refused, since a contract that names a room wrongly passes
everything.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repository import ROOT

FORBIDDEN = [
    ("errors.py", "import meshfast.resources", "rooms"),
    ("policy/__init__.py", "import meshfast.agent", "rooms"),
    ("policy/__init__.py", "import meshfast.control", "rooms"),
    ("policy/__init__.py", "import meshfast.telemetry", "rooms"),
    ("worker/__init__.py", "import meshfast.agent", "rooms"),
    ("agent/__init__.py", "import meshfast.cli", "rooms"),
    ("control/__init__.py", "import meshfast.agent", "rooms"),
    ("control/__init__.py", "import meshfast.telemetry", "control"),
    ("supervisor/__init__.py", "import meshfast.errors", "supervisor"),
    ("supervisor/__init__.py", "import msgspec", "supervisor"),
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the package and its contracts, links followed."""
    folder = tmp_path_factory.mktemp("contracts")
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(ROOT / "python" / "meshfast", folder / "meshfast", ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on the copy."""
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )


def test_the_sources_keep_the_contracts(sources: Path) -> None:
    done = lint(sources)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("module", "statement", "contract"), FORBIDDEN)
def test_a_forbidden_import_is_refused(
    sources: Path, module: str, statement: str, contract: str
) -> None:
    path = sources / "meshfast" / module
    kept = path.read_text(encoding="utf-8")
    path.write_text(f"{kept}\n{statement}\n", encoding="utf-8")
    try:
        done = lint(sources)
    finally:
        path.write_text(kept, encoding="utf-8")
    assert done.returncode == 1, done.stdout
    assert statement.split()[1] in done.stdout
