""".ci/run installs what is absent, runs `make test` with CI=true and passes its exit code on.

The machine is a folder of scripts first on PATH: the package database, apt-get, mvn and make.
"""

import os
import subprocess
from pathlib import Path

import pytest

from tests.repository import ROOT

SCRIPTS = {
    "apt-get": 'echo "apt-get $*" >> "$LOG"',
    "dpkg-query": 'for last; do :; done; case " $ABSENT " in *" $last "*) exit 1 ;; esac; '
    "printf installed",
    "mvn": 'echo "mvn $*" >> "$LOG"',
    "make": 'echo "make $* CI=$CI" >> "$LOG"; exit "$MAKE_CODE"',
}


ZIPKIN = ".m2/repository/io/zipkin/zipkin-server/3.5.1/zipkin-server-3.5.1-exec.jar"


def ci(
    folder: Path, absent: str, make_code: int = 0, *, has_zipkin: bool = True
) -> tuple[int, list[str]]:
    """Return the exit code of .ci/run and what it called, in order."""
    for name, script in SCRIPTS.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    if has_zipkin:
        (folder / ZIPKIN).parent.mkdir(parents=True)
        (folder / ZIPKIN).touch()
    log = folder / "log"
    environment = {
        "ABSENT": absent,
        "CARGO_HOME": str(folder / "none"),
        "HOME": str(folder),
        "LOG": str(log),
        "MAKE_CODE": str(make_code),
        "PATH": f"{folder}{os.pathsep}{os.defpath}",
    }
    done = subprocess.run(["bash", ROOT / ".ci" / "run"], env=environment, capture_output=True)
    return done.returncode, log.read_text().splitlines()


def test_a_machine_that_has_everything_is_not_asked_to_update(tmp_path: Path) -> None:
    assert ci(tmp_path, absent="") == (0, ["make test CI=true"])


def test_what_is_absent_is_installed_before_the_tests(tmp_path: Path) -> None:
    code, calls = ci(tmp_path, absent="haproxy wrk")
    assert code == 0
    assert calls[0].startswith("apt-get update")
    assert calls[1].startswith("apt-get install ")
    assert calls[1].split()[-2:] == ["haproxy", "wrk"]
    assert calls[2] == "make test CI=true"


def test_a_go_compiler_from_elsewhere_will_do(tmp_path: Path) -> None:
    (tmp_path / "go").write_text("#!/bin/sh\n")
    (tmp_path / "go").chmod(0o755)
    assert ci(tmp_path, absent="golang-go") == (0, ["make test CI=true"])


def test_zipkin_is_fetched_once(tmp_path: Path) -> None:
    code, calls = ci(tmp_path, absent="", has_zipkin=False)
    assert code == 0
    assert len(calls) == 2
    assert calls[0].startswith("mvn -q -B dependency:get -Dartifact=io.zipkin:zipkin-server:3.5.1:")
    assert calls[1] == "make test CI=true"


@pytest.mark.parametrize("code", [1, 2])
def test_the_exit_code_is_that_of_the_tests(tmp_path: Path, code: int) -> None:
    assert ci(tmp_path, absent="", make_code=code)[0] == code
