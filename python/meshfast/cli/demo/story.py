"""What the demo shows, as a list of acts: each changes one thing and measures what follows.

Two versions of one service run as ordinary processes; `meshfast proxy` stands in front. The acts:
all traffic to v1; a canary of 10 % for v2 by editing the file and sending SIGHUP; a worker killed
with SIGKILL; a hot restart; the canary taken back; the end by SIGTERM with requests under way.
Every act has an expectation; one that is not met makes the demo fail.

Tests: tests/demo/test_demo.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from meshfast.cli.demo.load import Load, Sample
from meshfast.errors import MeshfastError

__all__ = ["Act", "Result", "Stage", "play"]

READY_S = 15.0

CONFIG = """\
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: edge}}
spec:
  servers:
    - port: {{number: {port}, name: http, protocol: HTTP}}
      bind: 127.0.0.1
      hosts: ["*"]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: payment}}
spec:
  hosts: ["*"]
  gateways: [edge]
  http:
    - route:
        - destination: {{host: payment-v1}}
          weight: {v1}
        - destination: {{host: payment-v2}}
          weight: {v2}
"""

SERVICE = """\
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: payment-{version}}}
spec:
  hosts: [payment-{version}]
  ports:
    - {{number: {port}, name: http, protocol: HTTP}}
  location: MESH_INTERNAL
  resolution: STATIC
  endpoints:
    - address: 127.0.0.1
      labels: {{app: payment, version: {version}}}
"""


class DemoError(MeshfastError):
    """The demo could not be set up."""


@dataclass(frozen=True)
class Result:
    """One act: what was done, what was measured, and what was wrong with it, if anything.

    `changing` is what was answered while the change was made, `sample` what was answered after it.
    """

    title: str
    changing: Sample
    sample: Sample
    problem: str

    @property
    def errors(self) -> int:
        """Every request of the act that was not answered well."""
        return self.changing.errors + self.sample.errors


@dataclass(frozen=True)
class Act:
    """One step of the story. `v2_share` is what v2 should get of the answers, 0 to 1."""

    title: str
    seconds: float
    v2_share: float
    change: Callable[[Stage], None]


class Stage:
    """The running processes of the demo."""

    def __init__(self, folder: Path, meshfast: Path) -> None:
        """Start two services and a proxy in front of them."""
        self.folder = folder
        self.port, self.metrics_port, *self.service_ports = _free_ports(4)
        self._config = folder / "mesh.yaml"
        self._processes: list[subprocess.Popen[bytes]] = []
        self.write_weights(100, 0)
        services = zip(("v1", "v2"), self.service_ports, strict=True)
        for version, port in services:
            module = ["-I", "-m", "meshfast.cli.demo.service", "payment", version, str(port)]
            self._start([sys.executable, *module])
        _wait_until("the services to answer", lambda: all(map(_accepts, self.service_ports)))
        self.proxy = self._start(
            [
                str(meshfast),
                "proxy",
                "-c",
                str(self._config),
                "--workers",
                "2",
                "--metrics-address",
                f"127.0.0.1:{self.metrics_port}",
                "--access-log",
                str(folder / "access.log"),
                "--runtime-dir",
                str(folder / "run"),
            ]
        )
        _wait_until("the proxy to be ready", self._is_ready)

    def write_weights(self, v1: int, v2: int) -> None:
        """Write the configuration with these weights; the proxy does not know yet."""
        text = CONFIG.format(port=self.port, v1=v1, v2=v2)
        for version, port in zip(("v1", "v2"), self.service_ports, strict=True):
            text += SERVICE.format(version=version, port=port)
        self._config.write_text(text)

    def shift(self, v1: int, v2: int) -> None:
        """Write the weights and have the proxy read them; return when all workers have."""
        before = self._generation()
        self.write_weights(v1, v2)
        self.proxy.send_signal(signal.SIGHUP)
        _wait_until("the workers to take the configuration", lambda: self._generation() > before)

    def kill_a_worker(self) -> None:
        """Kill one worker without warning; return when its successor serves."""
        before = set(self._workers())
        os.kill(max(before), signal.SIGKILL)
        _wait_until("a new worker", lambda: len(set(self._workers()) - before) == 1)

    def restart(self) -> None:
        """Replace supervisor image, agent and workers; return when none of the old is left."""
        before = set(self._workers())
        self.proxy.send_signal(signal.SIGUSR2)
        _wait_until(
            "every worker to be replaced",
            lambda: len(self._workers()) == len(before) and not before & set(self._workers()),
            seconds=60,
        )

    def drain(self) -> None:
        """Ask the proxy to end and wait until it has."""
        self.proxy.send_signal(signal.SIGTERM)
        self.proxy.wait(timeout=60)

    def close(self) -> None:
        """End everything that still runs."""
        for process in reversed(self._processes):
            if process.poll() is None:
                process.terminate()
        for process in reversed(self._processes):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
            if process.poll() is None:
                process.kill()
                process.wait()

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        log = (self.folder / "processes.log").open("ab")
        with log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        self._processes.append(process)
        return process

    def _is_ready(self) -> bool:
        if self.proxy.poll() is not None:
            text = (self.folder / "processes.log").read_text()
            raise DemoError(f"the proxy ended with {self.proxy.returncode}:\n{text}")
        with contextlib.suppress(OSError):
            url = f"http://127.0.0.1:{self.metrics_port}/healthz/ready"
            with urllib.request.urlopen(url, timeout=2) as answer:
                return bool(answer.status == 200)
        return False

    def _generation(self) -> int:
        """The oldest generation that a worker serves from."""
        url = f"http://127.0.0.1:{self.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        name = "meshfast_worker_generation{"
        return min(int(float(line.split()[-1])) for line in lines if line.startswith(name))

    def _workers(self) -> list[int]:
        path = Path(f"/proc/{self.proxy.pid}/task/{self.proxy.pid}/children")
        pids = [int(pid) for pid in path.read_text().split()]
        return [pid for pid in pids if _process_name(pid) == "meshfast-worker"]


ACTS = (
    Act("all traffic to v1", 1.0, 0.0, lambda stage: None),
    Act("canary: 10 % to v2 (SIGHUP)", 3.0, 0.1, lambda stage: stage.shift(90, 10)),
    Act("a worker is killed (SIGKILL)", 1.0, 0.1, Stage.kill_a_worker),
    Act("hot restart (SIGUSR2)", 1.0, 0.1, Stage.restart),
    Act("canary taken back: 0 % to v2", 1.0, 0.0, lambda stage: stage.shift(100, 0)),
)

# A share of a random split is near its weight: five standard deviations of a thousand answers.
SHARE_TOLERANCE = 0.05
# A killed worker takes what it carried with it: one request a caller.
LOST_WITH_A_WORKER = 4


def play(stage: Stage, seconds: float) -> Iterator[Result]:
    """Play the acts, stretched to about `seconds` in all; yield each one's result."""
    stretch = seconds / sum(act.seconds for act in ACTS)
    load = Load(stage.port)
    try:
        for act in ACTS:
            act.change(stage)
            during = load.take()
            time.sleep(act.seconds * stretch)
            after = load.take()
            yield Result(act.title, during, after, _judge(act, during, after))
        stage.drain()
    finally:
        load.stop()


def _judge(act: Act, during: Sample, after: Sample) -> str:
    allowed = LOST_WITH_A_WORKER if act.change is Stage.kill_a_worker else 0
    if during.errors + after.errors > allowed:
        return f"{during.errors + after.errors} errors"
    share = after.share("v2")
    if act.v2_share == 0.0 and share > 0.0:
        return f"v2 still got {share:.1%}"
    if abs(share - act.v2_share) > SHARE_TOLERANCE:
        return f"v2 got {share:.1%}, not {act.v2_share:.0%}"
    return ""


def _wait_until(what: str, condition: Callable[[], bool], seconds: float = READY_S) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise DemoError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.02)


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _process_name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
