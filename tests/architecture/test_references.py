"""What texts and module comments point at exists: a wrong path sends a reader nowhere.

The tests of this folder are left out: they speak of files that they make up.
"""

from __future__ import annotations

import re
from pathlib import Path

from tests.repository import ROOT, text, tracked

# A path with a folder and one of our endings, as prose and module texts write them.
REFERENCE = re.compile(
    r"(?<![\w/.-])((?:rust|python|control|tests|bench|docs|examples|make)/[\w./-]+"
    r"\.(?:md|py|pyi|rs|toml|yaml|c))\b"
)


def test_every_path_that_is_named_exists() -> None:
    missing = {
        f"{path}: {reference}"
        for path in tracked("*.md", "*.py", "*.rs", "*.toml", ":!tests/architecture")
        for reference in REFERENCE.findall(text(path))
        if not (ROOT / reference).exists() and not is_relative(path, reference)
    }
    assert missing == set()


def is_relative(path: Path, reference: str) -> bool:
    """Whether the text speaks of its own crate or folder (`tests/wire/frame.rs` in rust/wire)."""
    return any((ROOT / parent / reference).exists() for parent in path.parents)
