"""The authority's files: read only when they are ours alone, replaced whole or not at all.

Whoever can read them is the mesh; so what could have been read is refused, not repaired.

Does not do: understand what the files hold, encrypt them, or guard the directories above.

Invariants:
1. A name in the directory always shows a whole file: what is written is written aside, synced and
   renamed, and the directory is synced too.
2. What a killed process left aside is removed and never read.

Tests: tests/control/ca/test_authority_files.py.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from meshfast.control.ca.error import AuthorityError
from meshfast.control.store import UnsafeFileError
from meshfast.control.store.files import check_file, private_directory

__all__ = ["prepare", "read", "replace"]

ASIDE: Final = ".new"
#: A key and a certificate of any size that we make have 2 KiB.
FILE_BYTES_MAX: Final = 64 << 10


def prepare(directory: Path) -> None:
    """Make the directory 0700, or check it, and remove what was left aside."""
    try:
        private_directory(directory)
    except UnsafeFileError as error:
        raise AuthorityError(str(error)) from error
    for left in directory.glob(f"*{ASIDE}"):
        left.unlink()


def read(path: Path) -> bytes | None:
    """Return the content, `None` when there is no such file. Raises `AuthorityError`."""
    if not os.path.lexists(path):
        return None
    try:
        check_file(path)
    except UnsafeFileError as error:
        raise AuthorityError(str(error)) from error
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb") as file:
        data = file.read(FILE_BYTES_MAX + 1)
    if len(data) > FILE_BYTES_MAX:
        raise AuthorityError(f"{path}: is larger than anything that was written there")
    return data


def replace(path: Path, data: bytes) -> None:
    """Write the file so that it is durable and never seen in part."""
    aside = path.with_name(path.name + ASIDE)
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    with open(os.open(aside, flags, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(aside, path)
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
