"""A command of an operator refuses a name that nothing can have, before it asks anybody."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from meshfast.cli import app


@pytest.mark.parametrize(
    "words",
    [
        ("service", "forget", ""),
        ("service", "forget", "payment", "-n", "No"),
        ("identity", "revoke", ""),
        ("identity", "restore", "a/b"),
        ("identity", "revoke", "payment", "-n", ""),
        ("token", "revoke", ""),
        ("token", "create", "--service", "a b"),
        ("token", "create", "--service", "payment", "--namespace", ""),
        ("get", "vs", ""),
        ("delete", "vs", ""),
        ("delete", "vs", "payment", "-n", "a_b"),
        ("canary", "set", "", "v2=10"),
        ("canary", "rollback", "payment", "-n", ""),
    ],
    ids=" ".join,
)
def test_a_name_that_is_none_is_wrong_usage(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, [*words, "--state-dir", str(tmp_path)])
    assert done.exit_code == 2, done.output
    said = " ".join(done.output.replace("│", " ").split())
    assert "lower-case letters, digits" in said
