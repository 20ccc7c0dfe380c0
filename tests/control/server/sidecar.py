"""A sidecar's end of the control stream for tests: real TLS, real certificates, blocking sockets.

with Sidecar.join(plane, token) as sidecar:
    sidecar.subscribe(); sidecar.register(8080); sidecar.wait_for("cluster", "outbound|8080||…")
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from meshfast.discovery import (
    TYPES,
    CertificateRequest,
    CertificateResponse,
    ClientSession,
    Framer,
    FromClient,
    Goodbye,
    JoinToken,
    Message,
    Node,
    Port,
    Problem,
    Push,
    Registration,
)

DEADLINE_S = 10.0


@dataclass
class Credentials:
    """A key and its chain."""

    key: ec.EllipticCurvePrivateKey
    chain: list[bytes]

    def pem(self) -> bytes:
        key = self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        chain = [x509.load_der_x509_certificate(der) for der in self.chain]
        return key + b"".join(one.public_bytes(Encoding.PEM) for one in chain)

    @property
    def leaf(self) -> x509.Certificate:
        return x509.load_der_x509_certificate(self.chain[0])


def request(key: ec.EllipticCurvePrivateKey, *names: x509.GeneralName) -> bytes:
    """A certificate request with these names."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def client_context(root: bytes, credentials: Credentials | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=root)
    if credentials is not None:
        descriptor = os.memfd_create("test")
        with open(descriptor, "wb") as file:
            file.write(credentials.pem())
            file.flush()
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    return context


class Wire:
    """Messages over TLS, to the other end's bytes and back."""

    def __init__(self, address: str, context: ssl.SSLContext, *, is_narrow: bool = False) -> None:
        """Connect; `is_narrow`: to a socket that takes in little before it is read."""
        host, _, port = address.rpartition(":")
        raw = socket.socket()
        if is_narrow:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw.settimeout(DEADLINE_S)
        try:
            raw.connect((host, int(port)))
            self.tls = context.wrap_socket(raw)
        except OSError:
            raw.close()
            raise
        self.framer = Framer()
        self.received_bytes = 0

    def send(self, message: FromClient) -> None:
        self.tls.sendall(self.framer.encode(message))

    def receive(self, timeout_s: float = DEADLINE_S) -> Message | None:
        """The next message; `None` when the other end closed. Raises `TimeoutError`."""
        deadline = time.monotonic() + timeout_s
        while (message := self.framer.take()) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("no message came")
            if not self.tls.pending():
                select.select([self.tls], [], [], left)
            self.tls.settimeout(max(0.001, left))
            try:
                data = self.tls.recv(1 << 16)
            except (ConnectionError, ssl.SSLError) as error:
                if isinstance(error, TimeoutError | ssl.SSLWantReadError):
                    continue
                return None
            if not data:
                return None
            self.received_bytes += len(data)
            self.framer.receive(data)
        return message

    def all(self) -> list[Message]:
        """Everything until the other end closes; then this one closes too."""
        found = []
        while (message := self.receive()) is not None:
            found.append(message)
        self.close()
        return found

    def close(self) -> None:
        self.tls.close()


def join(
    token: JoinToken,
    *names: x509.GeneralName,
    key: ec.EllipticCurvePrivateKey | None = None,
    secret: str | None = None,
    instance: str = "i1",
    csr: bytes | None = None,
) -> tuple[Credentials | None, list[Message]]:
    """Join; return the credentials, if there are any, and every message that came."""
    key = key or new_key()
    wire = Wire(token.control, client_context(token.root))
    wire.send(
        CertificateRequest(
            1,
            csr if csr is not None else request(key, *names),
            token.id,
            token.secret if secret is None else secret,
            instance,
        )
    )
    messages = wire.all()
    match messages:
        case [CertificateResponse(refusal="") as response, Goodbye()]:
            return Credentials(key, response.chain), messages
    return None, messages


def refusal(messages: list[Message]) -> str:
    """The reason in the answer to a request."""
    [response] = [one for one in messages if isinstance(one, CertificateResponse)]
    assert response.chain == []
    return response.refusal


@dataclass
class Sidecar:
    """A sidecar that applies what it is offered, and remembers it."""

    address: str
    root: bytes
    credentials: Credentials
    session: ClientSession
    held: dict[str, dict[str, bytes]] = field(default_factory=dict)
    pushes: list[Push] = field(default_factory=list)
    refuses: Callable[[Push], list[Problem]] = lambda push: []
    received: list[CertificateResponse | Goodbye] = field(default_factory=list)
    wire: Wire | None = None

    @classmethod
    def join(cls, token: JoinToken, instance: str = "i1", namespace: str | None = None) -> Sidecar:
        credentials, messages = join(token, instance=instance)
        assert credentials is not None, messages
        node = Node(instance, f"{token.service}-{instance}", namespace or token.namespace)
        return cls(token.control, token.root, credentials, ClientSession(node))

    def __enter__(self) -> Sidecar:
        self.connect()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.disconnect()

    def connect(self, *, is_narrow: bool = False) -> None:
        context = client_context(self.root, self.credentials)
        self.wire = Wire(self.address, context, is_narrow=is_narrow)
        self.session.connected()
        self.flush()

    def disconnect(self) -> None:
        if self.wire is not None:
            self.wire.close()
            self.wire = None
            self.session.disconnected()

    def flush(self) -> None:
        assert self.wire is not None
        for message in self.session.poll_messages():
            self.wire.send(message)

    def subscribe(self) -> None:
        for type in TYPES:
            self.session.subscribe(type)
        self.flush()

    def step(self, timeout_s: float = DEADLINE_S) -> bool:
        """Take one message and answer it; `False` when the other end closed."""
        assert self.wire is not None
        message = self.wire.receive(timeout_s)
        if message is None:
            return False
        self.session.handle_message(message)
        for push in self.session.take_pushes():
            self.pushes.append(push)
            problems = self.refuses(push)
            refused = {problem.name for problem in problems}
            held = self.held.setdefault(push.type, {})
            held |= {one.name: one.body for one in push.resources if one.name not in refused}
            for name in push.removed:
                held.pop(name, None)
            self.session.answer(push, problems)
        self.received += self.session.take_received()
        self.flush()
        return True

    def wait_until(self, condition: Callable[[], object], timeout_s: float = DEADLINE_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            left = deadline - time.monotonic()
            assert left > 0, "the condition did not come true in time"
            try:
                assert self.step(left), f"the stream ended: {self.received}"
            except TimeoutError:
                continue

    def wait_open(self) -> None:
        self.wait_until(lambda: self.session.heartbeat_ms)

    def send(self, message: FromClient) -> None:
        """Say something, whatever the session thinks of it."""
        assert self.wire is not None
        self.wire.send(message)

    def register(
        self,
        port: int = 8080,
        *,
        address: str = "127.0.0.1:15006",
        healthy: bool = True,
        service: str | None = None,
        labels: dict[str, str] | None = None,
    ) -> None:
        self.send(
            Registration(
                workload=self.session.node.workload,
                namespace=self.session.node.namespace,
                service=service or self.session.node.workload.rpartition("-")[0],
                address=address,
                ports=[Port(port)] if port else [],
                labels=labels or {},
                healthy=healthy,
            )
        )

    def ended(self, timeout_s: float = DEADLINE_S) -> Goodbye:
        """Read until the other end closes; return its goodbye."""
        while self.step(timeout_s):
            pass
        [goodbye] = [one for one in self.received if isinstance(one, Goodbye)]
        return goodbye
