"""The developer's door: `make help`, the README's first commands, what CI runs, one version."""

import importlib.metadata
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.repository import ROOT, rust_version, text, version

TARGETS = [
    "demo",
    "picture",
    "test",
    "test-full",
    "soak",
    "bench",
    "wheel",
    "lint",
    "types",
    "sizes",
    "fmt",
    "clean",
]


def make(*arguments: str) -> str:
    """Return what make prints, apart from a make that runs these tests and its list of steps."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=ROOT,
        env=inherited | {"STEPS_FILE": os.devnull},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_help_lists_every_target_with_a_sentence() -> None:
    listed = re.findall(r"^  make (\S+) +\S.*$", make(), re.MULTILINE)
    assert listed == ["help", *TARGETS]


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_has_a_recipe(target: str) -> None:
    assert make("--dry-run", target).strip()


def test_the_first_two_commands_of_the_readme_are_demo_and_test() -> None:
    commands = re.findall(r"^make (\S+)", text(Path("README.md")), re.MULTILINE)
    assert commands[:2] == ["demo", "test"]


def test_the_readme_asks_for_the_python_and_the_rust_that_the_manifests_ask_for() -> None:
    readme = text(Path("README.md"))
    assert re.findall(r"Rust (\d+\.\d+)", readme) == [rust_version()]
    python = tomllib.loads(text(Path("pyproject.toml")))["project"]["requires-python"]
    assert {f">={found}" for found in re.findall(r"Python (\d+\.\d+)", readme)} == {python}


def test_ci_ends_with_the_test_command_of_the_readme() -> None:
    assert text(Path(".ci/run")).rstrip().endswith("exec make test")


def test_commit_hooks_fetch_nothing() -> None:
    hooks = yaml.safe_load(text(Path(".pre-commit-config.yaml")))
    assert {repository["repo"] for repository in hooks["repos"]} == {"local"}
    assert {hook["language"] for hook in hooks["repos"][0]["hooks"]} == {"system"}


def test_the_version_is_the_same_everywhere() -> None:
    newest = re.search(r"^## (\S+)", text(Path("CHANGELOG.md")), re.MULTILINE)
    assert newest is not None
    readme = re.findall(r"meshfast[-=]+(\d+\.\d+\.\d+)", text(Path("README.md")))
    told = {"CHANGELOG.md": newest[1], "installed": importlib.metadata.version("meshfast")}
    told |= {f"README.md: {found}": found for found in readme}
    assert set(told.values()) == {version()}, told


def test_the_environments_of_the_makefile_are_ignored_by_git() -> None:
    named = re.findall(r"-m venv (?:--clear )?(\.\S+)", text(Path("Makefile")))
    assert named
    for folder in named:
        subprocess.run(["git", "check-ignore", "--quiet", f"{folder}/bin"], cwd=ROOT, check=True)
