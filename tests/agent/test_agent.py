"""The agent's life: readiness, signals, scrapes, and every way to end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.agent.conftest import Start
from tests.agent.fakes.recorded import http_series
from tests.agent.harness import wait_for


def test_is_live_at_once_and_ready_from_serving_to_drain(start: Start) -> None:
    agent = start()
    assert agent.request("/healthz/live")[0] == 200
    assert agent.request("/healthz/ready")[0] == 503
    agent.send(type="serving")
    wait_for(lambda: agent.request("/healthz/ready")[0] == 200)
    agent.send(type="drain", deadline_ms=45000)
    wait_for(lambda: agent.request("/healthz/ready")[0] == 503)
    assert agent.request("/healthz/ready")[2] == b"draining\n"
    assert agent.request("/healthz/live")[0] == 200


def test_stays_not_ready_when_workers_serve_after_the_drain_began(start: Start) -> None:
    agent = start()
    agent.send(type="drain", deadline_ms=45000)
    agent.send(type="serving")
    wait_for(lambda: agent.request("/healthz/ready")[2] == b"draining\n")


def test_metrics_are_scraped_from_what_workers_wrote_until_then(start: Start) -> None:
    agent = start()
    for requests in (7, 8):
        agent.record(http=[http_series(requests)])
        families = {
            family.name: family for family in text_string_to_metric_families(agent.scrape())
        }
        (sample,) = families["istio_requests"].samples
        assert sample.value == requests


def test_stats_prometheus_is_the_same_page(start: Start) -> None:
    agent = start()
    _, headers, body = agent.request("/stats/prometheus")
    assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert b"istio_requests_total{" in body


def test_signals_meant_for_the_supervisor_change_nothing(start: Start) -> None:
    agent = start()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        agent.signal(number)
    assert agent.request("/healthz/live")[0] == 200
    assert agent.stop() == 0


def test_ends_when_the_supervisor_is_gone(start: Start) -> None:
    agent = start()
    agent.control.close()
    assert agent.wait() == 0
    assert agent.events("the supervisor is gone")


def test_a_message_of_an_unknown_type_is_said_and_skipped(start: Start) -> None:
    agent = start()
    agent.send(type="dance")
    agent.control.send(b"[not json")
    agent.send(type="serving")
    wait_for(lambda: agent.request("/healthz/ready")[0] == 200)
    assert agent.events("message of an unknown type")[0]["type"] == "dance"


def test_typing_extensions_stays_out_of_the_agent_and_within_reach(tmp_path: Path) -> None:
    (tmp_path / "typing_extensions.py").write_text("import inspect\nfrom typing import *\n")
    program = (
        "import sys\n"
        "from meshfast.agent.process import _import_msgspec\n"
        "_import_msgspec()\n"
        "import meshfast.agent.mesh\n"
        "print([name in sys.modules for name in ('msgspec', 'typing_extensions', 'inspect')])\n"
        "import typing_extensions\n"
        "_import_msgspec()\n"
        "print(sys.modules['typing_extensions'] is typing_extensions)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["[True, False, False]", "True"]
