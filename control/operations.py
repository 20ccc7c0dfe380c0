"""What an operator can do to a mesh: one method each, over store, registry and push.

The operator API and the tests call these; HTTP, authentication and rendering are the API's. Methods
are coroutines of the control plane's event loop; what waits for the disk does so in a thread.

Does not do: authenticate, authorise, parse HTTP.

Invariants:
1. A text is applied whole or not at all: one transaction, which fails when any of the resources, or
   any other resource, or a service that was expected, was changed since it was looked at; then all
   of it is looked at again.
2. What is refused never becomes a revision; nor does what would not be read back as it was written.
3. A stored resource that this release cannot read is in nobody's way: it is listed, and can be
   replaced and deleted.

Tests: tests/control/server/test_operations.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, Literal

import msgspec

from meshfast.control.ca import CertificateAuthority, Claim, Issuance, TokenRecord
from meshfast.control.ca.issuance import revoked_key
from meshfast.control.population import Population, revisions_of
from meshfast.control.push import (
    Mesh,
    Pusher,
    SidecarStatus,
    Streams,
    resource_key,
)
from meshfast.control.push.mesh import RESOURCES_PREFIX, StoredResource, encode_resource
from meshfast.control.registry import WORKLOADS_PREFIX, WorkloadRecord, service_key
from meshfast.control.store import (
    Condition,
    ConflictError,
    Delete,
    Entry,
    Put,
    Store,
    Transaction,
    scan_all,
)
from meshfast.control.translate import check, orphans
from meshfast.discovery import JoinToken
from meshfast.errors import ConfigError, MeshfastError, Problem, in_file_order
from meshfast.policy.names import service_key as host_key
from meshfast.resources import Loaded, Reading, load_bytes, read_bytes
from meshfast.resources.kinds import DestinationRule, Resource
from meshfast.resources.texts import CHECKS

__all__ = [
    "Applied",
    "ChangedError",
    "CreatedToken",
    "Expected",
    "NotFoundError",
    "Operations",
    "ResourceChange",
    "ResourceName",
    "ResourceView",
    "Revocation",
    "RevokedIdentity",
    "ServiceView",
    "TokenView",
    "WorkloadView",
]

#: Written by every change of resources, so that two of them cannot be judged apart from each other.
GUARD_KEY: Final = "/policy"
#: No kind of resource: what an `Expected` may ask for besides.
SERVICE: Final = "Service"
#: Somebody else wrote at the same moment; each repetition saw one succeed.
TRIES_MAX: Final = 20
TOKEN_TTL_S: Final = 24 * 3600
#: The times are the registry's: grace, and adoption with its spread.
STOP_HINT: Final = (
    "stop its workloads first, `meshfast status -o json` names them; one that has crashed is gone "
    "10 s after its connection ended, or some 2 minutes after a start of the control plane"
)

SPLIT_HINT: Final = "JSON counts, as it is stored; divide it into resources of other names"

Action = Literal["configured", "created", "deleted", "unchanged"]


class NotFoundError(MeshfastError):
    """There is no such thing."""


class ChangedError(MeshfastError):
    """Somebody else changed a resource since it was read."""


class Expected(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The revision that a resource was read at; empty when there was none of the name.

    The kind `Service` is for the `revision` of a `ServiceView`.
    """

    kind: str
    namespace: str
    name: str
    revision: str = ""


class ResourceName(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which resource is meant."""

    kind: str
    namespace: str
    name: str


class ResourceView(msgspec.Struct, frozen=True, kw_only=True):
    """A stored resource: the document as it was applied, and the revisions of its writes."""

    kind: str
    namespace: str
    name: str
    created: str
    revision: str
    document: dict[str, Any]


class ResourceChange(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of one resource; `before` and `after` are documents, for a difference."""

    kind: str
    namespace: str
    name: str
    action: Action
    before: dict[str, Any] | None = None
    after: dict[str, Any] | None = None


class Applied(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of `apply` and `delete`; `revision` is the store's after it."""

    revision: str
    dry_run: bool
    changes: tuple[ResourceChange, ...]
    warnings: tuple[Problem, ...] = ()


class TokenView(msgspec.Struct, frozen=True, kw_only=True):
    """A join token without its secret; times in seconds since 1970."""

    id: str
    service: str
    namespace: str
    service_account: str
    uses_max: int
    uses: int
    created_s: int
    expires_s: int
    revoked: bool


class CreatedToken(msgspec.Struct, frozen=True, kw_only=True):
    """A new token; `text` is not to be had again."""

    token: TokenView
    text: str

    def __repr__(self) -> str:
        """Render without the text."""
        return f"CreatedToken(token={self.token!r})"


class RevokedIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """An identity that gets no certificate and no configuration any more."""

    namespace: str
    service_account: str


class Revocation(RevokedIdentity, frozen=True, kw_only=True):
    """What a revocation leaves: certificates that others take until then, in seconds since 1970.

    Sidecars do not ask who is revoked. `None`: no certificate of the identity is valid any more.
    `known`: there is a workload of it, or a certificate is on record.
    """

    certified_until_s: int | None
    known: bool


class ServiceView(msgspec.Struct, frozen=True, kw_only=True):
    """A service that workloads are registered for, or have been.

    `revision` is another one when a workload comes, goes, or comes back with other labels.
    """

    name: str
    namespace: str
    host: str
    ports: tuple[int, ...]
    workloads: int
    healthy: int
    revision: str = ""


class WorkloadView(msgspec.Struct, frozen=True, kw_only=True):
    """A registered workload; `connected` says whether its sidecar has a stream now."""

    workload: WorkloadRecord
    connected: bool


class Operations:
    """The operations of one control plane."""

    def __init__(
        self,
        store: Store,
        authority: CertificateAuthority,
        issuance: Issuance,
        mesh: Mesh,
        pusher: Pusher,
        streams: Streams,
        *,
        control_address: str,
        build: Callable[[bytes], bytes],
    ) -> None:
        """`control_address` is `host:port` as sidecars reach the control stream.

        `build` is `meshfast._core.Snapshot.build`.
        """
        self._store = store
        self._authority = authority
        self._issuance = issuance
        self._mesh = mesh
        self._pusher = pusher
        self._streams = streams
        self._control_address = control_address
        self._build = build

    def revision(self) -> str:
        """The revision that sidecars are brought to."""
        return str(self._pusher.revision)

    def stored_revision(self) -> str:
        """The newest revision that changes what sidecars see."""
        return str(max(self._mesh.changed, self._pusher.revision))

    async def apply(self, text: str, *, file: str = "-", dry_run: bool = False) -> Applied:
        """Store the resources of a text; `file` names it in problems.

        Raises `ConfigError` with every problem, and what the store raises; nothing is written then.
        """
        return await self.apply_texts([(file, text)], dry_run=dry_run)

    async def apply_texts(
        self,
        texts: Sequence[tuple[str, str]],
        *,
        dry_run: bool = False,
        expected: Sequence[Expected] = (),
    ) -> Applied:
        """Store the resources of several texts, each `(file, text)`, together; as `apply` does.

        Raises `ChangedError`, and writes nothing, when a resource is not at its expected revision,
        or others were always faster.
        """
        reading = await asyncio.to_thread(_read, texts)
        return await asyncio.to_thread(self._apply, reading, dry_run, expected)

    async def delete(
        self, kind: str, namespace: str, name: str, *, dry_run: bool = False
    ) -> Applied:
        """Remove a resource.

        Raises `NotFoundError`, `ConfigError` when another resource needs it, and what the store
        raises.
        """
        wanted = ResourceName(kind=kind, namespace=namespace, name=name)
        done = await self.delete_all([wanted], dry_run=dry_run)
        if not done.changes:
            raise NotFoundError(f"there is no {kind} {namespace}/{name}")
        return done

    async def delete_all(
        self, resources: Sequence[ResourceName], *, dry_run: bool = False
    ) -> Applied:
        """Remove resources together; those that are not there are not among the changes.

        Raises `ConfigError` when one that stays needs any of them, and what the store raises;
        nothing is removed then.
        """
        return await asyncio.to_thread(self._delete, resources, dry_run)

    async def get(self, kind: str, namespace: str, name: str) -> ResourceView:
        """Return a resource. Raises `NotFoundError`."""
        return _view(await asyncio.to_thread(self._stored, kind, namespace, name))

    async def list(self, kind: str = "", namespace: str = "") -> Sequence[ResourceView]:
        """Return resources, of one kind or namespace when they are given, in the order of names."""
        found = await asyncio.to_thread(self._entries)
        views = (_view(entry) for entry in found)
        return [
            view for view in views if kind in ("", view.kind) and namespace in ("", view.namespace)
        ]

    async def create_token(
        self,
        service: str,
        *,
        namespace: str = "default",
        service_account: str = "",
        uses: int = 1,
        ttl_s: int = TOKEN_TTL_S,
        control: str = "",
    ) -> CreatedToken:
        """Make a join token; the service account is named like the service unless given.

        `control` is where the holder finds the control plane, when it is not the address that it
        listens on. Raises `ConfigError`.
        """
        claim = Claim(service, namespace, service_account or service)
        record, secret = await asyncio.to_thread(
            lambda: self._issuance.tokens.create(claim, uses=uses, ttl_s=ttl_s)
        )
        token = JoinToken(
            control=control or self._control_address,
            root=self._authority.bundle()[0],
            id=record.id,
            secret=secret,
            service=claim.service,
            namespace=claim.namespace,
            service_account=claim.service_account,
            trust_domain=self._authority.trust_domain,
        )
        return CreatedToken(token=_token(record), text=token.text())

    async def list_tokens(self) -> Sequence[TokenView]:
        """Return all tokens."""
        return [_token(record) for record in await asyncio.to_thread(self._issuance.tokens.records)]

    async def revoke_token(self, id: str) -> None:
        """End a token; who joined with it stays. Raises `NotFoundError`."""
        if not await asyncio.to_thread(self._issuance.tokens.revoke, id):
            raise NotFoundError(f"there is no token {id!r}")

    async def revoke_identity(self, namespace: str, service_account: str) -> Revocation:
        """End an identity: no certificate, no configuration, nobody is sent to it any more.

        Its calls to others are taken until its last certificate ends, which the answer says.
        """
        _check_labels(namespace=namespace, service_account=service_account)
        put = Put(revoked_key(namespace, service_account), b"{}")
        await asyncio.to_thread(self._store.transact, Transaction((put,)))
        ends = await asyncio.to_thread(self._issuance.certificate_ends, namespace, service_account)
        is_at_work = any(
            (one.namespace, one.account) == (namespace, service_account)
            for one in self._mesh.workloads()
        )
        return Revocation(
            namespace=namespace,
            service_account=service_account,
            certified_until_s=max(ends.valid_s, default=None),
            known=ends.are_known or is_at_work,
        )

    async def restore_identity(self, namespace: str, service_account: str) -> None:
        """Take a revocation back. Raises `NotFoundError`."""
        if not self._mesh.is_revoked(namespace, service_account):
            raise NotFoundError(f"{namespace}/{service_account} is not revoked")
        delete = Delete(revoked_key(namespace, service_account))
        await asyncio.to_thread(self._store.transact, Transaction((delete,)))

    async def list_revoked(self) -> Sequence[RevokedIdentity]:
        """Return the revoked identities."""
        return [
            RevokedIdentity(namespace=namespace, service_account=account)
            for namespace, account in sorted(self._mesh.revoked())
        ]

    async def sidecars(self) -> Sequence[SidecarStatus]:
        """Show every sidecar that is connected or was within the last hour."""
        return self._streams.status()

    async def services(self) -> Sequence[ServiceView]:
        """Show the services of the mesh, as sidecars are brought to see them."""
        revisions = revisions_of(self._mesh.workloads())
        return [
            ServiceView(
                name=service.name,
                namespace=service.namespace,
                host=service.host,
                ports=service.numbers,
                workloads=len(workloads),
                healthy=sum(workload.healthy for workload in workloads.values()),
                revision=revisions.get((service.namespace, service.name), ""),
            )
            for service in self._pusher.translation.services.values()
            for workloads in [
                {one.address: one for port in service.ports for one in port.workloads}
            ]
        ]

    async def forget_service(self, namespace: str, name: str) -> None:
        """Take a name out of the mesh that nobody serves any more; callers then pass it through.

        Raises `NotFoundError`, and `ConfigError` while workloads are registered for it.
        """
        await asyncio.to_thread(self._forget_service, namespace, name)

    async def workloads(self) -> Sequence[WorkloadView]:
        """Show the registered workloads."""
        connected = {
            (str(stream.peer.identity), stream.hello.node.instance)
            for stream in self._streams
            if stream.hello is not None
        }
        return [
            WorkloadView(
                workload=workload,
                connected=(workload.identity, workload.instance) in connected,
            )
            for workload in sorted(
                self._mesh.workloads(), key=lambda one: (one.namespace, one.service, one.instance)
            )
        ]

    def _apply(
        self,
        reading: Reading,
        dry_run: bool,
        expected: Sequence[Expected],
    ) -> Applied:
        new = reading.resources
        _check_sizes(reading, self._store.limits.value_bytes_max)
        for _ in range(TRIES_MAX):
            guard = self._store.read(GUARD_KEY)
            stored = {entry.key: entry for entry in self._entries()}
            population = Population.read(self._store)
            _check_expected(expected, stored, population)
            keys = [_key(item) for item in new]
            others = _readable(entry for key, entry in stored.items() if key not in keys)
            replaced = _readable(entry for key, entry in stored.items() if key in keys)
            warnings = check(
                new,
                others,
                population.services(),
                self._build,
                replaced=replaced,
                refused=reading.problems,
                unread=reading.unread,
            )
            changes, puts = [], []
            for key, value in zip(keys, _encoded(new), strict=True):
                before = stored.get(key)
                changes.append(_change(before, value))
                if before is None or before.value != value:
                    puts.append(Put(key, value))
            revision = self._store.revision()
            if puts and not dry_run:
                writes = (*puts, Put(GUARD_KEY, b""))
                conditions = [
                    Condition(GUARD_KEY, None if guard is None else guard.modified),
                    *_conditions(expected, population),
                ]
                # Of a service of a thousand, those that do not fit were compared just now.
                room = max(1, self._store.limits.operations_max - len(writes))
                try:
                    revision = self._store.transact(Transaction(writes, tuple(conditions[:room])))
                except ConflictError:
                    continue
            return Applied(
                revision=str(revision),
                dry_run=dry_run,
                changes=tuple(changes),
                warnings=tuple(warnings),
            )
        raise ChangedError("too many others are changing the configuration; try again")

    def _delete(self, resources: Sequence[ResourceName], dry_run: bool) -> Applied:
        keys = dict.fromkeys(resource_key(one.kind, one.namespace, one.name) for one in resources)
        for _ in range(TRIES_MAX):
            guard = self._store.read(GUARD_KEY)
            stored = {entry.key: entry for entry in self._entries()}
            gone = [stored[key] for key in keys if key in stored]
            _check_unused(gone, stored)
            revision = self._store.revision()
            if gone and not dry_run:
                conditions = (Condition(GUARD_KEY, None if guard is None else guard.modified),)
                writes: list[Put | Delete] = [Delete(entry.key) for entry in gone]
                writes.append(Put(GUARD_KEY, b""))
                try:
                    revision = self._store.transact(Transaction(tuple(writes), conditions))
                except ConflictError:
                    continue
            changes = tuple(map(_removal, gone))
            return Applied(revision=str(revision), dry_run=dry_run, changes=changes)
        raise ChangedError("too many others are changing the configuration; try again")

    def _forget_service(self, namespace: str, name: str) -> None:
        _check_labels(namespace=namespace, service=name)
        key = service_key(namespace, name)
        for _ in range(TRIES_MAX):
            entry = self._store.read(key)
            if entry is None:
                raise NotFoundError(f"there is no service {namespace}/{name}")
            workloads = self._entries(f"{WORKLOADS_PREFIX}{namespace}/")
            records = (msgspec.json.decode(one.value, type=WorkloadRecord) for one in workloads)
            if any(record.service == name for record in records):
                message = f"workloads are registered for {namespace}/{name}"
                raise ConfigError([Problem(message, hint=STOP_HINT)])
            # Whoever comes from here on writes the service.
            condition = Condition(key, entry.modified)
            try:
                self._store.transact(Transaction((Delete(key),), (condition,)))
            except ConflictError:
                continue  # somebody has registered
            return
        raise ConfigError("workloads come and go too quickly; try again")

    def _stored(self, kind: str, namespace: str, name: str) -> Entry:
        key = resource_key(kind, namespace, name)
        missing = NotFoundError(f"there is no {kind} {namespace}/{name}")
        if not all(part.isascii() and part.isprintable() and "/" not in part and " " not in part
                   for part in (kind, namespace, name)):  # fmt: skip
            raise missing
        entry = self._store.read(key)
        if entry is None:
            raise missing
        return entry

    def _entries(self, prefix: str = RESOURCES_PREFIX) -> Sequence[Entry]:
        """Read every resource, or whatever has the prefix, at one revision."""
        return list(scan_all(self._store, prefix, of_one_revision=True))


def _read(texts: Sequence[tuple[str, str]]) -> Reading:
    """Read every text, so that the problems of all are raised together."""
    readings = [read_bytes(text.encode(), file) for file, text in texts]
    return Reading(
        [item for reading in readings for item in reading.resources],
        [problem for reading in readings for problem in reading.problems],
        frozenset().union(*(reading.unread for reading in readings)),
    )


def _readable(entries: Iterable[Entry]) -> Sequence[Loaded]:
    """Read what can be read; the rest is served to nobody, and the mesh has said so."""
    found = []
    for entry in entries:
        with suppress(ConfigError):
            found.append(StoredResource.of(entry).loaded)
    return found


def _check_sizes(reading: Reading, bytes_max: int) -> None:
    """Refuse what the store would not take, before anything is made of it."""
    problems = []
    for item in reading.resources:
        size = len(encode_resource(item.resource))
        if size > bytes_max:
            name = f"{item.resource.kind} {_full_name(item.resource)}"
            message = f"{name} has {size} bytes; a resource has {bytes_max} at most"
            problems.append(item.origin.problem(message, hint=SPLIT_HINT))
    if problems:
        raise ConfigError(in_file_order([*reading.problems, *problems]))


def _encoded(new: Sequence[Loaded]) -> Sequence[bytes]:
    """Write resources as they are stored. Raises `ConfigError` unless they are read back equal."""
    values, problems = [], []
    for item in new:
        value = encode_resource(item.resource)
        values.append(value)
        try:
            [again] = load_bytes(value, item.origin.file)
            reason = "" if again.resource == item.resource else "it would read differently"
        except ConfigError as error:
            reason = error.problems[0].message
        if reason:
            message = f"the {item.resource.kind} cannot be stored: {reason}"
            problems.append(item.origin.problem(message))
    if problems:
        raise ConfigError(problems)
    return values


def _check_expected(
    expected: Sequence[Expected], stored: Mapping[str, Entry], population: Population
) -> None:
    for one in expected:
        if one.kind == SERVICE:
            if one.revision != population.revision(one.namespace, one.name):
                raise ChangedError(f"the workloads of {one.namespace}/{one.name} were others")
            continue
        found = stored.get(resource_key(one.kind, one.namespace, one.name))
        if one.revision != ("" if found is None else str(found.modified)):
            raise ChangedError(f"{one.kind} {one.namespace}/{one.name} was changed meanwhile")


def _conditions(expected: Sequence[Expected], population: Population) -> Sequence[Condition]:
    """Give what expected services hold by, each key once; resources hold by the guard."""
    found = [
        condition
        for one in expected
        if one.kind == SERVICE
        for condition in population.conditions(one.namespace, one.name)
    ]
    return list({condition.key: condition for condition in found}.values())


def _check_unused(gone: Sequence[Entry], stored: Mapping[str, Entry]) -> None:
    """Refuse to remove subsets that a rule which stays sends to."""
    removed = [item.resource for item in _readable(gone)]
    rules = {
        host_key(one.spec.host, one.metadata.namespace): f"{one.kind} {_full_name(one)}"
        for one in removed
        if isinstance(one, DestinationRule)
    }
    if not rules:
        return
    keys = {entry.key for entry in gone}
    left = orphans(_readable(entry for key, entry in stored.items() if key not in keys))
    lost = sorted(left - orphans(_readable(stored.values())))
    if lost:
        hint = "change or delete it first"
        raise ConfigError(
            Problem(
                f"VirtualService {orphan.rule} sends to the subset {orphan.subset!r} of "
                f"{orphan.host}",
                rules.get(orphan.host, ""),
                hint=hint,
            )
            for orphan in lost
        )


def _full_name(resource: Resource) -> str:
    return f"{resource.metadata.namespace}/{resource.metadata.name}"


def _key(item: Loaded) -> str:
    metadata = item.resource.metadata
    return resource_key(item.resource.kind, metadata.namespace, metadata.name)


def _change(before: Entry | None, value: bytes) -> ResourceChange:
    after = msgspec.json.decode(value)
    metadata = after["metadata"]
    action: Action = "created"
    if before is not None:
        action = "unchanged" if before.value == value else "configured"
    return ResourceChange(
        kind=after["kind"],
        namespace=metadata.get("namespace", "default"),
        name=metadata["name"],
        action=action,
        before=None if before is None else msgspec.json.decode(before.value),
        after=after,
    )


def _removal(entry: Entry) -> ResourceChange:
    kind, namespace, name = entry.key.removeprefix(RESOURCES_PREFIX).split("/")
    before = msgspec.json.decode(entry.value)
    return ResourceChange(
        kind=kind, namespace=namespace, name=name, action="deleted", before=before
    )


def _view(entry: Entry) -> ResourceView:
    kind, namespace, name = entry.key.removeprefix(RESOURCES_PREFIX).split("/")
    return ResourceView(
        kind=kind,
        namespace=namespace,
        name=name,
        created=str(entry.created),
        revision=str(entry.modified),
        document=msgspec.json.decode(entry.value),
    )


def _token(record: TokenRecord) -> TokenView:
    return TokenView(**{name: getattr(record, name) for name in TokenView.__struct_fields__})


def _check_labels(**labels: str) -> None:
    for what, label in labels.items():
        expected = CHECKS["label"](label)
        if expected is not None:
            raise ConfigError(f"{what}: expected {expected}, got {label!r}")
