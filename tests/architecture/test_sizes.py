"""make/sizes finds what is large, in Python and in Rust, and nothing else."""

import runpy
from collections.abc import Callable

import pytest

from tests.repository import ROOT

Report = Callable[[dict[str, str]], list[tuple[int, str]]]


@pytest.fixture
def report() -> Report:
    """Return the function that looks at sources."""
    found: Report = runpy.run_path(str(ROOT / "make" / "sizes"))["report"]
    return found


def test_a_long_function_is_reported_with_its_lines(report: Report) -> None:
    python = "def short():\n    pass\n\n\ndef long():\n" + "    pass\n" * 70
    rust = "impl X {\n    pub(crate) fn long(&self) {\n" + "        y();\n" * 80 + "    }\n}\n"
    sources = {"a.py": python, "b.rs": rust + "fn short() {\n    z();\n}\n"}
    assert report(sources) == [(82, "b.rs: long"), (71, "a.py: long")]


def test_a_declaration_without_a_body_does_not_swallow_what_follows(report: Report) -> None:
    trait = (
        "trait T {\n    fn a(&self);\n" + "    // prose\n" * 90 + "    fn b(&self) {\n    }\n}\n"
    )
    assert report({"t.rs": trait}) == []


def test_a_file_of_tests_may_be_longer(report: Report) -> None:
    text = "x = 1\n" * 600
    assert report({"a.py": text, "tests/test_a.py": text}) == [(600, "a.py")]
