"""A control plane for tests: real TLS, real sessions, no store. A thread for each connection.

Resources are set by `put` and `remove`; what sidecars said is in `said`, in order. `stop` and
`start` are an outage: resources and revision survive it, streams do not. The token is good for
`uses` joins, each a key of an instance, and a certificate that has expired is renewed for its key.
"""

import contextlib
import itertools
import socket
import ssl
import tempfile
import threading
from collections.abc import Collection
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from meshfast.discovery import (
    TYPES,
    CertificateRequest,
    CertificateResponse,
    DiscoveryError,
    Framer,
    Goodbye,
    Resource,
    Revision,
    ServerSession,
    content_version,
)
from tests.agent.fakes.authority import Authority

IDENTITY = "spiffe://cluster.local/ns/meshfast-system/sa/control"
SECRET = "a secret of thirty-two bytes or so"
TICK_S = 0.005


class World:
    """What every node sees; replaced as a whole when something changes."""

    def __init__(self, revision: Revision, resources: dict[str, dict[str, bytes]]) -> None:
        self.revision = revision
        self.resources = resources

    def names(self, type: str) -> Collection[str]:
        return self.resources[type].keys()

    def resource(self, type: str, name: str) -> Resource | None:
        body = self.resources[type].get(name)
        return None if body is None else Resource(name, content_version(body), body)


class ControlPlane:
    """Listens from the beginning; `address` stays the same over outages."""

    def __init__(
        self, authority: Authority, identity: str = IDENTITY, *, ttl_s: float = 3600
    ) -> None:
        self.authority = authority
        self.ttl_s = ttl_s
        self.uses = 1
        self.joined: list[tuple[bytes, str]] = []  # public key and instance of every use
        self.loses = 0  # so many answers to a join do not arrive
        self.forgets = False  # it has no record of any certificate
        self.refusal = ""  # what every request for a certificate is answered with
        self.given_names: list[str] | None = None  # names in certificates, if not those asked for
        self.heartbeat_ms = 10_000
        self.world = World(Revision(1, 1), {type: {} for type in TYPES})
        self.said: list[Any] = []
        self.times: list[tuple[float, Any]] = []
        self.peers: list[str] = []  # who streams came from
        self._changes: list[tuple[str, str]] = []
        self._lock = threading.Lock()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._context.verify_mode = ssl.CERT_OPTIONAL
        self._context.load_verify_locations(cadata=authority.root)
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
            file.write(authority.pem(identity))
            file.flush()
            self._context.load_cert_chain(file.name)
        self._port = 0
        self._threads: list[threading.Thread] = []
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._port}"

    # the world

    def put(self, type: str, name: str, body: object) -> None:
        """Write a resource; bytes go out as they are."""
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        with self._lock:
            resources = {**self.world.resources[type], name: data}
            self._change(type, name, resources)

    def remove(self, type: str, name: str) -> None:
        with self._lock:
            resources = dict(self.world.resources[type])
            del resources[name]
            self._change(type, name, resources)

    def _change(self, type: str, name: str, resources: dict[str, bytes]) -> None:
        revision = Revision(1, self.world.revision.n + 1)
        self.world = World(revision, {**self.world.resources, type: resources})
        self._changes.append((type, name))

    # life

    def start(self) -> None:
        self._over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._listener.settimeout(TICK_S)
        self._port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def said_of(self, kind: type) -> list[Any]:
        return [message for message in list(self.said) if isinstance(message, kind)]

    def _accept(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                connection, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(connection,))
                self._threads.append(thread)
                thread.start()

    def _serve(self, plain: socket.socket) -> None:
        plain.settimeout(5)
        with contextlib.suppress(OSError, DiscoveryError), plain:
            with self._context.wrap_socket(plain, server_side=True) as tls:
                tls.settimeout(TICK_S)
                certificate: Any = tls.getpeercert()
                if certificate:
                    self.peers.append(certificate["subjectAltName"][0][1])
                    self._stream(tls)
                else:
                    self._join(tls)

    def _join(self, tls: ssl.SSLSocket) -> None:
        framer = Framer()
        while (message := framer.take()) is None:
            framer.receive(self._receive(tls))
        self.said.append(message)
        assert isinstance(message, CertificateRequest)
        answer = self._certify(message, self._join_problem(message))
        if self.loses:
            self.loses -= 1
            return
        tls.settimeout(5)
        tls.sendall(framer.encode(answer) + framer.encode(Goodbye("drain")))

    def _join_problem(self, request: CertificateRequest) -> str:
        key = x509.load_der_x509_csr(request.csr).public_key()
        if request.previous:
            leaf = x509.load_der_x509_certificate(request.previous)
            leaf.verify_directly_issued_by(self.authority.certificate)
            if self.forgets:
                return "unknown: the certificate is not on record"
            return "" if leaf.public_key() == key else "key_owner: another key"
        if (request.token_id, request.token_secret) != ("token-1", SECRET):
            return "the token is not known"
        encoded = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        use = (encoded, request.instance)
        if use not in self.joined and not self.refusal:
            if len(self.joined) == self.uses:
                return "token_used: the token is used up"
            self.joined.append(use)
        return ""

    def _certify(self, request: CertificateRequest, problem: str = "") -> CertificateResponse:
        if problem or self.refusal:
            return CertificateResponse(request.id, refusal=problem or self.refusal)
        leaf = self.authority.sign(request.csr, self.ttl_s, self.given_names)
        return CertificateResponse(request.id, [leaf], [self.authority.root])

    def _stream(self, tls: ssl.SSLSocket) -> None:
        framer = Framer()
        with self._lock:
            session = ServerSession(self.world, heartbeat_ms=self.heartbeat_ms)
            seen = len(self._changes)
        while not self._over.is_set():
            framer.receive(self._receive(tls, wait=False))
            while (message := framer.take()) is not None:
                session.handle_message(message)
            with self._lock:
                changes: dict[str, set[str]] = {}
                for type, name in itertools.islice(self._changes, seen, None):
                    changes.setdefault(type, set()).add(name)
                seen = len(self._changes)
                if changes:
                    session.notify(self.world, changes)
            for said in session.take_received():
                self.said.append(said)
                if isinstance(said, CertificateRequest):
                    session.send(self._certify(said))
            out = b"".join(framer.encode(one) for one in session.poll_messages())
            if out:
                tls.settimeout(5)
                tls.sendall(out)
                tls.settimeout(TICK_S)

    def _receive(self, tls: ssl.SSLSocket, *, wait: bool = True) -> bytes:
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                data = tls.recv(65536)
                if not data:
                    raise ConnectionResetError
                return data
            if not wait:
                return b""
        raise ConnectionResetError
