"""The rules of conftest.py, shown on a scratch suite that runs in a pytest of its own."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repository import ROOT, text

SUITE = """
import pytest

@pytest.mark.skip(reason="no server here")
def test_skips_with_a_reason(): ...

@pytest.mark.skip
def test_skips_without_a_reason(): ...

@pytest.mark.xfail(reason="known")
def test_fails_as_expected(): assert False

@pytest.mark.parametrize("n", [1, 2])
def test_skips_from_inside(n): pytest.skip("absent")

def test_passes(): ...
"""


def closing_lines(folder: Path, allowed: str, *arguments: str, ci: bool) -> tuple[int, str]:
    """Run SUITE under the conftest of this repository; return pytest's exit code and output."""
    suite = folder / "tests" / "core"
    suite.mkdir(parents=True)
    shutil.copy(ROOT / "conftest.py", folder)
    (folder / "tests" / "allowed_skips.txt").write_text(allowed)
    (suite / "test_scratch.py").write_text(SUITE)
    (folder / "pytest.ini").write_text("[pytest]\n")
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rfEsx", *arguments]
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment | ({"CI": "true"} if ci else {}),
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout


def test_a_skip_without_a_reason_fails_everywhere(tmp_path: Path) -> None:
    code, output = closing_lines(tmp_path, "", ci=False)
    assert code == 1
    assert "test_skips_without_a_reason: skipped without a reason" in output
    assert "1 passed, 3 skipped, 1 xfailed, 1 error" in output


def test_ci_fails_every_skip_that_is_not_listed(tmp_path: Path) -> None:
    code, output = closing_lines(tmp_path, "", ci=True)
    assert code == 1
    assert "skipped in CI and not listed in tests/allowed_skips.txt" in output
    assert "3 failed, 1 passed, 2 errors" in output


def test_ci_lets_a_listed_skip_pass_with_all_its_parameters(tmp_path: Path) -> None:
    test = "tests/core/test_scratch.py::test_skips_from_inside"
    code, output = closing_lines(
        tmp_path, f"# why\n{test} no such server\n", "-k", "from_inside or passes", ci=True
    )
    assert (code, "1 passed, 2 skipped" in output) == (0, True), output


def test_an_entry_without_a_reason_is_refused(tmp_path: Path) -> None:
    _, output = closing_lines(tmp_path, "tests/core/test_scratch.py::test_x\n", ci=True)
    assert "has no reason" in output


def test_a_module_that_skips_itself_counts(tmp_path: Path) -> None:
    folder = tmp_path / "tests" / "mesh"
    folder.mkdir(parents=True)
    (folder / "test_whole.py").write_text('import pytest\npytest.importorskip("no_such_module")\n')
    code, output = closing_lines(tmp_path, "", "tests/mesh", ci=True)
    assert code != 0
    assert "tests/mesh/test_whole.py: skipped in CI" in output


def test_every_entry_of_this_repository_names_a_test_that_exists() -> None:
    listing = (ROOT / "tests" / "allowed_skips.txt").read_text(encoding="utf-8")
    entries = [line.split()[0] for line in listing.splitlines() if line and line[0] != "#"]
    for path, _, test in (entry.partition("::") for entry in entries):
        assert f"def {test.split('::')[-1].partition('[')[0]}(" in text(Path(path))


@pytest.mark.parametrize("ci", [False, True])
def test_seconds_are_told_per_suite(tmp_path: Path, ci: bool) -> None:
    _, output = closing_lines(tmp_path, "", "-k", "passes", ci=ci)
    assert re.search(r"= seconds per suite =+\n+tests/core +0\.\d\n", output), output
