"""The worker's room: loads the extension after the fork, runs it, exits with its code."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
sys.path[:0] = {path!r}
import meshfast
meshfast.__path__.insert(0, {folder!r})
{before}
import meshfast.worker
meshfast.worker.main(b'{{"slot": 0}}')
print("returned")
"""


def run(folder: Path, extension: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run a worker whose extension is this Python text."""
    (folder / "_core.py").write_text(extension)
    program = PROGRAM.format(path=sys.path, folder=str(folder), before=before)
    command = [sys.executable, "-I", "-c", program]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


def test_gives_the_settings_to_the_engine_and_exits_with_its_code(tmp_path: Path) -> None:
    extension = (
        "import os\ndef run_worker(settings):\n    os.write(1, settings)\n    return len(settings)"
    )
    done = run(tmp_path, extension)
    assert done.returncode == len('{"slot": 0}')
    assert done.stdout == '{"slot": 0}'


def test_exits_with_78_and_the_reason_when_the_extension_does_not_load(tmp_path: Path) -> None:
    done = run(tmp_path, "raise ImportError('wrong platform')")
    assert done.returncode == 78
    assert "meshfast: worker: meshfast._core does not load: wrong platform" in done.stderr
    assert done.stdout == ""


def test_refuses_an_extension_that_was_loaded_before_the_fork(tmp_path: Path) -> None:
    done = run(tmp_path, "def run_worker(settings): return 0", before="import meshfast._core")
    assert done.returncode == 78
    assert "was loaded before the fork" in done.stderr


def test_an_engine_that_raises_is_a_crash(tmp_path: Path) -> None:
    done = run(tmp_path, "def run_worker(settings): raise RuntimeError('lost')")
    assert done.returncode not in (0, 78)
    assert "RuntimeError: lost" in done.stderr
