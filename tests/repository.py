"""What git tracks, as the suites of architecture and packaging read it.

Answers from ``git ls-files`` and the files it names, so that a file lying about untracked neither
passes nor fails a rule. It is no test and changes nothing.
"""

import subprocess
import tomllib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@cache
def tracked(*patterns: str) -> tuple[Path, ...]:
    """Return the tracked files that match the git pathspecs, relative to the root, sorted.

    A symlink is one entry; a file deleted in the work tree is left out.
    """
    command = ["git", "ls-files", "-z", "--", *patterns]
    listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    paths = (Path(name) for name in listing.split("\0") if name)
    return tuple(sorted(path for path in paths if (ROOT / path).exists()))


def text(path: Path) -> str:
    """Return the text of a tracked file; *path* is relative to the root."""
    return (ROOT / path).read_text(encoding="utf-8")


def version() -> str:
    """Return the one version of the project."""
    return _workspace("version")


def rust_version() -> str:
    """Return the oldest Rust that compiles the project."""
    return _workspace("rust-version")


def _workspace(key: str) -> str:
    found = tomllib.loads(text(Path("Cargo.toml")))["workspace"]["package"][key]
    assert isinstance(found, str)
    return found
