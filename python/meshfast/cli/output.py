"""The forms in which commands show an answer: JSON and YAML for programs, text for people.

Tests: tests/core/test_cli.py, tests/core/test_sidecar_cli.py.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

__all__ = ["show"]


def show(answer: object, output: str, text: Callable[[], str]) -> None:
    """Print an answer, data as JSON has it, as JSON or YAML, or as the text that is made of it."""
    if output == "json":
        print(msgspec.json.format(msgspec.json.encode(answer)).decode())
    elif output == "yaml":
        import yaml

        print(yaml.safe_dump(answer, sort_keys=False, allow_unicode=True), end="")
    else:
        print(text())
