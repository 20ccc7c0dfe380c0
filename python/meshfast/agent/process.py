"""The agent's life: from settings to the last access-log line.

    settings -> open the shared memory -> serve metrics, logs, names, reloads -> `stop` or EOF

Signals: SIGTERM, SIGINT and SIGHUP are ignored, the supervisor decides and says so on the control
channel; SIGUSR1 and the message `reopen` reopen the access log. Ready (`/healthz/ready`) is from
`serving` to `drain`; in a mesh not before there is an identity and a configuration.

Invariant: whatever ends the agent in order, the lines that workers wrote until then are moved to
the access log, as far as its output takes them within a second, and their spans to Zipkin likewise.

Tests: tests/agent/test_agent.py.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from importlib import import_module

from meshfast.agent.access_log import AccessLog
from meshfast.agent.channel import Channel
from meshfast.agent.compilation import COMPILER
from meshfast.agent.http import Response, Server
from meshfast.agent.log import Log
from meshfast.agent.loop import READ, Loop
from meshfast.agent.publisher import Publisher
from meshfast.agent.reaper import Reaper
from meshfast.agent.resolver import Resolver, WorkerQuestions, look_up
from meshfast.agent.settings import Settings
from meshfast.telemetry.exposition import negotiate, write
from meshfast.telemetry.families import AgentFacts, collect
from meshfast.telemetry.processes import Processes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import NoReturn

    from meshfast.agent.channel import Message
    from meshfast.agent.http import Handler, Request
    from meshfast.agent.mesh import Keys, Mesh
    from meshfast.agent.mesh_publisher import MeshPublisher
    from meshfast.agent.resolver import Lookup
    from meshfast.agent.spans import SpanExporter
    from meshfast.telemetry.source import Source

__all__ = ["Agent", "main"]

FLUSH_S = 1.0
SCRAPES_MAX = 4  # at a time; each holds up to 8 MB of series while its client reads


def main(settings_json: bytes) -> NoReturn:
    """Run the agent on the real shared memory and end the process; see `meshfast.agent.main`."""
    from meshfast import _core

    with open("/proc/self/comm", "w", encoding="ascii") as comm:
        comm.write("meshfast-agent")  # what ps and top show (proc(5))
    settings = Settings(settings_json)
    source = _core.SharedMemory.open(settings.shared_memory_fd)
    Agent(settings, source, _core.Snapshot.describe, _core.Snapshot.build).run()
    os._exit(0)  # a lookup that hangs in a thread does not hold the end up


def _import_msgspec() -> None:
    """Import msgspec with `typing` alone.

    It prefers typing_extensions where that is installed, and `inspect` would come with it, 1 MB.
    Whoever else wants typing_extensions finds it afterwards.
    """
    if "typing_extensions" in sys.modules:
        return
    sys.modules["typing_extensions"] = None  # type: ignore[assignment]  # as if not installed
    try:
        import_module("msgspec")
    finally:
        del sys.modules["typing_extensions"]


def _keys_of_the_extension() -> Keys:
    from meshfast import _core
    from meshfast.agent.mesh import Keys

    return Keys(_core.generate_key, _core.certificate_request)


class Agent:
    """Everything of the agent, assembled."""

    def __init__(
        self,
        settings: Settings,
        source: Source,
        describe: Callable[[bytes], str],
        build: Callable[[bytes], bytes],
        *,
        compiler: Sequence[str] = COMPILER,
        lookup: Lookup = look_up,
        keys: Keys | None = None,
    ) -> None:
        """Begin to serve; `run` does the rest. `keys` are `meshfast._core`'s when not given."""
        self._loop = Loop()
        self._source = source
        self._scrapes = 0
        self._state = "starting"
        self._is_serving = False
        self._log = Log(settings.log_level)
        self._facts = AgentFacts(settings.product_version, settings.generation)
        self._processes = Processes(os.getppid(), os.getpid())
        self._access_log = AccessLog(
            self._loop, source, self._facts, self._log, settings.access_log
        )
        self._watch_signals()
        resolver = Resolver(self._loop, self._facts, lookup)
        self._questions = [
            WorkerQuestions(self._loop, fd, resolver) for fd in settings.resolver_fds
        ]
        self._control = Channel(
            self._loop, settings.control_fd, self._on_message, self._on_supervisor_gone
        )
        self._spans: SpanExporter | None = None
        if settings.zipkin_address is not None:
            from meshfast.agent.spans import SpanExporter

            self._spans = SpanExporter(
                self._loop, source, self._facts, self._log, resolver, settings.zipkin_address
            )
        self._mesh: Mesh | None = None
        self._publisher: Publisher | MeshPublisher
        if settings.mesh is None:
            self._publisher = Publisher(
                self._loop,
                settings,
                self._control,
                resolver,
                source,
                self._facts,
                self._log,
                describe,
                compiler,
            )
        else:
            # Not at the top: messages and policy weigh more than everything else here.
            _import_msgspec()
            from meshfast.agent.mesh import Mesh

            self._mesh = Mesh(
                self._loop,
                settings,
                self._control,
                resolver,
                source,
                self._facts,
                self._log,
                describe,
                build,
                keys or _keys_of_the_extension(),
                self._check_ready,
            )
            self._publisher = self._mesh.publisher
        Reaper(self._loop, source)
        if "metrics" in settings.sockets:
            self._server = Server(self._loop, settings.sockets["metrics"], self._handlers())
        self._control.send({"type": "ready"})
        if self._mesh is not None:
            self._mesh.start()

    def run(self) -> None:
        """Serve until `stop` or the supervisor's end, then move the last lines and spans."""
        self._loop.run()
        if self._mesh is not None:
            self._mesh.finish()
        self._access_log.finish(FLUSH_S)
        if self._spans is not None:
            self._spans.finish(FLUSH_S)

    def _watch_signals(self) -> None:
        for ignored in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(ignored, signal.SIG_IGN)
        self._wakeup, wakeup = socket.socketpair()
        self._wakeup.setblocking(False)
        wakeup.setblocking(False)
        signal.set_wakeup_fd(wakeup.detach(), warn_on_full_buffer=False)
        signal.signal(signal.SIGUSR1, lambda *_: None)
        self._loop.watch(self._wakeup.fileno(), READ, self._on_signal)

    def _on_signal(self, _ready: int) -> None:
        self._wakeup.recv(64)
        self._access_log.reopen()

    def _on_message(self, message: Message) -> None:
        kind = message.get("type")
        if kind == "applied":
            self._publisher.on_applied(message)
        elif kind == "bound":
            self._publisher.on_bound(message)
        elif kind == "drain":
            self._state = "draining"
            self._publisher.stop()
            if self._mesh is not None:
                self._mesh.drain()
        elif kind == "identity_applied":
            if self._mesh is not None:
                self._mesh.on_identity_applied(message)
        elif kind == "reload":
            self._publisher.reload()
        elif kind == "reopen":
            self._access_log.reopen()
        elif kind == "serving":
            self._is_serving = True
            self._check_ready()
        elif kind == "stop":
            self._loop.stop()
        else:
            self._log.warning("message of an unknown type", type=kind)

    def _check_ready(self) -> None:
        """Ready is: the workers serve, and a sidecar has identity and configuration."""
        is_meshed = self._mesh is None or self._mesh.is_meshed
        if self._state == "starting" and self._is_serving and is_meshed:
            self._state = "ready"

    def _on_supervisor_gone(self) -> None:
        self._log.warning("the supervisor is gone")
        self._loop.stop()

    def _handlers(self) -> dict[str, Handler]:
        return {
            "/healthz/live": lambda _request: Response(200, b"live\n"),
            "/healthz/ready": self._ready,
            "/metrics": self._metrics,
            "/stats/prometheus": self._metrics,
        }

    def _ready(self, _request: Request) -> Response:
        return Response(200 if self._state == "ready" else 503, f"{self._state}\n".encode())

    def _metrics(self, request: Request) -> Response:
        if self._scrapes >= SCRAPES_MAX:
            return Response(503, b"too many scrapes at a time\n", headers="Retry-After: 1\r\n")
        content_type = negotiate(request.accept)
        return Response(200, self._scrape(content_type), content_type)

    def _scrape(self, content_type: str) -> Iterator[bytes]:
        """The pieces of one scrape, which holds a reading of all series until its end."""
        self._scrapes += 1
        try:
            families = collect(self._source, self._facts, self._processes)
            yield from write(families, content_type)
        finally:
            self._scrapes -= 1
