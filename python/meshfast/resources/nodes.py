"""YAML and JSON text to nodes that remember line and column.

The grammar is libyaml's, read as events, so no part of this recurses: nesting costs a stack entry,
not a C frame. Scalars keep their text; what they mean is decided by `meshfast.resources.decode`
against the type that is expected, by the core schema of YAML 1.2. The traps of YAML 1.1 therefore
do not exist: `yes` is a string, `12:30` is a string, and `014` is refused where a number is due.

Refused, each with its place: text that is not UTF-8, files over `FILE_BYTES_MAX`, nesting over
`DEPTH_MAX`, more than `NODES_MAX` nodes after aliases are expanded (an alias bomb is refused at the
alias that passes the limit; nothing is ever expanded in memory), aliases that contain themselves,
tags, keys that are not strings, and keys that occur twice.

Invariants:
1. `parse` returns or raises nothing else than it documents, whatever the bytes
   (tests/core/test_nodes.py, with a fuzzer).
2. `size` of a node counts what its aliases stand for; `height` likewise.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import yaml
from yaml import CSafeLoader

from meshfast.errors import Problem

__all__ = [
    "DEPTH_MAX",
    "FILE_BYTES_MAX",
    "NODES_MAX",
    "Mapping",
    "Node",
    "Parsed",
    "Scalar",
    "Sequence",
    "child",
    "core_type",
    "parse",
    "utf8_problem",
]

FILE_BYTES_MAX = 8 << 20  # a mesh of 10,000 destinations is 330 kB
DEPTH_MAX = 64  # the deepest field of Istio's kinds is at 12
NODES_MAX = 1_000_000  # per file, aliases expanded; a mesh of 10,000 destinations has 600,000

_TOO_MANY = f"more than {NODES_MAX} values, counting what aliases stand for"
_NO_TABS = "YAML indents by spaces only"
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS = frozenset({"true", "True", "TRUE", "false", "False", "FALSE"})
_NUMBER = re.compile(
    r"0o[0-7]+|0x[0-9a-fA-F]+|[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Scalar:
    """A leaf. `plain` tells an unquoted one, which may be a number, a boolean or null."""

    line: int
    column: int
    text: str
    plain: bool
    size: int = 1
    height: int = 0


@dataclass(frozen=True, slots=True)
class Sequence:
    """A list of nodes."""

    line: int
    column: int
    items: tuple[Node, ...]
    size: int
    height: int


@dataclass(frozen=True, slots=True)
class Mapping:
    """Fields in the order of the file; each name occurs once.

    `doubtful` are names that were written twice, of which the first is kept, and `<<` where fields
    of another mapping were asked for, which are not here.
    """

    line: int
    column: int
    fields: dict[str, Node]
    keys: dict[str, Scalar]
    size: int
    height: int
    doubtful: frozenset[str] = frozenset()


Node = Scalar | Sequence | Mapping


class Parsed(NamedTuple):
    """The documents up to the first place that cannot be read, and the problems found.

    `is_whole` is false when there is such a place: what comes behind it is not known.
    """

    documents: list[Node]
    problems: list[Problem]
    is_whole: bool


class _Refused(Exception):
    """The rest of the file cannot be read; carries the problem that says why."""

    def __init__(self, message: str, line: int, column: int, hint: str = "") -> None:
        super().__init__(message)
        self.problem = Problem(message, line=line, column=column, hint=hint)


@dataclass(slots=True)
class _Open:
    """A collection whose end has not been seen yet."""

    line: int
    column: int
    anchor: str | None
    is_mapping: bool
    is_flow: bool
    children: list[Node] = field(default_factory=list)


def parse(data: bytes) -> Parsed:
    """Read every document of a file.

    The `file` of problems is empty: the caller knows it. Empty documents are left out.
    """
    problems: list[Problem] = []
    documents: list[Node] = []
    is_whole = True
    try:
        for document in _Composer(_text(data), problems).documents():
            if not (isinstance(document, Scalar) and document.plain and not document.text):
                documents.append(document)
    except _Refused as refused:
        problems.append(refused.problem)
        is_whole = False
    return Parsed(documents, problems, is_whole)


def utf8_problem(data: bytes) -> Problem | None:
    """Find the first byte that is not UTF-8; None when there is none."""
    data = data.removeprefix(codecs.BOM_UTF8)  # editors do not count it
    try:
        data.decode()
    except UnicodeDecodeError as error:
        start = data.rfind(b"\n", 0, error.start) + 1
        return Problem(
            "the file is not UTF-8 text",
            line=data.count(b"\n", 0, error.start) + 1,
            column=len(data[start : error.start].decode()) + 1,
            hint=f"the byte 0x{data[error.start]:02X} is none of it; save the file as UTF-8",
        )
    return None


def child(node: Node, step: str | int) -> Node | None:
    """Give the field or the item of a node; None when it is not there."""
    if isinstance(node, Mapping) and isinstance(step, str):
        return node.fields.get(step)
    if isinstance(node, Sequence) and isinstance(step, int) and step < len(node.items):
        return node.items[step]
    return None


def core_type(text: str) -> str:
    """Name the type that a plain scalar has in the core schema (YAML 1.2.2, section 10.3.2)."""
    if text in _NULLS:
        return "nothing"
    if text in _BOOLEANS:
        return "a boolean"
    return "a number" if _NUMBER.fullmatch(text) else "a string"


def _text(data: bytes) -> str:
    """Decode UTF-8, with or without a byte order mark."""
    if len(data) > FILE_BYTES_MAX:
        message = f"the file has {len(data)} bytes; at most {FILE_BYTES_MAX} are read"
        raise _Refused(message, 1, 1, "split it into several files")
    problem = utf8_problem(data)
    if problem is not None:
        raise _Refused(problem.message, problem.line, problem.column, problem.hint)
    return data.decode("utf-8-sig")


class _Composer:
    """Builds nodes from libyaml's events with a stack of its own."""

    def __init__(self, text: str, problems: list[Problem]) -> None:
        self._text = text
        self._problems = problems
        self._stack: list[_Open] = []
        self._anchors: dict[str, Node] = {}
        self._count = 0  # nodes so far, aliases expanded

    def documents(self) -> Iterator[Node]:
        """Yield the root of each document; raises _Refused where reading has to stop."""
        try:
            for event in yaml.parse(self._text, Loader=CSafeLoader):
                root = self._handle(event)
                if root is not None:
                    self._anchors = {}
                    yield root
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
            tab = self._tab(line, column, error)
            if tab:
                raise _Refused("a tab indents the line", line, tab, _NO_TABS) from None
            raise _Refused(_syntax(error), line, column) from None
        except yaml.reader.ReaderError as error:
            before = self._text[: error.position]
            line, start = before.count("\n") + 1, before.rfind("\n") + 1
            message = f"the character U+{int(error.character):04X} is not allowed in YAML"
            raise _Refused(message, line, error.position - start + 1) from None
        except yaml.YAMLError as error:
            raise _Refused(str(error), 1, 1) from None

    def _handle(self, event: yaml.Event) -> Node | None:
        """Take one event; returns the root when it completes a document."""
        match event:
            case yaml.ScalarEvent():
                line, column = self._place(event)
                plain = not event.style
                scalar = Scalar(line, column, event.value, plain)
                return self._add(scalar, event.anchor, 1)
            case yaml.AliasEvent():
                line, column = self._place(event)
                aliased = self._aliased(event.anchor or "", line, column)
                if self._count + aliased.size > NODES_MAX:
                    raise _Refused(_TOO_MANY, line, column)
                return self._add(aliased, None, aliased.size)
            case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                line, column = self._place(event)
                if len(self._stack) >= DEPTH_MAX:
                    raise _Refused(f"nested deeper than {DEPTH_MAX} levels", line, column)
                is_mapping = isinstance(event, yaml.MappingStartEvent)
                is_flow = bool(event.flow_style)
                self._stack.append(_Open(line, column, event.anchor, is_mapping, is_flow))
            case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                opened = self._stack.pop()
                return self._add(self._close(opened), opened.anchor, 1)
        return None

    def _tab(self, line: int, column: int, error: yaml.MarkedYAMLError) -> int:
        """Give the column of the tab that indents a line which cannot be read; 0 for none.

        Between brackets tabs are allowed, so something else is wrong there.
        """
        is_flow = bool(self._stack and self._stack[-1].is_flow) or "flow" in (error.context or "")
        text = self._text.split("\n", line)[line - 1 : line]
        indent = text[0][: len(text[0]) - len(text[0].lstrip(" \t"))] if text else ""
        at = indent.find("\t") + 1
        return 0 if is_flow or at > column else at

    def _place(self, event: yaml.NodeEvent) -> tuple[int, int]:
        """Give the place of an event; refuses tags, which ask for types of other languages."""
        mark = event.start_mark
        assert mark is not None, "libyaml marks every event"
        line, column = mark.line + 1, mark.column + 1
        tag = getattr(event, "tag", None)
        if tag is not None:
            message = f"the tag {tag} is not supported"
            raise _Refused(message, line, column, "remove it; quote the value to make it a string")
        return line, column

    def _aliased(self, anchor: str, line: int, column: int) -> Node:
        node = self._anchors.get(anchor)
        if node is not None:
            return node
        if any(opened.anchor == anchor for opened in self._stack):
            raise _Refused(f"the alias *{anchor} contains itself", line, column)
        raise _Refused(f"the alias *{anchor} has no anchor before it", line, column)

    def _add(self, node: Node, anchor: str | None, count: int) -> Node | None:
        """Put a complete node where it belongs; returns it when it is a root."""
        self._count += count
        if self._count > NODES_MAX:
            raise _Refused(_TOO_MANY, node.line, node.column)
        if anchor is not None:
            self._anchors[anchor] = node
        if not self._stack:
            return node
        if len(self._stack) + node.height > DEPTH_MAX:
            raise _Refused(f"nested deeper than {DEPTH_MAX} levels", node.line, node.column)
        self._stack[-1].children.append(node)
        return None

    def _close(self, opened: _Open) -> Node:
        children = opened.children
        size = 1 + sum(child.size for child in children)
        height = 1 + max((child.height for child in children), default=0)
        if not opened.is_mapping:
            return Sequence(opened.line, opened.column, tuple(children), size, height)
        fields: dict[str, Node] = {}
        keys: dict[str, Scalar] = {}
        doubtful: set[str] = set()
        for key, value in zip(children[::2], children[1::2], strict=True):
            if not isinstance(key, Scalar):
                raise _Refused("a key must be a string", key.line, key.column)
            if key.text in keys:
                first = keys[key.text]
                doubtful.add(key.text)
                self._problems.append(
                    Problem(
                        f"the key {key.text!r} occurs twice",
                        line=key.line,
                        column=key.column,
                        hint=f"the first is at {first.line}:{first.column}",
                    )
                )
                continue
            if key.text == "<<" and key.plain:
                message = "merge keys (<<) are not part of YAML 1.2; write the fields out"
                self._problems.append(Problem(message, line=key.line, column=key.column))
                doubtful.add(key.text)
                continue
            keys[key.text], fields[key.text] = key, value
        return Mapping(opened.line, opened.column, fields, keys, size, height, frozenset(doubtful))


def _syntax(error: yaml.MarkedYAMLError) -> str:
    """Turn libyaml's two half sentences into one.

    It looks ahead in flow style, so from 6.0.4 on its own limit of 1,000 levels may come first.
    """
    if "nesting depth" in (error.problem or ""):
        return f"nested deeper than {DEPTH_MAX} levels"
    return ", ".join(part for part in (error.problem, error.context) if part)
