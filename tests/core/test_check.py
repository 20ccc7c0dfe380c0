"""`meshfast check` on a tree of files in the place of /proc, and on a sidecar that answers."""

from __future__ import annotations

import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshfast.cli import check
from meshfast.errors import ConfigError

HEAD = (
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt uid timeout inode"
)
LOOPBACK, ANY, REMOTE = "0100007F", "00000000", "0500000A"  # 127.0.0.1, 0.0.0.0, 10.0.0.5
MAPPED = "0000000000000000FFFF0000"  # before an IPv4 address: as an IPv6 socket shows it
PROXY = "http://payment:secret@127.0.0.1:15001"


class Answering(http.server.BaseHTTPRequestHandler):
    """A sidecar's metrics socket: `ready` and `metrics` are what it says."""

    ready = (200, b"ready\n")
    metrics = b"meshfast_control_plane_connected 1\nmeshfast_certificate_overdue 0\n"

    def do_GET(self) -> None:
        status, body = self.ready if self.path == "/healthz/ready" else (200, self.metrics)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Host:
    """A sidecar `payment-8080` and a tree that stands for /proc."""

    def __init__(self, folder: Path, metrics: str) -> None:
        self.proc = folder / "proc"
        self.state = folder / "state"
        (self.proc / "net").mkdir(parents=True)
        self.state.mkdir()
        running = {
            "port": 8080,
            "outbound": "127.0.0.1:15001",
            "inbound": "0.0.0.0:15006",
            "metrics": metrics,
            "upstreams": ["127.0.0.1:5433", "0.0.0.0:6380", "[::1]:5434"],
        }
        (self.state / "running").write_text(json.dumps(running))
        self.connection(LOOPBACK, 8080, ANY, 0, "0A", 1)

    def connection(
        self, local: str, port: int, remote: str, remote_port: int, state: str, inode: int
    ) -> None:
        ends = f"{local}:{port:04X} {remote}:{remote_port:04X}"
        for name, is_of_it in (("tcp", len(local) == 8), ("tcp6", len(local) == 32)):
            if is_of_it:
                path = self.proc / "net" / name
                known = path.read_text() if path.exists() else HEAD + "\n"
                path.write_text(known + f"   0: {ends} {state} 0:0 0:0 0 0 0 {inode} 1\n")

    def process(self, pid: int, program: str, *inodes: int, **changes: str | None) -> None:
        folder = self.proc / str(pid)
        (folder / "fd").mkdir(parents=True)
        environment = {
            "MESHFAST_INSTANCE": "payment-8080",
            **dict.fromkeys(("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"), PROXY),
            "NO_PROXY": "localhost",
            **changes,
        }
        text = "".join(f"{k}={v}\0" for k, v in environment.items() if v is not None)
        (folder / "environ").write_text(text)
        (folder / "comm").write_text(program + "\n")
        for number, inode in enumerate(inodes):
            os.symlink(f"socket:[{inode}]", folder / "fd" / str(number))

    def found(self) -> list[tuple[str, str]]:
        neighbours = {8080: "payment-8080", 9090: "order-9090"}
        findings = check.findings_of("payment-8080", self.state, self.proc, neighbours)
        return [(one.kind, one.subject) for one in findings]


@pytest.fixture
def metrics() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def host(tmp_path: Path, metrics: str) -> Host:
    return Host(tmp_path, metrics)


def test_nothing_is_found_where_all_goes_through_the_sidecar(host: Host) -> None:
    host.process(10, "python", 2, 3)
    host.connection(LOOPBACK, 40000, LOOPBACK, 15001, "01", 2)
    host.connection(LOOPBACK, 8080, LOOPBACK, 40001, "01", 3)
    assert host.found() == []


def test_an_application_that_listens_beyond_loopback_is_named(host: Host) -> None:
    host.connection(ANY, 8080, ANY, 0, "0A", 9)
    assert host.found() == [("listens-beyond-loopback", "application")]


def test_a_connection_past_the_sidecar_is_named_with_where_it_goes(host: Host) -> None:
    host.process(10, "worker", 2, 3)
    host.connection("0100000A", 40000, REMOTE, 5432, "01", 2)
    host.connection("0100000A", 40001, REMOTE, 6379, "06", 3)  # TIME_WAIT: over
    (finding,) = check.findings_of("payment-8080", host.state, host.proc)
    assert finding.message == "is connected directly to 10.0.0.5:5432"
    assert "--upstream" in finding.hint


def test_a_call_that_comes_in_is_no_bypass_of_the_caller(host: Host) -> None:
    host.process(10, "worker", 2)
    host.connection("0100000A", 8080, REMOTE, 40000, "01", 2)
    assert host.found() == []


@pytest.mark.parametrize("value", [None, "http://corporate:3128", "http://127.0.0.1:15002"])
@pytest.mark.parametrize("name", ["HTTP_PROXY", "https_proxy"])
def test_variables_that_name_another_proxy_are_named(
    host: Host, name: str, value: str | None
) -> None:
    host.process(10, "python", **{name: value})
    (finding,) = check.findings_of("payment-8080", host.state, host.proc)
    assert finding.kind == "proxy-variables"
    assert finding.message == f"{name} do not name the sidecar"


@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_an_exclusion_of_everything_is_named(host: Host, name: str) -> None:
    host.process(10, "python", **{name: "a, *"})
    assert host.found() == [("proxy-variables", "pid 10 (python)")]


@pytest.mark.parametrize("program", sorted(check.IGNORE_PROXIES))
def test_programs_that_ignore_proxies_are_named_with_what_to_do(host: Host, program: str) -> None:
    host.process(10, program)
    assert host.found() == [("ignores-proxies", f"pid 10 ({program})")]
    assert "--upstream" in check.IGNORE_PROXIES[program]


@pytest.mark.parametrize(
    ("remote", "port"),
    [
        (LOOPBACK, 15001),
        (LOOPBACK, 5433),
        (LOOPBACK, 6380),
        (REMOTE, 6380),  # a wildcard listens there as well, if the address is the host's
        (MAPPED + LOOPBACK, 5433),
        ("00000000000000000000000001000000", 5434),
    ],
)
def test_a_program_that_is_connected_to_the_sidecar_does_not_ignore_it(
    host: Host, remote: str, port: int
) -> None:
    host.process(10, "psql", 2)
    host.connection(remote, 40000, remote, port, "01", 2)
    assert host.found() == []


def test_a_connection_to_the_application_of_a_neighbour_is_named(host: Host) -> None:
    host.process(10, "python", 2, 3)
    host.connection(LOOPBACK, 40000, LOOPBACK, 9090, "01", 2)
    host.connection(LOOPBACK, 40001, LOOPBACK, 9091, "01", 3)  # nobody's in the mesh
    (finding,) = check.findings_of("payment-8080", host.state, host.proc, {9090: "order-9090"})
    assert finding.message == (
        "is connected directly to 127.0.0.1:9090 (the application of order-9090)"
    )


def test_a_connection_to_its_own_application_is_no_bypass(host: Host) -> None:
    host.process(10, "python", 2)
    host.connection(LOOPBACK, 40000, LOOPBACK, 8080, "01", 2)
    assert host.found() == []


def test_node_that_was_told_to_use_the_proxy_is_not_named(host: Host) -> None:
    host.process(10, "node", NODE_USE_ENV_PROXY="1")
    assert host.found() == []


def test_processes_of_other_sidecars_are_left_alone(host: Host) -> None:
    host.process(10, "psql", MESHFAST_INSTANCE="order-80")
    host.process(11, "psql", MESHFAST_INSTANCE=None)
    assert host.found() == []


@pytest.mark.parametrize(
    ("ready", "metrics_text", "message"),
    [
        ((503, b"starting\n"), Answering.metrics, "not ready: starting"),
        (Answering.ready, b"meshfast_control_plane_connected 0\n", "no control plane"),
        (Answering.ready, b"meshfast_certificate_overdue 1\n", "certificate is not renewed"),
    ],
)
def test_a_sidecar_that_is_not_well_is_named(
    host: Host,
    monkeypatch: pytest.MonkeyPatch,
    ready: tuple[int, bytes],
    metrics_text: bytes,
    message: str,
) -> None:
    monkeypatch.setattr(Answering, "ready", ready)
    monkeypatch.setattr(Answering, "metrics", metrics_text)
    (finding,) = check.findings_of("payment-8080", host.state, host.proc)
    assert message in finding.message


def test_a_sidecar_that_does_not_answer_is_named(tmp_path: Path) -> None:
    (finding,) = check.findings_of(
        "payment-8080", Host(tmp_path, "127.0.0.1:1").state, tmp_path / "proc"
    )
    assert "does not answer on 127.0.0.1:1" in finding.message


def test_a_sidecar_that_has_not_written_its_facts_is_starting(tmp_path: Path) -> None:
    (finding,) = check.findings_of("payment-8080", tmp_path)
    assert (finding.kind, finding.message) == ("health", "is starting")


def test_facts_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "running").write_text("{")
    with pytest.raises(ConfigError, match="facts cannot be read"):
        check.findings_of("payment-8080", tmp_path)
