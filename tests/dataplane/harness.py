"""A real proxy between a scripted client and a scripted origin, all over real sockets.

`Proxy` starts the installed `meshfast` command and waits until it serves. `Origin` accepts
connections and hands each to a script, so that a test decides byte by byte what an upstream says
and sees byte by byte what it was sent. `Client` is a plain socket with an HTTP/1 reader that is
ours alone, so that the proxy's codec is never tested against itself. Every wait has a deadline.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

T = TypeVar("T")

DEADLINE_S = 20.0

MESHFAST = Path(sys.executable).with_name("meshfast")

POOL = """\
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: edge}}
spec:
  servers:
    - port: {{number: {port}, name: {protocol}, protocol: {kind}}}
      bind: 127.0.0.1
      hosts: ["*"]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: pool}}
spec:
  hosts: ["*"]
  gateways: [edge]
  {protocol}:
    - route: [{{destination: {{host: pool}}{destination}}}]
{rules}---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: pool}}
spec:
  hosts: [pool]
  ports: [{{number: 80, name: {protocol}, protocol: {kind}}}]
  location: MESH_INTERNAL
  resolution: STATIC
  endpoints: [{endpoints}]
"""


def pool(
    port: int,
    endpoints: str,
    protocol: str = "http",
    rules: Sequence[str] = (),
    destination: str = "",
) -> str:
    """Return the resources of a gateway in front of the endpoints; `protocol` is http or tcp.

    `rules` are further fields of its one route, a line each; `destination` is more of its
    destination, as text of a flow mapping.
    """
    return POOL.format(
        port=port,
        endpoints=endpoints,
        protocol=protocol,
        kind=protocol.upper(),
        rules="".join(f"      {line}\n" for line in rules),
        destination=f", {destination}" if destination else "",
    )


@contextlib.contextmanager
def pooled(
    origins: Sequence[Origin], folder: Path, rules: Sequence[str], destination: str = ""
) -> Iterator[tuple[Proxy, int]]:
    """A gateway in front of all `origins`, whose one route has these rules, and its port."""
    port = free_port()
    each = [f"{{address: 127.0.0.1, ports: {{http: {origin.port}}}}}" for origin in origins]
    config = folder / "mesh.yaml"
    text = pool(port, ", ".join(each), rules=rules, destination=destination)
    config.write_text(text)
    with Proxy(["-c", str(config)], folder, workers=2) as proxy:
        yield proxy, port


def wait_for(what: str, condition: Callable[[], T], seconds: float = DEADLINE_S) -> T:
    """Return the condition's first true value, or fail telling what was waited for."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds} s for {what}")
        time.sleep(0.01)


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Client:
    """One connection to the proxy."""

    def __init__(self, port: int, seconds: float = DEADLINE_S) -> None:
        """Connect."""
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=seconds)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def send(self, data: bytes) -> None:
        """Send everything."""
        self.socket.sendall(data)

    def send_split(self, data: bytes, at: int) -> None:
        """Send in two segments."""
        self.socket.sendall(data[:at])
        time.sleep(0.002)
        self.socket.sendall(data[at:])

    def read_until(self, mark: bytes) -> bytes:
        """Return everything up to and including `mark`."""
        while mark not in self.buffer:
            more = self.socket.recv(65536)
            if not more:
                raise ConnectionError(f"closed after {self.buffer!r}")
            self.buffer += more
        place = self.buffer.index(mark) + len(mark)
        taken, self.buffer = self.buffer[:place], self.buffer[place:]
        return taken

    def read_exactly(self, count: int) -> bytes:
        """Return `count` bytes."""
        while len(self.buffer) < count:
            more = self.socket.recv(65536)
            if not more:
                raise ConnectionError(f"closed after {len(self.buffer)} of {count} bytes")
            self.buffer += more
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def response(self, method: str = "GET") -> Response:
        """Read one whole response."""
        head = self.read_until(b"\r\n\r\n")
        response = Response.of_head(head)
        response.body = self._body(response, method)
        return response

    def _body(self, response: Response, method: str) -> bytes:
        if method == "HEAD" or response.status in (204, 304) or response.status < 200:
            return b""
        if response.header("transfer-encoding") == "chunked":
            body = b""
            while True:
                size = int(self.read_until(b"\r\n"), 16)
                if size == 0:
                    response.trailers = self._trailers()
                    return body
                body += self.read_exactly(size)
                assert self.read_exactly(2) == b"\r\n"
        length = response.header("content-length")
        if length is not None:
            return self.read_exactly(int(length))
        return self.rest()

    def _trailers(self) -> list[bytes]:
        lines = []
        while (line := self.read_until(b"\r\n")) != b"\r\n":
            lines.append(line[:-2])
        return lines

    def rest(self) -> bytes:
        """Return everything until the proxy closes."""
        while more := self.socket.recv(65536):
            self.buffer += more
        taken, self.buffer = self.buffer, b""
        return taken

    def is_closed(self) -> bool:
        """Whether the proxy closes the connection, with FIN or reset, sending nothing more."""
        try:
            return self.buffer == b"" and self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        """Close."""
        self.socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class Response:
    """A response as it came: the head's lines, then the body."""

    status: int
    version: str
    lines: list[bytes]
    body: bytes = b""
    trailers: list[bytes] = field(default_factory=list)

    @classmethod
    def of_head(cls, head: bytes) -> Response:
        """Read a head."""
        first, *lines = head[:-4].split(b"\r\n")
        version, status = first.split(b" ")[:2]
        return cls(int(status), version.decode(), lines)

    def header(self, name: str) -> str | None:
        """Return the value of a header, whatever its case."""
        values = [
            line.split(b":", 1)[1].strip().decode("latin-1")
            for line in self.lines
            if line.split(b":", 1)[0].lower() == name.lower().encode()
        ]
        return ", ".join(values) if values else None


class Origin:
    """Accepts connections and runs `script(client)` on each in a thread of its own."""

    def __init__(self, script: Callable[[Client], None], address: str = "127.0.0.1") -> None:
        """Listen on a port of its own."""
        self.listener = socket.create_server((address, 0), backlog=512)
        self.port: int = self.listener.getsockname()[1]
        self.script = script
        self.accepted = 0
        self.heads: list[bytes] = []
        self.trailers: list[list[bytes]] = []
        self.errors: list[BaseException] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.accepted += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        client = Client.__new__(Client)
        client.socket, client.buffer = connection, b""
        connection.settimeout(DEADLINE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection:
            try:
                self.script(client)
            except (ConnectionError, TimeoutError):
                pass
            except BaseException as error:  # shown by the test that owns the origin
                self.errors.append(error)

    def request(self, client: Client) -> tuple[bytes, bytes]:
        """Read one request in a script; return its head and its body."""
        head = client.read_until(b"\r\n\r\n")
        self.heads.append(head)
        fields = Response.of_head(b"HTTP/1.1 200 -\r\n" + head.split(b"\r\n", 1)[1])
        if fields.header("transfer-encoding") or fields.header("content-length"):
            body = client._body(fields, "POST")
            self.trailers.append(fields.trailers)
            return head, body
        return head, b""

    def close(self) -> None:
        """Stop accepting, at once: a thread blocked in accept would keep the socket open."""
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        assert not self.errors, self.errors


def echo_origin(name: str = "origin") -> Origin:
    """An origin that answers every request with its name and what it was sent, keep-alive."""

    def script(client: Client) -> None:
        while True:
            head, body = origin.request(client)
            text = name.encode() + b"\n" + head + body
            length = str(len(text)).encode()
            client.send(b"HTTP/1.1 200 OK\r\ncontent-length: " + length + b"\r\n\r\n" + text)

    origin = Origin(script)
    return origin


class Proxy:
    """A running `meshfast proxy`."""

    def __init__(self, arguments: list[str], folder: Path, workers: int = 2) -> None:
        """Start it with its own runtime directory and metrics port."""
        self.folder = folder
        self.metrics_port = free_port()
        self.log = folder / "access.log"
        self.stderr_path = folder / "stderr.txt"
        command = [
            str(MESHFAST),
            "proxy",
            *arguments,
            "--workers",
            str(workers),
            "--metrics-address",
            f"127.0.0.1:{self.metrics_port}",
            "--access-log",
            str(self.log),
            "--runtime-dir",
            str(folder / "run"),
        ]
        with self.stderr_path.open("wb") as stderr:
            self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)
        try:
            wait_for("the proxy to serve", self._is_serving)
        except AssertionError as error:
            self.stop()
            raise AssertionError(f"{error}:\n{self.stderr()}") from None

    def _is_serving(self) -> bool:
        assert self.process.poll() is None, self.stderr()
        try:
            return self.get("/healthz/ready")[0] == 200
        except OSError:
            return False

    def stderr(self) -> str:
        """Return what it has printed."""
        return self.stderr_path.read_text()

    def get(self, path: str) -> tuple[int, str]:
        """Ask its metrics port."""
        url = f"http://127.0.0.1:{self.metrics_port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metrics(self) -> dict[str, list[tuple[dict[str, str], float]]]:
        """Return samples by name."""
        from prometheus_client.parser import text_string_to_metric_families

        samples: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in text_string_to_metric_families(self.get("/metrics")[1]):
            for sample in family.samples:
                samples.setdefault(sample.name, []).append((sample.labels, sample.value))
        return samples

    def rejected(self, reason: str) -> float:
        """Return how many inputs were refused for this reason."""
        samples = self.metrics().get("meshfast_rejected_total", [])
        return sum(value for labels, value in samples if labels["reason"] == reason)

    def records(self, count: int) -> list[dict[str, Any]]:
        """Return the access records, as soon as there are `count`."""

        def read() -> list[dict[str, Any]]:
            text = self.log.read_text() if self.log.exists() else ""
            lines = text.splitlines()
            return [json.loads(line) for line in lines] if len(lines) >= count else []

        return wait_for(f"{count} access records", read)

    def children(self) -> list[int]:
        """Return the pids of its child processes."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def stop(self) -> int:
        """Drain it; return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=DEADLINE_S)
        except subprocess.TimeoutExpired:
            for pid in [*self.children(), self.process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()
            raise

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@contextlib.contextmanager
def forwarding(
    origin: Origin, folder: Path, workers: int = 1, more: Sequence[str] = ()
) -> Iterator[tuple[Proxy, int]]:
    """A proxy that sends everything to `origin`, and its port; `more` are further options."""
    port = free_port()
    arguments = ["--listen", f"127.0.0.1:{port}", "--to", f"127.0.0.1:{origin.port}"]
    with Proxy([*arguments, *more], folder, workers) as proxy:
        yield proxy, port
