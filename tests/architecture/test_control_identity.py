"""The control plane has one import name; the folder at the root is not a second one."""

import subprocess
import sys

from tests.repository import ROOT


def interpreter(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program in the root of the repository, which Python then searches first."""
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)


def test_the_folder_at_the_root_refuses_to_be_imported() -> None:
    done = interpreter("import control")
    assert done.returncode == 1
    assert "imported as meshfast.control, not as control" in done.stderr


def test_the_package_is_imported_under_its_name() -> None:
    assert interpreter("import meshfast.control").returncode == 0
