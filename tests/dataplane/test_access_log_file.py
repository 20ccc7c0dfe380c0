"""The access log as a file, with the real command: it cannot be opened any more."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.dataplane.harness import Client, echo_origin, forwarding, wait_for


@pytest.mark.parametrize(
    ("event", "said"),
    [(signal.SIGHUP, "reload applied"), (signal.SIGUSR1, "access log cannot be opened")],
    ids=["reload", "reopen"],
)
def test_a_log_whose_folder_is_gone_is_written_on_where_it_was(
    tmp_path: Path, event: signal.Signals, said: str
) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    with echo_origin() as origin, forwarding(origin, folder) as (proxy, port):
        moved = folder.rename(tmp_path / "moved")
        proxy.stderr_path = moved / "stderr.txt"
        proxy.process.send_signal(event)
        wait_for("the agent to say so", lambda: said in proxy.stderr())
        with Client(port) as client:
            client.send(b"GET /afterwards HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.response().status == 200
        log = moved / "access.log"
        wait_for("the record in the old file", lambda: "/afterwards" in log.read_text())
        assert not folder.exists() or not (folder / "access.log").exists()
