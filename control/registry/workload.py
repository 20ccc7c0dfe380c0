"""A registered workload as the store keeps it, and what a stream may register.

    /workloads/<namespace>/<service account>/<instance>
                                       WorkloadRecord in JSON, with the lease of its stream

The identity in a record, and in its key, is the certificate's, never the message's: nobody can take
an instance of another identity. Service, namespace and instance are compared with what the
certificate was issued for. The address is believed: whoever lies about it
harms its own service only, since callers verify the identity that they find there.

Tests: tests/control/registry/test_workload.py.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from meshfast.discovery import Port, Registration
from meshfast.resources.texts import CHECKS, CLAIM_CHECKS

__all__ = ["WORKLOADS_PREFIX", "WorkloadRecord", "claim_problem", "is_instance", "workload_key"]

WORKLOADS_PREFIX: Final = "/workloads/"
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


def workload_key(namespace: str, account: str, instance: str) -> str:
    """Name the key of a workload: an instance of an identity."""
    return f"{WORKLOADS_PREFIX}{namespace}/{account}/{instance}"


def is_instance(text: str) -> bool:
    """Tell whether the text can name an instance."""
    return CLAIM_CHECKS["instance"](text) is None


def claim_problem(registration: Registration, namespace: str, service: str) -> str | None:
    """Say why a registration is not covered by a certificate for a service; `None` when it is."""
    if registration.namespace != namespace:
        return f"the namespace is {namespace!r}, not {registration.namespace!r}"
    if registration.service != service:
        return f"the service is {service!r}, not {registration.service!r}"
    if CLAIM_CHECKS["workload"](registration.workload) is not None:
        return f"{registration.workload[:80]!r} is no name of a workload"
    if not _is_socket_address(registration.address):
        return f"the address has to be ip:port, not {registration.address[:80]!r}"
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


def _is_socket_address(text: str) -> bool:
    """Tell whether the text is `ip:port` or `[ip6]:port`, of an address that can be dialled."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    ip = host[1:-1] if bracketed else host
    if (":" in ip) != bracketed or CLAIM_CHECKS["peer_address"](ip) is not None:
        return False
    digits = port.isascii() and port.isdigit() and len(port) <= 5
    return bool(colon) and digits and 1 <= int(port) <= 65535
