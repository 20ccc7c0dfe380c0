"""One supervisor per instance: the lock and the directory it lies in."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from meshfast.supervisor import lock
from meshfast.supervisor.lock import LockError
from tests.supervisor.harness import Mesh, is_alive


def test_a_second_start_of_the_instance_fails_and_names_the_pid(
    serving_mesh: Callable[..., Mesh], tmp_path: Path
) -> None:
    first = serving_mesh()
    folder = tmp_path / "second"
    folder.mkdir()
    second = Mesh(folder, runtime_dir=first.settings["runtime_dir"]).start()
    assert second.wait() == 1
    assert f'"default" is already running as pid {first.process.pid}' in second.stderr
    assert first.ask()["slot"] in (0, 1)


def test_another_instance_runs_beside_it(serving_mesh: Callable[..., Mesh], tmp_path: Path) -> None:
    first = serving_mesh()
    folder = tmp_path / "second"
    folder.mkdir()
    with Mesh(folder, runtime_dir=first.settings["runtime_dir"], instance="other") as second:
        assert second.ask()
    assert first.ask()


def test_a_killed_supervisor_frees_the_lock_though_its_workers_live_on(
    serving_mesh: Callable[..., Mesh], tmp_path: Path
) -> None:
    mesh = serving_mesh(worker="is_stubborn=True")
    workers = mesh.workers()
    mesh.signal(signal.SIGKILL)
    mesh.wait()
    assert all(is_alive(pid) for pid in workers.values())
    fd, was_unclean = lock.acquire(mesh.settings["runtime_dir"], "default")
    assert was_unclean
    lock.release(fd)


def test_a_clean_end_is_remembered_as_one(
    serving_mesh: Callable[..., Mesh], tmp_path: Path
) -> None:
    mesh = serving_mesh()
    mesh.signal(signal.SIGTERM)
    assert mesh.wait() == 0
    fd, was_unclean = lock.acquire(mesh.settings["runtime_dir"], "default")
    assert not was_unclean
    lock.release(fd)


def test_makes_a_directory_that_only_the_owner_can_enter(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run"
    fd, _ = lock.acquire(str(path), "default")
    assert path.stat().st_mode & 0o777 == 0o700
    assert (path / "default.lock").read_text() == f"{os.getpid()}\n"
    lock.release(fd)


def test_refuses_a_directory_that_is_open_to_others(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    with pytest.raises(LockError, match="has mode 0750; it must be 0700"):
        lock.acquire(str(tmp_path), "default")


def test_refuses_a_link_in_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(LockError, match="not a directory of its own"):
        lock.acquire(str(tmp_path / "link"), "default")


def test_refuses_a_directory_of_somebody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    tmp_path.chmod(0o700)
    with pytest.raises(LockError, match=f"belongs to uid {os.getuid()}"):
        lock.acquire(str(tmp_path), "default")


def test_refuses_a_link_in_place_of_the_lock(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "target").touch()
    (tmp_path / "default.lock").symlink_to(tmp_path / "target")
    with pytest.raises(LockError):
        lock.acquire(str(tmp_path), "default")
