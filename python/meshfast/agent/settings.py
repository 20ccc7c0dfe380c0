"""What the supervisor hands over, as JSON, version 1.

    {"version": 1, "control_fd": 3, "generation": 1, "log_level": "info",
     "identity_fd": null, "identity_serial": 0,
     "listeners": [{"name": "metrics", "address": "127.0.0.1:15020", "fd": 4}],
     "bound": [{"name": "gateway/0.0.0.0:8080", "address": "0.0.0.0:8080"}],
     "shared_memory_fd": 5, "snapshot_fd": 6, "resolvers": [{"slot": 0, "fd": 7}],
     "agent": {"config_path": "/etc/meshfast/edge.yaml", "access_log": "/dev/stdout",
               "dns_refresh_s": 5, "version": "1.0.0"}}

`snapshot_fd` and `generation` are the newest snapshot that workers were given, `bound` the workers'
listeners, `identity_fd` the newest identity: an agent that takes over goes on from there. `agent`
comes from the command line and goes through the supervisor unread. Its keys, all optional:

- `config_path`, or `listen` with `to` or `forward`: the source, as in `meshfast.policy.Source`.
- `access_log`: `/dev/stdout` (default), `/dev/stderr`, a path, or `off`.
- `zipkin_address`: `host:port` of the server that spans are posted to; without it none are.
- `dns_refresh_s`: seconds between two looks at the host names of the configuration; default 5.
- `mesh`: `meshfast.agent.mesh.MeshSettings`; a sidecar of a mesh, and no source.
- `version`: for `meshfast_build_info`; asking the installed distribution would cost 5.6 MB here.

Does not do: validating for operators; a key that is missing is a bug of ours and raises.

Tests: tests/agent/test_agent.py.
"""

from __future__ import annotations

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["VERSION", "Settings"]

VERSION = 1


class Settings:
    """The settings, taken apart. Descriptors belong to the agent."""

    def __init__(self, settings_json: bytes) -> None:
        """Raises KeyError and ValueError for what is not version 1."""
        settings: dict[str, Any] = json.loads(settings_json)
        if settings["version"] != VERSION:
            raise ValueError(f"agent settings of version {settings['version']}, not {VERSION}")
        self.control_fd: int = settings["control_fd"]
        self.generation: int = settings["generation"]
        self.log_level: str = settings["log_level"]
        self.sockets: dict[str, int] = {one["name"]: one["fd"] for one in settings["listeners"]}
        self.metrics_address: str = next(
            (one["address"] for one in settings["listeners"] if one["name"] == "metrics"), ""
        )
        self.bound: set[str] = {one["name"] for one in settings["bound"]}
        self.addresses: dict[str, str] = {
            one["name"]: one["address"] for one in settings["bound"] if "address" in one
        }
        self.identity_fd: int | None = settings.get("identity_fd")
        self.identity_serial: int = settings.get("identity_serial", 0)
        self.shared_memory_fd: int = settings["shared_memory_fd"]
        self.snapshot_fd: int = settings["snapshot_fd"]
        self.resolver_fds: list[int] = [one["fd"] for one in settings["resolvers"]]
        agent: dict[str, Any] = settings["agent"] or {}
        # The compiler takes out what a source consists of; there may be more of it than paths.
        self.source = agent if agent.get("config_path") or agent.get("listen") else {}
        self.mesh: dict[str, Any] | None = agent.get("mesh")
        self.access_log: str = agent.get("access_log", "/dev/stdout")
        self.zipkin_address: str | None = agent.get("zipkin_address")
        self.dns_refresh_s: float = agent.get("dns_refresh_s", 5.0)
        self.product_version: str = agent.get("version", "unknown")
