"""Names: which service a host means, what a cluster is called, where two host patterns meet.

Rules (Istio's): a host without a dot is a service of the namespace of the rule that names it;
`*.example.com` stands for every name below `example.com`, not for itself; names are compared
without regard to case. `payment.default`, `payment.default.svc` and
`payment.default.svc.cluster.local` are the same service.

Tests: tests/core/test_names.py.
"""

from __future__ import annotations

from meshfast.policy.document import Service, Workload

__all__ = [
    "cluster_name",
    "covers",
    "intersection",
    "qualified",
    "service",
    "service_key",
    "socket_address",
    "workload",
]

_CLUSTER_SUFFIXES = (".svc.cluster.local", ".svc")
_APP_LABELS = ("service.istio.io/canonical-name", "app.kubernetes.io/name", "app")
_REVISION_LABELS = ("service.istio.io/canonical-revision", "app.kubernetes.io/version", "version")


def qualified(host: str, namespace: str) -> str:
    """Give the full name of a host that is written in a resource of the namespace."""
    host = host.lower().removesuffix(".")
    return host if "." in host else f"{host}.{namespace}"


def service_key(host: str, namespace: str) -> str:
    """Give what all spellings of a service's host have in common, to look it up by."""
    host = qualified(host, namespace)
    for suffix in _CLUSTER_SUFFIXES:
        if host.endswith(suffix):
            return host.removesuffix(suffix)
    return host


def service(host: str, namespace: str) -> Service:
    """Name a service: `payment` of `default` for payment.default; else the host is its name."""
    key = service_key(host, namespace)
    name, dot, rest = key.rpartition(".")
    in_mesh = rest == namespace or key != qualified(host, namespace)
    if dot and in_mesh and "." not in name:
        return Service(host=qualified(host, namespace), name=name, namespace=rest)
    return Service(host=qualified(host, namespace), name=key, namespace=namespace)


def cluster_name(port: int, host: str, subset: str = "") -> str:
    """Give the name that Istio gives the cluster, as in `outbound|9000|v1|payment.default`."""
    return f"outbound|{port}|{subset}|{host}"


def workload(labels: dict[str, str], namespace: str, name: str = "") -> Workload:
    """Name a workload by its labels, with Istio's order of precedence; "" is "unknown"."""
    app = next((labels[label] for label in _APP_LABELS if label in labels), name)
    revision = next((labels[label] for label in _REVISION_LABELS if label in labels), "")
    return Workload(name=name, namespace=namespace, app=app, revision=revision)


def covers(pattern: str, host: str) -> bool:
    """Tell whether every name that `host` stands for is one that `pattern` stands for."""
    if pattern == "*" or pattern == host:
        return True
    return pattern.startswith("*.") and host.endswith(pattern[1:])


def intersection(one: str, other: str) -> str | None:
    """Give the pattern for the names that both stand for: the narrower one, or None."""
    one, other = one.lower().removesuffix("."), other.lower().removesuffix(".")
    if covers(one, other):
        return other
    return one if covers(other, one) else None


def socket_address(ip: str, port: int) -> str:
    """Write `ip:port`, with brackets around an IPv6 address, in its shortest form."""
    import ipaddress  # 0.3 MB, and the agent writes no address

    address = ipaddress.ip_address(ip)
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
