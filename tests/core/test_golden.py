"""Files in golden/ compile to the documents beside them; files in refused/ to the problems.

A new behaviour is a new pair of files. The problems are compared as text, so place, path, wording
and order are all held.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshfast import _core
from meshfast.errors import ConfigError
from meshfast.policy import SlotAllocator, complete
from meshfast.policy.compile import compile
from meshfast.policy.document import Document, decode_document, encode_document
from meshfast.resources import read_bytes

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"
ANSWERS = {
    "again.test": ["10.1.0.2"],
    "db.example.com": ["192.0.2.1"],
    "six.test": ["2001:db8::6"],
    "two.test": ["10.1.0.1", "2001:db8::2", "10.1.0.2"],
}


def compiled(path: Path) -> Document:
    return compile(
        complete(read_bytes(path.read_bytes(), path.name)),
        generation=1,
        allocator=SlotAllocator(),
        resolve=lambda host: ANSWERS.get(host, []),
    )


def names_of(folder: str, suffix: str) -> set[str]:
    return {path.stem for path in (HERE / folder).glob(f"*{suffix}")}


@pytest.mark.parametrize("name", sorted(names_of("golden", ".yaml")))
def test_compiles_to_the_golden_document(name: str) -> None:
    document = msgspec.json.decode(encode_document(compiled(HERE / f"golden/{name}.yaml")))
    assert document == msgspec.json.decode((HERE / f"golden/{name}.json").read_bytes())


@pytest.mark.parametrize("name", sorted(names_of("golden", ".yaml")))
def test_the_snapshot_compiler_takes_the_golden_document(name: str) -> None:
    document = (HERE / f"golden/{name}.json").read_bytes()
    described = _core.Snapshot.describe(_core.Snapshot.build(document))
    assert decode_document(described.encode()) == decode_document(document)


@settings(max_examples=200)
@given(st.data())
def test_some_of_the_documents_compile_or_are_refused(data: st.DataObject) -> None:
    """What compiles builds, so that no file can be accepted and then not be served."""
    name = data.draw(st.sampled_from(sorted(names_of("golden", ".yaml"))))
    documents = (HERE / f"golden/{name}.yaml").read_text().split("\n---\n")
    kept = data.draw(st.lists(st.sampled_from(documents), max_size=len(documents)))
    broken = data.draw(st.sampled_from(["", "---\nkind: Gatewy\napiVersion: v1\n", "--- [\n"]))
    text = "\n---\n".join(kept) + "\n" + broken
    try:
        document = compile(
            complete(read_bytes(text.encode(), "f.yaml"), _core.Snapshot.build),
            generation=1,
            allocator=SlotAllocator(),
            resolve=lambda host: ANSWERS.get(host, []),
        )
    except ConfigError:
        assert broken or sorted(kept) != sorted(documents)
    else:
        assert not broken
        assert _core.Snapshot.build(encode_document(document))


@pytest.mark.parametrize("name", sorted(names_of("refused", ".yaml")))
def test_refuses_with_every_problem_in_its_place(name: str) -> None:
    with pytest.raises(ConfigError) as refused:
        compiled(HERE / f"refused/{name}.yaml")
    assert str(refused.value).splitlines() == (
        (HERE / f"refused/{name}.txt").read_text().splitlines()
    )


@pytest.mark.parametrize(("folder", "answer"), [("golden", ".json"), ("refused", ".txt")])
def test_every_file_has_its_answer(folder: str, answer: str) -> None:
    assert names_of(folder, ".yaml") == names_of(folder, answer) != set()


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.yaml")))
def test_every_example_compiles(name: str) -> None:
    assert compiled(EXAMPLES / name).listeners
