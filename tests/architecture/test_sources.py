"""What every tracked file owes its reader: an opening paragraph, a name that says something, and
nothing of the machine it was written on."""

import ast
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.repository import ROOT, text, tracked

# Names that say nothing (STYLE.md). Compared with each part of a path, without its suffix.
BANNED_NAMES = frozenset(
    ["common", "handy", "helper", "helpers", "manager", "misc", "tool", "tools", "util", "utils"]
)
NUMBERED = re.compile(r"^(test_\d+|[a-z_]+_(new|old|v?\d))$")

# Built from parts so that this file does not find itself.
MACHINE = re.compile(
    "|".join(["/" + "work/", "/" + "tmp/mf", "/" + "root/", "/" + r"home/\w", "/" + "Users/"])
)
REGISTRY = re.compile(
    "|".join(
        re.escape(host).replace("@", r"\.")
        for host in (
            "pypi@org",
            "files@pythonhosted@org",
            "index@crates@io",
            "static@crates@io",
            "registry@npmjs@org",
            "proxy@golang@org",
            "deb@debian@org",
            "repo1@maven@org",
        )
    )
)


def python_modules() -> tuple[Path, ...]:
    """Return the Python files of the repository."""
    return tracked("*.py", "*.pyi")


def lines(pattern: re.Pattern[str], path: Path) -> list[str]:
    """Return ``path:line`` for each line of *path* that the pattern finds; none for binaries."""
    try:
        content = text(path)
    except UnicodeDecodeError:
        return []
    return [
        f"{path}:{number}"
        for number, line in enumerate(content.splitlines(), start=1)
        if pattern.search(line)
    ]


def test_every_python_module_opens_with_a_paragraph() -> None:
    modules = python_modules()
    assert modules
    bare = [path for path in modules if not ast.get_docstring(ast.parse(text(path)))]
    assert bare == []


def test_every_rust_file_opens_with_a_paragraph() -> None:
    sources = tracked("rust/*.rs")
    assert sources
    bare = [path for path in sources if not text(path).startswith("//!")]
    assert bare == []


def test_no_file_or_folder_has_a_name_that_says_nothing() -> None:
    named = [
        path
        for path in tracked()
        if any(
            part.split(".")[0] in BANNED_NAMES or NUMBERED.match(part.split(".")[0])
            for part in path.parts
        )
    ]
    assert named == []


@pytest.mark.parametrize("pattern", [MACHINE, REGISTRY], ids=["machine path", "registry host"])
def test_no_file_tells_where_it_was_written(pattern: re.Pattern[str]) -> None:
    files = [path for path in tracked() if (ROOT / path).is_file()]
    assert [place for path in files for place in lines(pattern, path)] == []


def test_no_rust_test_is_ignored_without_a_reason() -> None:
    ignored = re.compile(r"#\[ignore\s*\]")
    assert [place for path in tracked("rust/*.rs") for place in lines(ignored, path)] == []


@pytest.mark.parametrize(
    ("finds", "sample"),
    [
        (MACHINE.search, "see /" + "home/ada/mesh"),
        (REGISTRY.search, "https://pypi" + ".org/simple"),
        (NUMBERED.match, "test_1"),
        (NUMBERED.match, "proxy_old"),
    ],
)
def test_the_patterns_find_what_they_are_for(
    finds: Callable[[str], object | None], sample: str
) -> None:
    assert finds(sample)
