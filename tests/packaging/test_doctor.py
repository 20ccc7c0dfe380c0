"""make/doctor names what a machine lacks and the command that installs it.

Each machine is a PATH: a folder of links to the tools it has, or of scripts that stand for an old
one.
"""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.repository import ROOT

SHELL = ["id", "printf", "sed"]
TOOLS = ["cargo", "cargo-clippy", "cargo-fmt", "cc", "git", "python3"]

Machine = Callable[..., Path]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Return a maker of machines: all tools but *lacking*, with scripts in place of *instead*."""

    def make(*lacking: str, **instead: str) -> Path:
        for tool in [*SHELL, *TOOLS]:
            if tool in lacking:
                continue
            script = tmp_path / tool
            script.write_text(f"#!/bin/sh\n{instead.get(tool, answer(tool))}\n")
            script.chmod(0o755)
        return tmp_path

    def answer(tool: str) -> str:
        found = shutil.which(tool)
        return f'exec {found} "$@"' if tool in SHELL else "exit 0" if tool != "cargo" else CARGO

    return make


CARGO = "echo 'cargo 1.95.0 (f2d3ce0bd 2026-03-21)'"


def doctor(machine: Path, purpose: str = "test") -> tuple[int, list[str]]:
    """Return the exit code and the printed lines, without their indentation."""
    done = subprocess.run(
        ["/bin/sh", ROOT / "make" / "doctor", purpose],
        env={"PATH": str(machine)},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return done.returncode, [line.strip() for line in done.stdout.splitlines()]


def test_a_machine_that_has_everything_is_told_nothing(machine: Machine) -> None:
    assert doctor(machine()) == (0, [])


@pytest.mark.parametrize(
    ("tool", "what", "command"),
    [
        ("python3", "Python 3.11 or newer (python3)", "apt-get install -y python3 python3-venv"),
        ("cc", "a C compiler (cc)", "apt-get install -y build-essential"),
        ("cargo", "cargo (Rust 1.85 or newer)", "https://sh.rustup.rs | sh -s -- -y"),
        ("git", "git (the tests read what it tracks)", "apt-get install -y git"),
        ("cargo-fmt", "rustfmt (cargo fmt)", "rustup component add rustfmt"),
        ("cargo-clippy", "clippy (cargo clippy)", "rustup component add clippy"),
    ],
)
def test_a_missing_tool_is_named_with_its_command(
    machine: Machine, tool: str, what: str, command: str
) -> None:
    code, printed = doctor(machine(tool))
    assert (code, len(printed)) == (1, 2)
    assert printed[0] == f"missing: {what}"
    assert printed[1].endswith(command)


@pytest.mark.parametrize(
    ("program", "what", "command"),
    [
        ('case "$2" in *version_info*) exit 1 ;; esac', "python3 is older", "make PYTHON="),
        ('case "$2" in *ensurepip*) exit 1 ;; esac', "venv module of python3", "python3-venv"),
    ],
)
def test_a_python_that_will_not_do_is_named(
    machine: Machine, program: str, what: str, command: str
) -> None:
    code, printed = doctor(machine(python3=program))
    assert code == 1
    assert what in printed[0]
    assert command in printed[1]


def test_a_cargo_older_than_the_edition_is_named(machine: Machine) -> None:
    code, printed = doctor(machine(cargo="echo 'cargo 1.63.0'"))
    assert code == 1
    assert printed[0] == "missing: Rust 1.85 or newer (cargo is older)"
    assert "sh.rustup.rs" in printed[1]


def test_everything_missing_is_named_at_once(machine: Machine) -> None:
    code, printed = doctor(machine(*TOOLS))
    assert code == 1
    assert len([line for line in printed if line.startswith("missing: ")]) == len(TOOLS)


def test_a_build_does_not_ask_for_linters(machine: Machine) -> None:
    assert doctor(machine("cargo-fmt", "cargo-clippy"), "build") == (0, [])


def test_who_is_not_root_is_told_to_use_sudo(machine: Machine) -> None:
    _, printed = doctor(machine("cc", id="echo 1000"))
    assert printed[1] == "install it with: sudo apt-get install -y build-essential"
