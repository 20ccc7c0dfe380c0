"""docs/load-test.md works as it stands there, apart from ports and the length of the load."""

from __future__ import annotations

import contextlib
import re
import socket
from pathlib import Path

import pytest

from tests.pages import Terminal, shell_blocks

PAGE = Path("docs/load-test.md")
PORTS = ("9000", "8080", "15020")


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def accepts(port: str) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(port)), 1):
        return True
    return False


@pytest.mark.timeout(120)
def test_the_recipe_for_load_tests_works_as_written(tmp_path: Path) -> None:
    backend, proxy, load, cost = shell_blocks(
        PAGE, {"10s": "1s", "--duration 10": "-D 1", **{port: free_port() for port in PORTS}}
    )
    [at] = re.findall(r"listen 127.0.0.1:(\d+)", backend)
    [listens] = re.findall(r"--listen 127.0.0.1:(\d+)", proxy)
    terminal = Terminal(tmp_path, shell=("bash", "-e", "-o", "pipefail"))
    with (
        terminal.running(backend, "backend", lambda _: accepts(at)),
        terminal.running(proxy, "proxy", lambda _: accepts(listens)) as process,
    ):
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
