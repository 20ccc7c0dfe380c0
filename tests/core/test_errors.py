"""meshfast.errors: what an operator reads."""

from __future__ import annotations

import subprocess
import sys

import pytest

from meshfast.errors import ConfigError, EngineError, MeshfastError, Problem


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (Problem("m", "f.yaml", 3, 7, "spec.a", "h"), "f.yaml:3:7: spec.a: m (h)"),
        (Problem("m", "f.yaml", 3, 7), "f.yaml:3:7: m"),
        (Problem("m", "f.yaml"), "f.yaml: m"),
        (Problem("m", path="spec"), "spec: m"),
        (Problem("m"), "m"),
    ],
)
def test_a_problem_leaves_out_what_is_not_known(problem: Problem, text: str) -> None:
    assert str(problem) == text


def test_a_config_error_prints_one_problem_per_line() -> None:
    error = ConfigError([Problem("a", "f", 1, 1), Problem("b", "f", 2, 1)])
    assert str(error).splitlines() == ["f:1:1: a", "f:2:1: b"]
    assert [problem.message for problem in error.problems] == ["a", "b"]


def test_text_becomes_a_problem_per_line() -> None:
    assert ConfigError("a: x\nb: y").problems == (Problem("a: x"), Problem("b: y"))


def test_every_error_is_a_meshfast_error() -> None:
    engine = EngineError("reset by peer", side="upstream", kind="reset")
    assert isinstance(engine, MeshfastError)
    assert (str(engine), engine.side, engine.kind) == ("reset by peer", "upstream", "reset")
    assert issubclass(ConfigError, MeshfastError)


def test_importing_the_errors_loads_no_dependency() -> None:
    program = "import sys, meshfast.errors; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"msgspec", "yaml", "click", "rich", "asyncio"}
