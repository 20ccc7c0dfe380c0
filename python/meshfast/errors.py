"""Every exception that meshfast raises on purpose, and the `Problem` an operator reads.

The classes live here, in plain Python, so that the supervisor, the control plane and the extension
can raise them without loading one another. Nothing heavier than `dataclasses` is imported.

What this module does not do: print. `str(error)` is the whole text for an operator, one problem per
line, in the `file:line:column` form that editors jump to. `assert` is for our own bugs, never for
input: input ends in one of these classes.

Tests: tests/core/test_errors.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["ConfigError", "EngineError", "MeshfastError", "Problem", "UsageError"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the configuration, at the place where it can be repaired.

    `line` and `column` count from 1 (characters); 0 means that the place is not known. `path` is
    the field, as in `spec.http[0].route[1].weight`; empty for the whole document. `hint` is what to
    do, empty when there is nothing to add.
    """

    message: str
    file: str = ""
    line: int = 0
    column: int = 0
    path: str = ""
    hint: str = ""

    def __str__(self) -> str:
        """Render as `file:line:column: path: message (hint)`, leaving out what is not known."""
        place = self.file
        if self.line:
            place += f":{self.line}:{self.column}"
        text = ": ".join(part for part in (place, self.path, self.message) if part)
        return f"{text} ({self.hint})" if self.hint else text


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
