"""Files and text to resources, each with the place it came from.

Several documents in a file, and a `List` of items (what `kubectl get -o yaml` prints), are the same
as several resources. All problems of the file are raised together.

Tests: tests/core/test_load.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from meshfast.errors import ConfigError, Problem
from meshfast.resources.decode import Decoder
from meshfast.resources.kinds import Resource
from meshfast.resources.nodes import FILE_BYTES_MAX, Mapping, Node, Scalar, Sequence, parse

__all__ = ["Loaded", "Origin", "load_bytes", "load_file", "load_text"]


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
            node = _child(node, step) or node
        return Problem(message, self.file, node.line, node.column, text, hint)

    def place(self, *path: str | int) -> str:
        """Give `file:line:column` of a field, to name it in another problem's hint."""
        problem = self.problem("", *path)
        return f"{problem.file}:{problem.line}:{problem.column}"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A resource and its origin."""

    resource: Resource
    origin: Origin


def load_file(path: str | Path) -> list[Loaded]:
    """Load the resources of a file; raises ConfigError when it cannot be read or is not valid."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError([Problem(f"cannot read the file: {reason}", str(path))]) from None
    return load_bytes(data, str(path))


def load_text(text: str, file: str) -> list[Loaded]:
    """Load resources from text; `file` names it in problems. Raises ConfigError."""
    return load_bytes(text.encode(), file)


def load_bytes(data: bytes, file: str) -> list[Loaded]:
    """Load resources from UTF-8 bytes; raises ConfigError with every problem, in file order."""
    documents, problems = parse(data)
    decoder = Decoder(file)
    loaded = []
    for node, path in _resources(documents):
        resource = decoder.resource(node, path)
        if resource is not None:
            loaded.append(Loaded(resource, Origin(file, node, path)))
    problems = [replace(problem, file=file) for problem in problems] + decoder.problems
    if not problems and not documents:
        problems = [Problem("there is no resource in the file", file)]
    if problems:
        raise ConfigError(sorted(problems, key=lambda problem: (problem.line, problem.column)))
    return loaded


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


def _child(node: Node, step: str | int) -> Node | None:
    if isinstance(node, Mapping) and isinstance(step, str):
        return node.fields.get(step)
    if isinstance(node, Sequence) and isinstance(step, int) and step < len(node.items):
        return node.items[step]
    return None
