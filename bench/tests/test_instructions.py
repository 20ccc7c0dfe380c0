"""Behaviour of bench.instructions: arithmetic, and the stand-in for the supervisor."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench import instructions
from bench.cases import body
from bench.instructions import Shared, count, instructions_per_request, parse_callgrind
from bench.processes import HarnessError, WrongResponseError

# A worker of a few lines that keeps the contract: serves the listener, drains when told.
WORKER = """
import json, socket, sys
settings = json.loads(sys.argv[1])
listener = socket.socket(fileno=settings["listeners"][0]["fd"])
listener.setblocking(True)
control = socket.socket(fileno=settings["control_fd"])
control.send(b'{"type":"ready"}')
client, _ = listener.accept()
body = BODY
while request := client.recv(65536):
    client.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n%s" % (len(body), body))
assert json.loads(control.recv(65536))["type"] == "drain"
control.send(b'{"type":"drained"}')
"""


@pytest.fixture
def shared() -> Iterator[Shared]:
    """Stand-ins for the snapshot and the counters."""
    fds = [os.memfd_create("test") for _ in range(2)]
    yield Shared(*fds)
    for fd in fds:
        os.close(fd)


@pytest.fixture(autouse=True)
def own_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the counts of a test out of bench/out."""
    monkeypatch.setattr(instructions, "OUT", tmp_path)


def worker(answer: bytes) -> str:
    return WORKER.replace("BODY", repr(answer))


def good_body() -> bytes:
    return body(instructions.BODY_BYTES)


@pytest.mark.parametrize("line", ["summary: 123456", "totals: 123456"])
def test_reads_the_total(line: str) -> None:
    assert parse_callgrind(f"events: Ir\nfn=main\n1 5\n{line}\n") == 123456


def test_a_file_without_a_total_is_refused() -> None:
    with pytest.raises(HarnessError, match="no summary"):
        parse_callgrind("events: Ir\n")


def test_start_and_exit_cancel_out(monkeypatch: pytest.MonkeyPatch, shared: Shared) -> None:
    monkeypatch.setattr(instructions, "count", lambda _program, _shared, n: 60_000_000 + 2_500 * n)
    assert instructions_per_request("", shared, 1000) == 2_500


def test_a_worker_is_counted_and_drained(need: Callable[..., None], shared: Shared) -> None:
    need("valgrind")
    few = count(worker(good_body()), shared, 10)
    many = count(worker(good_body()), shared, 60)
    assert many > few > 1_000_000
    assert (many - few) / 50 > 1_000


def test_a_wrong_body_is_refused(need: Callable[..., None], shared: Shared) -> None:
    need("valgrind")
    with pytest.raises(WrongResponseError, match="the worker answered"):
        count(worker(good_body()[:-1] + b"!"), shared, 1)


def test_a_worker_that_fails_is_reported(need: Callable[..., None], shared: Shared) -> None:
    need("valgrind")
    with pytest.raises(HarnessError, match=r"(?s)went before it was ready.*no such thing"):
        count("import sys; sys.exit('no such thing')", shared, 1)


def test_without_meshfast_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr("importlib.import_module", absent)
    assert instructions.main([]) == 1
    assert "meshfast is not in this interpreter" in capsys.readouterr().err


@pytest.mark.parametrize(("limit", "code"), [("2500", 0), ("2499", 1)])
def test_the_gate_fails_above_its_limit_only(
    monkeypatch: pytest.MonkeyPatch, limit: str, code: int
) -> None:
    @contextmanager
    def by_core(_origin_port: int) -> Iterator[None]:
        yield

    monkeypatch.setattr(instructions, "shared_by_core", by_core)
    monkeypatch.setattr(instructions, "count", lambda _program, _shared, n: 60_000_000 + 2_500 * n)
    assert instructions.main(["--at-most", limit]) == code
