"""Behaviour of bench.processes: ready means ready, and afterwards nothing is left."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench import accounting, processes
from bench.processes import HarnessError, free_port, running, wait_until

BODY = b"good"

SERVER = """
import http.server, os, signal, sys
port, body, extra = int(sys.argv[1]), sys.argv[2].encode(), sys.argv[3]
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", str(len(body)))
        self.end_headers(); self.wfile.write(body)
    def log_message(self, *arguments): pass
exec(extra)
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
DEAF_CHILD = f"if os.fork() == 0:\n    {DEAF}\n    signal.pause()"


@pytest.fixture(autouse=True)
def own_temporary_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let directories of started processes appear where the test can see them."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def command(port: int, body: bytes, extra: str = "") -> Sequence[str]:
    return [sys.executable, "-c", SERVER, str(port), body.decode(), extra]


def test_a_started_process_is_pinned_and_answers(own_temporary_directory: Path) -> None:
    port = free_port()
    with running(
        "server", lambda _: command(port, BODY), port=port, core=0, expected_body=BODY
    ) as started:
        assert os.sched_getaffinity(started.pid) == {0}
        assert processes.fetch(port) == (200, BODY)
        assert started.directory.parent == own_temporary_directory
    assert accounting.members(started.pid) == []
    assert list(own_temporary_directory.iterdir()) == []


@pytest.mark.parametrize(("extra", "count"), [(DEAF, 1), (DEAF_CHILD, 2)], ids=["root", "child"])
def test_who_ignores_sigterm_is_killed(
    extra: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "STOP_S", 0.5)
    port = free_port()
    with running(
        "server", lambda _: command(port, BODY, extra), port=port, core=0, expected_body=BODY
    ) as started:
        wait_until("all are there", 10, lambda: len(started.members()) == count)
    assert accounting.members(started.pid) == []


def test_a_process_that_exits_is_reported_with_its_output(own_temporary_directory: Path) -> None:
    failing = [sys.executable, "-c", "import sys; print('bad option'); sys.exit(3)"]
    with (
        pytest.raises(HarnessError, match=r"(?s)exited with 3 .*bad option"),
        running("server", lambda _: failing, port=free_port(), core=0, expected_body=BODY),
    ):
        pytest.fail("it never was ready")
    assert list(own_temporary_directory.iterdir()) == []


def test_a_wrong_body_is_not_ready(own_temporary_directory: Path) -> None:
    port = free_port()
    bad = command(port, b"bad")
    with (
        pytest.raises(HarnessError, match=r"not within 1 s; last: status 200, 3 bytes"),
        running("server", lambda _: bad, port=port, core=0, expected_body=BODY, ready_s=1.0),
    ):
        pytest.fail("it never was ready")
    assert list(own_temporary_directory.iterdir()) == []


def test_a_body_that_raises_still_stops_the_process() -> None:
    port = free_port()
    with (
        pytest.raises(KeyboardInterrupt),
        running(
            "server", lambda _: command(port, BODY), port=port, core=0, expected_body=BODY
        ) as started,
    ):
        raise KeyboardInterrupt
    assert accounting.members(started.pid) == []


def test_settings_of_the_shell_do_not_reach_a_candidate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MESHFAST_PROXY_WORKERS", "7")
    found = processes.environment(tmp_path)
    assert "MESHFAST_PROXY_WORKERS" not in found
    assert found["XDG_RUNTIME_DIR"] == found["TMPDIR"] == str(tmp_path)


def test_a_condition_that_never_holds_is_named() -> None:
    with pytest.raises(HarnessError, match=r"the moon is blue: not within 0.05 s"):
        wait_until("the moon is blue", 0.05, lambda: False)


def test_a_door_that_no_plain_client_can_ask_is_ready_when_it_accepts() -> None:
    port = free_port()
    with running(
        "server", lambda _: command(port, b"any"), port=port, core=0, expected_body=None
    ) as started:
        assert processes.accepts(started.port)
    assert not processes.accepts(port)
