"""Nothing is opened that another user could have made, read or changed."""

import os
from pathlib import Path

import pytest

from meshfast.control.store import BusyError, Put, SqliteStore, Transaction, UnsafeFileError

NAMES = ("store.db", "store.lock")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with a store in it that was closed."""
    store = SqliteStore(tmp_path / "store")
    store.transact(Transaction((Put("a", b"1"),)))
    store.close()
    return tmp_path / "store"


def refusal(directory: Path) -> str:
    with pytest.raises(UnsafeFileError) as refused:
        SqliteStore(directory)
    return str(refused.value)


def test_everything_is_made_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = SqliteStore(tmp_path / "store")
        store.transact(Transaction((Put("a", b"1"),)))
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "store").iterdir()}
    store.close()
    assert (tmp_path / "store").stat().st_mode & 0o777 == 0o700
    assert modes == dict.fromkeys([*NAMES, "store.db-shm", "store.db-wal"], 0o600)


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o701])
def test_refuses_a_directory_that_lets_others_in(directory: Path, mode: int) -> None:
    directory.chmod(mode)
    assert f"{mode:04o}" in refusal(directory)


@pytest.mark.parametrize("name", [*NAMES, "store.db-wal", "store.db-shm"])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_refuses_a_file_that_lets_others_in(directory: Path, name: str, mode: int) -> None:
    (directory / name).touch(0o600)
    (directory / name).chmod(mode)
    assert name in refusal(directory)


@pytest.mark.parametrize("name", NAMES)
def test_refuses_a_file_of_another_user(
    directory: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = os.geteuid()
    real = os.lstat

    def lstat(path: Path) -> os.stat_result:
        status = real(path)
        if path.name != name:
            return status
        return os.stat_result([*status[:4], owner + 1, *status[5:]])

    monkeypatch.setattr(os, "lstat", lstat)
    assert f"belongs to user {owner + 1}" in refusal(directory)


@pytest.mark.parametrize("name", NAMES)
def test_refuses_a_link_in_place_of_a_file(directory: Path, name: str) -> None:
    (directory / name).rename(directory / "elsewhere")
    (directory / name).symlink_to(directory / "elsewhere")
    assert "not a regular file" in refusal(directory)


def test_refuses_a_file_with_a_second_name(directory: Path) -> None:
    os.link(directory / "store.db", directory / "second")
    assert "2 names" in refusal(directory)


def test_refuses_a_link_in_place_of_the_directory(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(directory)
    assert "not a directory" in refusal(tmp_path / "link")


def test_refuses_a_directory_without_a_parent(tmp_path: Path) -> None:
    assert "cannot be made" in refusal(tmp_path / "missing" / "store")


def test_refuses_a_second_opening_until_the_first_is_closed(directory: Path) -> None:
    first = SqliteStore(directory)
    with pytest.raises(BusyError):
        SqliteStore(directory)
    first.close()
    SqliteStore(directory).close()


def test_a_failed_opening_lets_go_of_the_lock(directory: Path) -> None:
    (directory / "store.db").chmod(0o644)
    refusal(directory)
    (directory / "store.db").chmod(0o600)
    SqliteStore(directory).close()
