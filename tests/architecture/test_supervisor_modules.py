"""The supervisor is the standard library and its own room: it forks at any time and stays small.

Measured in an interpreter of its own, started as the supervisor is (``python -I``).
"""

import json
import subprocess
import sys

import pytest

REPORT = """
import json, sys
before = set(sys.modules)
import meshfast.supervisor
import threading
print(json.dumps([sorted(set(sys.modules) - before), threading.active_count()]))
"""


@pytest.fixture(scope="module")
def loaded() -> tuple[list[str], int]:
    """Return what importing the supervisor loads, and the threads there are afterwards."""
    command = [sys.executable, "-I", "-c", REPORT]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    modules, threads = json.loads(done.stdout)
    return modules, threads


def test_it_loads_only_the_standard_library_and_its_own_room(
    loaded: tuple[list[str], int],
) -> None:
    modules, _ = loaded
    assert "meshfast.supervisor" in modules
    strangers = [
        name
        for name in modules
        if name.partition(".")[0] not in sys.stdlib_module_names
        and name != "meshfast"
        and f"{name}.".partition("meshfast.supervisor.")[0]
    ]
    assert strangers == []


def test_it_starts_no_thread(loaded: tuple[list[str], int]) -> None:
    _, threads = loaded
    assert threads == 1
