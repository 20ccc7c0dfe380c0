"""A proxy under steady load for a long time, with every planned event again and again.

Each round reads an edited file, rotates the access log and, in one of the two tests, restarts hot.
What must hold over any number of rounds: no request fails, no descriptor stays behind, memory does
not grow. With restarts that is said of the supervisor, without them of the workers and the agent
too. `SOAK_S` says for how many seconds of load, 60 unless told, half for each test; `make soak`
runs them, `make test` does not.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.dataplane.harness import Proxy, echo_origin, free_port, wait_for
from tests.dataplane.test_lifecycle import Load

pytestmark = pytest.mark.soak

SECONDS = float(os.environ.get("SOAK_S", "60")) / 2
WORKERS = 2
# What allocators of four processes may differ by; in half a minute of 5,000 requests a second it is
# 55 bytes a request.
GROWTH_KB_MAX = 8 * 1024
# Idle upstream connections close after 3 s (meshfast.policy.clusters), drains wait 5 s.
QUIET_S = 6.0

CONFIG = """\
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: edge}}
spec:
  servers:
    - {{port: {{number: {port}, name: http, protocol: HTTP}}, bind: 127.0.0.1, hosts: ["*"]}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: web}}
spec:
  hosts: ["*"]
  gateways: [edge]
  http:
    - name: round-{round}
      route: [{{destination: {{host: web}}}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: web}}
spec:
  hosts: [web]
  ports: [{{number: {upstream}, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints: [{{address: 127.0.0.1}}]
"""


@pytest.mark.parametrize("restarts", [False, True], ids=["reloads", "reloads-and-restarts"])
def test_rounds_fail_no_request_and_leave_nothing_behind(tmp_path: Path, restarts: bool) -> None:
    port, config = free_port(), tmp_path / "mesh.yaml"
    with echo_origin() as origin:

        def write(number: int) -> None:
            text = CONFIG.format(port=port, upstream=origin.port, round=number)
            config.write_text(text)

        write(0)
        with Proxy(["-c", str(config)], tmp_path, WORKERS) as proxy:
            # The first round fills caches and pools; what is held afterwards is what may be held.
            with Load(port) as load:
                write(1)
                play(proxy, load, restarts)
                outcomes = load.stop()
            assert set(outcomes) == {"ok"}, outcomes
            descriptors, memory_kb = settled(proxy)
            end, number = time.monotonic() + SECONDS, 1
            with Load(port) as load:
                while time.monotonic() < end:
                    number += 1
                    write(number)
                    play(proxy, load, restarts)
                outcomes = load.stop()
            assert set(outcomes) == {"ok"}, outcomes
            assert number > 2, "there was time for no more than one round"
            told = f"after {number} rounds and {outcomes['ok']} requests"
            descriptors_now, memory_now_kb = settled(proxy)
            print(f"{told}: {descriptors_now} descriptors, {memory_now_kb} kB")
            assert descriptors_now <= descriptors, told
            assert memory_now_kb <= memory_kb + GROWTH_KB_MAX, told


def play(proxy: Proxy, load: Load, restarts: bool) -> None:
    """One round, with traffic after each event."""
    before = generation(proxy)
    proxy.process.send_signal(signal.SIGHUP)
    wait_for("the workers to take the configuration", lambda: generation(proxy) > before)
    load.goes_on()
    proxy.log.rename(proxy.log.with_suffix(".old"))
    proxy.process.send_signal(signal.SIGUSR1)
    wait_for("a new access log", proxy.log.exists)
    load.goes_on()
    if not restarts:
        return
    replaced = set(proxy.children())
    proxy.process.send_signal(signal.SIGUSR2)
    wait_for("every process to be replaced", lambda: is_replaced(proxy, replaced), seconds=60)
    load.goes_on()


def generation(proxy: Proxy) -> float:
    """Return the oldest snapshot that a worker serves from, 0 while nobody answers."""
    try:
        samples = proxy.metrics().get("meshfast_worker_generation", [])
    except OSError:
        return 0.0
    return min((value for _, value in samples), default=0.0)


def is_replaced(proxy: Proxy, old: set[int]) -> bool:
    now = set(proxy.children())
    return len(now) == WORKERS + 1 and not now & old and generation(proxy) > 0


def settled(proxy: Proxy) -> tuple[int, int]:
    """Return descriptors and memory (PSS, kB) of all processes once idle connections have gone."""
    smallest, since = descriptors_of(proxy), time.monotonic()
    while time.monotonic() - since < QUIET_S:
        time.sleep(0.1)
        count = descriptors_of(proxy)
        if count < smallest:
            smallest, since = count, time.monotonic()
    return smallest, sum(pss_kb(pid) for pid in pids(proxy))


def pids(proxy: Proxy) -> list[int]:
    return [proxy.process.pid, *proxy.children()]


def descriptors_of(proxy: Proxy) -> int:
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids(proxy))


def pss_kb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
