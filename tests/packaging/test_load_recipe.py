"""docs/load-test.md works as it stands there, apart from ports and the length of the load."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.repository import text

DEADLINE_S = 60
PORTS = ("9000", "8080", "15020")


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def blocks() -> list[str]:
    """Return the page's shell blocks, shorter and on ports that are free here."""
    page = text(Path("docs/load-test.md")).replace("10s", "1s").replace("--duration 10", "-D 1")
    for port in PORTS:
        page = page.replace(port, free_port())
    return re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


class Terminal:
    """Runs blocks in one folder, with the environment of the wheel active."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin"
        self.env = os.environ | {"PATH": path, "XDG_RUNTIME_DIR": str(folder)}

    def run(self, block: str) -> str:
        """Run a block that ends by itself; return what it printed."""
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", block],
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextlib.contextmanager
    def running(self, block: str, port: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a block that serves, once its port accepts; end it by SIGTERM."""
        process = subprocess.Popen(
            ["bash", "-c", re.sub(r"^(?=nginx|meshfast)", "exec ", block, flags=re.MULTILINE)],
            cwd=self.folder,
            env=self.env,
        )
        try:
            give_up_at = time.monotonic() + DEADLINE_S
            while not accepts(port):
                assert process.poll() is None, block
                assert time.monotonic() < give_up_at, f"nothing listens on {port}"
                time.sleep(0.02)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(DEADLINE_S)


def accepts(port: str) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(port)), 1):
        return True
    return False


@pytest.mark.timeout(120)
def test_the_recipe_for_load_tests_works_as_written(tmp_path: Path) -> None:
    backend, proxy, load, cost = blocks()
    [at] = re.findall(r"listen 127.0.0.1:(\d+)", backend)
    [listens] = re.findall(r"--listen 127.0.0.1:(\d+)", proxy)
    metrics = re.findall(r"127.0.0.1:(\d+)/metrics", cost)[0]
    proxy = f"{proxy.rstrip()} --metrics-address 127.0.0.1:{metrics}\n"
    terminal = Terminal(tmp_path)
    with terminal.running(backend, at), terminal.running(proxy, listens) as process:
        said = terminal.run(load)
        rates = re.findall(r"^Requests/sec: +([\d.]+)", said, re.MULTILINE)
        assert len(rates) == 2
        assert min(map(float, rates)) > 100
        assert "Non-2xx" not in said
        [finished] = re.findall(r"(\d+) succeeded, 0 failed, 0 errored", said)
        assert int(finished) > 100
        # The newest supervisor of this machine may be another test's: ask for ours.
        ours = re.sub(r"^pid=.*$", f"pid={process.pid}", cost, count=1, flags=re.MULTILINE)
        told = terminal.run(ours)
        assert re.search(r"^[\d.]+ us of processor time a request, \d+ requests$", told, re.M)
        sizes = re.findall(r"^(meshfast-\S+) +(\d+) kB$", told, re.MULTILINE)
        assert [name for name, _ in sizes].count("meshfast-worker") == 1
