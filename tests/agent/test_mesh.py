"""The agent of a sidecar against a control plane over real TLS: joining, configuration, outages."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509

from meshfast.agent.certificate import parse
from meshfast.discovery import (
    Ack,
    CertificateRequest,
    Goodbye,
    Hello,
    Nack,
    Registration,
    Status,
)
from meshfast.policy.sidecar import Upstream
from tests.agent.fakes.authority import Authority
from tests.agent.fakes.control_plane import ControlPlane
from tests.agent.harness import wait_for
from tests.agent.mesh_harness import (
    ORDER,
    PRINCIPAL,
    MeshAgent,
    cluster,
    endpoint,
    virtual_host,
)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def control(authority: Authority) -> Iterator[ControlPlane]:
    plane = ControlPlane(authority)
    yield plane
    plane.stop()


@pytest.fixture
def agents() -> Iterator[list[MeshAgent]]:
    started: list[MeshAgent] = []
    yield started
    for one in started:
        one.close()


@pytest.fixture
def agent(tmp_path: Path, control: ControlPlane, agents: list[MeshAgent]) -> MeshAgent:
    put_order(control)
    agents.append(MeshAgent(tmp_path, control))
    return agents[0]


def put_order(control: ControlPlane, *addresses: str) -> None:
    """A service `order` with a route, in make-before-break order."""
    control.put("cluster", ORDER, cluster(ORDER))
    control.put("endpoint", ORDER, [endpoint(one) for one in addresses or ("10.0.0.1:15006",)])
    control.put("route", "outbound", [virtual_host(ORDER)])


def accepting() -> socket.socket:
    """An application that accepts on loopback."""
    return socket.create_server(("127.0.0.1", 0))


# joining


def test_joins_with_the_token_and_then_streams_with_its_certificate(
    agent: MeshAgent, control: ControlPlane
) -> None:
    agent.until_meshed()
    request = control.said_of(CertificateRequest)[0]
    assert (request.token_id, request.instance) == ("token-1", "payment-9.host")
    assert control.peers == [PRINCIPAL]
    hello = control.said_of(Hello)[0]
    assert hello.node.instance == "payment-9.host"
    assert hello.node.labels == {"version": "v1"}
    assert hello.held == {}


def test_workers_get_the_identity_as_it_was_agreed(agent: MeshAgent, control: ControlPlane) -> None:
    import base64

    agent.until_meshed()
    (identity,) = agent.identities
    assert identity.keys() == {"version", "trust_domain", "chain", "key", "bundle"}
    assert (identity["version"], identity["trust_domain"]) == (1, "cluster.local")
    assert parse(base64.b64decode(identity["chain"][0])).uris == [PRINCIPAL]
    assert base64.b64decode(identity["bundle"][0]) == control.authority.root


def test_is_ready_only_with_identity_and_configuration(
    tmp_path: Path, control: ControlPlane, agents: list[MeshAgent]
) -> None:
    put_order(control)
    agents.append(agent := MeshAgent(tmp_path, control))
    agent.holds_back = True
    agent.pump(lambda: agent.documents and agent.identities, "snapshot and identity")
    assert agent.request("/healthz/ready")[0] == 503
    assert not agent.is_meshed
    agent.holds_back = False
    agent.answer_snapshot()
    agent.until_meshed()
    assert agent.request("/healthz/ready")[0] == 200


def test_a_refused_token_is_said_and_tried_again(
    tmp_path: Path, control: ControlPlane, agents: list[MeshAgent]
) -> None:
    agents.append(agent := MeshAgent(tmp_path, control, secret="another secret"))
    agent.pump(lambda: len(control.said_of(CertificateRequest)) >= 3, "it tries again")
    (event,) = agent.events("no control plane")
    assert event["reason"] == "joining was refused: the token is not known"
    assert "another secret" not in agent.log.read_text()
    assert not agent.identities


def test_a_start_that_cannot_join_is_said_to_be_hopeless(
    tmp_path: Path, control: ControlPlane, agents: list[MeshAgent]
) -> None:
    agents.append(first := MeshAgent(tmp_path / "without", control, secret=""))
    first.pump(lambda: first.hopeless, "it gives up")
    assert first.hopeless[0] == "no certificate that is still good, and no token to join with"
    control.refusal = "rate: too many certificate requests; try again later"
    agents.append(second := MeshAgent(tmp_path / "with", control))
    second.pump(lambda: second.events("certificate refused"), "it is refused for now")
    assert not second.hopeless
    control.refusal = "token_used: the token has been used 1 times"
    second.pump(lambda: second.hopeless, "it gives up")
    assert second.hopeless[0] == f"joining was refused: {control.refusal}"


@pytest.mark.parametrize(
    "code",
    ["authority", "extension", "malformed", "name", "revoked", "signature", "subject", "too_large"],
)
def test_a_refusal_that_another_attempt_with_the_token_cannot_change_is_hopeless(
    tmp_path: Path, control: ControlPlane, agents: list[MeshAgent], code: str
) -> None:
    control.refusal = f"{code}: so it is"
    agents.append(agent := MeshAgent(tmp_path, control))
    agent.pump(lambda: agent.hopeless, "it gives up")
    assert agent.hopeless[0] == f"joining was refused: {control.refusal}"


@pytest.mark.parametrize("code", ["issuer", "key", "key_age", "key_owner", "rate"])
def test_a_refusal_that_another_attempt_may_change_is_not_hopeless(
    tmp_path: Path, control: ControlPlane, agents: list[MeshAgent], code: str
) -> None:
    control.refusal = f"{code}: for now"
    agents.append(agent := MeshAgent(tmp_path, control))
    agent.pump(lambda: len(control.said_of(CertificateRequest)) >= 2, "it tries again")
    assert not agent.hopeless


def test_a_refusal_to_renew_what_has_expired_is_not_hopeless_while_the_token_is_left(
    tmp_path: Path, authority: Authority, agents: list[MeshAgent]
) -> None:
    control = ControlPlane(authority, ttl_s=1)
    try:
        agents.append(first := MeshAgent(tmp_path, control))
        first.until_meshed()
        agents.remove(first)
        first.close()
        control.refusal = "subject: the request names another"
        time.sleep(1.1)  # the life of the certificate
        asked = len(control.said_of(CertificateRequest))
        agents.append(second := MeshAgent(tmp_path, control))
        second.pump(lambda: second.hopeless, "it gives up", 30)
        requests = control.said_of(CertificateRequest)[asked:]
        assert [bool(one.previous) for one in requests[:2]] == [True, False]
        assert second.hopeless == [f"joining was refused: {control.refusal}"]
    finally:
        control.stop()


def test_a_sidecar_that_is_in_the_mesh_never_gives_up(
    tmp_path: Path, authority: Authority, agents: list[MeshAgent]
) -> None:
    control = ControlPlane(authority, ttl_s=2)
    try:
        agents.append(agent := MeshAgent(tmp_path, control))
        agent.until_meshed()
        control.refusal = "token_used: the token has been used 1 times"
        control.stop()
        time.sleep(2.1)  # the life of the certificate
        control.start()
        agent.pump(lambda: agent.events("certificate refused"), "it is refused")
        asked = len(control.said_of(CertificateRequest))
        # Attempts are up to 10 s apart.
        agent.pump(lambda: len(control.said_of(CertificateRequest)) > asked, "again", 30)
        assert not agent.hopeless
    finally:
        control.stop()


def test_a_server_with_another_root_gets_no_secret(
    tmp_path: Path, control: ControlPlane, agents: list[MeshAgent]
) -> None:
    other = ControlPlane(Authority())
    try:
        pinned = control.authority
        control_address, other.authority = other.address, pinned
        agents.append(agent := MeshAgent(tmp_path, other))
        assert control_address == other.address
        agent.pump(lambda: agent.events("no control plane"), "it is refused")
        assert (
            "certificate of the control plane is refused"
            in agent.events("no control plane")[0]["reason"]
        )
        assert not other.said
    finally:
        other.stop()


@pytest.mark.parametrize(
    "identity",
    ["spiffe://cluster.local/ns/default/sa/payment", "spiffe://cluster.local/ns/x/sa/control"],
)
def test_a_server_with_another_name_gets_no_secret(
    tmp_path: Path, authority: Authority, agents: list[MeshAgent], identity: str
) -> None:
    impostor = ControlPlane(authority, identity)
    try:
        agents.append(agent := MeshAgent(tmp_path, impostor))
        agent.pump(lambda: agent.events("no control plane"), "it is refused")
        assert identity in agent.events("no control plane")[0]["reason"]
        assert not impostor.said
    finally:
        impostor.stop()


def test_a_certificate_for_somebody_else_is_not_used(
    tmp_path: Path, control: ControlPlane, agents: list[MeshAgent]
) -> None:
    control.given_names = ["spiffe://cluster.local/ns/default/sa/other"]
    agents.append(agent := MeshAgent(tmp_path, control))
    agent.pump(lambda: agent.events("certificate is not used"), "it is refused")
    assert not agent.identities


# configuration


def test_what_was_pushed_together_is_one_snapshot_with_the_local_facts(agent: MeshAgent) -> None:
    agent.until_meshed()
    (document,) = agent.documents
    outbound, inbound = document["listeners"]
    assert outbound["name"] == "outbound/127.0.0.1:15001"
    assert outbound["forward_proxy"] is True
    assert agent.hosts() == ["order.default"]
    assert (inbound["name"], inbound["tls"]) == ("inbound/127.0.0.1:15006", {"mode": "STRICT"})
    assert list(agent.endpoints_of("inbound|9||")) == ["127.0.0.1:9"]
    assert list(agent.endpoints_of(ORDER)) == ["10.0.0.1:15006"]
    assert document["workload"] == {
        "name": "payment-v1",
        "namespace": "default",
        "app": "payment",
        "revision": "v1",
        "principal": PRINCIPAL,
    }


def test_a_push_is_answered_after_all_workers_serve_with_it(
    agent: MeshAgent, control: ControlPlane
) -> None:
    agent.until_meshed()
    wait_for(lambda: len(control.said_of(Ack)) == 4)
    acks = len(control.said_of(Ack))
    agent.holds_back = True
    put_order(control, "10.0.0.2:15006")
    agent.pump(lambda: len(agent.documents) == 2, "a snapshot")
    time.sleep(0.1)  # an answer that comes too early would be here by now
    assert len(control.said_of(Ack)) == acks
    agent.answer_snapshot()
    agent.pump(lambda: len(control.said_of(Ack)) > acks, "the answer")
    statuses = control.said_of(Status)
    wait_for(lambda: control.said_of(Status)[-1].generation == agent.document["generation"])
    assert statuses


def test_what_changes_nothing_for_workers_is_answered_without_a_snapshot(
    agent: MeshAgent, control: ControlPlane
) -> None:
    agent.until_meshed()
    wait_for(lambda: len(control.said_of(Ack)) == 4)
    acks, documents = 4, len(agent.documents)
    control.put("endpoint", "outbound|1||nobody.default", [endpoint("10.9.9.9:1")])
    agent.pump(lambda: len(control.said_of(Ack)) > acks, "the answer")
    assert len(agent.documents) == documents


def test_only_healthy_endpoints_are_used_unless_none_is(
    agent: MeshAgent, control: ControlPlane
) -> None:
    agent.until_meshed()
    sick = endpoint("10.0.0.1:15006", healthy=False)
    control.put("endpoint", ORDER, [sick, endpoint("10.0.0.2:15006")])
    agent.pump(lambda: list(agent.endpoints_of(ORDER)) == ["10.0.0.2:15006"], "the healthy one")
    control.put("endpoint", ORDER, [sick])
    agent.pump(lambda: list(agent.endpoints_of(ORDER)) == ["10.0.0.1:15006"], "the sick one")


def test_an_endpoint_keeps_its_slot_and_a_freed_one_is_used_again(
    agent: MeshAgent, control: ControlPlane
) -> None:
    agent.until_meshed()
    first = agent.endpoints_of(ORDER)["10.0.0.1:15006"]
    put_order(control, "10.0.0.2:15006", "10.0.0.1:15006")
    agent.pump(lambda: len(agent.endpoints_of(ORDER)) == 2, "two endpoints")
    assert agent.endpoints_of(ORDER)["10.0.0.1:15006"] == first
    put_order(control, "10.0.0.2:15006")
    agent.pump(lambda: len(agent.endpoints_of(ORDER)) == 1, "one endpoint")
    put_order(control, "10.0.0.2:15006", "10.0.0.3:15006")
    agent.pump(lambda: len(agent.endpoints_of(ORDER)) == 2, "two again")
    assert agent.endpoints_of(ORDER)["10.0.0.3:15006"] == first


def test_an_upstream_gets_a_listener_to_its_service(
    tmp_path: Path, control: ControlPlane, agents: list[MeshAgent]
) -> None:
    upstream = Upstream(service="order", listener="outbound/127.0.0.1:5433")
    put_order(control)
    agents.append(agent := MeshAgent(tmp_path, control, upstreams=(upstream,)))
    agent.until_meshed()
    listener = agent.document["listeners"][2]
    assert (listener["name"], listener["protocol"]) == ("outbound/127.0.0.1:5433", "TCP")
    assert listener["tcp_routes"][0]["destinations"] == [{"cluster": ORDER, "weight": 1}]


# refusals


def test_a_refused_route_keeps_its_last_good_version_and_what_that_needs(
    agent: MeshAgent, control: ControlPlane
) -> None:
    agent.until_meshed()
    control.put("route", "outbound", [virtual_host(ORDER, regex="(")])
    agent.pump(lambda: control.said_of(Nack), "the refusal")
    nack = control.said_of(Nack)[0]
    assert nack.type == "route"
    assert [one.name for one in nack.problems] == ["outbound"]
    assert "virtual_hosts[0]" in nack.problems[0].reason
    control.remove("cluster", ORDER)
    control.put("cluster", "outbound|1||new.default", cluster("outbound|1||new.default"))
    agent.pump(
        lambda: agent.documents and "outbound|1||new.default" in agent.cluster_names(),
        "the new one",
    )
    assert ORDER in agent.cluster_names()
    assert agent.hosts() == ["order.default"]


def test_what_is_kept_privately_goes_when_nothing_needs_it(
    agent: MeshAgent, control: ControlPlane
) -> None:
    agent.until_meshed()
    control.put("route", "outbound", b"not json")
    agent.pump(lambda: control.said_of(Nack), "the refusal")
    control.remove("cluster", ORDER)
    control.put("route", "outbound", [])
    agent.pump(lambda: agent.hosts() == [] and ORDER not in agent.cluster_names(), "both are gone")


def test_a_bad_resource_does_not_keep_others_of_its_push_out(
    agent: MeshAgent, control: ControlPlane
) -> None:
    agent.until_meshed()
    bad, good = "outbound|1||bad.default", "outbound|1||good.default"
    control.put("cluster", bad, {"name": bad, "colour": "red"})
    control.put("cluster", good, cluster(good))
    agent.pump(lambda: good in agent.cluster_names() and control.said_of(Nack), "the good one")
    assert bad not in agent.cluster_names()
    assert [one.name for nack in control.said_of(Nack) for one in nack.problems] == [bad]


def test_a_route_that_comes_before_its_cluster_says_what_it_waits_for(
    agent: MeshAgent, control: ControlPlane
) -> None:
    agent.until_meshed()
    later = "outbound|1||later.default"
    control.put("route", "outbound", [virtual_host(ORDER), virtual_host(later)])
    agent.pump(lambda: control.said_of(Nack), "the refusal")
    reference = control.said_of(Nack)[0].problems[0].waits_for
    assert (reference.type, reference.name) == ("cluster", later)
    control.put("cluster", later, cluster(later))
    agent.pump(lambda: agent.hosts() == ["order.default", "later.default"], "offered again")


def test_a_first_push_without_routes_that_are_taken_starts_nobody(
    tmp_path: Path, control: ControlPlane, agents: list[MeshAgent]
) -> None:
    control.put("cluster", ORDER, cluster(ORDER))
    control.put("route", "outbound", [virtual_host(ORDER, regex="(")])
    agents.append(agent := MeshAgent(tmp_path, control))
    agent.pump(lambda: control.said_of(Nack), "the refusal")
    agent.pump(lambda: len(control.said_of(Ack)) >= 3, "the rest is taken")
    other = "outbound|1||other.default"
    control.put("cluster", other, cluster(other))
    agent.pump(lambda: other in agent.cluster_names(), "another push is taken")
    agent.pump(lambda: len(control.said_of(Ack)) >= 4, "and answered")
    assert not agent.is_meshed
    control.put("route", "outbound", [virtual_host(ORDER)])
    agent.until_meshed()
    assert agent.hosts() == ["order.default"]


# registration


def test_registers_with_the_first_answer_of_the_port_and_says_when_it_changes(
    tmp_path: Path, control: ControlPlane, agents: list[MeshAgent]
) -> None:
    with accepting() as app:
        port = app.getsockname()[1]
        app.listen(128)
        agents.append(agent := MeshAgent(tmp_path, control, app_port=port))
        agent.until_meshed()
        agent.pump(lambda: control.said_of(Registration), "registered")
        first = control.said_of(Registration)[0]
        assert first.healthy
        assert (first.service, first.workload) == ("payment", "payment-v1")
        assert first.address == "127.0.0.1:15006"
        assert [(one.number, one.protocol) for one in first.ports] == [(port, "http")]
    agent.pump(lambda: not control.said_of(Registration)[-1].healthy, "unhealthy")
    agent.send(type="drain", deadline_ms=1000)
    agent.pump(lambda: control.said_of(Registration)[-1].ports == [], "deregistered")


def test_registers_the_port_that_callers_name(
    tmp_path: Path, control: ControlPlane, agents: list[MeshAgent]
) -> None:
    with accepting() as app:
        port = app.getsockname()[1]
        agents.append(agent := MeshAgent(tmp_path, control, app_port=port, service_port=80))
        agent.until_meshed()
        agent.pump(lambda: control.said_of(Registration), "registered")
        assert [one.number for one in control.said_of(Registration)[0].ports] == [80]
        assert list(agent.endpoints_of("inbound|80||")) == [f"127.0.0.1:{port}"]


def test_registers_before_the_port_has_accepted_and_is_not_healthy_until_then(
    tmp_path: Path, control: ControlPlane, agents: list[MeshAgent]
) -> None:
    with accepting() as app:
        port = app.getsockname()[1]
    agents.append(agent := MeshAgent(tmp_path, control, app_port=port))
    agent.until_meshed()
    agent.pump(lambda: control.said_of(Registration), "registered")
    assert not agent.events("application refuses")  # it has not been started
    with socket.create_server(("127.0.0.1", port)):
        agent.pump(lambda: control.said_of(Registration)[-1].healthy, "healthy")
    first, last = control.said_of(Registration)
    assert not first.healthy
    assert first == msgspec.structs.replace(last, healthy=False)
    assert [one.number for one in first.ports] == [port]


def test_says_when_the_application_can_be_reached_beside_the_sidecar(
    tmp_path: Path, control: ControlPlane, agents: list[MeshAgent]
) -> None:
    with socket.create_server(("0.0.0.0", 0)) as app:
        agents.append(agent := MeshAgent(tmp_path, control, app_port=app.getsockname()[1]))
        agent.until_meshed()
        text = "the application can be reached beside the sidecar; let it listen on 127.0.0.1"
        agent.pump(lambda: agent.events(text), "the warning")
        assert agent.events(text)[0]["addresses"] == ["0.0.0.0"]


def test_says_that_it_has_withdrawn_when_nobody_is_sent_here_any_more(
    tmp_path: Path, control: ControlPlane, agents: list[MeshAgent]
) -> None:
    with accepting() as app:
        agents.append(agent := MeshAgent(tmp_path, control, app_port=app.getsockname()[1]))
        agent.until_meshed()
        put_order(control, "127.0.0.1:15006")
        agent.pump(lambda: control.said_of(Registration), "registered")
        agent.pump(lambda: agent.endpoints_of(ORDER), "its endpoint")
        agent.send(type="drain", deadline_ms=1000)
        agent.pump(lambda: control.said_of(Registration)[-1].ports == [], "deregistered")
        assert not agent.has_withdrawn
        put_order(control, "10.0.0.2:15006")
        agent.pump(lambda: agent.has_withdrawn, "withdrawn")


@pytest.mark.parametrize("is_connected", [True, False])
def test_one_that_has_never_accepted_or_is_cut_off_withdraws_at_once(
    agent: MeshAgent, control: ControlPlane, is_connected: bool
) -> None:
    agent.until_meshed()
    if not is_connected:
        control.stop()
        agent.pump(lambda: agent.events("no control plane"), "it notices")
    agent.send(type="drain", deadline_ms=1000)
    agent.pump(lambda: agent.has_withdrawn, "withdrawn", 1)
    if not is_connected:
        control.start()


@pytest.mark.parametrize("is_draining", [True, False])
def test_only_one_that_drains_says_goodbye(
    agent: MeshAgent, control: ControlPlane, is_draining: bool
) -> None:
    agent.until_meshed()
    if is_draining:
        agent.send(type="drain", deadline_ms=1000)
    assert agent.stop() == 0
    if is_draining:
        wait_for(lambda: control.said_of(Goodbye))
    control.stop()
    assert [one.code for one in control.said_of(Goodbye)] == ["drain"] * is_draining
    control.start()


# outages


def test_an_outage_changes_nothing_and_ends_with_differences_only(
    agent: MeshAgent, control: ControlPlane
) -> None:
    agent.until_meshed()
    documents = len(agent.documents)
    control.stop()
    agent.pump(lambda: agent.events("no control plane"), "it notices")
    assert "meshfast_control_plane_connected 0" in agent.scrape()
    control.start()
    agent.pump(lambda: len(control.said_of(Hello)) == 2, "it comes back")
    hello = control.said_of(Hello)[1]
    assert {type: len(versions) for type, versions in hello.held.items() if versions} == {
        "cluster": 1,
        "endpoint": 1,
        "route": 1,
    }
    agent.pump(lambda: agent.events("control plane connected")[1:], "connected")
    assert "meshfast_control_plane_connected 1" in agent.scrape()
    assert len(agent.documents) == documents
    assert len(control.said_of(CertificateRequest)) == 1


def test_a_restart_without_control_plane_serves_from_disk_within_two_seconds(
    tmp_path: Path, control: ControlPlane, agents: list[MeshAgent]
) -> None:
    put_order(control)
    agents.append(first := MeshAgent(tmp_path, control))
    first.until_meshed()
    assert first.stop() == 0
    control.stop()
    started_at = time.monotonic()
    agents.append(second := MeshAgent(tmp_path, control, secret=""))
    second.until_meshed()
    assert time.monotonic() - started_at < 2.0
    assert second.documents[-1]["clusters"] == first.documents[-1]["clusters"]
    assert second.identities == first.identities
    control.start()
    second.pump(lambda: len(control.said_of(Hello)) == 2, "it comes back")
    assert control.said_of(Hello)[1].held["cluster"].keys() == {ORDER}


def test_damaged_files_are_said_and_joined_again(
    tmp_path: Path, control: ControlPlane, agents: list[MeshAgent]
) -> None:
    put_order(control)
    agents.append(first := MeshAgent(tmp_path, control))
    first.until_meshed()
    first.stop()
    for name in ("identity", "resources"):
        path = first.state_dir / name
        path.write_bytes(path.read_bytes()[:-1] + b"#")
    control.uses = 2
    agents.append(second := MeshAgent(tmp_path, control))
    second.until_meshed()
    assert second.events("kept identity is not used")
    assert second.events("kept configuration is not used")
    assert len(control.said_of(CertificateRequest)) == 2


def test_keys_stay_off_the_disk_when_memory_is_asked_for(
    tmp_path: Path, control: ControlPlane, agents: list[MeshAgent]
) -> None:
    agents.append(agent := MeshAgent(tmp_path, control, key_storage="memory"))
    agent.until_meshed()
    assert agent.stop() == 0
    assert sorted(os.listdir(agent.state_dir)) == ["resources", "running"]


def test_files_are_private(agent: MeshAgent) -> None:
    agent.until_meshed()
    agent.stop()
    modes = {path.name: path.stat().st_mode & 0o777 for path in agent.state_dir.iterdir()}
    assert modes == {"identity": 0o600, "resources": 0o600, "running": 0o600}
    assert agent.state_dir.stat().st_mode & 0o777 == 0o700


# certificates


def renewals(control: ControlPlane) -> list[Any]:
    return control.said_of(CertificateRequest)[1:]


def test_a_certificate_is_renewed_between_35_and_50_percent_of_its_life(
    tmp_path: Path, authority: Authority, agents: list[MeshAgent]
) -> None:
    control = ControlPlane(authority, ttl_s=4)
    try:
        agents.append(agent := MeshAgent(tmp_path, control))
        agent.until_meshed()
        obtained = time.monotonic()
        agent.pump(lambda: renewals(control), "a renewal")
        assert 0.25 <= (time.monotonic() - obtained) / 4 <= 0.6
        agent.pump(lambda: len(agent.identities) == 2, "a second identity")
        assert agent.identities[0]["key"] != agent.identities[1]["key"]
        assert renewals(control)[0].token_secret == ""
    finally:
        control.stop()


def test_a_refused_renewal_is_tried_again_and_rings_at_60_percent(
    tmp_path: Path, authority: Authority, agents: list[MeshAgent]
) -> None:
    control = ControlPlane(authority, ttl_s=6)
    try:
        agents.append(agent := MeshAgent(tmp_path, control))
        agent.until_meshed()
        control.refusal = "the issuer is resting"
        agent.pump(lambda: agent.events("the certificate is not renewed"), "the alarm")
        assert 2 <= len(renewals(control)) <= 6
        assert "meshfast_certificate_overdue 1" in agent.scrape()
        control.refusal = ""
        agent.pump(lambda: len(agent.identities) == 2, "a second identity")
        assert "meshfast_certificate_overdue 0" in agent.scrape()
    finally:
        control.stop()


def expire(control: ControlPlane) -> None:
    """An outage for longer than the life of a certificate."""
    control.stop()
    time.sleep(control.ttl_s + 0.1)
    control.start()


def test_a_certificate_that_expired_in_an_outage_is_renewed_without_the_token(
    tmp_path: Path, authority: Authority, agents: list[MeshAgent]
) -> None:
    control = ControlPlane(authority, ttl_s=2)
    try:
        agents.append(agent := MeshAgent(tmp_path, control))
        agent.until_meshed()
        expire(control)
        agent.pump(lambda: len(agent.identities) >= 2, "a second identity")
        request = control.said_of(CertificateRequest)[-1]
        assert (request.token_id, request.instance) == ("", "payment-9.host")
        assert request.previous
        assert agent.identities[1]["key"] == agent.identities[0]["key"]
        agent.pump(lambda: len(control.peers) == 2, "it is connected")
    finally:
        control.stop()


@pytest.mark.parametrize("forgets", [False, True])
def test_a_start_with_an_expired_certificate_renews_it_or_takes_the_token(
    tmp_path: Path, authority: Authority, agents: list[MeshAgent], forgets: bool
) -> None:
    control = ControlPlane(authority, ttl_s=2)
    try:
        agents.append(first := MeshAgent(tmp_path, control))
        first.until_meshed()
        first.stop()
        expire(control)
        control.forgets, control.uses = forgets, 2
        agents.append(second := MeshAgent(tmp_path, control))
        second.until_meshed()
        assert second.events("kept identity has expired")
        assert len(control.joined) == 1 + forgets
    finally:
        control.stop()


# joins whose answer was lost


def test_a_lost_answer_to_a_join_costs_no_other_use(
    tmp_path: Path, control: ControlPlane, agents: list[MeshAgent]
) -> None:
    control.loses = 2
    agents.append(agent := MeshAgent(tmp_path, control))
    agent.until_meshed()
    assert len(control.said_of(CertificateRequest)) == 3
    assert len(control.joined) == control.uses == 1
    wait_for(lambda: not (agent.state_dir / "joining").exists())


def test_a_join_that_was_cut_off_is_gone_on_with_after_a_restart(
    tmp_path: Path, control: ControlPlane, agents: list[MeshAgent]
) -> None:
    control.loses = 1_000_000
    agents.append(first := MeshAgent(tmp_path, control))
    first.pump(lambda: control.joined, "the token is used")
    assert (first.state_dir / "joining").stat().st_mode & 0o777 == 0o600
    first.stop()
    control.loses = 0
    agents.append(second := MeshAgent(tmp_path, control))
    second.until_meshed()
    assert len(control.joined) == 1
    second.stop()
    assert sorted(os.listdir(second.state_dir)) == ["identity", "resources", "running"]


def test_a_join_in_memory_leaves_no_key_on_disk(
    tmp_path: Path, control: ControlPlane, agents: list[MeshAgent]
) -> None:
    control.loses = 1
    agents.append(agent := MeshAgent(tmp_path, control, key_storage="memory"))
    agent.pump(lambda: control.joined, "the token is used")
    assert "joining" not in os.listdir(agent.state_dir)
    agent.until_meshed()
    assert len(control.joined) == 1


def test_a_key_that_is_refused_is_replaced(
    tmp_path: Path, control: ControlPlane, agents: list[MeshAgent]
) -> None:
    control.refusal = "key_age: the key has been certified for 30 days: change it"
    agents.append(agent := MeshAgent(tmp_path, control))
    agent.pump(lambda: len(control.said_of(CertificateRequest)) >= 2, "it tries again")
    first, second = (one.csr for one in control.said_of(CertificateRequest)[:2])
    assert public_key(first) != public_key(second)


def public_key(csr: bytes) -> object:
    return x509.load_der_x509_csr(csr).public_key()
