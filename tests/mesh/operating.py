"""A control plane as an operator runs it, and commands that are given to it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from meshfast.discovery import JoinToken
from tests.mesh.harness import MESHFAST

READY = "control plane ready: sidecars on "
DEADLINE_S = 30


class Operator:
    """A control plane in a process of its own, and commands that are given to it."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self.process = subprocess.Popen(
            [*MESHFAST, "control", "--state-dir", str(self.state), "--address", "127.0.0.1:0"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith(READY)
        self.address = line.removeprefix(READY).strip()

    def run(self, *words: str, code: int = 0, stdin: str = "") -> str:
        """Run a command that ends with *code*; return what it says: on stdout, or why it failed."""
        done = self._run(words, stdin)
        assert done.returncode == code, done.stderr
        return done.stdout or done.stderr

    def warnings(self, *words: str) -> str:
        """Run a command that succeeds; return what it says on stderr."""
        done = self._run(words, "")
        assert done.returncode == 0, done.stderr
        return done.stderr

    def _run(self, words: tuple[str, ...], stdin: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*MESHFAST, *words, "--state-dir", str(self.state)],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )

    def token(self, service: str) -> JoinToken:
        """Make a join token as an operator does."""
        return JoinToken.parse(self.run("token", "create", "--service", service).strip())

    def stop(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=DEADLINE_S)
