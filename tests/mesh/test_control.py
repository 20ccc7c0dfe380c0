"""The real agent against the real control plane, where the tests of either side have a stand-in."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.mesh_harness import MeshAgent
from tests.mesh.harness import Control

CANARY = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: payment, namespace: default}
spec:
  hosts: [payment]
  http:
  - match: [{uri: {prefix: /new}}]
    route: [{destination: {host: payment}}]
"""


@pytest.fixture
def app() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def agent(tmp_path: Path, control: Control, app: socket.socket) -> Iterator[MeshAgent]:
    token = control.token("payment")
    one = MeshAgent(
        tmp_path / "agent",
        control.like_a_fake,
        app_port=app.getsockname()[1],
        secret=token.secret,
        token_id=token.id,
    )
    yield one
    one.close()


def test_joins_registers_and_sees_itself(
    agent: MeshAgent, control: Control, app: socket.socket
) -> None:
    agent.until_meshed()
    name = f"outbound|{app.getsockname()[1]}||payment.default"
    agent.pump(lambda: name in agent.cluster_names(), "its own cluster")
    agent.pump(lambda: list(agent.endpoints_of(name)) == ["127.0.0.1:15006"], "its own endpoint")
    (workload,) = control.services().values()
    assert workload


def test_a_rule_is_applied_and_shown_as_synced(agent: MeshAgent, control: Control) -> None:
    agent.until_meshed()
    agent.pump(lambda: agent.hosts(), "routes")
    applied = control.ask(apply=CANARY)
    assert "error" not in applied, applied
    agent.pump(lambda: "/new" in str(agent.document["listeners"][0]), "the rule")
    agent.pump(lambda: control.ask(sidecars=True)[0].get("state") == "SYNCED", "synced")


def test_deregisters_at_drain(agent: MeshAgent, control: Control) -> None:
    agent.until_meshed()
    agent.pump(lambda: control.services(), "registered")
    agent.send(type="drain", deadline_ms=1000)
    agent.pump(lambda: not control.services()["payment.default"]["workloads"], "deregistered")


def test_a_killed_control_plane_is_met_again_without_a_new_snapshot(
    agent: MeshAgent, control: Control, app: socket.socket
) -> None:
    agent.until_meshed()
    name = f"outbound|{app.getsockname()[1]}||payment.default"
    agent.pump(lambda: agent.hosts() and agent.endpoints_of(name), "its own endpoint")
    agent.pump(lambda: control.ask(sidecars=True)[0]["state"] == "SYNCED", "synced")
    documents = len(agent.documents)
    control.kill()
    agent.pump(lambda: agent.events("no control plane"), "it notices")
    control.start()
    agent.pump(lambda: len(agent.events("control plane connected")) == 2, "it comes back")
    agent.pump(lambda: control.ask(sidecars=True), "it is seen")
    assert len(agent.documents) == documents


def test_renews_at_the_real_authority(tmp_path: Path, app: socket.socket) -> None:
    control = Control(tmp_path, cert_ttl_s=10)
    agent = None
    try:
        token = control.token("payment")
        agent = MeshAgent(
            tmp_path / "agent", control.like_a_fake, secret=token.secret, token_id=token.id
        )
        agent.until_meshed()
        agent.pump(lambda: len(agent.identities) == 3, "two renewals", 20)
        assert not agent.events("certificate refused")
    finally:
        if agent is not None:
            agent.close()
        control.close()


def test_a_token_is_used_up(tmp_path: Path, control: Control) -> None:
    token = control.token("payment", uses=1)
    agents = []
    try:
        for name in ("one", "two"):
            agents.append(
                MeshAgent(
                    tmp_path / name,
                    control.like_a_fake,
                    secret=token.secret,
                    token_id=token.id,
                    instance=f"{name}.host",
                )
            )
            agents[-1].pump(
                lambda: agents[-1].identities or agents[-1].events("no control plane"), "an answer"
            )
        assert agents[0].identities
        assert "joining was refused" in agents[1].events("no control plane")[0]["reason"]
    finally:
        for agent in agents:
            agent.close()
