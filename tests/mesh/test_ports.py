"""The ports of a service: what its workloads listen on, and what is left when all have gone."""

from __future__ import annotations

import http.server
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.mesh.harness import Fixture, Sidecar, until_reached, wait_until


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Fixture]:
    one = Fixture(tmp_path)
    yield one
    one.close()


def test_each_workload_is_called_at_the_port_that_it_listens_on(mesh: Fixture) -> None:
    replicas = [mesh.serve("payment", version=version) for version in ("v1", "v2")]
    names = {one.name for one in replicas}
    order = mesh.run("order")
    for one in replicas:
        url = f"http://payment:{one.port}/"
        until_answered_by(order, url, names)
        answers = [order.get(url) for _ in range(60)]
        assert Counter(status for status, _ in answers) == {200: 60}, answers
        assert {body["name"] for _, body in answers} == names


def until_answered_by(caller: Sidecar, url: str, names: set[str]) -> None:
    """Call until all of them have answered; registrations arrive one by one."""
    answered: set[str] = set()

    def all_have() -> bool:
        status, body = caller.get(url)
        if status == 200:
            answered.add(body["name"])
        return answered == names

    wait_until(all_have, f"{names} answer at {url}:\n{caller.text}")


def test_what_has_left_is_not_there_at_its_ports_and_unknown_at_others(mesh: Fixture) -> None:
    access = mesh.folder / "order.access"
    order = mesh.run("order", "--access-log", str(access))
    # The one name that resolves on every host: in plain text it leads to a stranger.
    with stranger() as (port, calls):
        assert order.get(f"http://localhost:{port}/before")[0] == 200
        replicas = [mesh.serve("localhost", version=version) for version in ("v1", "v2")]
        for one in replicas:
            until_reached(order, f"http://localhost:{one.port}/")
        served = mesh.control.services()["localhost.default"]["ports"]
        assert served == sorted(one.port for one in replicas)
        for one in replicas:
            one.stop()
        for one in replicas:
            wait_until(partial(is_unserved, order, one.port), f"it has left:\n{order.text}")
        assert mesh.control.services()["localhost.default"]["ports"] == served
        assert order.get(f"http://localhost:{port}/after")[0] == 404
        status, connection = order.tunnel(f"localhost:{port}")
        connection.close()
        assert status == 404
        assert calls == ["/before"]

    def outcomes() -> dict[str, set[tuple[int, str, str]]]:
        found: dict[str, set[tuple[int, str, str]]] = {}
        for line in map(json.loads, access.read_text().splitlines()):
            outcome = (line["response_code"], line["response_flags"], line["upstream_cluster"])
            found.setdefault(line["path"], set()).add(outcome)
        return found

    wait_until(lambda: "/after" in outcomes(), "order records its calls")
    assert (503, "UH", f"outbound|{served[0]}||localhost.default") in outcomes()["/left"]
    assert {code for code, flags, _ in outcomes()["/left"] if flags != "UH"} <= {404, 200}
    assert {one[:2] for one in outcomes()["/after"]} == {(404, "NR")}


def is_unserved(caller: Sidecar, port: int) -> bool:
    """Tell whether the service is known, and nobody is there to serve it."""
    return caller.get(f"http://localhost:{port}/left")[0] == 503


@contextmanager
def stranger() -> Iterator[tuple[int, list[str]]]:
    """A server on loopback that belongs to no service: its port, and the paths it was asked for."""
    asked: list[str] = []

    class Stranger(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port, asked
        finally:
            server.shutdown()
            thread.join()
