"""make/doctor names what a machine lacks and the command that installs it.

Each machine is a PATH: a folder of links to the tools it has, or of scripts that stand for an old
one.
"""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.repository import ROOT, rust_version

SHELL = ["id", "printf", "sed"]
TOOLS = ["cargo", "cc", "curl", "git", "python3", "rustup"]
PYTHON = 'case "$2" in *version_info*) echo 3.12 ;; esac'
CARGO = "echo 'cargo 1.95.0 (f2d3ce0bd 2026-03-21)'"

Machine = Callable[..., Path]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Return a maker of machines: all tools but *lacking*, with scripts in place of *instead*."""

    def make(*lacking: str, **instead: str) -> Path:
        shell = {tool: f'exec {shutil.which(tool)} "$@"' for tool in SHELL}
        scripts = (
            shell | dict.fromkeys(TOOLS, "exit 0") | {"cargo": CARGO, "python3": PYTHON} | instead
        )
        for tool in scripts.keys() - set(lacking):
            (tmp_path / tool).write_text(f"#!/bin/sh\n{scripts[tool]}\n")
            (tmp_path / tool).chmod(0o755)
        return tmp_path

    return make


def without(part: str) -> str:
    """Return a cargo that lacks one of its parts."""
    return f'[ "$1" != {part} ] || exit 101; {CARGO}'


def doctor(machine: Path, purpose: str = "test", python: str = "python3") -> tuple[int, list[str]]:
    """Return the exit code and the printed lines, without their indentation."""
    done = subprocess.run(
        ["/bin/sh", ROOT / "make" / "doctor", purpose],
        env={"PATH": str(machine), "PYTHON": python},
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
        ("cargo", f"cargo (Rust {rust_version()} or newer)", "https://sh.rustup.rs | sh -s -- -y"),
        ("git", "git (the tests read what it tracks)", "apt-get install -y git"),
    ],
)
def test_a_missing_tool_is_named_with_its_command(
    machine: Machine, tool: str, what: str, command: str
) -> None:
    code, printed = doctor(machine(tool))
    assert (code, len(printed)) == (1, 2)
    assert printed[0] == f"missing: {what}"
    assert printed[1].endswith(command)


@pytest.mark.parametrize(("part", "name"), [("fmt", "rustfmt"), ("clippy", "clippy")])
def test_a_missing_part_of_rust_is_named(machine: Machine, part: str, name: str) -> None:
    code, printed = doctor(machine(cargo=without(part)))
    assert code == 1
    assert printed == [f"missing: {name}", f"install it with: rustup component add {name}"]


@pytest.mark.parametrize(
    ("program", "what", "command"),
    [
        ("echo 3.9", "python3 is 3.9", "make PYTHON="),
        ("echo 2.7", "python3 is 2.7", "make PYTHON="),
        ("echo no such version >&2; exit 127", "python3 does not run", "make PYTHON="),
        (
            'case "$2" in *ensurepip*) exit 1 ;; *) echo 3.12 ;; esac',
            "venv module",
            " python3-venv",
        ),
    ],
)
def test_a_python_that_will_not_do_is_named(
    machine: Machine, program: str, what: str, command: str
) -> None:
    code, printed = doctor(machine(python3=program))
    assert code == 1
    assert what in printed[0]
    assert command in printed[1]


def test_an_interpreter_that_was_named_gets_the_venv_package_of_its_version(
    machine: Machine,
) -> None:
    path = machine(**{"python3.12": 'case "$2" in *ensurepip*) exit 1 ;; *) echo 3.12 ;; esac'})
    code, printed = doctor(path, python="python3.12")
    assert code == 1
    assert printed[0] == "missing: the venv module of python3.12"
    assert printed[1].endswith("apt-get install -y python3.12-venv")


@pytest.mark.parametrize("cargo", [None, "echo 'cargo 1.63.0'"])
def test_curl_is_asked_for_where_rustup_has_to_be_fetched(
    machine: Machine, cargo: str | None
) -> None:
    lacking = ["curl", "rustup"] if cargo else ["curl", "rustup", "cargo"]
    _, printed = doctor(machine(*lacking, **({"cargo": cargo} if cargo else {})))
    assert printed[0] == "missing: curl (it fetches rustup)"
    assert len(printed) == 4


def test_a_cargo_older_than_the_sources_is_named(machine: Machine) -> None:
    code, printed = doctor(machine(cargo="echo 'cargo 1.63.0'"))
    assert code == 1
    assert printed[0] == f"missing: Rust {rust_version()} or newer (cargo is older)"
    assert printed[1].endswith("rustup update stable && rustup default stable")


def test_without_rustup_a_part_comes_from_where_cargo_came(machine: Machine) -> None:
    _, printed = doctor(machine("rustup", cargo=without("fmt")))
    assert printed[1].endswith("apt-get install -y rustfmt")


def test_without_rustup_an_old_cargo_is_told_how_to_get_it(machine: Machine) -> None:
    _, printed = doctor(machine("rustup", cargo="echo 'cargo 1.63.0'"))
    assert "sh.rustup.rs" in printed[1]


def test_everything_missing_is_named_at_once(machine: Machine) -> None:
    code, printed = doctor(machine(*TOOLS))
    assert code == 1
    missing = [line for line in printed if line.startswith("missing: ")]
    # Python, the compiler, git, curl and Rust, which brings rustup and its components along.
    assert len(missing) == 5


def test_a_build_does_not_ask_for_linters(machine: Machine) -> None:
    assert doctor(machine("git", cargo=without("fmt")), "build") == (0, [])


def test_who_is_not_root_is_told_to_use_sudo(machine: Machine) -> None:
    _, printed = doctor(machine("cc", id="echo 1000"))
    assert printed[1] == "install it with: sudo apt-get install -y build-essential"
