"""The directory and files of a store: private, owned by us, and used by one process.

The store holds the mesh's whole configuration. Whoever can write it decides who may talk to whom,
so nothing is opened that another user could have made or could change. Wider modes are refused, not
repaired: a file that was readable has been read, and only the operator can judge what that means.

What this module does not do: guard the directories above (an owner of a parent can replace the
whole directory), or understand what the files hold.

Invariants:
1. The directory is 0700 or narrower, a file 0600 or narrower; both belong to the effective user.
2. No symbolic link is followed in the last component, and a file has one name (no hard links).
3. The lock is held as long as the descriptor is open, so it dies with the process.

Tests: tests/control/store/test_files.py.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

from meshfast.control.store.contract import BusyError, UnsafeFileError

__all__ = ["check_file", "create_file", "hold", "private_directory"]

OTHERS = stat.S_IRWXG | stat.S_IRWXO


def private_directory(path: Path) -> None:
    """Make the directory 0700 if it is absent, else check it. Raises `UnsafeFileError`."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise UnsafeFileError(f"{path}: cannot be made: {error.strerror}") from error
    status = os.lstat(path)
    if not stat.S_ISDIR(status.st_mode):
        raise UnsafeFileError(f"{path}: is not a directory")
    _check_access(path, status, wanted="0700")


def create_file(path: Path) -> None:
    """Make the file 0600 if it is absent, else check it. Raises `UnsafeFileError`.

    The mode is set when the file is made and not after, so there is no moment at which it is wider.
    """
    try:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        os.close(os.open(path, flags, 0o600))
    except FileExistsError:
        check_file(path)
        return
    except OSError as error:
        raise UnsafeFileError(f"{path}: cannot be made: {error.strerror}") from error
    _sync_directory(path.parent)


def check_file(path: Path) -> None:
    """Refuse a file that is not ours alone. Raises `UnsafeFileError`."""
    try:
        status = os.lstat(path)
    except OSError as error:
        raise UnsafeFileError(f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeFileError(f"{path}: is not a regular file")
    if status.st_nlink != 1:
        raise UnsafeFileError(f"{path}: has {status.st_nlink} names (hard links)")
    _check_access(path, status, wanted="0600")


def hold(path: Path) -> int:
    """Lock the file for this process and return the descriptor that keeps the lock.

    Raises `BusyError` when another process has it, `UnsafeFileError`.
    """
    create_file(path)
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno == errno.EWOULDBLOCK:
            raise BusyError(f"{path}: another control plane uses this store") from error
        raise
    return descriptor


def _check_access(path: Path, status: os.stat_result, *, wanted: str) -> None:
    if status.st_uid != os.geteuid():
        raise UnsafeFileError(f"{path}: belongs to user {status.st_uid}, not to {os.geteuid()}")
    if status.st_mode & OTHERS:
        mode = stat.S_IMODE(status.st_mode)
        raise UnsafeFileError(f"{path}: mode {mode:04o} lets others in; it has to be {wanted}")


def _sync_directory(path: Path) -> None:
    """Make the new name durable: a file can be synced and still be lost with its directory."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
