"""A whole mesh on loopback: a control plane, sidecars with applications, and clients of them."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol, TypeVar
from urllib.parse import SplitResult, urlsplit

from meshfast.discovery.token import JoinToken

ROOT = Path(__file__).parents[2]
DEADLINE_S = 20.0
MESHFAST = [sys.executable, "-c", "import sys; from meshfast.cli import main; sys.exit(main())"]
LISTENING = re.compile(r"listening on (\S+)(?: instead of \S+)? \((\S+)\)")
T = TypeVar("T")

# Answers every request with its own name and what it saw; `?exit=N` ends it.
SERVICE = """
import http.server, json, os, sys
class Service(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        seen = {"name": sys.argv[2], "path": self.path, "headers": dict(self.headers)}
        body = json.dumps(seen).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        if "exit=" in self.path:
            self.wfile.flush()
            os._exit(int(self.path.partition("exit=")[2]))
    do_POST = do_GET
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Service).serve_forever()
"""


def wait_until(condition: Callable[[], T], what: str, deadline_s: float = DEADLINE_S) -> T:
    """Return the first true value of *condition*; fail when there is none in time."""
    give_up_at = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < give_up_at, f"not in {deadline_s} s: {what}"
        time.sleep(0.01)
    return value


class Control:
    """A control plane in a process of its own; `kill` and `start` are an outage."""

    def __init__(self, folder: Path, *, cert_ttl_s: int = 3600) -> None:
        self.folder = folder
        self.cert_ttl_s = cert_ttl_s
        self.port = 0
        self.start()

    def start(self) -> None:
        """Start, on the port of the time before."""
        program = [sys.executable, "-m", "tests.mesh.control_process", str(self.folder / "control")]
        with (self.folder / "control.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*program, str(self.port), str(self.cert_ttl_s)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.address: str = self._answer()
        self.port = int(self.address.rpartition(":")[2])

    def ask(self, **command: Any) -> Any:
        """Give a command and return its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def token(self, service: str, uses: int = 1) -> JoinToken:
        """Make a join token."""
        return JoinToken.parse(self.ask(token=service, uses=uses))

    def services(self) -> dict[str, Any]:
        """What is registered now, or was, by host."""
        return {one["host"]: one for one in self.ask(services=True)}

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self._wait()

    def close(self) -> None:
        """End it in order."""
        if self.process.poll() is None:
            assert self.process.stdin is not None
            self.process.stdin.close()
        self._wait()

    @property
    def like_a_fake(self) -> Any:
        """The two things that the agent's harness asks of a control plane."""
        root = self.token("payment", uses=1).root
        return SimpleNamespace(address=self.address, authority=SimpleNamespace(root=root))

    def _wait(self) -> None:
        self.process.wait(DEADLINE_S)
        for end in (self.process.stdin, self.process.stdout):
            assert end is not None
            end.close()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, (self.folder / "control.log").read_text()
        return json.loads(line)


class MakesTokens(Protocol):
    """What a sidecar of tests joins with."""

    def token(self, service: str) -> JoinToken: ...


class Sidecar:
    """`meshfast run` or `meshfast sidecar` of a service, with `SERVICE` as its application."""

    def __init__(
        self,
        folder: Path,
        control: MakesTokens,
        service: str,
        *options: str,
        version: str = "v1",
        command: list[str] | None = None,
        name: str | None = None,
        app_port: int = 0,
    ) -> None:
        self.name = name or f"{service}-{version}"
        self.port = app_port or free_port()
        self.folder = folder
        self.log = folder / f"{self.name}.log"
        token = control.token(service)
        arguments = ["--service", service, "--port", str(self.port), "--instance", self.name]
        arguments += ["--label", f"version={version}", "--drain-time", "5s"]
        arguments += ["--state-dir", str(folder / "state"), "--runtime-dir", str(folder / "run")]
        application = command or [
            sys.executable, "-c", SERVICE, str(self.port), self.name,
        ]  # fmt: skip
        self.command = [*MESHFAST, "run", *arguments, *options, "--", *application]
        self.start(token)

    def start(self, token: JoinToken | None = None) -> None:
        """Start, with a token or from what an earlier start left."""
        environment = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
        if token is not None:
            environment["MESHFAST_TOKEN"] = token.text()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    @property
    def text(self) -> str:
        """What it has said so far."""
        return self.log.read_text(errors="replace")

    def address(self, direction: str) -> str:
        """Where `outbound`, `inbound` or `metrics` really listens."""
        found = {name: at for at, name in LISTENING.findall(self.text)}
        return next(str(at) for name, at in found.items() if name.startswith(direction))

    def until_started(self) -> None:
        """Wait until the application runs."""

        def started() -> bool:
            assert self.process.poll() is None or "started" in self.text, self.text
            return "meshfast: started" in self.text

        wait_until(started, f"{self.name} started:\n{self.text}")

    def proxies(self) -> dict[str, str]:
        """The proxy variables that the application got, from its environment."""
        self.until_started()
        pid = int(re.findall(r"started .* \(pid (\d+)\)", self.text)[-1])

        def variables() -> dict[str, str]:
            """Those of the program, once the forked child has become it."""
            entries = Path(f"/proc/{pid}/environ").read_text().split("\0")
            found = dict(entry.partition("=")[::2] for entry in entries)
            return found if "MESHFAST_INSTANCE" in found else {}

        found = wait_until(variables, f"{self.name} has become its application")
        return {"http": found["HTTP_PROXY"], "no": found["NO_PROXY"]}

    def get(self, url: str, *, proxy: str | None = None) -> tuple[int, Any]:
        """Call a URL as the application would."""
        handler = urllib.request.ProxyHandler({"http": proxy or self.proxies()["http"]})
        opener = urllib.request.build_opener(handler)
        try:
            with opener.open(url, timeout=DEADLINE_S) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(errors="replace")

    def tunnel(self, authority: str) -> tuple[int, socket.socket]:
        """CONNECT as the application would: the status, and the connection behind it."""
        proxy, credential = self._proxy()
        one = socket.create_connection((proxy.hostname or "", proxy.port or 0), 10)
        head = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n"
        one.sendall(f"{head}Proxy-Authorization: {credential}\r\n\r\n".encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            more = one.recv(1)
            assert more, answer
            answer += more
        return int(answer.split()[1]), one

    def caller(self) -> Caller:
        """A connection of the application to its proxy."""
        proxy, credential = self._proxy()
        return Caller(proxy.hostname or "", proxy.port or 0, credential)

    def _proxy(self) -> tuple[SplitResult, str]:
        """Where the application's proxy is, and what it shows there."""
        proxy = urlsplit(self.proxies()["http"])
        basic = base64.b64encode(f"{proxy.username}:{proxy.password}".encode()).decode()
        return proxy, f"Basic {basic}"

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)

    def close(self) -> None:
        """End what is left of it."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            time.sleep(0.05)
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait(DEADLINE_S)


@dataclass(frozen=True)
class Answer:
    """What came back: the status, headers by names in lower case, the body."""

    status: int
    headers: dict[str, str]
    body: bytes


class Caller:
    """One connection of the application behind a sidecar to its outbound listener."""

    def __init__(self, host: str, port: int, credential: str) -> None:
        self._connection = http.client.HTTPConnection(host, port, timeout=DEADLINE_S)
        self._authorization = {"Proxy-Authorization": credential}

    def call(self, url: str, method: str = "GET", headers: dict[str, str] | None = None) -> Answer:
        """Call a URL and read the answer."""
        more = self._authorization | (headers or {})
        self._connection.request(method, url, headers=more)
        with self._connection.getresponse() as got:
            named = {name.lower(): value for name, value in got.getheaders()}
            return Answer(got.status, named, got.read())

    def close(self) -> None:
        """Close it."""
        self._connection.close()

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Job(Sidecar):
    """`meshfast run` of a client that ends by itself; what it prints is kept apart."""

    def __init__(
        self,
        folder: Path,
        control: MakesTokens,
        name: str,
        *options: str,
        command: list[str],
        service: str = "app",
    ) -> None:
        self.printed = folder / f"{name}.out"
        into_file = ["sh", "-c", 'exec "$@" > "$0"', str(self.printed), *command]
        super().__init__(folder, control, service, *options, name=name, command=into_file)

    @property
    def output(self) -> str:
        """What the client has printed so far."""
        return self.printed.read_text() if self.printed.exists() else ""

    def succeeded(self, deadline_s: float = 60.0) -> str:
        """Wait for its end with code 0 and return what it printed."""
        assert self.process.wait(deadline_s) == 0, f"{self.text}\n{self.output}"
        return self.output


class Fixture:
    """A control plane and the sidecars of one test."""

    def __init__(self, folder: Path, **control: Any) -> None:
        self.folder = folder
        self.control = Control(folder, **control)
        self.sidecars: list[Sidecar] = []

    def run(self, service: str, *options: str, **more: Any) -> Sidecar:
        """Start a service and wait until its application runs."""
        one = Sidecar(self.folder, self.control, service, *options, **more)
        self.sidecars.append(one)
        one.until_started()
        return one

    def serve(self, service: str, *options: str, **more: Any) -> Sidecar:
        """Start a service and wait until the mesh knows that it accepts."""
        one = self.run(service, *options, **more)

        def known() -> bool:
            found = [view["workload"] for view in self.control.ask(workloads=True)]
            return any(
                each["instance"].startswith(f"{one.name}.") and each["healthy"] for each in found
            )

        wait_until(known, f"{one.name} is healthy:\n{one.text}")
        return one

    def job(self, name: str, *options: str, **more: Any) -> Job:
        """Start a client that ends by itself."""
        one = Job(self.folder, self.control, name, *options, **more)
        self.sidecars.append(one)
        return one

    def apply(self, text: str) -> list[str]:
        """Apply resources; return the warnings when every sidecar has them."""
        applied = self.control.ask(apply=text)
        self._until_synced(applied)
        return [one["message"] for one in applied["warnings"]]

    def delete(self, kind: str, name: str) -> None:
        """Delete a resource of the default namespace; return when no sidecar has it any more."""
        self._until_synced(self.control.ask(delete=[kind, "default", name]))

    def _until_synced(self, changed: Any) -> None:
        assert "error" not in changed, changed["error"]
        revision = changed["revision"]

        def synced() -> bool:
            held = self.control.ask(sidecars=True)
            return all(
                one["state"] == "SYNCED" and order(one["revision"]) >= order(revision)
                for one in held
                if one["connected"]
            )

        wait_until(synced, f"every sidecar has {revision}: {self.control.ask(sidecars=True)}")

    def close(self) -> None:
        """End everything."""
        for one in self.sidecars:
            one.close()
        self.control.close()


def order(revision: str) -> int:
    """The second part of a revision; the first names the store."""
    return int(revision.partition("-")[2])


def until_reached(caller: Sidecar, url: str) -> dict[str, Any]:
    """Call until the first 200: routes arrive a moment after a registration."""
    answers: list[Any] = []

    def reached() -> bool:
        answers.append(caller.get(url))
        return bool(answers[-1][0] == 200)

    wait_until(reached, f"{url} answers: {answers[-1:]}\n{caller.text}")
    body: dict[str, Any] = answers[-1][1]
    return body


def scrape(sidecar: Sidecar) -> str:
    """The metrics of a sidecar."""
    host, _, port = sidecar.address("metrics").rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def free_port() -> int:
    """A port that stays free: given once, and none that the system gives to others by itself.

    What `bind` to port 0 has found, a client's connection may have as its own a moment later.
    """
    while True:
        port = next(_PORTS)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def _ports() -> Iterator[int]:
    """Those below the ephemeral ones (ip(7), ip_local_port_range), without our own defaults."""
    ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = [port for port in range(10_000, ephemeral) if port // 100 != 150]
    random.shuffle(ports)  # other runs on this machine choose, too
    yield from ports


_PORTS = _ports()


def host_addresses() -> list[str]:
    """IPv4 addresses of this host."""
    text = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=False).stdout
    return [one for one in text.split() if ":" not in one]


def beyond_loopback() -> str:
    """An address of this host that clients do not take for local, so that they use their proxy."""
    ours = [one for one in host_addresses() if not one.startswith("127.")]
    assert ours, "this host has no address beyond loopback"
    return ours[0]
