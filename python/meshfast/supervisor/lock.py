"""One supervisor per instance: a private runtime directory and one `flock` in it.

The lock lives as long as the supervisor's process, across `exec`, and no longer: children close the
descriptor, so a supervisor that dies by SIGKILL frees it. The file names the pid that holds it. A
file that still names a pid when the lock is free tells that its owner died without cleaning up.

What it refuses: a directory that belongs to somebody else, is open to others or is a link.

Tests: tests/supervisor/test_lock.py.
"""

from __future__ import annotations

import fcntl
import os
import stat

__all__ = ["LockError", "acquire", "release"]


class LockError(Exception):
    """The instance cannot be had; the text names the pid or what is wrong with the directory."""


def acquire(runtime_dir: str, instance: str) -> tuple[int, bool]:
    """Return the descriptor that holds the lock, and whether its last owner died uncleanly.

    Raises `LockError` when another supervisor holds it or the directory is not private.
    """
    _private_directory(runtime_dir)
    path = os.path.join(runtime_dir, f"{instance}.lock")
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise LockError(f"{path}: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise LockError(
            f'instance "{instance}" is already running as pid {owner} ({path}); '
            "stop it or choose another --instance"
        ) from None
    was_unclean = os.fstat(fd).st_size > 0
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd, was_unclean


def release(fd: int) -> None:
    """Mark the end as clean and let go. The file stays: unlinking it would race with a start."""
    os.ftruncate(fd, 0)
    os.close(fd)


def _private_directory(path: str) -> None:
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        found = os.lstat(path)
    except OSError as error:
        raise LockError(f"runtime_dir {path}: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode):
        raise LockError(f"runtime_dir {path} is not a directory of its own")
    if found.st_uid != os.geteuid():
        raise LockError(f"runtime_dir {path} belongs to uid {found.st_uid}, not {os.geteuid()}")
    if found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        raise LockError(f"runtime_dir {path} has mode {mode:04o}; it must be 0700 (chmod 700)")
