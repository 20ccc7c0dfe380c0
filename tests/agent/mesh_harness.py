"""A sidecar agent under test: its control plane, its state directory, a supervisor by hand."""

import base64
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from meshfast.policy import SlotAllocator
from meshfast.policy.document import encode_document
from meshfast.policy.sidecar import Sidecar, compose
from tests.agent.fakes.control_plane import IDENTITY, SECRET, ControlPlane
from tests.agent.harness import DEADLINE_S, Supervised

PRINCIPAL = "spiffe://cluster.local/ns/default/sa/payment"
INBOUND = "inbound/127.0.0.1:15006"
OUTBOUND = "outbound/127.0.0.1:15001"


def cluster(name: str, **changes: Any) -> dict[str, Any]:
    """A cluster as the control plane sends it."""
    host = name.rpartition("|")[2]
    return {
        "name": name,
        "service": {"host": host, "name": host.partition(".")[0], "namespace": "default"},
        "subset": "",
        "balancer": "LEAST_REQUEST",
        "connect_timeout_ms": 10_000,
        "idle_timeout_ms": 3_000,
        "endpoints": [],
        "tls": {"mode": "ISTIO_MUTUAL"},
    } | changes


def endpoint(address: str, **changes: Any) -> dict[str, Any]:
    """An endpoint as the control plane sends it."""
    workload = {
        "name": "order-v1",
        "namespace": "default",
        "app": "order",
        "revision": "v1",
        "principal": "spiffe://cluster.local/ns/default/sa/order",
    }
    return {"address": address, "weight": 1, "workload": workload, "healthy": True} | changes


def virtual_host(cluster: str, **match: Any) -> dict[str, Any]:
    """All of a host to one cluster."""
    host = cluster.rpartition("|")[2]
    return {
        "name": host,
        "domains": [host],
        "routes": [
            {
                "name": f"{host}/0",
                "matches": [{"uri": match}] if match else [],
                "timeout_ms": None,
                "destinations": [{"cluster": cluster, "weight": 1}],
            }
        ],
    }


ORDER = "outbound|80||order.default"


class MeshAgent(Supervised):
    """The agent of the service payment. `documents` and `identities` are what it handed over."""

    def __init__(
        self,
        directory: Path,
        control: ControlPlane,
        *,
        app_port: int = 9,
        secret: str = SECRET,
        **mesh: Any,
    ) -> None:
        self.state_dir = directory / "state" / "payment"
        directory.mkdir(exist_ok=True)
        sidecar = Sidecar(
            service="payment",
            namespace="default",
            workload="payment-v1",
            labels={"version": "v1"},
            principal=PRINCIPAL,
            app_port=app_port,
            inbound=INBOUND,
            outbound=OUTBOUND,
            upstreams=mesh.pop("upstreams", ()),
            service_port=mesh.pop("service_port", 0),
        )
        settings = {
            "sidecar": msgspec.to_builtins(sidecar),
            "control": control.address,
            "control_identity": IDENTITY,
            "roots": [base64.b64encode(control.authority.root).decode()],
            "trust_domain": "cluster.local",
            "instance": "payment-9.host",
            "state_dir": str(self.state_dir),
            "token_id": "token-1" if secret else "",
            "token_secret": secret,
            **mesh,
        }
        first = compose(sidecar, {}, generation=1, allocator=SlotAllocator())
        self.documents: list[dict[str, Any]] = []
        self.identities: list[dict[str, Any]] = []
        self.is_meshed = False
        self.has_withdrawn = False
        self.hopeless: list[str] = []  # why it has said that it will not get into the mesh
        self.holds_back = False  # snapshots are not answered
        self.first: dict[str, Any] = json.loads(encode_document(first))
        super().__init__(directory, document=self.first, mesh=settings)
        self.send(type="serving")

    def pump(self, until: Callable[[], object], what: str, seconds: float = DEADLINE_S) -> None:
        """Be the supervisor until something is true."""
        deadline = time.monotonic() + seconds
        self.control.settimeout(0.005)
        while not until():
            assert time.monotonic() < deadline, (
                f"not in {seconds} s: {what}\n{self.log.read_text()}"
            )
            try:
                message, fds = self.receive_with_fds()
            except TimeoutError:
                continue
            self.obey(message, fds)

    def obey(self, message: dict[str, Any], fds: list[int]) -> None:
        """Take one message as the supervisor would, with workers that are quick."""
        data = [os.pread(fd, os.fstat(fd).st_size, 0) for fd in fds]
        for fd in fds:
            os.close(fd)
        if message["type"] == "snapshot":
            self.documents.append(json.loads(data[0]))
            if not self.holds_back:
                self.answer_snapshot()
        elif message["type"] == "identity":
            self.identities.append(json.loads(data[0]))
            self.send(type="identity_applied", serial=message["serial"])
        elif message["type"] == "meshed":
            self.is_meshed = True
        elif message["type"] == "hopeless":
            self.hopeless.append(message["reason"])
        elif message["type"] == "withdrawn":
            self.has_withdrawn = True

    def answer_snapshot(self) -> None:
        """Say that all workers serve from the newest snapshot."""
        generation = self.documents[-1]["generation"]
        worker = {"generation": generation, "oldest_generation": generation}
        self.record(workers=[_worker(**worker)])
        self.send(type="applied", generation=generation)

    def until_meshed(self, seconds: float = DEADLINE_S) -> None:
        self.pump(lambda: self.is_meshed, "meshed", seconds)

    @property
    def document(self) -> dict[str, Any]:
        """The newest document, or the one at start."""
        return self.documents[-1] if self.documents else self.first

    def cluster_names(self) -> list[str]:
        return [one["name"] for one in self.document["clusters"]]

    def hosts(self) -> list[str]:
        return [one["name"] for one in self.document["listeners"][0]["virtual_hosts"]]

    def endpoints_of(self, name: str) -> dict[str, int]:
        """Address → slot; nothing while the cluster is not there."""
        found = [one for one in self.document["clusters"] if one["name"] == name]
        return {one["address"]: one["slot"] for cluster in found for one in cluster["endpoints"]}


def _worker(**changes: Any) -> dict[str, Any]:
    from tests.agent.fakes import recorded

    return recorded.worker(**changes)
