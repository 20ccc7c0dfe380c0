"""Files and text to resources, each with the place it came from.

Several documents in a file, and a `List` of items (what `kubectl get -o yaml` prints), are the same
as several resources. `load_*` raise all problems of the file together; `read_*` give them beside
the resources, as far as they could be read, so that those are judged in the same round.

Tests: tests/core/test_load.py.
"""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from meshfast.errors import ConfigError, Problem
from meshfast.resources.decode import Decoder
from meshfast.resources.gaps import Doubtful, Gaps
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

NO_GAPS: Final = Gaps()
#: What others find a resource of a kind by, or what it is there for.
_FOUND_BY: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "DestinationRule": (("metadata", "namespace"), ("spec", "host")),
    "ForwardProxy": (),
    "Gateway": (("metadata", "name"), ("metadata", "namespace")),
    "ServiceEntry": (("metadata", "namespace"), ("spec", "hosts")),
    "VirtualService": (
        ("metadata", "namespace"),
        ("spec", "hosts"),
        ("spec", "gateways"),
        ("spec", "tcp"),
    ),
    "WorkloadEntry": (),
}


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a resource was written; finds the place of each of its fields.

    `path` leads to the resource in its document; empty unless it is an item of a `List`. `gaps` is
    what of it could not be read.
    """

    file: str
    node: Node
    path: str = ""
    gaps: Gaps = NO_GAPS

    def problem(self, message: str, *path: str | int, hint: str = "") -> Problem:
        """Make a problem at a field, or at the innermost field around it that was written."""
        node, text = self.node, self._text(path)
        for step in path:
            node = child(node, step) or node
        made = Doubtful if self.gaps.hide(text) else Problem
        return made(message, self.file, node.line, node.column, text, hint)

    def is_whole(self, *path: str | int) -> bool:
        """Tell whether the field, with all that is below it, is what was written."""
        return not self.gaps.places or not self.gaps.touch(self._text(path))

    def has_all(self, field: str, items: Sized, *path: str | int) -> bool:
        """Tell whether a list, and a field of each of its items, are what was written."""
        if not self.gaps.places:
            return True
        is_list = not self.gaps.hide(self._text(path))
        return is_list and all(self.is_whole(*path, at, field) for at in range(len(items)))

    @property
    def is_named(self) -> bool:
        """Whether it is known which resource this is."""
        return self.is_whole("metadata", "name") and self.is_whole("metadata", "namespace")

    def _text(self, path: tuple[str | int, ...]) -> str:
        text = self.path
        for step in path:
            text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
        return text

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
    """What a file says: its resources, in file order, and everything that is not right.

    With problems, resources have gaps where those are. `unread` are the kinds of which one could
    not be read, or not by what others find it: what seems to be missing may be that one.
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
    documents, problems, is_whole = parse(data)
    unread = frozenset(() if is_whole and documents else KINDS)
    decoder = Decoder(file)
    loaded = []
    for node, path in _resources(documents):
        before = len(decoder.warnings)
        decoded = decoder.resource(node, path)
        if decoded is None:
            unread |= decoder.meant(node)
            continue
        resource, gaps = decoded
        origin = Origin(file, node, path, gaps)
        warnings = tuple(decoder.warnings[before:])
        loaded.append(Loaded(resource, origin, warnings))
        if not all(origin.is_whole(*place) for place in _FOUND_BY[resource.kind]):
            unread |= {resource.kind}
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
