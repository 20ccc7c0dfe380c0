"""Nodes to resources, with every problem of a file and the place of each.

`msgspec` stops at the first problem, so the walk is ours: one function per shape of type, driven
by `msgspec.inspect` over the structs of `meshfast.resources.kinds`. A value that is refused is
recorded, something else takes its place, which is then one of the resource's gaps, and the walk
goes on: what is right is judged further (`meshfast.resources.gaps`), and a file is repaired in one
round. An optional field that has something wrong in it has its default; where one is required, a
stand-in is like nothing that is written.

How a plain scalar is read depends on the type that is expected (YAML 1.2 core schema): a string
never becomes a number or a boolean by accident, and a number where a string is due is refused, as
Istio refuses it.

Does not look across resources: that is for `meshfast.policy`.

Tests: tests/core/test_decode.py, test_gaps.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

import msgspec
from msgspec import inspect
from msgspec.structs import replace

from meshfast.errors import Problem
from meshfast.resources import istio, kinds
from meshfast.resources.gaps import Gaps
from meshfast.resources.nodes import Mapping, Node, Scalar, Sequence, child, core_type
from meshfast.resources.relations import Finding, findings, findings_in_text
from meshfast.resources.texts import CHECKS, nearest_name

__all__ = ["PROBLEMS_MAX", "Decoded", "Decoder"]

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)", re.ASCII)
_OCTAL_LOOK = re.compile(r"[-+]?0[0-9_]+", re.ASCII)
_SEXAGESIMAL_LOOK = re.compile(r"[-+]?[0-9]+(:[0-9]+)+", re.ASCII)
_YAML_1_1 = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}
PROBLEMS_MAX = 1000  # per file; whoever has more wants another tool
_NAME_CHARS_MAX = 64  # of a name that is shown in a path
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
_FLOAT_CHARS_MAX = 32
_INTEGER_CHARS_MAX = 20  # more than any range here; int() is quadratic beyond 640

# Struct → its fields around a value that was written in its place, and how such a value looks.
_WRITTEN_OUT = {
    "Destination": ("host: {0}", re.compile(r"([-.a-z0-9]{1,60})", re.ASCII)),
    "Percent": ("value: {0}", re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,9})?) ?%?", re.ASCII)),
    "Port": ("number: {0}, name: http, protocol: HTTP", re.compile(r"([0-9]{1,5})", re.ASCII)),
    "PortSelector": ("number: {0}", re.compile(r"([0-9]{1,5})", re.ASCII)),
    "ServicePort": (
        "number: {0}, name: http, protocol: HTTP",
        re.compile(r"([0-9]{1,5})", re.ASCII),
    ),
    "StringMatch": ("exact: {0}", re.compile(r"([-_.~/A-Za-z0-9]{1,60})", re.ASCII)),
}
_STAND_INS: dict[type[Any], Any] = {
    kinds.Balancer: kinds.Balancer.LEAST_REQUEST,
    kinds.Protocol: kinds.Protocol.HTTP,
    kinds.Resolution: kinds.Resolution.DNS,  # asks for the least
}

_BAD: Any = object()  # stands for a value that was refused and recorded


class Decoded(NamedTuple):
    """A resource, and where it is not what was written."""

    resource: kinds.Resource
    gaps: Gaps


class Decoder:
    """Decodes the documents of one file and collects their problems."""

    def __init__(self, file: str) -> None:
        """Name the file for the problems."""
        self.file = file
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []
        self._gaps: list[str] = []  # of this resource
        self._gaps_count = 0  # of all of them
        self._stand_ins = 0

    def resource(self, node: Node, path: str = "") -> Decoded | None:
        """Decode one document; None when it cannot be told what it is, which is in `problems`."""
        self._gaps = []
        if not isinstance(node, Mapping):
            self._refuse(node, path, f"expected a resource, got {_shape(node)}")
            return None
        kind = node.fields.get("kind")
        if not isinstance(kind, Scalar) or "apiVersion" not in node.fields:
            message = "a resource has the fields apiVersion, kind, metadata and spec"
            self._refuse(node, path, message)
            return None
        if kind.text not in kinds.KINDS:
            self._refuse_kind(kind, _join(path, "kind"))
            return None
        value = self._value(node, _type_info(kinds.KINDS[kind.text]), path)
        gaps = Gaps.at(self._gaps)
        return Decoded(self._with_hosts(node, value, path, gaps), gaps)

    def meant(self, node: Node) -> frozenset[str]:
        """Give the kinds that a document may be of; none when it is of one that is not served."""
        kind = child(node, "kind")
        if not isinstance(kind, Scalar):
            return frozenset(kinds.KINDS)
        if kind.text in kinds.KINDS:
            return frozenset({kind.text})
        if kind.text in istio.KINDS:
            return frozenset()
        return frozenset(nearest_name(kind.text, kinds.KINDS) or kinds.KINDS)

    def _with_hosts(
        self, node: Node, resource: kinds.Resource, path: str, gaps: Gaps
    ) -> kinds.Resource:
        """Give a VirtualService that names no host its own name as host, and say so."""
        if not isinstance(resource, kinds.VirtualService) or resource.spec.hosts:
            return resource
        if gaps.touch(_join(path, "spec.hosts")):
            return resource
        name = resource.metadata.name
        message = f"there are no hosts; the name of the VirtualService, {name!r}, is taken for one"
        self._record(self.warnings, node, path, Finding(message, ("spec",), f"hosts: [{name}]"))
        return replace(resource, spec=replace(resource.spec, hosts=(name,)))

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
            case inspect.FloatType():
                return self._float(node, expected, path)
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
        if name is None or not isinstance(node, Scalar):
            return self._value(node, expected.type, path)
        wanted = CHECKS[name](node.text) if name in CHECKS else None
        if wanted is not None:
            return self._mismatch(node, path, wanted)
        value = self._value(node, expected.type, path)
        if value is _BAD:
            return _BAD
        before = self._gaps_count
        self._take(findings_in_text(name, value), node, path)
        return value if self._gaps_count == before else _BAD

    def _struct(self, node: Node, expected: inspect.StructType, path: str) -> Any:
        name = expected.cls.__name__
        if not isinstance(node, Mapping):
            return self._mismatch(node, path, "fields", _written_out(name, node, path))
        known = {field.encode_name: field for field in expected.fields}
        unread = {key for key in known if self._is_doubtful(node, key, path)}
        for key in node.fields:
            if key not in known:
                unread.update(self._unknown_field(node.keys[key], key, name, known, path))
        values: dict[str, Any] = {}
        for key, written in node.fields.items():
            field = known.get(key)
            if field is None or _is_null(written):  # null is the same as leaving the field out
                continue
            before = self._gaps_count
            value = self._value(written, field.type, _join(path, key))
            if self._gaps_count > before:
                unread.add(key)
                if not field.required and isinstance(value, msgspec.Struct):
                    value = _BAD  # it holds nothing to look at, and may not be fit for use
            if value is not _BAD:
                values[field.name] = value
        for field in expected.fields:
            if field.name in values:
                continue
            if field.required:
                self._require(node, name, field, unread, path)
                unread.add(field.encode_name)
            # The default of a namespace is that of others, who then seem to clash.
            if field.required or (field.name == "namespace" and field.name in unread):
                values[field.name] = self._stand_in(field.type)
        value = expected.cls(**values)
        self._take(findings(value, {known[key].name for key in unread}), node, path)
        return value

    def _unknown_field(
        self, key: Scalar, written: str, struct: str, known: Iterable[str], path: str
    ) -> list[str]:
        """Refuse a field; gives the one that it is taken for, if there is one."""
        later = istio.FIELDS.get(struct, frozenset())
        self._refuse_name(key, _join(path, written), "field", written, known, later)
        meant = nearest_name(written, known)
        for name in meant:
            self._gap(_join(path, name))
        return meant

    def _is_doubtful(self, node: Mapping, key: str, path: str) -> bool:
        """Tell whether a field was written twice, or may have come with a merge key."""
        merged = "<<" in node.doubtful and key not in node.fields
        if merged or key in node.doubtful:
            self._gap(_join(path, key))
            return True
        return False

    def _require(
        self, node: Node, struct: str, field: inspect.Field, unread: set[str], path: str
    ) -> None:
        """Say that a field is missing, unless that only follows from what was said."""
        assert isinstance(node, Mapping), "a struct is written as fields"
        key = f"{struct}.{field.encode_name}"
        instead = istio.INSTEAD.get(key, frozenset()) & node.fields.keys()
        if field.encode_name not in unread and not instead:
            message = f"the field {field.encode_name!r} is required"
            finding = Finding(message, (), istio.REASONS.get(key, ""))
            self._record(self.problems, node, path, finding)
        self._gap(_join(path, field.encode_name))

    def _list(self, node: Node, expected: inspect.VarTupleType, path: str) -> Any:
        if not isinstance(node, Sequence):
            return self._mismatch(node, path, "a list")
        if len(node.items) < (expected.min_length or 0):
            return self._refuse(node, path, "the list is empty")
        return tuple(
            self._or_stand_in(
                self._value(item, expected.item_type, f"{path}[{index}]"), expected.item_type
            )
            for index, item in enumerate(node.items)
        )

    def _dict(self, node: Node, expected: inspect.DictType, path: str) -> Any:
        if not isinstance(node, Mapping):
            return self._mismatch(node, path, "fields")
        if len(node.fields) < (expected.min_length or 0):
            return self._refuse(node, path, "there is nothing in it")
        if node.doubtful:
            self._gap(path)
        for name, key in node.keys.items():
            self._value(_as_string(key), expected.key_type, _join(path, name))
        return {
            name: self._or_stand_in(
                self._dict_value(child, expected.value_type, _join(path, name)),
                expected.value_type,
            )
            for name, child in node.fields.items()
        }

    def _or_stand_in(self, value: Any, expected: inspect.Type) -> Any:
        return self._stand_in(expected) if value is _BAD else value

    def _stand_in(self, expected: inspect.Type) -> Any:
        """Make a value that is equal to no other; nothing is ever served with it."""
        self._stand_ins += 1
        match expected:
            case inspect.Metadata():
                return self._stand_in(expected.type)
            case inspect.StructType():
                fields = [one for one in expected.fields if one.required]
                return expected.cls(**{one.name: self._stand_in(one.type) for one in fields})
            case inspect.VarTupleType():
                return ()
            case inspect.DictType():
                return {}
            case inspect.EnumType():
                return _STAND_INS[expected.cls]
            case inspect.LiteralType():
                return expected.values[0]
            case inspect.IntType():
                return -self._stand_ins
            case inspect.StrType():
                return f"unread-{self._stand_ins}.invalid"  # RFC 2606: no name ends so
        raise AssertionError(f"no required value has the type {expected}")

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

    def _float(self, node: Node, expected: inspect.FloatType, path: str) -> Any:
        if not isinstance(node, Scalar) or not node.plain:
            is_quoted = isinstance(node, Scalar) and _FLOAT.fullmatch(node.text)
            return self._mismatch(node, path, "a number", "remove the quotes" if is_quoted else "")
        if len(node.text) > _FLOAT_CHARS_MAX or not _FLOAT.fullmatch(node.text):
            return self._mismatch(node, path, "a decimal number")
        value = float(node.text)
        low, high = expected.ge, expected.le
        if (low is not None and value < low) or (high is not None and value > high):
            return self._refuse(node, path, f"must be from {low:g} to {high:g}, got {node.text}")
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

    def _refuse_kind(self, kind: Scalar, path: str) -> None:
        if kind.text in istio.KUBERNETES:
            message = f"the kind {kind.text!r} is one of Kubernetes, not of the mesh"
            self._refuse(kind, path, message, istio.KUBERNETES[kind.text])
            return
        self._refuse_name(kind, path, "kind", kind.text, kinds.KINDS, istio.KINDS)

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
        self._record(self.problems, node, path, Finding(message, (), hint))
        self._gap(path)
        return _BAD

    def _gap(self, path: str) -> None:
        """Note a place that is not what was written; all of it when there are too many."""
        self._gaps_count += 1
        if len(self._gaps) < PROBLEMS_MAX:
            self._gaps.append(path if len(self._gaps) < PROBLEMS_MAX - 1 else "")

    def _take(self, found: Iterable[Finding], node: Node, path: str) -> None:
        """Record findings; what an error is about is a gap."""
        for finding in found:
            if finding.is_warning:
                self._record(self.warnings, node, path, finding)
            else:
                self._gap(self._record(self.problems, node, path, finding))

    def _record(self, into: list[Problem], node: Node, path: str, finding: Finding) -> str:
        """Put a finding at the field that it is about, or at the nearest one around it.

        Gives the path of the field.
        """
        for step in finding.path:
            path = f"{path}[{step}]" if isinstance(step, int) else _join(path, step)
            node = child(node, step) or node
        message, hint = finding.message, finding.hint
        if len(into) == PROBLEMS_MAX - 1:
            message, hint = f"more than {PROBLEMS_MAX} problems; the rest is left out", ""
        if len(into) < PROBLEMS_MAX:
            into.append(Problem(message, self.file, node.line, node.column, path, hint))
        return path


@cache
def _type_info(cls: type[msgspec.Struct]) -> inspect.Type:
    return inspect.type_info(cls)


def _written_out(struct: str, node: Node, path: str) -> str:
    """Show how a value is written that stands where fields are due, if that can be guessed."""
    form = _WRITTEN_OUT.get(struct)
    if form is None or not isinstance(node, Scalar) or _is_null(node):
        return ""
    wanted, pattern = form
    found = pattern.fullmatch(node.text)
    if found is None:
        return ""
    field = path.rpartition(".")[2]
    is_quoted = struct == "StringMatch" and core_type(found[1]) != "a string"
    fields = "{" + wanted.format(f'"{found[1]}"' if is_quoted else found[1]) + "}"
    if field == "uri":
        fields = f"{{prefix: {found[1]}}}, or {fields} for this path alone"
    return f"write {fields}" if field.endswith("]") else f"write {field}: {fields}"


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


def _quote(text: str) -> str:
    """Quote a value of the file, at most 60 characters of it."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _join(path: str, name: str) -> str:
    name = name if len(name) <= _NAME_CHARS_MAX else name[: _NAME_CHARS_MAX - 3] + "..."
    return f"{path}.{name}" if path else name
