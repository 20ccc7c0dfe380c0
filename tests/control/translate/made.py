"""Workloads and resources for the tests of translation."""

import json
from typing import Any

from meshfast.control.registry import WorkloadRecord
from meshfast.control.translate import Translation
from meshfast.discovery import Port
from meshfast.resources import Loaded, load_text


def workload(
    service: str = "payment",
    *ports: Port,
    instance: str = "",
    namespace: str = "default",
    at: int = 0,
    **more: Any,
) -> WorkloadRecord:
    """A workload at 10.0.0.`at`."""
    return WorkloadRecord(
        instance=instance or f"{service}-{at}",
        workload=f"{service}-{at}",
        namespace=namespace,
        service=service,
        identity=f"spiffe://cluster.local/ns/{namespace}/sa/{service}",
        address=f"10.0.0.{at}:15006",
        ports=ports or (Port(8080),),
        **more,
    )


def resources(text: str, file: str = "mesh.yaml") -> list[Loaded]:
    return load_text(text, file)


def rule(
    http: str, *, name: str = "rule", hosts: str = "payment", namespace: str = "default"
) -> str:
    """A VirtualService; `http` is the list of its routes in YAML's flow style."""
    return f"""
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{hosts: [{hosts}], http: {http}}}
"""


def to(host: str, port: int = 0, weight: int = 0, subset: str = "") -> str:
    selector = f", port: {{number: {port}}}" if port else ""
    selector += f", subset: {subset}" if subset else ""
    share = f", weight: {weight}" if weight else ""
    return f"{{destination: {{host: {host}{selector}}}{share}}}"


def versions(*subsets: str, host: str = "payment", name: str = "versions", rest: str = "") -> str:
    """A DestinationRule with a subset for each version."""
    listed = ", ".join(f"{{name: {one}, labels: {{version: {one}}}}}" for one in subsets)
    return f"""
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {name}}}
spec: {{host: {host}, subsets: [{listed}]{rest}}}
"""


def endpoint(name: str, *, address: str = "10.8.0.1", app: str = "api", version: str = "v1") -> str:
    """A WorkloadEntry."""
    return f"""
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {{name: {name}}}
spec: {{address: {address}, labels: {{app: {app}, version: {version}}}}}
"""


def entry(
    host: str = "api.example.com",
    *,
    name: str = "api",
    ports: str = "[{number: 80, name: http, protocol: HTTP}]",
    rest: str = "resolution: STATIC, endpoints: [{address: 10.9.9.9}]",
    namespace: str = "default",
) -> str:
    return f"""
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{hosts: [{host}], ports: {ports}, {rest}}}
"""


def translated(
    text: str = "", *workloads: WorkloadRecord, namespace: str = "default", **names: list[str]
) -> dict[str, Any]:
    """Everything that a namespace is sent, decoded; `names` are what hosts resolve to."""
    answers = {name.replace("_", "."): found for name, found in names.items()}
    translation = Translation(
        resources(text) if text else [], workloads, lambda host: answers.get(host, [])
    )
    return {
        type: {name: json.loads(body) for name, body in bodies.items()}
        for type, bodies in translation.bodies(namespace).items()
    }


def routes(view: dict[str, Any], domain: str) -> list[dict[str, Any]]:
    """The routes of the virtual host with a domain."""
    [found] = [host for host in view["route"]["outbound"] if domain in host["domains"]]
    assert isinstance(found["routes"], list)
    return found["routes"]


def clusters(route: dict[str, Any]) -> list[str]:
    return [one["cluster"] for one in route["destinations"]]
