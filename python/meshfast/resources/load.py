"""Files and text to resources, each with the place it came from.

Several documents in a file, and a `List` of items (what `kubectl get -o yaml` prints), are the same
as several resources. `load_*` raise all problems of the file together; `read_*` give them beside
the resources that are right, so that the relations of those can be looked at in the same round.

Tests: tests/core/test_load.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from meshfast.errors import ConfigError, Problem
from meshfast.resources.decode import Decoder
from meshfast.resources.kinds import KINDS, Resource
from meshfast.resources.nodes import FILE_BYTES_MAX, Mapping, Node, Scalar, Sequence, child, parse

__all__ = [
    "Loaded",
    "Origin",
    "Reading",
    "load_bytes",
    "load_file",
    "load_text",
    "read_bytes",
    "read_file",
]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a resource was written; finds the place of each of its fields.

    `path` leads to the resource in its document; empty unless it is an item of a `List`.
    """

    file: str
    node: Node
    path: str = ""

    def problem(self, message: str, *path: str | int, hint: str = "") -> Problem:
        """Make a problem at a field, or at the innermost field around it that was written."""
        node, text = self.node, self.path
        for step in path:
            text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
            node = child(node, step) or node
        return Problem(message, self.file, node.line, node.column, text, hint)

    def place(self, *path: str | int) -> str:
        """Give `file:line:column` of a field, to name it in another problem's hint."""
        problem = self.problem("", *path)
        return f"{problem.file}:{problem.line}:{problem.column}"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A resource, its origin, and what is right about it and may surprise."""

    resource: Resource
    origin: Origin
    warnings: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """What a file says: resources that are right, in file order, and everything that is not.

    `unread` are the kinds of which something could not be read: what seems to be missing of them
    may have been in there.
    """

    resources: list[Loaded]
    problems: list[Problem]
    unread: frozenset[str] = frozenset()


def load_file(path: str | Path) -> list[Loaded]:
    """Load the resources of a file; raises ConfigError when it cannot be read or is not valid."""
    return _checked(read_file(path))


def load_text(text: str, file: str) -> list[Loaded]:
    """Load resources from text; `file` names it in problems. Raises ConfigError."""
    return load_bytes(text.encode(), file)


def load_bytes(data: bytes, file: str) -> list[Loaded]:
    """Load resources from UTF-8 bytes; raises ConfigError with every problem, in file order."""
    return _checked(read_bytes(data, file))


def read_file(path: str | Path) -> Reading:
    """Read a file."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        problem = Problem(f"cannot read the file: {error.strerror or error}", str(path))
        return Reading([], [problem], frozenset(KINDS))
    return read_bytes(data, str(path))


def read_bytes(data: bytes, file: str) -> Reading:
    """Read UTF-8 bytes; `file` names them in problems."""
    documents, problems = parse(data)
    unread = frozenset(KINDS if problems or not documents else ())
    decoder = Decoder(file)
    loaded = []
    for node, path in _resources(documents):
        before = len(decoder.warnings)
        resource = decoder.resource(node, path)
        if resource is None:
            unread |= decoder.meant(node)
        else:
            warnings = tuple(decoder.warnings[before:])
            loaded.append(Loaded(resource, Origin(file, node, path), warnings))
    problems = [replace(problem, file=file) for problem in problems] + decoder.problems
    if not problems and not documents:
        problems = [Problem("there is no resource in the file", file)]
    return Reading(loaded, sorted(problems, key=lambda one: (one.line, one.column)), unread)


def _checked(reading: Reading) -> list[Loaded]:
    if reading.problems:
        raise ConfigError(reading.problems)
    return reading.resources


def _resources(documents: list[Node]) -> list[tuple[Node, str]]:
    """Open lists of resources; gives each resource with the path of it in its document."""
    opened: list[tuple[Node, str]] = []
    for document in documents:
        fields = document.fields if isinstance(document, Mapping) else {}
        kind, items = fields.get("kind"), fields.get("items")
        if isinstance(kind, Scalar) and kind.text == "List" and isinstance(items, Sequence):
            opened += [(item, f"items[{index}]") for index, item in enumerate(items.items)]
        else:
            opened.append((document, ""))
    return opened
