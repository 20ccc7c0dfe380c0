"""Planned and unplanned events of the processes, under load: nothing refused, nothing hung.

The load is a closed loop of clients that open a connection per request or keep one, and count every
outcome. The rows are those of docs/deaths.md with the real worker; tests/supervisor has them with a
scripted one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.dataplane.harness import Client, Origin, Proxy, echo_origin, forwarding, wait_for


class Load:
    """`clients` threads that ask in a loop; half of them keep their connection."""

    def __init__(self, port: int, clients: int = 8) -> None:
        """Start."""
        self.port = port
        self.outcomes: Counter[str] = Counter()
        self.slowest_s = 0.0
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.threads = [
            threading.Thread(target=self._run, args=(number % 2 == 0,)) for number in range(clients)
        ]
        for thread in self.threads:
            thread.start()
        wait_for("the load to run", lambda: self.outcomes["ok"] > 50)

    def _run(self, keeps: bool) -> None:
        client: Client | None = None
        while not self._stop.is_set():
            start = time.monotonic()
            outcome = "ok"
            try:
                client = client or Client(self.port, seconds=10)
                client.send(b"GET /load HTTP/1.1\r\nHost: a\r\n\r\n")
                response = client.response()
                if response.status != 200:
                    outcome = f"status {response.status}"
                is_over = not keeps or response.header("connection") == "close"
            except ConnectionRefusedError:
                outcome, is_over = "refused", True
            except TimeoutError:
                outcome, is_over = "hung", True
            except (ConnectionError, ValueError):
                outcome, is_over = "broken", True
            if is_over and client:
                client.close()
                client = None
            with self._lock:
                self.outcomes[outcome] += 1
                self.slowest_s = max(self.slowest_s, time.monotonic() - start)
        if client:
            client.close()

    def goes_on(self) -> None:
        """Wait until 100 more requests have been answered well."""
        count = self.outcomes["ok"]
        wait_for("traffic to go on", lambda: self.outcomes["ok"] > count + 100)

    def stop(self) -> Counter[str]:
        """Stop and return what happened."""
        self._stop.set()
        for thread in self.threads:
            thread.join()
        return self.outcomes

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def test_a_killed_worker_costs_only_what_it_carried(tmp_path: Path) -> None:
    with echo_origin() as origin, forwarding(origin, tmp_path, workers=2) as (proxy, port):
        with Load(port) as load:
            for _ in range(5):
                kill_a_worker(proxy)
                load.goes_on()
            outcomes = load.stop()
        assert outcomes["refused"] == 0, outcomes
        assert outcomes["hung"] == 0, outcomes
        assert outcomes["broken"] <= 5 * 8, outcomes
        assert not [key for key in outcomes if key.startswith("status")], outcomes


def kill_a_worker(proxy: Proxy) -> None:
    """Kill one; its successor must be there within half a second."""
    before = set(proxy.children())
    os.kill(max(pid for pid in before if is_worker(pid)), signal.SIGKILL)
    wait_for("a successor", lambda: set(proxy.children()) - before, 0.5)


def restart(proxy: Proxy) -> None:
    """Restart in place; return when every child is a new one and the proxy is ready."""
    before = set(proxy.children())
    proxy.process.send_signal(signal.SIGUSR2)
    wait_for("every child to be replaced", lambda: not before & set(proxy.children()), 40)
    wait_for("readiness", lambda: proxy.get("/healthz/ready")[0] == 200)


def is_worker(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text() == "meshfast-worker\n"
    except OSError:
        return False


def test_sigterm_finishes_what_is_in_flight(tmp_path: Path) -> None:
    release = threading.Event()

    def script(client: Client) -> None:
        origin.request(client)
        release.wait(10)
        client.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone")

    with Origin(script) as origin, forwarding(origin, tmp_path) as (proxy, port):
        with Client(port) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            wait_for("the request to be in flight", lambda: origin.heads)
            proxy.process.send_signal(signal.SIGTERM)
            wait_for("not ready", lambda: proxy.get("/healthz/ready")[0] == 503, 2)
            release.set()
            response = client.response()
            assert response.body == b"done"
            assert response.header("connection") == "close"
        assert proxy.process.wait(timeout=10) == 0


def test_a_keep_alive_client_is_told_before_it_is_closed(tmp_path: Path) -> None:
    with echo_origin() as origin, forwarding(origin, tmp_path, workers=2) as (proxy, port):
        with Load(port) as load:
            proxy.process.send_signal(signal.SIGTERM)
            code = proxy.process.wait(timeout=15)
            outcomes = load.stop()
        assert code == 0
        assert outcomes["broken"] == 0, outcomes
        assert outcomes["hung"] == 0, outcomes


def test_hot_restart_fails_no_request(tmp_path: Path) -> None:
    with echo_origin() as origin, forwarding(origin, tmp_path, workers=2) as (proxy, port):
        with Load(port) as load:
            for _ in range(3):
                restart(proxy)
                load.goes_on()
            outcomes = load.stop()
        assert set(outcomes) == {"ok"}, outcomes


LAYOUT_AT = 8  # in the header of the shared memory, behind the magic


def test_an_image_of_another_layout_is_refused_and_traffic_goes_on(tmp_path: Path) -> None:
    with echo_origin() as origin, forwarding(origin, tmp_path, workers=2) as (proxy, port):
        folder = Path(f"/proc/{proxy.process.pid}/fd")
        shared = max(
            (fd for fd in folder.iterdir() if "memfd:" in os.readlink(fd)),
            key=lambda fd: fd.stat().st_size,
        )
        children = set(proxy.children())
        with shared.open("r+b", buffering=0) as memory, Load(port) as load:
            layout = os.pread(memory.fileno(), 4, LAYOUT_AT)
            other = int.from_bytes(layout, sys.byteorder) + 1
            os.pwrite(memory.fileno(), other.to_bytes(4, sys.byteorder), LAYOUT_AT)
            proxy.process.send_signal(signal.SIGUSR2)
            wait_for("the refusal", lambda: "hot restart abandoned" in proxy.stderr(), 30)
            assert "has taken over" not in proxy.stderr()
            assert f"shared memory has layout {other}, this meshfast reads" in proxy.stderr()
            load.goes_on()
            assert set(proxy.children()) == children
            os.pwrite(memory.fileno(), layout, LAYOUT_AT)
            restart(proxy)
            load.goes_on()
            outcomes = load.stop()
        assert set(outcomes) == {"ok"}, outcomes


def test_counters_never_go_backwards_when_a_worker_dies(tmp_path: Path) -> None:
    with echo_origin() as origin, forwarding(origin, tmp_path) as (proxy, port):
        with Client(port) as client:
            for _ in range(10):
                client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
                client.response()
        assert requests_total(proxy.metrics()) == 10
        before = set(proxy.children())
        for pid in before:
            if is_worker(pid):
                os.kill(pid, signal.SIGKILL)
        wait_for("a successor", lambda: set(proxy.children()) - before)
        with Client(port) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            client.response()
        assert requests_total(proxy.metrics()) == 11
        assert sum(v for _, v in proxy.metrics()["meshfast_worker_connections"]) <= 1


def requests_total(samples: dict[str, list[tuple[dict[str, str], float]]]) -> float:
    return sum(value for _, value in samples["istio_requests_total"])


def test_traffic_goes_on_while_supervisor_and_agent_are_stopped(tmp_path: Path) -> None:
    with echo_origin() as origin, forwarding(origin, tmp_path, workers=2) as (proxy, port):
        stopped = [proxy.process.pid, *(p for p in proxy.children() if not is_worker(p))]
        assert len(stopped) == 2
        with Load(port) as load:
            for pid in stopped:
                os.kill(pid, signal.SIGSTOP)
            try:
                count = load.outcomes["ok"]
                wait_for("3000 more requests", lambda: load.outcomes["ok"] > count + 3000, 60)
            finally:
                for pid in stopped:
                    os.kill(pid, signal.SIGCONT)
            outcomes = load.stop()
        assert set(outcomes) == {"ok"}, outcomes


def test_when_the_supervisor_is_killed_everything_drains_and_ends(tmp_path: Path) -> None:
    with echo_origin() as origin, forwarding(origin, tmp_path, workers=2) as (proxy, port):
        children = proxy.children()
        with Client(port) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert client.response().status == 200
            proxy.process.kill()
            proxy.process.wait()
            client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            response = client.response()
            assert response.status == 200, "what is connected is served to its end"
            assert response.header("connection") == "close"
        wait_for("all children to end", lambda: not [p for p in children if is_alive(p)])
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0]
    except OSError:
        return False
    return state != "Z"


def test_connections_are_shared_out_evenly(tmp_path: Path) -> None:
    with (
        echo_origin() as origin,
        forwarding(origin, tmp_path, workers=2) as (proxy, port),
        contextlib.ExitStack() as clients,
    ):

        def shares() -> list[float]:
            return [value for _, value in proxy.metrics()["meshfast_worker_connections"]]

        def connect(count: int) -> None:
            clients.enter_context(Client(port))
            # A connection on its way to another worker is in nobody's count yet.
            wait_for(f"{count} connections", lambda: sum(shares()) == count)

        # One at a time: workers that accept at the same moment see each other's count of before.
        for count in range(1, 21):
            connect(count)
        assert max(shares()) - min(shares()) <= 1
