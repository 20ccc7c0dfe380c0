"""Nodes to resources, with every problem of a file and the place of each.

`msgspec` stops at the first problem, so the walk is ours: one function per shape of type, driven
by `msgspec.inspect` over the structs of `meshfast.resources.kinds`. A value that is refused is
recorded and the walk goes on, so a file is repaired in one round.

How a plain scalar is read depends on the type that is expected (YAML 1.2 core schema): a string
never becomes a number or a boolean by accident, and a number where a string is due is refused, as
Istio refuses it.

Does not look across resources: that is `meshfast.policy.checks`.

Tests: tests/core/test_decode.py.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import msgspec
from msgspec import inspect

from meshfast.errors import Problem
from meshfast.resources import istio, kinds
from meshfast.resources.nodes import Mapping, Node, Scalar, Sequence, core_type
from meshfast.resources.texts import CHECKS

__all__ = ["PROBLEMS_MAX", "Decoder", "nearest_name"]

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)", re.ASCII)
_OCTAL_LOOK = re.compile(r"[-+]?0[0-9_]+", re.ASCII)
_SEXAGESIMAL_LOOK = re.compile(r"[-+]?[0-9]+(:[0-9]+)+", re.ASCII)
_YAML_1_1 = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}
PROBLEMS_MAX = 1000  # per file; whoever has more wants another tool
_NAME_CHARS_MAX = 64  # of a name that is compared with others, or shown in a path
_INTEGER_CHARS_MAX = 20  # more than any range here; int() is quadratic beyond 640

_BAD: Any = object()  # stands for a value that was refused and recorded


class Decoder:
    """Decodes the documents of one file and collects their problems."""

    def __init__(self, file: str) -> None:
        """Name the file for the problems."""
        self.file = file
        self.problems: list[Problem] = []

    def resource(self, node: Node, path: str = "") -> kinds.Resource | None:
        """Decode one document; None when something was wrong with it, which is in `problems`."""
        if not isinstance(node, Mapping):
            self._refuse(node, path, f"expected a resource, got {_shape(node)}")
            return None
        kind = node.fields.get("kind")
        if not isinstance(kind, Scalar) or "apiVersion" not in node.fields:
            message = "a resource has the fields apiVersion, kind, metadata and spec"
            self._refuse(node, path, message)
            return None
        if kind.text not in kinds.KINDS:
            self._refuse_name(
                kind, _join(path, "kind"), "kind", kind.text, kinds.KINDS, istio.KINDS
            )
            return None
        value = self._value(node, _type_info(kinds.KINDS[kind.text]), path)
        return None if value is _BAD else value

    def _value(self, node: Node, expected: inspect.Type, path: str) -> Any:
        """Decode a node as the expected type: the table of shapes."""
        match expected:
            case inspect.Metadata():
                return self._checked(node, expected, path)
            case inspect.UnionType():  # only `X | None` occurs
                if _is_null(node):
                    return None
                inner = next(t for t in expected.types if not isinstance(t, inspect.NoneType))
                return self._value(node, inner, path)
            case inspect.StructType():
                return self._struct(node, expected, path)
            case inspect.VarTupleType():
                return self._list(node, expected, path)
            case inspect.DictType():
                return self._dict(node, expected, path)
            case inspect.EnumType():
                return self._enum(node, expected.cls, path)
            case inspect.LiteralType():
                return self._literal(node, expected.values, path)
            case inspect.IntType():
                return self._integer(node, expected, path)
            case inspect.BoolType():
                return self._boolean(node, path)
            case inspect.StrType():
                return self._string(node, path)
        raise AssertionError(f"the schema uses a type that the decoder does not know: {expected}")

    def _checked(self, node: Node, expected: inspect.Metadata, path: str) -> Any:
        """Decode a value that one of the checks of `texts` looks at first, if it has one."""
        name = (expected.extra or {}).get("text")
        if name is not None and isinstance(node, Scalar):
            wanted = CHECKS[name](node.text)
            if wanted is not None:
                return self._mismatch(node, path, wanted)
        return self._value(node, expected.type, path)

    def _struct(self, node: Node, expected: inspect.StructType, path: str) -> Any:
        if not isinstance(node, Mapping):
            return self._mismatch(node, path, "fields")
        known = {field.encode_name: field for field in expected.fields}
        name = expected.cls.__name__
        values: dict[str, Any] = {}
        meant: set[str] = set()  # what the unknown fields are taken for
        for key, child in node.fields.items():
            if key not in known:
                later = istio.FIELDS.get(name, frozenset())
                where = _join(path, key)
                self._refuse_name(node.keys[key], where, "field", key, known, later)
                meant.update(nearest_name(key, known))
                values[""] = _BAD
            elif not _is_null(child):  # null is the same as leaving the field out
                values[known[key].name] = self._value(child, known[key].type, _join(path, key))
        for field in expected.fields:
            if field.required and field.name not in values and field.encode_name not in meant:
                hint = istio.REASONS.get(f"{name}.{field.encode_name}", "")
                message = f"the field {field.encode_name!r} is required"
                values[field.name] = self._refuse(node, path, message, hint)
        if any(value is _BAD for value in values.values()):
            return _BAD
        value = expected.cls(**values)
        complaint = _STRUCT_CHECKS.get(expected.cls, _no_complaint)(value)
        return self._refuse(node, path, complaint) if complaint else value

    def _list(self, node: Node, expected: inspect.VarTupleType, path: str) -> Any:
        if not isinstance(node, Sequence):
            return self._mismatch(node, path, "a list")
        if len(node.items) < (expected.min_length or 0):
            return self._refuse(node, path, "the list is empty")
        return _all(
            self._value(item, expected.item_type, f"{path}[{index}]")
            for index, item in enumerate(node.items)
        )

    def _dict(self, node: Node, expected: inspect.DictType, path: str) -> Any:
        if not isinstance(node, Mapping):
            return self._mismatch(node, path, "fields")
        keys = _all(
            self._value(key, expected.key_type, _join(path, name))
            for name, key in ((n, _as_string(k)) for n, k in node.keys.items())
        )
        values = _all(
            self._dict_value(child, expected.value_type, _join(path, name))
            for name, child in node.fields.items()
        )
        return _BAD if keys is _BAD or values is _BAD else dict(zip(keys, values, strict=True))

    def _dict_value(self, node: Node, expected: inspect.Type, path: str) -> Any:
        if _is_null(node) and expected == _type_info(kinds.StringMatch):
            return kinds.StringMatch()  # `x-user:` asks for presence, like `x-user: {}`
        return self._value(node, expected, path)

    def _enum(self, node: Node, cls: type[Any], path: str) -> Any:
        text = self._string(node, path)
        if text is _BAD:
            return _BAD
        members = {member.value: member for member in cls}
        # Istio reads protocols in any case (and only those).
        value = text.upper() if cls is kinds.Protocol else text
        if value in members:
            return members[value]
        later = istio.VALUES.get(cls.__name__, frozenset())
        return self._refuse_name(node, path, "value", value, members, later)

    def _literal(self, node: Node, values: Iterable[Any], path: str) -> Any:
        text = self._string(node, path)
        if text is _BAD or text in values:
            return text
        return self._refuse_name(node, path, "value", text, values, frozenset())

    def _integer(self, node: Node, expected: inspect.IntType, path: str) -> Any:
        if not isinstance(node, Scalar) or not node.plain:
            is_quoted = isinstance(node, Scalar) and _INTEGER.fullmatch(node.text)
            return self._mismatch(node, path, "a number", "remove the quotes" if is_quoted else "")
        if _OCTAL_LOOK.fullmatch(node.text):
            hint = "YAML 1.1 reads it in base 8, YAML 1.2 in base 10; remove the leading 0"
            return self._refuse(node, path, f"{node.text} is not one number everywhere", hint)
        if len(node.text) > _INTEGER_CHARS_MAX or not _INTEGER.fullmatch(node.text):
            hint = "YAML 1.1 reads it in base 60" if _SEXAGESIMAL_LOOK.fullmatch(node.text) else ""
            return self._mismatch(node, path, "a whole number", hint)
        value = int(node.text)
        low, high = expected.ge, expected.le
        if (low is not None and value < low) or (high is not None and value > high):
            return self._refuse(node, path, f"must be from {low} to {high}, got {value}")
        return value

    def _boolean(self, node: Node, path: str) -> Any:
        if isinstance(node, Scalar) and node.plain:
            if core_type(node.text) == "a boolean":
                return node.text.lower() == "true"
            if node.text.lower() in _YAML_1_1:
                return self._mismatch(
                    node, path, "true or false", f"write {_YAML_1_1[node.text.lower()]}"
                )
        return self._mismatch(node, path, "true or false")

    def _string(self, node: Node, path: str) -> Any:
        if not isinstance(node, Scalar):
            return self._mismatch(node, path, "a string")
        if node.plain and core_type(node.text) != "a string":
            hint = f'put it in quotes: "{node.text}"' if node.text else ""
            return self._mismatch(node, path, "a string", hint)
        return node.text

    def _refuse_name(
        self,
        node: Node,
        path: str,
        what: str,
        name: str,
        known: Iterable[str],
        later: frozenset[str],
    ) -> Any:
        """Refuse a name: known to Istio and not served yet, or unknown with the nearest names."""
        if name in later:
            message = f"the {what} {name!r} is valid in Istio, but not supported by meshfast yet"
            return self._refuse(node, path, message, istio.REASONS.get(name, ""))
        close = nearest_name(name, known)
        hint = f"did you mean {close[0]!r}?" if close else f"one of: {', '.join(sorted(known))}"
        return self._refuse(node, path, f"unknown {what} {_quote(name)}", hint)

    def _mismatch(self, node: Node, path: str, wanted: str, hint: str = "") -> Any:
        return self._refuse(node, path, f"expected {wanted}, got {_shape(node)}", hint)

    def _refuse(self, node: Node, path: str, message: str, hint: str = "") -> Any:
        if len(self.problems) == PROBLEMS_MAX - 1:
            message, hint = f"more than {PROBLEMS_MAX} problems; the rest is left out", ""
        if len(self.problems) < PROBLEMS_MAX:
            problem = Problem(message, self.file, node.line, node.column, path, hint)
            self.problems.append(problem)
        return _BAD


def _one_condition(match: kinds.StringMatch) -> str | None:
    given = [name for name in ("exact", "prefix", "regex") if getattr(match, name) is not None]
    return f"only one of {' and '.join(given)} can be given" if len(given) > 1 else None


def _no_empty_conditions(match: kinds.HTTPMatchRequest) -> str | None:
    for name in ("uri", "scheme", "method", "authority"):
        if getattr(match, name) == kinds.StringMatch():
            return f"{name} needs one of exact, prefix and regex"
    return None


def _no_complaint(_: Any) -> str | None:
    return None


# What a struct asks beyond its fields: returns the complaint, or None.
_STRUCT_CHECKS: dict[type[Any], Callable[[Any], str | None]] = {
    kinds.HTTPMatchRequest: _no_empty_conditions,
    kinds.StringMatch: _one_condition,
}


@cache
def _type_info(cls: type[msgspec.Struct]) -> inspect.Type:
    return inspect.type_info(cls)


def _all(values: Iterable[Any]) -> Any:
    """Collect the values, all of them, and give _BAD if one was refused."""
    collected = tuple(values)
    return _BAD if any(value is _BAD for value in collected) else collected


def _as_string(key: Scalar) -> Scalar:
    """Take a key for the text it is: `8080:` is a name too."""
    return Scalar(key.line, key.column, key.text, plain=False)


def _is_null(node: Node) -> bool:
    return isinstance(node, Scalar) and node.plain and core_type(node.text) == "nothing"


def _shape(node: Node) -> str:
    """Describe what stands there, for "expected X, got Y"."""
    match node:
        case Mapping():
            return "fields"
        case Sequence():
            return "a list"
        case Scalar(plain=False):
            return f"the string {_quote(node.text)}"
    kind = core_type(node.text)
    return kind if kind == "nothing" else f"{kind.replace('a ', 'the ', 1)} {_quote(node.text)}"


def nearest_name(name: str, choices: Iterable[str]) -> list[str]:
    """Give the choice that the name was probably meant to be, in a list, or an empty list."""
    if len(name) > _NAME_CHARS_MAX:
        return []
    return difflib.get_close_matches(name, sorted(choices), n=1, cutoff=0.6)


def _quote(text: str) -> str:
    """Quote a value of the file, at most 60 characters of it."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _join(path: str, name: str) -> str:
    name = name if len(name) <= _NAME_CHARS_MAX else name[: _NAME_CHARS_MAX - 3] + "..."
    return f"{path}.{name}" if path else name
