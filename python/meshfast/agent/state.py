"""What the agent keeps on disk: whole files, written beside, synced and renamed; or nothing.

    <state dir>/<instance>/identity     key, chain and trust bundle (not with --key-storage memory)
    <state dir>/<instance>/joining      the key of a join that has not been answered yet (likewise)
    <state dir>/<instance>/resources    the last configuration that all workers served from
    <state dir>/<instance>/environment  the proxy variables of the application, for `sidecar`
    <state dir>/<instance>/running      addresses and ports of the last start, for `check` and
                                        the next one

A file is one line, `meshfast-state 1 <BLAKE2b-256 of the rest>`, and the rest; the last two are
plain text. Writing happens in a thread, because a sync may take as long as the disk wants; the
newest content of a name wins.

What it refuses: a directory or file that belongs to somebody else, is open to others or is a link.

Invariants:
1. Killed at any moment, a later `read` gives a whole version: the one before or the one being
   written, never a mixture and never nothing where there was something.
2. A file is 0600 from its first byte on, its directory 0700.

Tests: tests/agent/test_state.py.
"""

from __future__ import annotations

import _thread
import os
import stat
import time
from contextlib import suppress

from meshfast.discovery.digest import blake2b

__all__ = ["StateDirectory", "StateError"]

MAGIC = b"meshfast-state 1 "
PLAIN = frozenset({"environment", "running"})
DIGEST_BYTES = 32
HEAD_BYTES = len(MAGIC) + 2 * DIGEST_BYTES + 1
FILE_BYTES_MAX = 256 << 20


class StateError(Exception):
    """A file or directory that is not to be used; the text says which and why."""


class StateDirectory:
    """One instance's directory."""

    def __init__(self, path: str) -> None:
        """Make the directory if it is not there. Raises StateError when it is not private."""
        self.path = path
        self.failure = ""  # why the last write failed, empty when it did not
        self._waiting: dict[str, bytes] = {}
        self._lock = _thread.allocate_lock()
        self._is_writing = False
        _make_private(path)

    def read(self, name: str) -> bytes | None:
        """Give the newest whole content, None when there is none.

        Raises StateError for a file that is not private or not whole; plain text has no checksum,
        and is given as it is.
        """
        path = os.path.join(self.path, name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(f"{path}: {error.strerror}") from None
        with open(fd, "rb") as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
                raise StateError(f"{path} is not a file of uid {os.geteuid()}")
            if found.st_mode & 0o077:
                mode = stat.S_IMODE(found.st_mode)
                raise StateError(f"{path} has mode {mode:04o}; it must be 0600 (chmod 600)")
            data = file.read(FILE_BYTES_MAX)
        if name in PLAIN:
            return data
        content = data[HEAD_BYTES:]
        if data[:HEAD_BYTES] != _head(content):
            raise StateError(f"{path} is damaged: its checksum does not match")
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write soon; what was waiting under this name is not written any more."""
        with self._lock:
            self._waiting[name] = content
            if self._is_writing:
                return
            self._is_writing = True
        _thread.start_new_thread(self._write_waiting, ())

    def write_now(self, name: str, content: bytes) -> None:
        """Write and wait for the disk. Raises OSError."""
        path = os.path.join(self.path, name)
        beside = path + ".new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(beside, flags, 0o600)
        with open(fd, "wb", buffering=0) as file:
            os.fchmod(fd, 0o600)
            for part in (b"" if name in PLAIN else _head(content), content):
                view = memoryview(part)
                while view:
                    view = view[file.write(view) :]
            os.fsync(fd)
        os.rename(beside, path)
        directory = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        try:
            os.unlink(os.path.join(self.path, name))
        except FileNotFoundError:
            return

    def finish(self, patience_s: float) -> bool:
        """Wait until everything is written; False when that takes longer."""
        deadline = time.monotonic() + patience_s
        while self._is_writing:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.002)
        return True

    def _write_waiting(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._is_writing = False
                    return
                name, content = self._waiting.popitem()
            try:
                self.write_now(name, content)
                self.failure = ""
            except OSError as error:
                self.failure = f"{name}: {error.strerror}"


def _head(content: bytes) -> bytes:
    digest = blake2b(content, digest_size=DIGEST_BYTES).hexdigest()
    return MAGIC + digest.encode("ascii") + b"\n"


def _make_private(path: str) -> None:
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        with suppress(FileExistsError):
            os.mkdir(path, 0o700)
        found = os.lstat(path)
    except OSError as error:
        raise StateError(f"{path}: {error.strerror}") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise StateError(f"{path} is not a directory of uid {os.geteuid()}")
    if found.st_mode & 0o077:
        mode = stat.S_IMODE(found.st_mode)
        raise StateError(f"{path} has mode {mode:04o}; it must be 0700 (chmod 700)")
