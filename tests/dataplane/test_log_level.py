"""`--log-level` holds for the whole proxy: its supervisor, its agent and its workers."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from meshfast.agent import log as agent_log
from meshfast.cli.proxy import LOG_LEVELS
from meshfast.control import process as control_process
from meshfast.supervisor import report
from tests.dataplane.harness import Proxy, echo_origin, forwarding, free_port, pool, wait_for


def test_every_process_knows_the_words_of_the_command_line() -> None:
    for levels in (agent_log.LEVELS, control_process.LEVELS, report.LEVELS):
        assert set(levels) == set(LOG_LEVELS)


@pytest.mark.parametrize("level", LOG_LEVELS)
def test_a_life_without_incident_is_told_to_those_who_ask_for_it(
    tmp_path: Path, level: str
) -> None:
    config = tmp_path / "mesh.yaml"
    text = pool(free_port(), "{address: 127.0.0.1, ports: {http: 9}}")
    surprising = text.replace("  servers:", "  selector: {app: edge}\n  servers:")  # a warning
    config.write_text(surprising)
    with Proxy(["-c", str(config), "--log-level", level], tmp_path) as proxy:
        config.write_text(surprising.replace("http: 9", "http: 10"))
        proxy.process.send_signal(signal.SIGHUP)
        wait_for("the reload", lambda: 2 in generations(proxy))
        assert proxy.stop() == 0
        said = proxy.stderr()
    is_told = level not in ("warn", "error")
    assert ("meshfast: listening on" in said) is is_told, said
    assert ('"level":"info","process":"agent"' in said) is is_told, said
    assert ("warning: " in said) is (level != "error"), said
    assert bool(said) is (level != "error"), said


def test_what_failed_is_told_at_every_level(tmp_path: Path) -> None:
    with (
        echo_origin() as origin,
        forwarding(origin, tmp_path, more=["--log-level", "error"]) as (proxy, _),
    ):
        [worker] = [pid for pid in proxy.children() if name_of(pid) == "meshfast-worker"]
        os.kill(worker, signal.SIGKILL)
        said = wait_for("its death is told", proxy.stderr)
        assert said == f"meshfast: worker 0 (pid {worker}) died: signal SIGKILL\n"


def generations(proxy: Proxy) -> set[float]:
    """The generations that its workers serve with."""
    return {value for _, value in proxy.metrics()["meshfast_worker_generation"]}


def name_of(pid: int) -> str:
    """What ps shows."""
    return Path(f"/proc/{pid}/comm").read_text().strip()
