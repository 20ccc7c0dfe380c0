"""The wheel installs into an empty environment where no compiler is, and its command runs.

PATH holds the environment alone, so whatever would reach for cc, cargo or git finds nothing.
"""

import subprocess
import venv
from pathlib import Path

import pytest

from tests.repository import version


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the bin folder of a fresh environment that holds the wheel and what it depends on."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder, with_pip=True)
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(folder / "bin", "python", *install, "--only-binary=:all:", str(wheel))
    return folder / "bin"


def run(binaries: Path, command: str, *arguments: str) -> str:
    """Run a command of the environment, away from the checkout, and return what it prints."""
    done = subprocess.run(
        [binaries / command, *arguments],
        cwd=binaries,
        env={"PATH": str(binaries), "HOME": str(binaries.parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_tells_its_version(environment: Path) -> None:
    assert version() in run(environment, "meshfast", "version")


def test_the_module_is_the_same_command(environment: Path) -> None:
    as_module = run(environment, "python", "-m", "meshfast", "version")
    assert as_module == run(environment, "meshfast", "version")


def test_the_extension_loads(environment: Path) -> None:
    program = "from meshfast import _core; print(_core.run_worker.__name__)"
    assert run(environment, "python", "-I", "-c", program) == "run_worker\n"


def test_dependencies_are_consistent(environment: Path) -> None:
    assert "No broken requirements" in run(environment, "python", "-m", "pip", "check")
