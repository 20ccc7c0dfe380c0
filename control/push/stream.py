"""One connection of a sidecar: joins it, or authenticates, registers, renews and pushes to it.

    no certificate  → one CertificateRequest, with a token or a certificate that has expired,
                      → CertificateResponse → Goodbye
    a certificate   → Hello → Subscribe, Registration, CertificateRequest, … until either side ends

Two tasks: one reads and acts, one writes what the session has to say. A sidecar has at most one
push of each type outstanding, so what waits for a slow reader is bounded; one that takes too long
to read is cut off. Nobody else waits for it.

Does not do: TLS (serving.py), deciding what is pushed (pusher.py), counting streams (streams.py).

Invariants:
1. Nothing that a message says about identity is believed; it is compared with the certificate.
2. Nothing is pushed before Hello was compared.
3. A stream ends when its certificate does, unless it was renewed on this very stream.
4. Service and instance are those on record for the certificate; without a record there is nothing.

Tests: tests/control/server/test_join.py, test_stream.py, test_limits.py.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from meshfast.control.ca import Issuance, Issued, IssuedRecord, Peer, RefusedError
from meshfast.control.push.progress import Progress
from meshfast.control.push.status import SidecarStatus, overall, text
from meshfast.control.registry import Registry, WorkloadRecord, claim_problem
from meshfast.control.registry.registry import ShareError
from meshfast.control.registry.workload import is_instance, is_loopback
from meshfast.control.store import StoreError
from meshfast.discovery import (
    Ack,
    CertificateRequest,
    CertificateResponse,
    Code,
    DiscoveryError,
    Framer,
    FromServer,
    Goodbye,
    Hello,
    Message,
    Nack,
    Push,
    Registration,
    ServerSession,
    Status,
    Subscribe,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from meshfast.control.push.streams import Streams
    from meshfast.control.push.view import NamespaceView

__all__ = ["Stream", "StreamContext", "StreamLimits"]

READ_BYTES: Final = 64 << 10
#: Before Hello, and of a peer that is nobody yet, nothing large is due.
JOIN_FRAME_BYTES_MAX: Final = 16 << 10
DRAIN: Final = "drain"
#: A push has 1 MiB at most; the kernel would grow to 4 MiB a stream (tcp_wmem).
SEND_BUFFER_BYTES: Final = 256 << 10
WRITE_BUFFER_BYTES: Final = 64 << 10
WRITE_BYTES: Final = 32 << 10
UNACKNOWLEDGED_MS: Final = 30_000
#: Of what somebody unknown says, in the log: the id of a token has 16.
SHOWN_CHARACTERS_MAX: Final = 80

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Times in seconds."""

    #: From the handshake to the first message, and to the end of a join.
    opening_s: float = 10.0
    #: How long one message may take to be read by the peer.
    send_s: float = 30.0
    heartbeat_ms: int = 10_000
    #: Heartbeats that may be missing before the peer is taken for dead.
    silence: int = 3
    #: Registrations a second of one stream, after a burst; health changes are registrations.
    registrations_per_s: float = 5.0
    registrations_burst: int = 20


@dataclass(frozen=True, slots=True)
class StreamContext:
    """What all streams share."""

    issuance: Issuance
    registry: Registry
    streams: Streams
    bundle: list[bytes]
    trust_domain: str
    limits: StreamLimits


async def serve(
    context: StreamContext,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    on_known: Callable[[], None],
) -> None:
    """Serve one connection from its handshake to its end. Raises nothing but cancellation.

    `on_known` is called when a Hello was believed.
    """
    try:
        _bound(writer)
        tls = writer.get_extra_info("ssl_object")
        assert isinstance(tls, ssl.SSLObject), "the listener speaks TLS and nothing else"
        certificate = tls.getpeercert(binary_form=True)
        if certificate is None:
            await _Join(context, reader, writer).run()
        else:
            peer = Peer.of(certificate, context.trust_domain)
            await Stream(context, reader, writer, peer, on_known).run()
    except RefusedError as error:
        log.warning("peer refused: %s", error)
    except (OSError, TimeoutError, ssl.SSLError) as error:
        log.debug("connection ended: %s", error)
    finally:
        writer.transport.abort()


class _Join:
    """A connection without a certificate: one request, one answer."""

    def __init__(
        self, context: StreamContext, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._context = context
        self._reader = reader
        self._writer = writer
        self._framer = Framer(frame_bytes_max=JOIN_FRAME_BYTES_MAX)

    async def run(self) -> None:
        try:
            async with asyncio.timeout(self._context.limits.opening_s):
                answers = await self._answers()
                for answer in answers:
                    self._writer.write(self._framer.encode(answer))
                await self._writer.drain()
                # A close_notify after all of it: an abort could overtake what was just written.
                self._writer.close()
                await self._writer.wait_closed()
        except TimeoutError:
            log.debug("a join took too long")

    async def _answers(self) -> list[CertificateResponse | Goodbye]:
        try:
            request = await self._request()
            response = await self._response(request)
            return [response, Goodbye(DRAIN, "connect again with the certificate")]
        except DiscoveryError as error:
            return [Goodbye(error.code, error.detail)]

    async def _request(self) -> CertificateRequest:
        while (message := self._framer.take()) is None:
            data = await self._reader.read(READ_BYTES)
            if not data:
                raise DiscoveryError(Code.MALFORMED, "the stream ended before a request")
            self._framer.receive(data)
        if not isinstance(message, CertificateRequest) or not (
            message.token_id or message.previous
        ):
            raise DiscoveryError(
                Code.UNAUTHORIZED,
                "without a certificate only a request with a token, or with a certificate that "
                "has expired, is taken",
            )
        return message

    async def _response(self, request: CertificateRequest) -> CertificateResponse:
        try:
            issued = await asyncio.to_thread(self._issued, request)
        except (RefusedError, StoreError) as error:
            log.warning("join refused: token %s, instance %s: %s",
                        _shown(request.token_id), _shown(request.instance), error)  # fmt: skip
            return CertificateResponse(request.id, refusal=str(error))
        how = f"token {request.token_id}" if request.token_id else "expired certificate"
        log.info("joined: %s, instance %s", how, _shown(request.instance))
        return CertificateResponse(request.id, list(issued.chain), self._context.bundle)

    def _issued(self, request: CertificateRequest) -> Issued:
        issuance, address = self._context.issuance, _ip(self._writer)
        if request.token_id:
            secret = request.token_secret
            return issuance.join(request.csr, request.token_id, secret, request.instance, address)
        return issuance.renew_expired(request.csr, request.previous, request.instance, address)


class Stream:
    """An authenticated stream. `status` may be called after it has ended, too."""

    def __init__(
        self,
        context: StreamContext,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        peer: Peer,
        on_known: Callable[[], None],
    ) -> None:
        """Take over a connection whose peer is known."""
        self.peer = peer
        self._on_known = on_known
        self.namespace = peer.identity.namespace
        self.hello: Hello | None = None
        self.has_left = False  # it has said goodbye and does not come back
        self._context = context
        self._reader = reader
        self._writer = writer
        self._framer = Framer()
        self._view = context.streams.view(self.namespace)
        limits = context.limits
        self._session = ServerSession(self._view, heartbeat_ms=limits.heartbeat_ms)
        self._progress = Progress(self._session)
        self._wake = asyncio.Event()
        self._goodbye: Goodbye | None = None
        self._record: IssuedRecord | None = None
        self._expires_s = peer.not_after.timestamp()
        self._status: Status | None = None
        self._opened_s = time.time()
        self._heard_s = self._opened_s
        self._heard_ms = self._beat_ms = _now_ms()
        self._credit = float(limits.registrations_burst)
        self._credit_ms = self._heard_ms
        name = writer.get_extra_info("peername")
        self._address = f"{name[0]}:{name[1]}" if isinstance(name, tuple) else ""

    async def run(self) -> None:
        """Serve until either side ends the stream."""
        streams = self._context.streams
        refusal = streams.admit(self)
        if refusal is not None:
            self.end(*refusal)
        writing = asyncio.create_task(self._write())
        try:
            if refusal is None:
                self._record = self._look_up()
                await self._read()
        except DiscoveryError as error:
            log.warning("stream of %s ended: %s", self.peer.identity, error)
            self.end(error.code, error.detail)
        except StoreError as error:
            log.error("stream of %s ended: %s", self.peer.identity, error)
            self.end(DRAIN, "the control plane cannot write now")
        finally:
            streams.remove(self)
            self._context.registry.release(self)
            self.end(DRAIN, "")
            await _finished(writing, self._context.limits.opening_s)

    def _look_up(self) -> IssuedRecord:
        """Find what is on record for the certificate of this stream."""
        record = self._context.issuance.issued(self.peer.serial)
        if record is None:
            raise DiscoveryError(
                Code.UNAUTHORIZED, "the certificate is not on record; join again with a token"
            )
        return record

    def end(self, code: str, detail: str) -> None:
        """Say goodbye and close; the first reason counts."""
        if self._goodbye is None:
            self._goodbye = Goodbye(code, detail)
            self._wake.set()

    def notify(self, view: NamespaceView) -> None:
        """Move to a newer view."""
        changes = view.changes(self._view)
        self._view = view
        self._session.notify(view, changes)
        self._progress.changed(changes)
        self._wake.set()

    def tick(self, now_ms: int, now_s: float) -> None:
        """Look at the clock: silence, heartbeats, and the end of the certificate."""
        limits = self._context.limits
        silent_ms = now_ms - self._heard_ms
        if now_s >= self._expires_s:
            self.end(Code.EXPIRED, "the certificate has expired")
        elif self.hello is None:
            if silent_ms > limits.opening_s * 1000:
                self.end(Code.SLOW, "no Hello came")
        elif silent_ms > limits.silence * limits.heartbeat_ms:
            self.end(Code.SLOW, "nothing was heard for too long")
        elif now_ms - self._beat_ms >= limits.heartbeat_ms:
            self._beat_ms = now_ms
            self._session.heartbeat()
            self._wake.set()

    def status(self, *, connected: bool) -> SidecarStatus:
        """Show the sidecar."""
        hello = self.hello
        assert hello is not None, "a sidecar is shown once it has said its name"
        types = self._progress.types()
        said = self._status
        return SidecarStatus(
            instance=hello.node.instance,
            workload=hello.node.workload,
            namespace=self.namespace,
            identity=str(self.peer.identity),
            address=self._address,
            connected=connected,
            connected_s=self._opened_s,
            last_seen_s=self._heard_s,
            certificate_expires_s=self._expires_s,
            state=overall(types),
            revision=text(self._progress.synced()),
            generation=hello.generation if said is None else said.generation,
            types=types,
            data_plane="" if said is None else said.state,
            detail="" if said is None else said.detail,
        )

    async def _read(self) -> None:
        while not self._is_ending():
            data = await self._reader.read(READ_BYTES)
            if not data:
                return
            self._heard_ms, self._heard_s = _now_ms(), time.time()
            self._framer.receive(data)
            while not self._is_ending() and (message := self._framer.take()) is not None:
                await self._handle(message)
                self._wake.set()

    def _is_ending(self) -> bool:
        return self._goodbye is not None

    async def _handle(self, message: Message) -> None:
        if isinstance(message, Hello):
            self._check_hello(message)
        self._session.handle_message(message)
        if isinstance(message, Hello):
            self.hello = message
            self._context.streams.greet(self)
            self._on_known()
        elif isinstance(message, Subscribe):
            self._progress.subscribed(message.type)
        for received in self._session.take_received():
            match received:
                case Ack() | Nack():
                    self._progress.answered(received.type)
                case CertificateRequest():
                    self._session.send(await self._renew(received))
                case Registration():
                    await self._register(received)
                case Status():
                    self._status = received
                case Goodbye():
                    self.has_left = True
                    self.end(DRAIN, "")

    def _check_hello(self, hello: Hello) -> None:
        """Compare what a sidecar says about itself with its certificate."""
        node = hello.node
        if node.namespace != self.namespace:
            raise DiscoveryError(
                Code.UNAUTHORIZED,
                f"{self.peer.identity} is not of the namespace {node.namespace[:80]!r}",
            )
        if not is_instance(node.instance):
            raise DiscoveryError(Code.MALFORMED, "the instance is no name")
        assert self._record is not None, "nothing is read before the record"
        if node.instance != self._record.instance:
            raise DiscoveryError(
                Code.UNAUTHORIZED,
                f"the certificate is for the instance {self._record.instance[:80]!r}, not for "
                f"{node.instance[:80]!r}",
            )

    async def _renew(self, request: CertificateRequest) -> CertificateResponse:
        if request.token_id or request.token_secret:
            return CertificateResponse(request.id, refusal="a renewal needs no token")
        try:
            issued = await asyncio.to_thread(self._context.issuance.renew, request.csr, self.peer)
            self.peer = replace(self.peer, serial=issued.serial, not_after=issued.not_after)
            self._record = self._look_up()
        except (RefusedError, StoreError) as error:
            log.warning("renewal of %s refused: %s", self.peer.identity, error)
            return CertificateResponse(request.id, refusal=str(error))
        self._expires_s = issued.not_after.timestamp()
        return CertificateResponse(request.id, list(issued.chain), self._context.bundle)

    async def _register(self, registration: Registration) -> None:
        assert self.hello is not None, "the session takes a registration after Hello only"
        await self._wait_for_credit()
        identity = self.peer.identity
        assert self._record is not None, "nothing is read before the record"
        problem = claim_problem(
            registration, self.namespace, self._record.service, is_local=_is_local(self._writer)
        )
        if problem is not None:
            raise DiscoveryError(Code.UNAUTHORIZED, f"registration of {identity}: {problem}")
        record = WorkloadRecord.of(registration, self.hello.node.instance, str(identity))
        registry = self._context.registry
        if not registration.ports:
            await registry.deregister(self, record.key)
            return
        try:
            await registry.register(self, record)
        except ShareError as error:
            raise DiscoveryError(Code.UNAUTHORIZED, str(error)) from error

    async def _wait_for_credit(self) -> None:
        """Slow down a workload whose health flaps: each change is a push to everybody."""
        limits = self._context.limits
        now_ms = _now_ms()
        gained = (now_ms - self._credit_ms) / 1000 * limits.registrations_per_s
        self._credit = min(self._credit + gained, limits.registrations_burst) - 1
        self._credit_ms = now_ms
        if self._credit < 0:
            await asyncio.sleep(-self._credit / limits.registrations_per_s)

    async def _write(self) -> None:
        """Send what the session has to say, until goodbye."""
        try:
            while self._goodbye is None:
                await self._wake.wait()
                self._wake.clear()
                if self._goodbye is None:
                    for message in self._take_messages():
                        await self._send(message)
            await self._send(self._goodbye)
            self._writer.close()
            with suppress(OSError):  # a peer that does not close its side in time
                await self._writer.wait_closed()
        except TimeoutError:
            log.warning("stream of %s ended: it does not read", self.peer.identity)
            self._writer.transport.abort()
        except (OSError, ssl.SSLError):
            self._writer.transport.abort()

    def _take_messages(self) -> list[FromServer]:
        """Take what is to be sent, and note how far that brings the sidecar."""
        messages = self._session.poll_messages()
        for message in messages:
            if isinstance(message, Push):
                self._progress.pushed(message)
        seen = None if self.hello is None else self.hello.revision
        if seen is None or self._view.revision >= seen:
            self._progress.settle(self._view.revision)
        return messages

    async def _send(self, message: FromServer) -> None:
        data = memoryview(self._framer.encode(message))
        async with asyncio.timeout(self._context.limits.send_s):
            # In pieces: of one large write asyncio's TLS hands everything on before it pauses us.
            for at in range(0, len(data), WRITE_BYTES):
                self._writer.write(data[at : at + WRITE_BYTES])
                await self._writer.drain()


def _bound(writer: asyncio.StreamWriter) -> None:
    """Bound what is kept for a reader that is slow, and how long for one that is dead."""
    # asyncio's default for TLS is half a MiB.
    writer.transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)


def _shown(text: str) -> str:
    """Quote and escape what a stranger has said, for the log; of what is too long the beginning."""
    if len(text) <= SHOWN_CHARACTERS_MAX:
        return repr(text)
    return f"{text[:SHOWN_CHARACTERS_MAX]!r}… ({len(text)} characters)"


def _ip(writer: asyncio.StreamWriter) -> str:
    """Give the peer's address without the port."""
    name = writer.get_extra_info("peername")
    return str(name[0]) if isinstance(name, tuple) else ""


def _is_local(writer: asyncio.StreamWriter) -> bool:
    """Tell whether the peer is on this host: at loopback, or at the address it connected to."""
    ip = _ip(writer)
    return is_loopback(ip) or ip == str(writer.get_extra_info("sockname")[0])


async def _finished(task: asyncio.Task[None], timeout_s: float) -> None:
    """Let the writer say goodbye, for so long."""
    done, _ = await asyncio.wait([task], timeout=timeout_s)
    if not done:
        task.cancel()


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
