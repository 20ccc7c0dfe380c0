"""docs/deaths.md keeps its promise: every row names tests, and they exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUITE = Path(__file__).parent
NOT_BUILT = "not built"
REFERENCE = re.compile(r"`([\w/]+\.py)::(test_\w+)`")


def rows() -> list[list[str]]:
    """Return the cells of every row of every table, without heads and rules."""
    lines = (ROOT / "docs" / "deaths.md").read_text(encoding="utf-8").splitlines()
    cells = [line.strip("|").split(" | ") for line in lines if line.startswith("| ")]
    return [row for row in cells if row[0].strip() != "what happens"]


def path_of(name: str) -> Path:
    """Return the file that a reference names."""
    if name.startswith("tests/"):
        return ROOT / name
    return ROOT / "tests" / name if "/" in name else SUITE / name


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0].strip())
def test_every_row_names_tests_that_exist(row: list[str]) -> None:
    assert len(row) == 5
    references = REFERENCE.findall(row[4])
    assert references or row[4].strip(" |") == NOT_BUILT
    for name, function in references:
        tree = ast.parse(path_of(name).read_text(encoding="utf-8"))
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert function in names


def test_the_table_is_there() -> None:
    assert len(rows()) > 30
