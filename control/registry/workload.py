"""A registered workload as the store keeps it, and what a stream may register.

    /workloads/<namespace>/<service account>/<instance>
                                       WorkloadRecord in JSON, with the lease of its stream

    /services/<namespace>/<name>       ServiceRecord in JSON: somebody once registered for it

A service outlives its workloads: its name stays one of the mesh, answered 503 at the ports that it
had, until an operator has it forgotten. Callers would send in plain text to whatever else has the
name otherwise.

The identity in a record, and in its key, is the certificate's, never the message's: nobody can take
an instance of another identity. Service, namespace and instance are compared with what the
certificate was issued for. The address is believed: whoever lies about it
harms its own service only, since callers verify the identity that they find there.

Tests: tests/control/registry/test_workload.py.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final

import msgspec

from meshfast.discovery import Port, Registration
from meshfast.resources.texts import CHECKS, CLAIM_CHECKS

__all__ = [
    "SERVICES_PREFIX",
    "WORKLOADS_PREFIX",
    "ServiceRecord",
    "WorkloadRecord",
    "claim_problem",
    "is_instance",
    "service_key",
    "workload_key",
]

WORKLOADS_PREFIX: Final = "/workloads/"
SERVICES_PREFIX: Final = "/services/"
#: A port takes some 150 bytes, a workload has 64 at most, and a value of the store 1 MiB.
PORT_SETS_MAX: Final = 64
_PROTOCOL: Final = re.compile(r"[a-z0-9-]{0,16}", re.ASCII)


class WorkloadRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A workload. `address` is `ip:port` of its sidecar's inbound listener."""

    instance: str
    workload: str
    namespace: str
    service: str
    identity: str
    address: str
    ports: tuple[Port, ...]
    labels: dict[str, str] = {}
    healthy: bool = False

    @property
    def account(self) -> str:
        """The service account of the identity."""
        return self.identity.rpartition("/")[2]

    @property
    def key(self) -> str:
        """Where the store has it."""
        return workload_key(self.namespace, self.account, self.instance)

    @property
    def service_key(self) -> str:
        """Where the store has its service."""
        return service_key(self.namespace, self.service)

    @classmethod
    def of(cls, registration: Registration, instance: str, identity: str) -> WorkloadRecord:
        """Join what a workload says with what its certificate says."""
        return cls(
            instance=instance,
            workload=registration.workload,
            namespace=registration.namespace,
            service=registration.service,
            identity=identity,
            address=registration.address,
            ports=tuple(registration.ports),
            labels=registration.labels,
            healthy=registration.healthy,
        )


class ServiceRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A service that workloads have registered for.

    `registered` is what its workloads had as ports when the last of them registered, each set once,
    in the order of addresses. So the service has the same ports without workloads as with them.
    """

    name: str
    namespace: str
    registered: tuple[tuple[Port, ...], ...]

    @classmethod
    def of(cls, workloads: Iterable[WorkloadRecord]) -> ServiceRecord | None:
        """Make the record of a service from workloads of it; None when they have no ports."""
        serving = sorted((one for one in workloads if one.ports), key=lambda one: one.address)
        if not serving:
            return None
        sets = tuple(dict.fromkeys(one.ports for one in serving))
        first = serving[0]
        return cls(name=first.service, namespace=first.namespace, registered=sets[:PORT_SETS_MAX])


def service_key(namespace: str, name: str) -> str:
    """Name the key of a service."""
    return f"{SERVICES_PREFIX}{namespace}/{name}"


def workload_key(namespace: str, account: str, instance: str) -> str:
    """Name the key of a workload: an instance of an identity."""
    return f"{WORKLOADS_PREFIX}{namespace}/{account}/{instance}"


def is_instance(text: str) -> bool:
    """Tell whether the text can name an instance."""
    return CLAIM_CHECKS["instance"](text) is None


def claim_problem(
    registration: Registration, namespace: str, service: str, *, is_local: bool = True
) -> str | None:
    """Say why a registration is not covered by a certificate for a service; `None` when it is.

    `is_local`: it comes from the control plane's own host, where loopback may be an address.
    """
    if registration.namespace != namespace:
        return f"the namespace is {namespace!r}, not {registration.namespace!r}"
    if registration.service != service:
        return f"the service is {service!r}, not {registration.service!r}"
    if CLAIM_CHECKS["workload"](registration.workload) is not None:
        return f"{registration.workload[:80]!r} is no name of a workload"
    if not _is_socket_address(registration.address):
        return f"the address has to be ip:port, not {registration.address[:80]!r}"
    if not is_local and is_loopback(registration.address.rpartition(":")[0]):
        return f"from another host nobody is reached at {registration.address!r}"
    for key, value in registration.labels.items():
        if CLAIM_CHECKS["label_key"](key) or CLAIM_CHECKS["label_value"](value):
            return f"{key[:80]!r}={value[:80]!r} is no label"
    numbers = [port.number for port in registration.ports]
    if len(set(numbers)) < len(numbers):
        return "a port occurs twice"
    for port in registration.ports:
        if port.name and CHECKS["label"](port.name) is not None:
            return f"{port.name[:80]!r} is no name of a port"
        if not _PROTOCOL.fullmatch(port.protocol):
            return f"{port.protocol[:80]!r} is no protocol"
    return None


def is_loopback(ip: str) -> bool:
    """Tell whether an address, with or without brackets, is this host's own; others are not."""
    found = ipaddress.ip_address(ip.strip("[]"))
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback


def _is_socket_address(text: str) -> bool:
    """Tell whether the text is `ip:port` or `[ip6]:port`, of an address that can be dialled."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    ip = host[1:-1] if bracketed else host
    if (":" in ip) != bracketed or CLAIM_CHECKS["peer_address"](ip) is not None:
        return False
    digits = port.isascii() and port.isdigit() and len(port) <= 5
    return bool(colon) and digits and 1 <= int(port) <= 65535
