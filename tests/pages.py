"""Pages of the documentation as a reader follows them: their shell blocks, and a terminal."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.repository import text

__all__ = ["Terminal", "shell_blocks"]

DEADLINE_S = 60


def shell_blocks(page: Path, changed: Mapping[str, str]) -> list[str]:
    """Return the shell blocks of a page, with other words for some of its words."""
    written = text(page)
    for word, instead in changed.items():
        written = written.replace(word, instead)
    return re.findall(r"^```sh\n(.*?)^```", written, re.MULTILINE | re.DOTALL)


class Terminal:
    """Runs blocks in one folder, which is also the home, with our environment active."""

    def __init__(self, folder: Path, shell: Sequence[str] = ("sh", "-e")) -> None:
        """Run nothing yet."""
        self.folder = folder
        self._shell = shell
        self.env = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin",
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder),
        }

    def run(self, block: str) -> str:
        """Run a block that ends by itself and well; return what it printed."""
        done = subprocess.run(
            [*self._shell, "-c", block],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextlib.contextmanager
    def running(
        self, block: str, name: str, is_ready: Callable[[str], bool]
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run a block whose last line serves, until it is ready; end it by SIGTERM.

        `is_ready` gets what it has said so far.
        """
        log = self.folder / f"{name}.log"
        *before, last = block.splitlines()
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*self._shell, "-c", "\n".join([*before, f"exec {last}"])],
                cwd=self.folder,
                env=self.env,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                give_up_at = time.monotonic() + DEADLINE_S
                while not is_ready(log.read_text()):
                    assert process.poll() is None, log.read_text()
                    assert time.monotonic() < give_up_at, log.read_text()
                    time.sleep(0.02)
                yield process
                process.send_signal(signal.SIGTERM)
                process.wait(DEADLINE_S)
            finally:
                process.kill()
                process.wait()
