"""Reload and changed names: applied whole, refused whole, and never half."""

import fcntl
import json
import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from meshfast.agent import compiler
from tests.agent.conftest import Start
from tests.agent.fakes.recorded import worker
from tests.agent.harness import Supervised, wait_for

GATEWAY = """
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: edge}}
spec:
  servers:
    - port: {{number: {port}, name: tcp, protocol: TCP}}
      hosts: ["*"]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: edge}}
spec:
  hosts: ["*"]
  gateways: [edge]
  tcp:
    - route: [{{destination: {{host: db.test}}}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: db}}
spec:
  hosts: [db.test]
  ports: [{{number: 5432, name: tcp, protocol: TCP}}]
  resolution: DNS
"""

SECOND_ONLY = """resolution: STATIC
  endpoints: [{address: 192.0.2.2}]"""

NAME = "gateway/0.0.0.0:{port}"


class Edge:
    """An agent with a configuration file, and a supervisor that does what it is asked."""

    def __init__(self, start: Start, directory: Path, **agent: Any) -> None:
        self.path = directory / "edge.yaml"
        self.write(7001)
        self.agent: Supervised = start(
            config_path=str(self.path), **{"dns_refresh_s": 3600} | agent
        )
        self.agent.names({"db.test": ["192.0.2.1"]})

    def write(self, port: int) -> None:
        self.path.write_text(GATEWAY.format(port=port))

    def reload(self, port: int) -> dict[str, Any]:
        """Load a file with another port, and return the document that is applied."""
        self.write(port)
        self.agent.send(type="reload")
        self.bind(port)
        return self.apply()

    def bind(self, port: int, error: str | None = None) -> None:
        name = NAME.format(port=port)
        address = f"0.0.0.0:{port}"
        assert self.agent.receive() == {"type": "bind", "name": name, "address": address}
        self.agent.send(type="bound", name=name, error=error)

    def apply(self) -> dict[str, Any]:
        """Be the workers: take the next snapshot."""
        document = self.take()
        self.applied(document["generation"])
        return document

    def take(self) -> dict[str, Any]:
        message, (fd,) = self.agent.receive_with_fds()
        document: dict[str, Any] = json.loads(os.pread(fd, 1 << 20, 0))
        assert message == {"type": "snapshot", "generation": document["generation"]}
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        assert seals == fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | (
            fcntl.F_SEAL_WRITE
        )
        os.close(fd)
        return document

    def applied(self, generation: int) -> None:
        lines = [worker(generation=generation, oldest_generation=generation)]
        self.agent.record(workers=lines)
        self.agent.send(type="applied", generation=generation)

    def metric(self, name: str) -> float:
        match = re.search(rf"^{re.escape(name)} (\S+)$", self.agent.scrape(), re.MULTILINE)
        assert match, name
        return float(match[1])


@pytest.fixture
def edge(start: Start, tmp_path: Path) -> Edge:
    return Edge(start, tmp_path)


def addresses(document: dict[str, Any]) -> list[str]:
    return [one["address"] for cluster in document["clusters"] for one in cluster["endpoints"]]


def slots(document: dict[str, Any]) -> dict[str, int]:
    return {
        one["address"]: one["slot"]
        for cluster in document["clusters"]
        for one in cluster["endpoints"]
    }


def test_a_reload_binds_publishes_and_counts(edge: Edge) -> None:
    document = edge.reload(7001)
    assert document["generation"] == 2
    assert [listener["name"] for listener in document["listeners"]] == [NAME.format(port=7001)]
    assert addresses(document) == ["192.0.2.1:5432"]
    wait_for(lambda: edge.metric('meshfast_config_reloads_total{result="success"}') == 1)
    assert edge.metric("meshfast_config_generation") == 2
    assert edge.metric("meshfast_config_last_reload_success") == 1
    (event,) = edge.agent.events("reload applied")
    assert (event["reason"], event["generation"]) == ("reload", 2)


def test_active_requests_are_named_after_the_applied_snapshot(edge: Edge) -> None:
    edge.agent.record(endpoints=[])
    slot = slots(edge.reload(7001))["192.0.2.1:5432"]
    edge.agent.record(endpoints=[{"slot": slot, "active": 6}])
    series = (
        'meshfast_upstream_active_requests{cluster="outbound|5432||db.test",'
        'endpoint="192.0.2.1:5432"}'
    )
    wait_for(lambda: series in edge.agent.scrape())
    assert edge.metric(series) == 6


def test_no_access_log_stays_none_for_workers_too(start: Start, tmp_path: Path) -> None:
    assert Edge(start, tmp_path, access_log="off").reload(7001)["access_log_disabled"] is True
    edge = Edge(start, tmp_path, access_log="/dev/null")
    assert edge.reload(7001)["access_log_disabled"] is False


def test_tracing_outlives_a_reload(start: Start, tmp_path: Path) -> None:
    edge = Edge(start, tmp_path, zipkin_address="127.0.0.1:1", sampling_parts_per_million=250_000)
    assert edge.reload(7001)["tracing"] == {"sampling_parts_per_million": 250_000}


def test_a_bound_listener_is_not_asked_for_again(edge: Edge) -> None:
    edge.reload(7001)
    edge.agent.send(type="reload")
    assert edge.apply()["generation"] == 3


def test_a_file_with_errors_is_refused_with_all_of_them_and_by_its_name(edge: Edge) -> None:
    edge.reload(7001)
    edge.path.write_text("apiVersion: networking.istio.io/v1\nkind: Gatway\n---\nkind: 7\n")
    edge.agent.send(type="reload")
    (event,) = wait_for(lambda: edge.agent.events("reload refused"))
    assert len(event["problems"]) >= 2
    assert all(problem.startswith(f"{edge.path}:") for problem in event["problems"])
    assert edge.metric('meshfast_config_reloads_total{result="refused"}') == 1
    assert edge.metric("meshfast_config_last_reload_success") == 0
    assert edge.metric("meshfast_config_generation") == 2
    edge.write(7001)
    edge.agent.send(type="reload")
    assert edge.apply()["generation"] == 3
    wait_for(lambda: edge.metric("meshfast_config_last_reload_success") == 1)


def test_a_file_that_is_gone_is_refused_by_its_name(edge: Edge) -> None:
    edge.path.unlink()
    edge.agent.send(type="reload")
    (event,) = wait_for(lambda: edge.agent.events("reload refused"))
    (problem,) = event["problems"]
    assert str(edge.path) in problem
    assert "No such file" in problem


def test_a_refused_bind_refuses_the_configuration_as_a_whole(edge: Edge) -> None:
    edge.reload(7001)
    edge.write(7002)
    edge.agent.send(type="reload")
    edge.bind(7002, "EADDRINUSE: address in use")
    (event,) = wait_for(lambda: edge.agent.events("reload refused"))
    assert event["problems"] == [
        "gateway/0.0.0.0:7002: cannot be bound: EADDRINUSE: address in use"
    ]
    assert edge.metric("meshfast_config_generation") == 2
    assert edge.reload(7003)["generation"] == 3


def test_reloads_that_come_while_one_is_on_its_way_are_done_once_afterwards(edge: Edge) -> None:
    edge.write(7001)
    for _ in range(5):
        edge.agent.send(type="reload")
    edge.bind(7001)
    first = edge.take()
    edge.write(7004)
    edge.applied(first["generation"])
    edge.bind(7004)
    assert edge.apply()["generation"] == 3
    wait_for(lambda: edge.metric('meshfast_config_reloads_total{result="success"}') == 2)
    assert edge.agent.events("reload applied")[-1]["generation"] == 3


def test_a_snapshot_that_is_still_held_delays_no_reload_and_keeps_its_slots(edge: Edge) -> None:
    def reload_with(address: str, active: list[int]) -> int:
        static = f"resolution: STATIC\n  endpoints: [{{address: {address}}}]"
        edge.path.write_text(text.replace("resolution: DNS", static))
        endpoints = [{"slot": slot, "active": 1} for slot in active]
        edge.agent.record(endpoints=endpoints)
        edge.agent.send(type="reload")
        document = edge.take()
        generation = document["generation"]
        lines = [worker(generation=generation, oldest_generation=1)]
        edge.agent.record(workers=lines, endpoints=endpoints)
        edge.agent.send(type="applied", generation=generation)
        return slots(document)[f"{address}:5432"]

    edge.agent.names({"db.test": ["192.0.2.1"]})
    first = slots(edge.reload(7001))["192.0.2.1:5432"]
    text = edge.path.read_text()
    second = reload_with("192.0.2.2", active=[first])
    third = reload_with("192.0.2.3", active=[first, 2])
    assert len({first, second, third, 2}) == 4, "slots that were just left, and counted ones"
    assert reload_with("192.0.2.1", active=[first]) == first, "an endpoint that comes back"


def test_an_agent_that_takes_over_waits_until_snapshots_it_does_not_know_are_left(
    start: Start, edge: Edge
) -> None:
    running = edge.reload(7001)
    edge.agent.stop()
    edge.agent = start(config_path=str(edge.path), document=running)
    edge.agent.record(workers=[worker(generation=2, oldest_generation=1)])
    edge.write(7005)
    edge.agent.send(type="reload")
    edge.agent.control.settimeout(0.5)
    with pytest.raises(TimeoutError):
        edge.agent.receive()
    edge.agent.control.settimeout(10)
    edge.agent.record(workers=[worker(generation=2, oldest_generation=2)])
    edge.bind(7005)
    assert edge.apply()["generation"] == 3


def test_an_endpoint_keeps_its_slot_from_snapshot_to_snapshot(edge: Edge) -> None:
    edge.agent.names({"db.test": ["192.0.2.2", "192.0.2.1"]})
    before = slots(edge.reload(7001))
    edge.path.write_text(edge.path.read_text().replace("resolution: DNS", SECOND_ONLY))
    edge.agent.send(type="reload")
    after = slots(edge.apply())
    assert after == {"192.0.2.2:5432": before["192.0.2.2:5432"]}


def test_a_compiler_that_fails_refuses_the_reload(edge: Edge, tmp_path: Path) -> None:
    (tmp_path / "compiler.json").write_text('{"exit": 3}')
    edge.agent.send(type="reload")
    (event,) = wait_for(lambda: edge.agent.events("reload refused"))
    assert event["problems"] == ["the compiler failed (exit code 3); what it said is on stderr"]
    (tmp_path / "compiler.json").unlink()
    assert edge.reload(7001)["generation"] == 2


def test_a_reload_while_draining_is_ignored(edge: Edge) -> None:
    edge.agent.send(type="drain", deadline_ms=1000)
    edge.agent.send(type="reload")
    (event,) = wait_for(lambda: edge.agent.events("reload ignored"))
    assert event["draining"] is True


def test_descriptors_and_processes_are_not_left_behind(edge: Edge) -> None:
    edge.reload(7001)
    wait_for(lambda: edge.agent.events("reload applied"))
    directory = Path(f"/proc/{edge.agent.process.pid}/fd")
    before = len(list(directory.iterdir()))
    for count in range(2, 5):
        edge.agent.send(type="reload")
        edge.apply()
        wait_for_reloads(edge, count)
    edge.path.write_text("kind: 7")
    edge.agent.send(type="reload")
    wait_for(lambda: bool(edge.agent.events("reload refused")))
    wait_for(lambda: len(list(directory.iterdir())) == before)
    children = Path(f"/proc/{edge.agent.process.pid}/task/{edge.agent.process.pid}/children")
    assert children.read_text() == ""


def wait_for_reloads(edge: Edge, count: int) -> None:
    wait_for(lambda: len(edge.agent.events("reload applied")) == count)


@pytest.fixture
def follower(start: Start, tmp_path: Path) -> Edge:
    """An agent that runs the file's snapshot and looks at its names ten times a second."""
    edge = Edge(start, tmp_path, dns_refresh_s=0.1)
    # What runs is empty, so the first look finds more than endpoints: it leaves that to a reload.
    wait_for(lambda: warned(edge))
    edge.reload(7001)
    wait_for(lambda: edge.agent.events("reload applied"))
    return edge


def warned(edge: Edge) -> list[dict[str, Any]]:
    return edge.agent.events(
        "the configuration was edited and not reloaded; names are not followed until it is"
    )


def test_changed_addresses_are_published(follower: Edge) -> None:
    follower.agent.names({"db.test": ["192.0.2.8", "192.0.2.7"]})
    document = follower.apply()
    assert addresses(document) == ["192.0.2.7:5432", "192.0.2.8:5432"]
    wait_for(lambda: follower.agent.events("reload applied")[-1]["reason"] == "names")


@pytest.mark.parametrize("answer", ["fail", "hang", []])
def test_names_that_do_not_resolve_keep_their_last_good_addresses(
    follower: Edge, answer: Any
) -> None:
    follower.agent.names({"db.test": answer})
    before = follower.metric('meshfast_dns_lookups_total{result="failure"}')
    if answer != "hang":
        wait_for(
            lambda: follower.metric('meshfast_dns_lookups_total{result="failure"}') > before + 1,
            30,
        )
    follower.agent.send(type="reload")
    assert addresses(follower.apply()) == ["192.0.2.1:5432"]
    assert follower.agent.events("reload applied")[-1]["generation"] >= 2


def test_the_same_addresses_in_another_order_publish_nothing(follower: Edge) -> None:
    follower.agent.names({"db.test": ["192.0.2.7", "192.0.2.8"]})
    follower.apply()
    follower.agent.names({"db.test": ["192.0.2.8", "192.0.2.7"]})
    before = follower.metric('meshfast_dns_lookups_total{result="success"}')
    wait_for(
        lambda: follower.metric('meshfast_dns_lookups_total{result="success"}') >= before + 1, 30
    )
    follower.agent.control.setblocking(False)
    with pytest.raises(BlockingIOError):
        follower.agent.receive()


def test_an_edited_file_waits_for_its_reload_when_addresses_change(follower: Edge) -> None:
    follower.write(7009)
    follower.agent.names({"db.test": ["192.0.2.5"]})
    document = follower.apply()
    assert [listener["name"] for listener in document["listeners"]] == [NAME.format(port=7001)]
    assert addresses(document) == ["192.0.2.5:5432"]
    wait_for(lambda: len(follower.agent.events("reload applied")) == 2)
    assert follower.reload(7009)["listeners"][0]["name"] == NAME.format(port=7009)


def test_an_agent_that_takes_over_goes_on_from_the_running_snapshot(
    start: Start, edge: Edge
) -> None:
    running = edge.reload(7001)
    edge.agent.stop()
    edge.agent.names({"db.test": ["192.0.2.1"]})
    lines = [worker(generation=2, oldest_generation=2)]
    edge.agent = start(config_path=str(edge.path), document=running, dns_refresh_s=0.1)
    edge.agent.record(workers=lines)
    edge.agent.names({"db.test": ["192.0.2.1", "192.0.2.4"]})
    document = edge.apply()
    assert document["generation"] == 3
    assert slots(document)["192.0.2.1:5432"] == slots(running)["192.0.2.1:5432"]
    assert warned(edge) == []


def test_an_agent_that_takes_over_does_not_apply_an_edited_file(start: Start, edge: Edge) -> None:
    running = edge.reload(7001)
    edge.agent.stop()
    edge.write(7010)
    edge.agent = start(config_path=str(edge.path), document=running, dns_refresh_s=0.1)
    edge.agent.record(workers=[worker(generation=2, oldest_generation=2)])
    wait_for(lambda: warned(edge))
    edge.agent.send(type="reload")
    edge.bind(7010)
    assert edge.apply()["generation"] == 3


def test_names_that_take_too_long_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    monkeypatch.setattr(compiler, "LOOKUP_S", 0.05)
    monkeypatch.setitem(vars(compiler), "look_up", lambda _host: [str(never.wait(5))])
    hosts = compiler._Hosts({"known.test": ["192.0.2.1"]})
    assert hosts.resolve("slow.test") == []
    assert hosts.resolve("known.test") == ["192.0.2.1"]
    assert hosts.used == {"slow.test": [], "known.test": ["192.0.2.1"]}
    never.set()
