"""The control plane, assembled: store, authority, registry, push, the two listeners.

    <state dir>/store/   store.db, store.lock     held by one process at a time
    <state dir>/ca/      root.pem, issuer.pem

One event loop. The control stream is TLS over TCP. The operator API is served beside it, by whoever
is handed `operations` (process.py), so that this room needs no HTTP.

Does not do: parse arguments, decide anything the rooms decide.

Invariants:
1. The store is opened first: its lock also guards the authority's files.
2. After `stop` every stream was told goodbye and every acknowledged write is on disk.
3. No task of ours ends unseen: whoever runs this waits for `failed`.

Tests: tests/control/server/.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

from meshfast.control.admission import PATIENCE_S, Admission
from meshfast.control.ca import CertificateAuthority, Issuance, IssuanceLimits
from meshfast.control.ca.authority import ROOT_FILE
from meshfast.control.ca.error import AuthorityError
from meshfast.control.ca.serving import Serving
from meshfast.control.listening import listen
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
#: How often it is said that connections find no place.
WARN_AGAIN_S: Final = 10.0
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
#: How soon after a failure the next connection is tried.
ACCEPT_AGAIN_S: Final = 0.1
#: How long a task may rely on a clock that stands still while the host is suspended.
LOOK_S: Final = 60.0

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
    admission: Admission = field(default_factory=Admission)


class ControlPlane:
    """One running control plane: `start`, then `stop`."""

    operations: Operations

    def __init__(self, options: Options) -> None:
        """Open the files. Raises `StoreError` and `AuthorityError`: nothing was started then."""
        private_directory(options.state_dir)
        self._options = options
        self._store = SqliteStore(options.state_dir / "store")
        try:
            self._check_authority(options.state_dir / "ca")
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
        self._listeners: list[socket.socket] = []
        self._admission = options.admission
        self._turned_away = _TurnedAway()
        self._tasks: list[asyncio.Task[None]] = []
        self._serving_streams: set[asyncio.Task[None]] = set()

    def _check_authority(self, directory: Path) -> None:
        """Refuse to make a new authority for a mesh that has one: nobody would trust it."""
        used = any(self._store.scan(prefix, limit=1).entries for prefix in ("/issued/", "/tokens/"))
        if used and not (directory / ROOT_FILE).exists():
            raise AuthorityError(
                f"{directory / ROOT_FILE} is missing, but the store beside it has issued "
                "certificates or tokens: restore the file from a backup, or remove the store as "
                "well to start a mesh that no present sidecar trusts"
            )

    @property
    def address(self) -> str:
        """Where the control stream listens, of several addresses the first: `host:port`."""
        return self.addresses[0]

    @property
    def addresses(self) -> list[str]:
        """Where the control stream listens: `host:port` of each address."""
        assert self._listeners, "asked for after start"
        names = (listener.getsockname()[:2] for listener in self._listeners)
        return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in names]

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
        self._listeners = await self._listen()
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
        for name, work in (
            *(("accepting", self._accept(context, one)) for one in self._listeners),
            ("pushing", self._pusher.run(self.streams)),
            ("looking names up", resolver.run(self._pusher.note)),
            ("watching streams", self._tick()),
            ("keeping leases", self._keep_alive()),
            ("renewing certificates", self._renew()),
            ("compacting the store", self._compact()),
        ):
            self._tasks.append(asyncio.create_task(work, name=name))

    async def failed(self) -> NoReturn:
        """Wait until a task of ours ends, which none does by itself; log why and raise.

        Raises `MeshfastError`: without one of them it would look alive and do half of its work.
        """
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        ended = done.pop()
        error = None if ended.cancelled() else ended.exception()
        log.critical("%s has ended unexpectedly", ended.get_name(), exc_info=error)
        raise MeshfastError(f"the control plane cannot go on: {ended.get_name()}: {error!r}")

    async def stop(self) -> None:
        """Say goodbye to every stream and close everything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listeners:
            for listener in self._listeners:
                listener.close()
            for stream in self.streams:
                stream.end("drain", "the control plane stops")
            if self._serving_streams:
                await asyncio.wait(self._serving_streams, timeout=GOODBYE_S)
            for serving in self._serving_streams:
                serving.cancel()
            self._mesh.close()
        self._store.close()

    async def _listen(self) -> list[socket.socket]:
        """Bind the addresses, or a free port in its place where that is allowed."""
        options = self._options
        try:
            return await listen(options.host, options.port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not options.fallback:
                raise
            return await listen(options.host, 0)

    async def _accept(self, context: StreamContext, listener: socket.socket) -> None:
        """Take connections until cancelled; those that have no place are closed unread."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, peer = await loop.sock_accept(listener)
            except OSError as error:  # one that is gone already, or no descriptors left
                log.warning("no connection accepted: %s", error)
                await asyncio.sleep(ACCEPT_AGAIN_S)
                continue
            evict = partial(self._evict, connection, str(peer[0]))
            leave = self._admission.enter(str(peer[0]), loop.time(), evict)
            if leave is None:
                self._turned_away.note(str(peer[0]), loop.time())
                connection.close()
                continue
            task = asyncio.create_task(self._serve(context, connection, leave))
            self._serving_streams.add(task)
            task.add_done_callback(self._serving_streams.discard)

    def _evict(self, connection: socket.socket, address: str) -> None:
        """End a connection that makes place; who serves it sees the end of it."""
        self._turned_away.note(address, asyncio.get_running_loop().time())
        with suppress(OSError):  # it is over already
            connection.shutdown(socket.SHUT_RDWR)

    async def _serve(
        self, context: StreamContext, connection: socket.socket, leave: Callable[[], None]
    ) -> None:
        """Serve one connection; `leave` is called when it is known, or over."""
        loop = asyncio.get_running_loop()
        connection.setblocking(False)
        reader = asyncio.StreamReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol,
                connection,
                ssl=self._serving.context,
                ssl_handshake_timeout=PATIENCE_S if self._admission.is_crowded else HANDSHAKE_S,
                ssl_shutdown_timeout=SHUTDOWN_S,
            )
            writer = asyncio.StreamWriter(transport, protocol, reader, loop)
            await serve(context, reader, writer, leave)
        except (OSError, TimeoutError, ssl.SSLError) as error:
            log.debug("no handshake: %s", error)
        finally:
            leave()

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
        """Keep our own certificate, and the issuer, young.

        The clock is looked at again and again: a host that was suspended has slept through it.
        """
        while True:
            await asyncio.sleep(min(max(1.0, self._serving.renew_in_s()), LOOK_S))
            if self._serving.renew_in_s() > 0:
                continue
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


class _TurnedAway:
    """Says that connections found no place: at once, and then every so many seconds."""

    def __init__(self) -> None:
        self._count = 0
        self._said_s = -WARN_AGAIN_S

    def note(self, address: str, now_s: float) -> None:
        """Count one more."""
        self._count += 1
        if now_s - self._said_s < WARN_AGAIN_S:
            return
        log.warning(
            "too many connections that have not said who they are: %d closed, the last from %s",
            self._count,
            address,
        )
        self._said_s, self._count = now_s, 0
