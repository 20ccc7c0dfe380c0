"""The control plane, assembled: store, authority, registry, push, the two listeners.

    <state dir>/store/   store.db, store.lock     held by one process at a time
    <state dir>/ca/      root.pem, issuer.pem

One event loop. The control stream is TLS over TCP. The operator API is served beside it, by whoever
is handed `operations` (process.py), so that this room needs no HTTP.

Does not do: parse arguments, decide anything the rooms decide.

Invariants:
1. The store is opened first: its lock also guards the authority's files.
2. After `stop` every stream was told goodbye and every acknowledged write is on disk.

Tests: tests/control/server/.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from meshfast.control.ca import CertificateAuthority, Issuance, IssuanceLimits
from meshfast.control.ca.serving import Serving
from meshfast.control.operations import Operations
from meshfast.control.push import Mesh, Pusher, StreamLimits, Streams
from meshfast.control.push.debounce import Debounce
from meshfast.control.push.resolver import Resolver
from meshfast.control.push.stream import StreamContext, serve
from meshfast.control.registry import Registry
from meshfast.control.registry.registry import GRACE_MS
from meshfast.control.store import SqliteStore, StoreError
from meshfast.control.store.files import private_directory
from meshfast.discovery import Revision
from meshfast.errors import MeshfastError

__all__ = ["ControlPlane", "Options"]

HANDSHAKE_S: Final = 10.0
SHUTDOWN_S: Final = 2.0
#: How long streams may take to hear goodbye.
GOODBYE_S: Final = 3.0
TICK_S: Final = 1.0
#: etcd's periodic compaction keeps as much: enough for any watch that is alive.
COMPACT_S: Final = 300.0
#: Tokens stay listed for a week after they have expired.
TOKENS_KEPT_S: Final = 7 * 24 * 3600
#: Its own certificate; the control plane holds the authority, so a short one costs nothing.
SERVE_TTL_S: Final = 24 * 3600
BACKLOG: Final = 1024

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Options:
    """What `meshfast control` was asked for. `build` is `meshfast._core.Snapshot.build`."""

    state_dir: Path
    host: str
    port: int
    trust_domain: str
    build: Callable[[bytes], bytes]
    cert_ttl_s: int = 24 * 3600
    serve_ttl_s: int = SERVE_TTL_S
    debounce_s: float = 0.1
    #: Take a free port when this one is taken.
    fallback: bool = False
    #: Where sidecars find the control stream, `host:port`; empty: where it listens.
    advertise: str = ""
    grace_ms: int = GRACE_MS
    stream_limits: StreamLimits = field(default_factory=StreamLimits)
    issuance_limits: IssuanceLimits = field(default_factory=IssuanceLimits)


class ControlPlane:
    """One running control plane: `start`, then `stop`."""

    operations: Operations

    def __init__(self, options: Options) -> None:
        """Open the files. Raises `StoreError` and `AuthorityError`: nothing was started then."""
        private_directory(options.state_dir)
        self._options = options
        self._store = SqliteStore(options.state_dir / "store")
        try:
            self._authority = CertificateAuthority.open(
                options.state_dir / "ca", options.trust_domain
            )
            self._serving = Serving(self._authority, options.serve_ttl_s)
        except MeshfastError:
            self._store.close()
            raise
        self._issuance = Issuance(
            self._authority,
            self._store,
            ttl_s=options.cert_ttl_s,
            limits=options.issuance_limits,
        )
        self._registry = Registry(self._store, grace_ms=options.grace_ms)
        self._server: asyncio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._serving_streams: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        """Where the control stream listens: `host:port`."""
        assert self._server is not None, "asked for after start"
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def start(self) -> None:
        """Adopt what is registered, listen, push. Raises `OSError` when the address is taken."""
        options = self._options
        self._registry.adopt()
        self._mesh = Mesh(self._store)
        resolver = Resolver()
        self._pusher = Pusher(self._mesh, resolver, debounce=Debounce(options.debounce_s))
        self.streams = Streams(self._pusher.view, self._issuance.is_revoked)
        context = StreamContext(
            issuance=self._issuance,
            registry=self._registry,
            streams=self.streams,
            bundle=self._authority.bundle(),
            trust_domain=options.trust_domain,
            limits=options.stream_limits,
        )
        self._server = await self._listen(context)
        self.operations = Operations(
            self._store,
            self._authority,
            self._issuance,
            self._mesh,
            self._pusher,
            self.streams,
            control_address=options.advertise or self.address,
            build=options.build,
        )
        for work in (
            self._pusher.run(self.streams),
            resolver.run(self._pusher.note),
            self._tick(),
            self._keep_alive(),
            self._renew(),
            self._compact(),
        ):
            self._tasks.append(asyncio.create_task(work))

    async def failed(self) -> None:
        """Wait until a task of ours ends, which none does by itself, and raise what ended it."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def stop(self) -> None:
        """Say goodbye to every stream and close everything."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            for stream in self.streams:
                stream.end("drain", "the control plane stops")
            if self._serving_streams:
                await asyncio.wait(self._serving_streams, timeout=GOODBYE_S)
            for serving in self._serving_streams:
                serving.cancel()
            self._mesh.close()
        self._store.close()

    async def _listen(self, context: StreamContext) -> asyncio.Server:
        """Bind the address, or a free port in its place where that is allowed."""

        async def bind(port: int) -> asyncio.Server:
            return await asyncio.start_server(
                partial(self._serve, context),
                self._options.host,
                port,
                ssl=self._serving.context,
                ssl_handshake_timeout=HANDSHAKE_S,
                ssl_shutdown_timeout=SHUTDOWN_S,
                backlog=BACKLOG,
            )

        try:
            return await bind(self._options.port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not self._options.fallback:
                raise
            return await bind(0)

    async def _serve(
        self,
        context: StreamContext,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        task = asyncio.current_task()
        assert task is not None, "asyncio serves a connection in a task"
        self._serving_streams.add(task)
        try:
            await serve(context, reader, writer)
        finally:
            self._serving_streams.discard(task)

    async def _tick(self) -> None:
        """Let every stream look at the clock."""
        while True:
            await asyncio.sleep(TICK_S)
            now_ms, now_s = time.monotonic_ns() // 1_000_000, time.time()
            for stream in self.streams:
                stream.tick(now_ms, now_s)

    async def _keep_alive(self) -> None:
        """Keep the leases of open streams, and register again what was lost in a stall."""
        while True:
            await asyncio.sleep(self._registry.keep_alive_ms / 1000)
            for stream, record in self._registry.keep_alive():
                with suppress(StoreError):
                    await self._registry.register_again(stream, record)

    async def _renew(self) -> None:
        """Keep our own certificate, and the issuer, young."""
        while True:
            await asyncio.sleep(max(1.0, self._serving.renew_in_s()))
            try:
                if await asyncio.to_thread(self._authority.renew_issuer):
                    log.info("issuer renewed")
                self._serving.renew()
            except (MeshfastError, OSError, ssl.SSLError) as error:
                log.error("certificate of the control plane not renewed: %s", error)

    async def _compact(self) -> None:
        """Forget states that no watch needs, tokens and certificates that nobody can use."""
        before: Revision | None = None
        while True:
            await asyncio.sleep(COMPACT_S)
            try:
                if before is not None:
                    await asyncio.to_thread(self._store.compact, before)
                before = self._store.revision()
                await asyncio.to_thread(
                    lambda: self._issuance.tokens.forget_expired(after_s=TOKENS_KEPT_S)
                )
                await asyncio.to_thread(self._issuance.forget_expired)
            except StoreError as error:
                log.error("store not compacted: %s", error)
