"""A sidecar's part in the mesh: identity, configuration, registration, and their memory on disk.

    start    what is on disk (identity, resources) → workers, at once; no control plane needed
    link     join or stream; pushes → apply → `applied` by all workers → ack or nack
    meshed   workers have an identity and a first configuration → the application may start
    serving  renew, register and say whether the port accepts, keep what was applied on disk
    drain    deregister, and say so when nobody is sent here any more; configuration goes on,
             because the application may still call others

For now it subscribes to everything of its mesh (`*` of each type), not to what it dials.

Does not do: traffic. Legs never wait for the agent: a certificate is renewed long before its end.

Invariants:
1. A push is answered after all workers serve with it, and not before.
2. What is on disk was applied. It is read at start only.
3. A key is on disk only with the certificate for it, in one file, and never with `memory`. But for
   the key of a join under way, which waits for its certificate: an answer that was lost is asked
   for again with the same key, and costs no other use of the token.
4. A certificate that has expired is renewed before the token is used for another one.
5. The service is registered before its port has ever accepted: callers would send in plain text to
   whatever else has its name. But it is never called unhealthy unasked, as by an agent that begins
   beside an application that serves.

Tests: tests/agent/test_mesh.py, tests/mesh.
"""

from __future__ import annotations

import base64
import os
import random
import time

import msgspec

from meshfast.agent.health import AppHealth, listening_addresses
from meshfast.agent.identity import Identity, IdentityError, Renewal
from meshfast.agent.link import Link
from meshfast.agent.mesh_publisher import MeshPublisher
from meshfast.agent.state import StateDirectory, StateError
from meshfast.discovery.client import ClientSession
from meshfast.discovery.messages import (
    TYPES,
    CertificateRequest,
    CertificateResponse,
    Node,
    Port,
    Problem,
    Push,
    Reference,
    Registration,
    Status,
)
from meshfast.discovery.revision import Revision, content_version
from meshfast.policy.sidecar import LISTENER, ROUTE, Change, Refusal, Sidecar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from meshfast.agent.channel import Channel, Message
    from meshfast.agent.log import Log
    from meshfast.agent.loop import Loop
    from meshfast.agent.resolver import Resolver
    from meshfast.agent.settings import Settings
    from meshfast.telemetry.families import AgentFacts
    from meshfast.telemetry.source import Source

__all__ = ["IDENTITY", "JOINING", "RESOURCES", "RUNNING", "Keys", "Mesh", "MeshSettings"]

IDENTITY, RESOURCES = "identity", "resources"
JOINING = "joining"
ENVIRONMENT, RUNNING = "environment", "running"
RESOURCES_VERSION = 1
FINISH_S = 1.0
# Refusals after which another key helps, and one after which nothing but time does.
KEY_REFUSALS = frozenset({"key", "key_age", "key_owner"})
RATE_REFUSAL = "rate"


class MeshSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`agent.mesh` of the settings, written by the CLI.

    `control` is `host:port`, `roots` are certificates in base64; `instance` names this sidecar
    among all. `address` is what others reach it by, "" for the address towards the control plane.
    `environment` is text for the file of that name, in which `{outbound}` is the proxy's address.
    """

    sidecar: Sidecar
    control: str
    control_identity: str
    roots: list[str]
    trust_domain: str
    instance: str
    state_dir: str
    key_storage: str = "disk"
    token_id: str = ""
    token_secret: str = ""
    protocol: str = "http"
    address: str = ""
    environment: str = ""


class Keys:
    """How keys and requests are made; `meshfast._core` in the product."""

    def __init__(
        self,
        generate: Callable[[], bytes],
        request: Callable[[bytes, str], bytes],
    ) -> None:
        """`generate()` gives PKCS #8 in DER, `request(key, identity)` a PKCS #10 request in DER."""
        self.generate = generate
        self.request = request


class _Kept(msgspec.Struct, array_like=True):
    """The file `resources`."""

    version: int
    revision: Revision | None
    resources: dict[str, dict[str, bytes]]
    private: list[tuple[str, str]]


class Mesh:
    """Everything above, assembled. `publisher` takes the supervisor's answers to snapshots."""

    def __init__(
        self,
        loop: Loop,
        settings: Settings,
        control: Channel,
        resolver: Resolver,
        source: Source,
        facts: AgentFacts,
        log: Log,
        describe: Callable[[bytes], str],
        build: Callable[[bytes], bytes],
        keys: Keys,
        on_meshed: Callable[[], None],
    ) -> None:
        """Read what is on disk; `start` does the rest."""
        self._loop = loop
        self._control = control
        self._facts = facts
        self._log = log
        self._keys = keys
        self._on_meshed = on_meshed
        facts.is_sidecar = True
        self._settings = msgspec.convert(settings.mesh, MeshSettings)
        self._sidecar = self._settings.sidecar
        self._addresses = settings.addresses
        self._metrics_address = settings.metrics_address
        self._state = StateDirectory(self._settings.state_dir)
        self._serial = settings.identity_serial
        self._applied_serial = 0
        self._is_configured = False
        self._lacking: set[tuple[str, str]] = set()
        self.is_meshed = False
        self._is_draining = False
        self._has_withdrawn = False
        self._shown = b""  # the identity that workers were given before this agent began
        self._pending: tuple[int, bytes] = (0, b"")  # id of the request under way, and its key
        self._joining_key = b""  # what the token is used for, until there is a certificate for it
        self._expired: Identity | None = None  # the one on disk, if it is not valid any more
        self._is_asking_with_token = False
        self._is_token_next = False
        self.publisher = MeshPublisher(
            loop, settings, self._sidecar, control, source, facts, log, describe, build
        )
        self._kept = self._read_resources()
        self._identity = self._read_identity(settings.identity_fd)
        self._renewal = Renewal(loop, self._renew, self._ring, random.uniform)
        self._health = AppHealth(loop, self._sidecar.app_port, self._on_health)
        self._link = Link(
            loop,
            resolver,
            log,
            self._settings.control,
            [base64.b64decode(root) for root in self._settings.roots],
            self._settings.control_identity,
            self._session(()),
            join_request=self._join_request,
            on_certificate=self._on_certificate,
            on_open=self._on_open,
            on_activity=self._take_pushes,
            on_lost=self._on_lost,
            on_hopeless=self._on_hopeless,
        )

    def start(self) -> None:
        """Hand over what is on disk, then connect."""
        self._write_facts()
        if self._identity is not None:
            self._adopt(self._identity, is_new=False)
        if self._kept.resources:
            changes = [Change(type, bodies) for type, bodies in self._kept.resources.items()]
            self.publisher.apply(changes, self._on_restored)
        else:
            self._link.start()

    def on_identity_applied(self, message: Message) -> None:
        """Hear that all workers show the identity of this serial."""
        serial = message.get("serial")
        if isinstance(serial, int):
            self._applied_serial = max(self._applied_serial, serial)
        self._check_meshed()

    def drain(self) -> None:
        """Deregister: no call should come any more. Configuration and certificates go on."""
        self._is_draining = True
        self._health.stop()
        self._register()
        self._report()
        self._check_withdrawn()

    def finish(self) -> None:
        """Leave the control plane and wait for the disk, a second at most."""
        self._renewal.cancel()
        self._link.stop(for_good=self._is_draining)
        if not self._state.finish(FINISH_S):
            self._log.warning("state was not written in time", path=self._state.path)

    # what is on disk

    def _read_resources(self) -> _Kept:
        empty = _Kept(RESOURCES_VERSION, None, {}, [])
        try:
            data = self._state.read(RESOURCES)
            if data is None:
                return empty
            kept = msgspec.msgpack.decode(data, type=_Kept)
        except (StateError, msgspec.DecodeError) as error:
            self._log.error("kept configuration is not used", error=str(error))
            return empty
        return kept if kept.version == RESOURCES_VERSION else empty

    def _read_identity(self, handed_over: int | None) -> Identity | None:
        """The one on disk, or what workers show already; None when it has expired."""
        try:
            data: bytes | None = None
            if self._settings.key_storage == "disk":
                data = self._state.read(IDENTITY)
            else:
                self._state.remove(IDENTITY)
            if handed_over is not None:
                self._shown = os.pread(handed_over, os.fstat(handed_over).st_size, 0)
                data = data or self._shown
            if data is None:
                return None
            identity = Identity.decode(data, self._sidecar.principal)
        except (IdentityError, StateError) as error:
            self._log.error("kept identity is not used", error=str(error))
            return None
        if not identity.is_valid(time.time()):
            self._log.warning("kept identity has expired")
            self._expired = identity
            return None
        return identity

    def _write_facts(self) -> None:
        """Say where this start listens: to the application's shell, `check` and the next start."""
        facts = self._sidecar
        running = {
            "port": facts.app_port,
            "outbound": self._addresses.get(facts.outbound, ""),
            "inbound": self._addresses.get(facts.inbound, ""),
            "metrics": self._metrics_address,
            "upstreams": [self._addresses.get(one.listener, "") for one in facts.upstreams],
        }
        self._state.write(RUNNING, msgspec.json.encode(running))
        if self._settings.environment:
            address = self._addresses.get(self._sidecar.outbound, "")
            text = self._settings.environment.replace("{outbound}", address)
            self._state.write(ENVIRONMENT, text.encode())

    def _keep_resources(self) -> None:
        held = {type: dict(bodies) for type, bodies in self.publisher.held.items() if bodies}
        revision = self._link.session.revision
        kept = _Kept(RESOURCES_VERSION, revision, held, sorted(self.publisher.private))
        self._state.write(RESOURCES, msgspec.msgpack.encode(kept))

    # identity

    def _join_request(self) -> CertificateRequest | None:
        """Ask with the certificate that has expired, and when that was refused with the token."""
        expired = self._identity or self._expired
        self._is_asking_with_token = expired is None or self._is_token_next
        self._is_token_next = False
        if not self._is_asking_with_token:
            assert expired is not None
            return msgspec.structs.replace(
                self._request(expired.key),
                instance=self._settings.instance,
                previous=expired.chain[0],
            )
        if not self._settings.token_secret:
            return None
        self._joining_key = self._joining_key or self._key_to_join_with()
        return msgspec.structs.replace(
            self._request(self._joining_key),
            token_id=self._settings.token_id,
            token_secret=self._settings.token_secret,
            instance=self._settings.instance,
        )

    def _key_to_join_with(self) -> bytes:
        """Take the key of a join that got no answer, or make one and keep it."""
        is_kept = self._settings.key_storage == "disk"
        try:
            found = self._state.read(JOINING) if is_kept else None
            if found:
                return found
        except StateError as error:
            self._log.warning("kept key is not used", error=str(error))
        key = self._keys.generate()
        if is_kept:
            try:
                self._state.write_now(JOINING, key)
            except OSError as error:
                self._log.warning("key is not kept", error=str(error))
        return key

    def _request(self, key: bytes) -> CertificateRequest:
        self._pending = (self._pending[0] + 1, key)
        csr = self._keys.request(key, self._sidecar.principal)
        return CertificateRequest(self._pending[0], csr)

    def _renew(self) -> None:
        self._facts.certificate_requests += 1
        if self._link.is_open:
            self._link.session.send(self._request(self._keys.generate()))
            self._link.flush()

    def _ring(self) -> None:
        self._facts.certificate_overdue = True
        assert self._identity is not None
        left_s = round(self._identity.not_after - time.time())
        self._log.error("the certificate is not renewed", expires_in_s=left_s)

    def _on_certificate(self, response: CertificateResponse) -> None:
        number, key = self._pending
        if response.id != number or not key:
            return self._log.warning("a certificate that was not asked for", id=response.id)
        self._pending = (number, b"")
        if response.refusal:
            self._on_refusal(response.refusal.partition(":")[0])
            return self._log.error("certificate refused", reason=response.refusal)
        try:
            identity = Identity(
                self._settings.trust_domain,
                key,
                response.chain,
                response.bundle,
                time.time(),
                self._sidecar.principal,
            )
        except IdentityError as error:
            return self._log.error("certificate is not used", error=str(error))
        self._adopt(identity, is_new=True)

    def _on_refusal(self, code: str) -> None:
        """Choose what the next attempt to join is made with."""
        if not self._is_asking_with_token:
            self._is_token_next = code != RATE_REFUSAL
        elif code in KEY_REFUSALS:
            self._joining_key = b""
            self._state.remove(JOINING)

    def _keep(self, identity: Identity) -> None:
        """Write the identity; at once if its key waits in a file of its own."""
        data = identity.encode_for_disk()
        if not self._joining_key:
            return self._state.write(IDENTITY, data)
        try:
            self._state.write_now(IDENTITY, data)
            self._state.remove(JOINING)
        except OSError as error:
            self._log.error("identity is not kept", error=str(error))
        self._joining_key = b""

    def _adopt(self, identity: Identity, *, is_new: bool) -> None:
        """Show this identity from now on: link, workers, disk."""
        self._identity = self._link.identity = identity
        now = time.time()
        life_s = identity.not_after - identity.obtained
        self._renewal.obtained(life_s, max(now - identity.obtained, 0.0))
        self._facts.certificate_overdue = False
        self._facts.certificate_expires = float(identity.not_after)
        if identity.encode() != self._shown:
            self._serial += 1
            fd = identity.memory_file()
            self._control.send({"type": "identity", "serial": self._serial}, [fd])
            os.close(fd)
        if is_new:
            left_s = round(identity.not_after - now)
            self._log.info("certificate obtained", expires_in_s=left_s, serial=self._serial)
            if self._settings.key_storage == "disk":
                self._keep(identity)

    # configuration

    def _session(self, refusals: tuple[Refusal, ...]) -> ClientSession:
        """The dialogue, with what is on disk but for what is kept privately or refused by now."""
        left_out = {*self._kept.private, *((one.type, one.name) for one in refusals)}
        held = {
            type: {
                name: content_version(body)
                for name, body in bodies.items()
                if (type, name) not in left_out
            }
            for type, bodies in self._kept.resources.items()
        }
        node = Node(
            self._settings.instance,
            self._sidecar.workload,
            self._sidecar.namespace,
            self._sidecar.labels,
        )
        session = ClientSession(node, held=held, revision=self._kept.revision)
        for type in TYPES:
            session.subscribe(type)
        return session

    def _on_restored(self, refusals: tuple[Refusal, ...]) -> None:
        """Connect: what is on disk is applied, but for what another version of us took."""
        for refusal in refusals:
            self._log.warning("kept resource refused", resource=refusal.name, reason=refusal.reason)
        self.publisher.private = frozenset(self._kept.private)
        self._is_configured = True
        self._check_meshed()
        self._link.session = self._session(refusals)
        self._link.start()

    def _take_pushes(self) -> None:
        """Apply what came, all of it as one snapshot; the answers follow when it is applied."""
        if self.publisher.is_busy:
            return
        pushes = self._link.session.take_pushes()
        if not pushes:
            return
        changes = [
            Change(
                push.type, {one.name: one.body for one in push.resources}, frozenset(push.removed)
            )
            for push in pushes
        ]
        self.publisher.apply(changes, lambda refusals: self._on_pushed(pushes, refusals))

    def _on_pushed(self, pushes: list[Push], refusals: tuple[Refusal, ...]) -> None:
        session = self._link.session
        session.generation = self._facts.generation
        for push in pushes:
            session.answer(push, [_problem(one) for one in refusals if one.type == push.type])
        self._keep_resources()
        self._note_lacking(pushes, refusals)
        if not self._lacking and all(session.is_complete(type) for type in TYPES):
            self._is_configured = True
        self._check_meshed()
        self._check_withdrawn()
        self._report()
        self._link.flush()
        self._take_pushes()

    def _note_lacking(self, pushes: list[Push], refusals: tuple[Refusal, ...]) -> None:
        """Remember which routes were refused with nothing in their place: nobody starts so."""
        for push in pushes:
            said = {one.name for one in push.resources} | set(push.removed)
            self._lacking -= {(push.type, name) for name in said}
        held = self.publisher.held
        self._lacking |= {
            (one.type, one.name)
            for one in refusals
            if one.type in (LISTENER, ROUTE) and one.name not in held[one.type]
        }

    # the control plane

    def _on_open(self) -> None:
        self._facts.control_plane_lost_at = None
        if self._renewal.is_due:
            self._renew()
        self._register()
        self._report()

    def _on_lost(self) -> None:
        self._facts.control_plane_lost_at = time.monotonic()
        self._facts.control_plane_losses += 1
        self._check_withdrawn()

    def _on_hopeless(self, reason: str) -> None:
        """Have the start ended: nobody waits for a sidecar that cannot join."""
        if not self.is_meshed:
            self._control.send({"type": "hopeless", "reason": reason})

    def _report(self) -> None:
        if self._link.is_open:
            state = "draining" if self._is_draining else "ready" if self.is_meshed else "starting"
            self._link.session.send(Status(self._facts.generation, state, self._state.failure))

    def _register(self) -> None:
        """Say where the application is and whether it accepts, once its port has been asked."""
        if not self._link.is_open or not self._health.is_known:
            return
        number = self._sidecar.service_port or self._sidecar.app_port
        port = Port(number, self._settings.protocol, self._settings.protocol)
        self._link.session.send(
            Registration(
                workload=self._sidecar.workload,
                namespace=self._sidecar.namespace,
                service=self._sidecar.service,
                address=self._inbound_address(),
                ports=[] if self._is_draining else [port],
                labels=self._sidecar.labels,
                healthy=self._health.healthy and not self._is_draining,
            )
        )
        self._link.flush()

    def _check_withdrawn(self) -> None:
        """Say once that this sidecar is in nobody's endpoints, as far as can be seen from here.

        What the control plane has sent to this sidecar it has sent to all. An application that
        never accepted has no calls to lose, so a client that ends waits for nobody.
        """
        if not self._is_draining or self._has_withdrawn:
            return
        is_sent_to = self._health.seen and self._link.is_open and self._is_endpoint()
        if not is_sent_to:
            self._has_withdrawn = True
            self._control.send({"type": "withdrawn"})

    def _is_endpoint(self) -> bool:
        address = self._inbound_address()
        return any(known == address for _, known in self._facts.endpoints.values())

    def _inbound_address(self) -> str:
        """Where others reach the inbound listener: bound to one address, given, or found out."""
        ip, _, port = self._addresses[self._sidecar.inbound].rpartition(":")
        if self._settings.address:
            ip = self._settings.address
        elif ip in ("0.0.0.0", "[::]"):
            ip = self._link.local_address
        if ":" in ip and not ip.startswith("["):
            ip = f"[{ip}]"
        return f"{ip}:{port}"

    # the application

    def _check_meshed(self) -> None:
        if self.is_meshed or not self._is_configured or not self._applied_serial:
            return
        self.is_meshed = True
        self._control.send({"type": "meshed"})
        self._on_meshed()
        self._report()
        self._health.start()

    def _on_health(self, healthy: bool) -> None:
        port = self._sidecar.app_port
        if self._health.seen:
            self._log.info("application accepts" if healthy else "application refuses", port=port)
        if healthy:
            beyond = [one for one in listening_addresses(port) if not _is_loopback(one)]
            if beyond:
                self._log.warning(
                    "the application can be reached beside the sidecar; let it listen on 127.0.0.1",
                    addresses=beyond,
                    port=port,
                )
        self._register()


def _problem(refusal: Refusal) -> Problem:
    waits_for = Reference("cluster", refusal.waits_for) if refusal.waits_for else None
    return Problem(refusal.name, refusal.reason, waits_for)


def _is_loopback(address: str) -> bool:
    return address == "::1" or address.startswith(("127.", "::ffff:127."))
