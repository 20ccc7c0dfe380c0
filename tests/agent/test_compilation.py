"""The real compiler on the real snapshot compiler: what it takes for a change."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from meshfast import _core
from meshfast.agent.compilation import COMPILER, Compilation
from meshfast.agent.loop import Loop
from meshfast.policy import SlotAllocator, Source, build_source

TEXT = """\
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  servers:
    - port: {number: 8080, name: http, protocol: HTTP}
      hosts: ["*"]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web}
spec:
  hosts: ["*"]
  gateways: [edge]
  http:
    - route: [{destination: {host: web}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: web}
spec:
  hosts: [web]
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: DNS
  endpoints: [{address: web.test}]
"""


def compiled(source: Source, answer: str) -> Compilation:
    """Compile what runs already, with `answer` as the address of its only name."""
    _, blob = build_source(
        source,
        generation=1,
        allocator=SlotAllocator(),
        resolve=lambda host: ["192.0.2.1"],
        build=_core.Snapshot.build,
    )
    running_fd = os.memfd_create("running")
    os.write(running_fd, blob)
    request: dict[str, Any] = {
        "generation": 2,
        "hosts": {"web.test": [answer]},
        "reserved": [],
        "source": msgspec.to_builtins(source),
    }
    run = Compilation(request, running_fd, None)
    loop = Loop()
    run.run(loop, COMPILER, loop.stop)
    loop.run()
    loop._selector.close()
    os.close(running_fd)
    run.close()
    return run


@pytest.mark.parametrize(
    ("answer", "changed"), [("192.0.2.1", "nothing"), ("192.0.2.2", "endpoints")]
)
def test_an_answer_of_dns_changes_endpoints_or_nothing(
    tmp_path: Path, answer: str, changed: str
) -> None:
    file = tmp_path / "mesh.yaml"
    file.write_text(TEXT)
    run = compiled(Source(config_path=str(file), zipkin_address="zipkin:9411"), answer)
    assert (run.problems, run.changed) == ([], changed)
