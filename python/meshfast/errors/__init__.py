"""Every exception that meshfast raises on purpose, and the `Problem` an operator reads.

The classes live here, in plain Python, so that the supervisor, the control plane and the extension
can raise them without loading one another. `Problem` is loaded when there is one: `dataclasses`
costs 1 MB in every agent of a mesh, most of which never refuse anything.

What this module does not do: print. `str(error)` is the whole text for an operator, one problem per
line, in the `file:line:column` form that editors jump to. `assert` is for our own bugs, never for
input: input ends in one of these classes.

Tests: tests/core/test_errors.py.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from meshfast.errors.problem import Problem

__all__ = [
    "ConfigError",
    "EngineError",
    "MeshfastError",
    "Problem",
    "UsageError",
    "in_file_order",
]


def in_file_order(problems: Iterable[Problem]) -> list[Problem]:
    """Sort problems as a reader of the files comes to them."""
    return sorted(problems, key=lambda one: (one.file, one.line, one.column))


class MeshfastError(Exception):
    """The base of every exception that meshfast raises on purpose."""


class ConfigError(MeshfastError):
    """The configuration was refused; `problems` holds everything that was found, in file order.

    Text is accepted for the callers that know no place (the snapshot compiler): each of its lines
    becomes a problem.
    """

    problems: tuple[Problem, ...]

    def __init__(self, problems: str | Iterable[Problem]) -> None:
        """Keep the problems; refuse to be raised without any, which would be a bug of ours."""
        from meshfast.errors.problem import Problem

        if isinstance(problems, str):
            problems = [Problem(line) for line in problems.splitlines()]
        self.problems = tuple(problems)
        assert self.problems, "a ConfigError names at least one problem"
        super().__init__("\n".join(str(problem) for problem in self.problems))


class UsageError(ConfigError):
    """An option, not a file, is wrong; a command ends with 2 then, as for an unknown option."""


class EngineError(MeshfastError):
    """The data plane failed. `side` says whose end it was, `kind` is a stable label for metrics.

    `side` is one of `downstream`, `upstream`, `internal`.
    """

    side: str
    kind: str

    def __init__(self, message: str, *, side: str = "internal", kind: str = "") -> None:
        """Keep the label and the side beside the text for the operator."""
        super().__init__(message)
        self.side = side
        self.kind = kind


def __getattr__(name: str) -> object:
    """Import `Problem` when it is asked for (PEP 562)."""
    if name != "Problem":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from meshfast.errors.problem import Problem

    return Problem
