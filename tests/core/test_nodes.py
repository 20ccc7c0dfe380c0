"""meshfast.resources.nodes: text to nodes, and what is refused before any schema is looked at."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshfast.resources import nodes
from meshfast.resources.nodes import Mapping, Node, Scalar, Sequence, core_type, parse

WORDS = ["- ", "a: ", "{", "}", "[", "]", ",", "&a ", "*a", "? ", ": ", "!!int ", "!<x> ", "| "]
MARKS = [">-", "'", '"', "---\n", "...\n", "%YAML 1.1\n", "# c\n", "<<: ", "=", "~", "\n", "\t"]
SNIPPETS = st.sampled_from([*WORDS, *MARKS, "  ", "\ufeff", "\x85"])


def one(text: str) -> Node:
    documents, problems, _ = parse(text.encode())
    assert problems == []
    (document,) = documents
    return document


def refusal(data: bytes) -> tuple[str, int, int]:
    documents, problems, _ = parse(data)
    assert documents == []
    (problem,) = problems
    return problem.message, problem.line, problem.column


def test_remembers_the_place_of_every_node_and_key() -> None:
    root = one("a:\n  - é: x\n    b: 'y'\n")
    assert isinstance(root, Mapping)
    items = root.fields["a"]
    assert isinstance(items, Sequence)
    (item,) = items.items
    assert isinstance(item, Mapping)
    places = [(node.line, node.column) for node in (root, items, item, *item.fields.values())]
    assert places == [(1, 1), (2, 3), (2, 5), (2, 8), (3, 8)]
    assert (item.keys["b"].line, item.keys["b"].column) == (3, 5)
    assert item.fields["b"] == Scalar(3, 8, "y", plain=False)


def test_reads_json() -> None:
    root = one('{"a": [1, "1", null],\n\t"b": {}}')
    assert isinstance(root, Mapping)
    assert list(root.fields) == ["a", "b"]


def test_leaves_empty_documents_out() -> None:
    documents, problems, _ = parse(b"---\n---\na: 1\n---\n# nothing\n")
    assert (len(documents), problems) == (1, [])


def test_keeps_the_documents_before_the_one_that_breaks() -> None:
    documents, problems, _ = parse(b"a: 1\n---\nb: 2\n---\nc: [\n")
    assert len(documents) == 2
    assert [(problem.line, problem.column) for problem in problems] == [(6, 1)]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        *((text, "nothing") for text in ("", "~", "null", "Null", "NULL")),
        *((text, "a boolean") for text in ("true", "True", "FALSE")),
        *((text, "a number") for text in ("0", "-1", "014", "1.5", ".5", "1e3", "0x1F", "0o17")),
        *((text, "a number") for text in (".inf", "-.Inf", ".nan")),
        *((text, "a string") for text in ("yes", "no", "on", "Off", "y", "nULL", "tRUE")),
        *((text, "a string") for text in ("12:30:45", "1_000", "2026-01-01", "0b1", "1.2.3", "+")),
    ],
)
def test_gives_plain_scalars_the_type_of_yaml_1_2(text: str, kind: str) -> None:
    assert core_type(text) == kind


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? ", "[{a: "])
def test_refuses_ten_thousand_levels(opening: str) -> None:
    message, line, _ = refusal((opening * 10_000).encode())
    assert (message, line) == (f"nested deeper than {nodes.DEPTH_MAX} levels", 1)


def test_counts_the_levels_behind_an_alias() -> None:
    half = nodes.DEPTH_MAX // 2 + 1
    deep = "[" * half + "]" * half
    message, _, _ = refusal(f"[&a {deep}, {'[' * half}*a{']' * half}]".encode())
    assert message == f"nested deeper than {nodes.DEPTH_MAX} levels"


def test_accepts_the_deepest_nesting_that_is_allowed() -> None:
    assert one("[" * nodes.DEPTH_MAX + "]" * nodes.DEPTH_MAX).height == nodes.DEPTH_MAX


def test_refuses_an_alias_bomb_without_expanding_it() -> None:
    lines = ["- &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"- &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30)]
    message, line, _ = refusal("\n".join(lines).encode())
    assert message.startswith(f"more than {nodes.NODES_MAX} values")
    assert line == 6  # the first list that stands for 10 ** 6 values


def test_refuses_more_nodes_than_any_mesh_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "NODES_MAX", 100)
    assert isinstance(one("[" + "x," * 99 + "]"), Sequence)
    message, line, column = refusal(b"[" + b"x," * 100 + b"]")
    assert message.endswith("values, counting what aliases stand for")
    assert (line, column) == (1, 1)


def test_an_alias_is_the_node_of_its_anchor() -> None:
    root = one("- &a {x: 1}\n- *a\n")
    assert isinstance(root, Sequence)
    assert root.items[0] is root.items[1]
    assert root.size == 7


def test_forgets_anchors_at_the_end_of_a_document() -> None:
    _, problems, _ = parse(b"- &a x\n---\n- *a\n")
    assert [problem.message for problem in problems] == ["the alias *a has no anchor before it"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a: 1\nb: \xff", ("the file is not UTF-8 text", 2, 4)),
        ("a: 1".encode("utf-16"), ("the file is not UTF-8 text", 1, 1)),
        (b"a: 1\nb: \x00", ("the character U+0000 is not allowed in YAML", 2, 4)),
        (b"&a [*a]", ("the alias *a contains itself", 1, 5)),
        (b"- *a", ("the alias *a has no anchor before it", 1, 3)),
        (b"!!str a", ("the tag tag:yaml.org,2002:str is not supported", 1, 1)),
        (b"! a", ("the tag ! is not supported", 1, 1)),
        (b"[a]: b", ("a key must be a string", 1, 1)),
        (b"%YAML 2.0\n---\na", ("found incompatible YAML document", 1, 1)),
    ],
)
def test_refuses_what_it_cannot_take_at_its_place(
    data: bytes, expected: tuple[str, int, int]
) -> None:
    assert refusal(data) == expected


def test_refuses_a_file_that_is_too_long() -> None:
    message = f"the file has {nodes.FILE_BYTES_MAX + 1} bytes; at most 8388608 are read"
    assert refusal(b"#" * (nodes.FILE_BYTES_MAX + 1)) == (message, 1, 1)


def test_takes_a_byte_order_mark() -> None:
    assert isinstance(one("\ufeffa: 1"), Mapping)


def test_reports_each_key_that_occurs_again_and_keeps_the_first() -> None:
    documents, problems, _ = parse(b"a: 1\nb: 2\na: 3\nb: 4\n")
    assert [(problem.line, problem.hint) for problem in problems] == [
        (3, "the first is at 1:1"),
        (4, "the first is at 2:1"),
    ]
    (root,) = documents
    assert isinstance(root, Mapping)
    assert root.fields["a"] == Scalar(1, 4, "1", plain=True)


@settings(max_examples=500)
@given(st.binary(max_size=200))
def test_any_bytes_end_in_nodes_or_problems(data: bytes) -> None:
    check(data)


@settings(max_examples=500)
@given(st.lists(SNIPPETS | st.text(string.printable, max_size=3), max_size=40))
def test_any_yaml_like_text_ends_in_nodes_or_problems(parts: list[str]) -> None:
    check("".join(parts).encode())


def check(data: bytes) -> None:
    """`parse` raises nothing; problems have a place inside the text; sizes and heights agree."""
    documents, problems, _ = parse(data)
    lines = data.count(b"\n") + data.count(b"\r") + data.count(b"\xc2\x85") + 1
    lines += data.count(b"\xe2\x80\xa8") + data.count(b"\xe2\x80\xa9")
    for problem in problems:
        assert 1 <= problem.line <= lines + 1
        assert problem.column >= 1
    for document in documents:
        assert document.height <= nodes.DEPTH_MAX
        assert measured(document) == document.size


def measured(node: Node) -> int:
    match node:
        case Sequence():
            return 1 + sum(map(measured, node.items))
        case Mapping():
            # A key that occurred twice or was a merge key was counted and then left out.
            least = 1 + len(node.fields) + sum(map(measured, node.fields.values()))
            return node.size if node.size >= least else -1
    return 1


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a:\n\tb: 1\n", (2, 1)),
        ("a:\n  b: 1\n\tc: 2\n", (3, 1)),
        ("a:\n  b: 1\n  \tc: 2\n", (3, 3)),
        ("a: x\n\tb: 1\n", (2, 1)),
        ("a:\n\t- b\n", (2, 1)),
        ("- a: 1\n\tb: 2\n", (2, 1)),
    ],
)
def test_a_tab_that_indents_is_named_in_its_place(text: str, place: tuple[int, int]) -> None:
    (problem,) = parse(text.encode()).problems
    assert (problem.message, problem.line, problem.column) == ("a tab indents the line", *place)
    assert problem.hint == "YAML indents by spaces only"


@pytest.mark.parametrize("text", ['{\n\t"a": 1\n}\n', "a: [\n\t1,\n\t2]\n", "a: '\tb'\n"])
def test_a_tab_that_does_not_indent_is_white_space(text: str) -> None:
    assert parse(text.encode()).problems == []


def test_between_brackets_something_else_than_the_tab_is_wrong() -> None:
    (problem,) = parse(b'{\n\t"a": 1\n\t"b": 2\n}\n').problems
    assert problem.message == "did not find expected ',' or '}', while parsing a flow mapping"


def test_the_byte_that_is_not_utf_8_is_named() -> None:
    (problem,) = parse(b"\xef\xbb\xbfa: \xc3\xa9\xe9\n").problems
    assert (problem.line, problem.column) == (1, 5)
    assert problem.hint == "the byte 0xE9 is none of it; save the file as UTF-8"
