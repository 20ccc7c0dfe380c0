"""The wheel and the sdist hold what git tracks, and nothing else.

A symlink that the build does not follow drops the control plane without a word; a glob that is too
wide ships a developer's database or key. Both show as a difference between the archive and git.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.repository import ROOT, tracked, version

# Lies in the package for git's and the build's sake only.
UNSHIPPED = {".gitignore"}
STRAYS = [
    "control/dev.db",
    "control/.env",
    "control/ca/root.key",
    "control/notes.txt",
    "python/meshfast/dev.db",
    "python/meshfast/.env",
    "python/meshfast/agent/identity.pem",
    "python/meshfast/notes.txt",
    "python/meshfast/_core.cpython-311-x86_64-linux-gnu.so",
    "python/meshfast/__pycache__/errors.cpython-311.pyc",
    "rust/wire/.env",
]


def package_files() -> set[str]:
    """Return the files of the package as git tracks them, under their installed names."""
    own = {
        path.relative_to("python").as_posix()
        for path in tracked("python/meshfast")
        if path.name not in UNSHIPPED and not (ROOT / path).is_dir()
    }
    control = {f"meshfast/{path}" for path in tracked("control") if path.name not in UNSHIPPED}
    return own | control


def names_of_sdist(archive: Path) -> set[str]:
    """Return the file names of an sdist, below its one top folder."""
    with tarfile.open(archive) as opened:
        names = (member.name for member in opened.getmembers() if member.isfile())
        return {name.partition("/")[2] for name in names}


def test_the_wheel_is_the_tracked_package_the_extension_and_metadata(wheel: Path) -> None:
    info = f"meshfast-{version()}.dist-info"
    metadata = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
    expected = package_files() | {"meshfast/_core.abi3.so"} | {f"{info}/{n}" for n in metadata}
    with zipfile.ZipFile(wheel) as opened:
        assert set(opened.namelist()) == expected


def test_the_control_plane_and_the_typing_marker_are_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
    assert {"meshfast/control/__init__.py", "meshfast/py.typed", "meshfast/_core.pyi"} <= names


def test_the_sdist_holds_the_package_and_the_crates_as_git_tracks_them(sdist: Path) -> None:
    crates = {path.as_posix() for path in tracked("rust/*/Cargo.toml", "rust/*.rs")}
    fuzz = {name for name in crates if name.startswith("rust/fuzz/")}
    top = {"Cargo.lock", "Cargo.toml", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}
    expected = {f"python/{name}" for name in package_files()} | (crates - fuzz) | top
    names = names_of_sdist(sdist)
    # Test data of the crates may come along, as long as git tracks it.
    data = {name for name in names - expected if name.startswith("rust/")}
    assert names - data == expected
    assert data <= {path.as_posix() for path in tracked("rust")}


def test_one_wheel_serves_every_python_from_3_11(wheel: Path) -> None:
    assert wheel.name.startswith(f"meshfast-{version()}-cp311-abi3-manylinux_2_")
    with zipfile.ZipFile(wheel) as opened:
        stated = opened.read(f"meshfast-{version()}.dist-info/WHEEL").decode()
    assert "Root-Is-Purelib: false" in stated
    assert "Tag: cp311-abi3-manylinux_2_" in stated


def test_the_archives_do_not_tell_where_they_were_built(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        telling = [
            name
            for name in opened.namelist()
            if not name.endswith(".so") and os.fsencode(ROOT) in opened.read(name)
        ]
    assert telling == []


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the tracked files that is a git repository of its own, with strays."""
    folder = tmp_path_factory.mktemp("scratch")
    for path in tracked():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, folder / path, follow_symlinks=False)
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    for stray in STRAYS:
        (folder / stray).parent.mkdir(parents=True, exist_ok=True)
        (folder / stray).write_text("not for anyone else")
    return folder


def test_strays_of_a_developer_are_not_shipped(scratch: Path, sdist: Path) -> None:
    maturin = Path(sys.executable).with_name("maturin")
    subprocess.run(
        [maturin, "sdist", "--out", "dist"], cwd=scratch, check=True, capture_output=True
    )
    built = next((scratch / "dist").iterdir())
    assert names_of_sdist(built) == names_of_sdist(sdist)
