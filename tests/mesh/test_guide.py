"""docs/mesh.md works as it stands there, apart from ports and the places of state."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.agent.fakes.zipkin import FakeZipkin
from tests.mesh.harness import free_port, wait_until
from tests.repository import text

DEADLINE_S = 60


def blocks() -> list[str]:
    """Return the page's shell blocks, with ports that are free here."""
    page = text(Path("docs/mesh.md"))
    for port in ("8080", "8081", "8082"):
        page = page.replace(port, str(free_port()))
    return re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


class Terminal:
    """Runs blocks as a user of an own home would, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(folder),
        }

    def run(self, block: str) -> str:
        done = subprocess.run(
            ["sh", "-e", "-c", block],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @contextlib.contextmanager
    def running(self, block: str, name: str, ready: str) -> Iterator[None]:
        """Run a block that serves until it is told to end, once its log says that it is ready."""
        log = self.folder / f"{name}.log"
        *before, last = block.splitlines()
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["sh", "-e", "-c", "\n".join([*before, f"exec {last}"])],
                cwd=self.folder,
                env=self.env,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                wait_until(lambda: ready in log.read_text(), f"{name} says {ready!r}")
                yield
                process.send_signal(signal.SIGTERM)
                process.wait(DEADLINE_S)
            finally:
                process.kill()
                process.wait()


def test_the_guide_of_the_mesh_works_as_written(tmp_path: Path) -> None:
    hosts, control, tokens, payment, order, questions, token, second, canary, traced = blocks()
    terminal = Terminal(tmp_path)
    terminal.run(hosts)
    host_a, host_b = tmp_path / "host-a", tmp_path / "host-b"
    (host_a / "greeting.txt").write_text("hello")
    status = ". host-a/env; meshfast status"
    with terminal.running(control, "control", "control plane ready"):
        terminal.run(tokens)
        assert (host_b / "order.token").stat().st_mode & 0o077 == 0
        with terminal.running(payment, "payment", "application accepts"):
            wait_until(lambda: "1/1" in terminal.run(status), "payment is healthy")
            assert "greeting.txt" in terminal.run(order)
            answer = terminal.run(questions)
            assert "SYNCED" in answer
            assert "0 found" in answer
            terminal.run(token)
            with terminal.running(second, "second", "application accepts"):
                wait_until(lambda: "2/2" in terminal.run(status), "both are healthy")
                said = terminal.run(canary)
                assert "payment.default: v1 90, v2 10\n" in said
                assert said.endswith("payment.default: v1 100, v2 0\n")
            zipkin = FakeZipkin()
            try:
                terminal.run(traced.replace("127.0.0.1:9411", zipkin.address))
                assert [span["localEndpoint"]["serviceName"] for span in zipkin.spans] == [
                    "order.default"
                ]
            finally:
                zipkin.close()
