"""The agent on the real extension: shared memory, snapshot blobs and the compiler as installed."""

import json
import os
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from meshfast import _core
from meshfast.telemetry.families import BUCKETS
from tests.agent.conftest import Start
from tests.agent.harness import Supervised, wait_for
from tests.agent.test_families import NAMES
from tests.agent.test_reload import GATEWAY

PRIVATE_KIB_MAX = 6_400  # measured 5.8 MB; all that it promises is 8


def test_the_buckets_are_those_that_workers_count_in() -> None:
    assert BUCKETS[:-1] == _core.BUCKETS_MS


def test_every_family_is_scraped_from_fresh_shared_memory(start: Start) -> None:
    families = {
        family.name: family.type
        for family in text_string_to_metric_families(start(real=True).scrape())
    }
    assert families == {name.removesuffix("_total"): kind for name, kind in NAMES.items()}


def test_a_reload_gives_a_snapshot_that_the_extension_can_read(
    start: Start, tmp_path: Path
) -> None:
    path = tmp_path / "edge.yaml"
    path.write_text(GATEWAY.format(port=7001).replace("resolution: DNS", STATIC))
    agent = start(real=True, config_path=str(path))
    agent.send(type="reload")
    bind = agent.receive()
    assert bind == {"type": "bind", "name": "gateway/0.0.0.0:7001", "address": "0.0.0.0:7001"}
    agent.send(type="bound", name=bind["name"], error=None)
    message, (fd,) = agent.receive_with_fds()
    assert message == {"type": "snapshot", "generation": 2}
    document = json.loads(_core.Snapshot.describe(os.pread(fd, 1 << 20, 0)))
    os.close(fd)
    assert document["clusters"][0]["endpoints"][0]["address"] == "192.0.2.1:5432"
    agent.send(type="applied", generation=2)
    wait_for(lambda: 'endpoint="192.0.2.1:5432"' in agent.scrape())


STATIC = """resolution: STATIC
  endpoints: [{address: 192.0.2.1}]"""


def test_what_the_snapshot_compiler_refuses_is_refused_in_words(
    start: Start, tmp_path: Path
) -> None:
    path = tmp_path / "edge.yaml"
    path.write_text(BROKEN_REGEX)
    agent = start(real=True, config_path=str(path))
    agent.send(type="reload")
    (event,) = wait_for(lambda: agent.events("reload refused"))
    (problem,) = event["problems"]
    line = 1 + BROKEN_REGEX[: BROKEN_REGEX.index("a(b")].count("\n")
    assert problem.startswith(f"{path}:{line}:")
    assert "regex" in problem


BROKEN_REGEX = """
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  servers:
    - port: {number: 7001, name: http, protocol: HTTP}
      hosts: ["*"]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: edge}
spec:
  hosts: ["*"]
  gateways: [edge]
  http:
    - match: [{uri: {regex: "a(b"}}]
      route: [{destination: {host: db.test}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: db}
spec:
  hosts: [db.test]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: STATIC
  endpoints: [{address: 192.0.2.1}]
"""


@pytest.mark.parametrize("scrapes", [1, 20])
def test_the_agent_keeps_its_promise_of_memory(start: Start, scrapes: int) -> None:
    """Started alone, so all that a supervisor would share with it is counted against it."""
    agent = start(real=True, access_log="/dev/null")
    agent.ask(1, "localhost")
    assert agent.answer()["addresses"]
    for _ in range(scrapes):
        agent.scrape()
    assert private_kib(agent) <= PRIVATE_KIB_MAX


def test_the_agent_does_not_load_what_it_has_no_memory_for(start: Start) -> None:
    maps = Path(f"/proc/{start(real=True).process.pid}/maps").read_text()
    for heavy in ("msgspec", "_ssl", "unicodedata", "_asyncio", "_yaml", "_decimal"):
        assert f"/{heavy}" not in maps


def private_kib(agent: Supervised) -> int:
    lines = Path(f"/proc/{agent.process.pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))
