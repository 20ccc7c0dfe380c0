"""What an operator reads: one thing that is wrong, and where.

Does not do: print, sort (`in_file_order`).

Tests: tests/core/test_errors.py.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Problem"]


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
