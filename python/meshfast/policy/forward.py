"""The resources that `proxy --listen A --to B` and `proxy --listen A --forward` stand for.

They go the same way as a file (`meshfast proxy … -o yaml` prints them), so that a user who outgrows
the flags starts from what already runs.

Tests: tests/core/test_source.py.
"""

from __future__ import annotations

import re
from typing import Final

from meshfast.errors import ConfigError
from meshfast.resources import kinds
from meshfast.resources.kinds import Metadata, Protocol, Resolution
from meshfast.resources.texts import CHECKS, is_address

__all__ = ["forward_proxy", "static_forward"]

API_VERSION: Final = "networking.istio.io/v1"
SERVICE_HOST = "upstream.default"

_HOST_PORT = re.compile(
    r"(?:\[(?P<ip6>[^\]]+)\]|(?P<host>[^:\[\]]*)):(?P<port>[0-9]{1,5})", re.ASCII
)


def static_forward(listen: str, to: str) -> list[kinds.Resource]:
    """Give Gateway, VirtualService and ServiceEntry for HTTP from `listen` to `to`.

    `listen` is `[IP]:PORT` or `localhost:PORT`, all addresses without the IP; `to` is
    `HOST:PORT`. Raises ConfigError.
    """
    bind, listen_port = _split(listen, "--listen")
    host, to_port = _split(to, "--to")
    if not host or CHECKS["endpoint_address"](host):
        raise ConfigError(f"--to: expected HOST:PORT, got {to!r}")
    http = Protocol.HTTP
    gateway = kinds.Gateway(
        api_version=API_VERSION,
        kind="Gateway",
        metadata=Metadata(name="edge"),
        spec=kinds.GatewaySpec(
            servers=(
                kinds.Server(
                    port=kinds.Port(number=listen_port, name="http", protocol=http),
                    bind=bind,
                    hosts=("*",),
                ),
            )
        ),
    )
    destination = kinds.Destination(host=SERVICE_HOST, port=kinds.PortSelector(number=to_port))
    virtual_service = kinds.VirtualService(
        api_version=API_VERSION,
        kind="VirtualService",
        metadata=Metadata(name="upstream"),
        spec=kinds.VirtualServiceSpec(
            hosts=("*",),
            gateways=("edge",),
            http=(kinds.HTTPRoute(route=(kinds.HTTPRouteDestination(destination=destination),)),),
        ),
    )
    service_entry = kinds.ServiceEntry(
        api_version=API_VERSION,
        kind="ServiceEntry",
        metadata=Metadata(name="upstream"),
        spec=kinds.ServiceEntrySpec(
            hosts=(SERVICE_HOST,),
            ports=(kinds.ServicePort(number=to_port, name="http", protocol=http),),
            resolution=Resolution.STATIC if is_address(host) else Resolution.DNS,
            endpoints=(kinds.WorkloadEntrySpec(address=host),),
        ),
    )
    return [gateway, virtual_service, service_entry]


def forward_proxy(listen: str) -> list[kinds.Resource]:
    """Give the ForwardProxy for `[IP]:PORT`, on loopback without the IP. Raises ConfigError."""
    bind, port = _split(listen, "--listen")
    spec = kinds.ForwardProxySpec(port=port, bind=bind or "127.0.0.1")
    proxy = kinds.ForwardProxy(
        api_version="meshfast.dev/v1",
        kind="ForwardProxy",
        metadata=Metadata(name="forward"),
        spec=spec,
    )
    return [proxy]


def _split(text: str, flag: str) -> tuple[str, int]:
    """Split `HOST:PORT`; an IPv6 address stands in brackets; the host may be empty.

    A listener binds an address, so of names `--listen` takes only `localhost`, as 127.0.0.1.
    """
    parts = _HOST_PORT.fullmatch(text)
    port = int(parts["port"]) if parts else 0
    host = (parts["ip6"] or parts["host"] or "") if parts else ""
    if flag == "--listen" and host.lower() == "localhost":
        host = "127.0.0.1"
    wrong_host = flag == "--listen" and host and not is_address(host)
    if not 1 <= port <= 65535 or wrong_host or (parts and parts["ip6"] and not is_address(host)):
        wanted = "[IP]:PORT" if flag == "--listen" else "HOST:PORT"
        raise ConfigError(f"{flag}: expected {wanted} with a port from 1 to 65535, got {text!r}")
    return host, port
