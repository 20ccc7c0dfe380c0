"""Turning this process into a supervisor: a fresh, lean interpreter in place of the caller's.

The caller (the CLI) has parsed and validated; what it loaded for that is gone after `exec`. The
process becomes a child subreaper first, because the kernel keeps that across `exec` and the
supervisor then never loads ctypes (0.3 MB in it and, until they write to it, in every child).

Tests: tests/supervisor/test_boot.py.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

__all__ = ["command", "launch"]

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def command(*arguments: str) -> list[str]:
    """Return the command line of a supervisor with this interpreter."""
    return [sys.executable, "-I", "-m", "meshfast.supervisor", *arguments]


def launch(settings: bytes, kept_fds: list[int]) -> NoReturn:
    """Replace this process by a supervisor with these settings (JSON).

    *kept_fds* are the descriptors that the settings name; they are made inheritable. Raises
    `OSError` when the kernel refuses the `exec`.
    """
    _become_subreaper()
    fd = os.memfd_create("meshfast-settings", 0)
    os.write(fd, settings)
    for kept in kept_fds:
        os.set_inheritable(kept, True)
    os.execv(sys.executable, command("--settings-fd", str(fd)))


def _become_subreaper() -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(error)}")
