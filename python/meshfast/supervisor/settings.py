"""The settings document: what the CLI hands to the supervisor, declared in one table.

JSON in, a `Settings` out, or one `SettingsError` that names the field. Every declared key is
required but `entry_points` and a socket's `kept`; a key that is not declared is refused, so a newer
CLI cannot be half understood. Nothing is defaulted here: defaults are the CLI's.

`entry_points` names the modules whose `main(settings: bytes)` a child runs, and directories to put
on the module path first; the agent's also has `check`, for a hot restart. The tests of the
supervisor put their own worker there; nothing else does.

Tests: tests/supervisor/test_settings.py.
"""

from __future__ import annotations

import json

from meshfast.supervisor.report import LEVELS

TYPE_CHECKING = False  # typing itself would cost 1.6 MB
if TYPE_CHECKING:
    from typing import Any

__all__ = ["VERSION", "AppSettings", "Settings", "SettingsError", "SocketSettings"]

VERSION = 1

# Worker slots are lines in shared memory and socket pairs in the supervisor (8 descriptors each).
WORKERS_MAX = 256
DRAIN_MS_MAX = 24 * 3_600_000

REQUIRED: dict[str, type | tuple[type, ...]] = {
    "version": int,
    "instance": str,
    "runtime_dir": str,
    "workers": int,
    "drain_ms": int,
    "sockets": list,
    "shared_memory_fd": int,
    "snapshot_fd": int,
    "generation": int,
    "agent": dict,
    "app": (type(None), dict),
    "log_level": str,
}
OPTIONAL: dict[str, type | tuple[type, ...]] = {"entry_points": dict}
RANGES = {
    "version": (VERSION, VERSION),
    "workers": (1, WORKERS_MAX),
    "drain_ms": (0, DRAIN_MS_MAX),
    "shared_memory_fd": (0, 2**31 - 1),
    "snapshot_fd": (0, 2**31 - 1),
    "generation": (0, 2**64 - 1),
}
APP: dict[str, type | tuple[type, ...]] = {"command": list, "env": dict}
SOCKET: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "address": str,
    "owner": str,
    "fallback": bool,
}
SOCKET_OPTIONAL: dict[str, type | tuple[type, ...]] = {"kept": str}
OWNERS = ("agent", "worker")
ENTRY_POINTS: dict[str, type | tuple[type, ...]] = {"path": list, "worker": str, "agent": str}
ENTRY_POINTS_OF_MESHFAST: dict[str, object] = {
    "path": [],
    "worker": "meshfast.worker",
    "agent": "meshfast.agent",
}
INSTANCE_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


class SettingsError(Exception):
    """The settings were refused; the text names the field."""


class SocketSettings:
    """One socket to bind: its name, `ip:port`, `[ip6]:port` or `unix:/path`, and who gets it.

    `kept` is where a start before this one listened, which is tried first; empty for nowhere.
    """

    __slots__ = ("address", "fallback", "kept", "name", "owner")

    def __init__(self, name: str, address: str, owner: str, fallback: bool, kept: str = "") -> None:
        """Keep the fields as they are; `owner` is one of `OWNERS`."""
        self.name = name
        self.address = address
        self.owner = owner
        self.fallback = fallback
        self.kept = kept


class AppSettings:
    """The application of `run -- CMD`: what to execute, and what to add to its environment.

    A value of `env` may hold `{NAME}` for the address where the socket NAME really listens.
    """

    __slots__ = ("command", "env")

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        """Keep both; `command[0]` is looked up in PATH."""
        self.command = command
        self.env = env


class Settings:
    """The validated settings; `document` is what they were read from, for the next image."""

    __slots__ = (
        "agent",
        "agent_module",
        "app",
        "document",
        "drain_ms",
        "generation",
        "instance",
        "log_level",
        "module_path",
        "runtime_dir",
        "shared_memory_fd",
        "snapshot_fd",
        "sockets",
        "worker_module",
        "workers",
    )

    def __init__(self, document: dict[str, object]) -> None:
        """Validate a decoded document; raise `SettingsError` at the first field that is wrong."""
        checked = _checked(document, REQUIRED, OPTIONAL, "settings")
        for name, (least, most) in RANGES.items():
            if not least <= checked[name] <= most:
                raise SettingsError(f"settings: {name} must be {least} to {most}")
        entry_points = _checked(
            {**ENTRY_POINTS_OF_MESHFAST, **checked.get("entry_points", {})},
            ENTRY_POINTS,
            {},
            "settings: entry_points",
        )
        self.document = document
        self.instance: str = _instance(checked["instance"])
        self.runtime_dir: str = checked["runtime_dir"]
        self.workers: int = checked["workers"]
        self.drain_ms: int = checked["drain_ms"]
        self.sockets = _sockets(checked["sockets"])
        self.shared_memory_fd: int = checked["shared_memory_fd"]
        self.snapshot_fd: int = checked["snapshot_fd"]
        self.generation: int = checked["generation"]
        self.agent: dict[str, object] = checked["agent"]
        self.log_level: str = checked["log_level"]
        if self.log_level not in LEVELS:
            raise SettingsError(f"settings: log_level must be one of {', '.join(LEVELS)}")
        self.app = _app(checked["app"])
        self.module_path: list[str] = [str(folder) for folder in entry_points["path"]]
        self.worker_module: str = entry_points["worker"]
        self.agent_module: str = entry_points["agent"]

    @classmethod
    def parse(cls, text: bytes) -> Settings:
        """Decode and validate; raise `SettingsError` for what is not JSON or not settings."""
        try:
            document = json.loads(text)
        except ValueError as error:
            raise SettingsError(f"settings: not JSON: {error}") from None
        if type(document) is not dict:
            raise SettingsError("settings: not an object")
        return cls(document)

    @property
    def worker_slots(self) -> int:
        """Slots reserved: twice the workers, for the overlap of a hot restart."""
        return 2 * self.workers


def _checked(
    document: dict[str, object],
    required: dict[str, type | tuple[type, ...]],
    optional: dict[str, type | tuple[type, ...]],
    place: str,
) -> dict[str, Any]:
    for name in required:
        if name not in document:
            raise SettingsError(f"{place}: {name} is missing")
    for name, value in document.items():
        kind = required.get(name) or optional.get(name)
        if kind is None:
            raise SettingsError(f"{place}: {name} is not known")
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if type(value) not in kinds:  # bool is an int to isinstance
            expected = " or ".join("null" if one is type(None) else one.__name__ for one in kinds)
            raise SettingsError(f"{place}: {name} must be {expected}, not {type(value).__name__}")
    return document


def _instance(name: str) -> str:
    if not name or name.startswith(".") or not INSTANCE_CHARACTERS.issuperset(name):
        raise SettingsError("settings: instance must be letters, digits, '.', '_' or '-'")
    return name


def _app(entry: dict[str, object] | None) -> AppSettings | None:
    if entry is None:
        return None
    place = "settings: app"
    fields = _checked(entry, APP, {}, place)
    texts = [*fields["command"], *fields["env"], *fields["env"].values()]
    if not fields["command"] or any(type(text) is not str or "\0" in text for text in texts):
        raise SettingsError(f"{place}: command and env must be texts, and command not empty")
    return AppSettings(**fields)


def _sockets(entries: list[object]) -> list[SocketSettings]:
    sockets: dict[str, SocketSettings] = {}
    for index, entry in enumerate(entries):
        place = f"settings: sockets[{index}]"
        if type(entry) is not dict:
            raise SettingsError(f"{place}: not an object")
        fields = _checked(entry, SOCKET, SOCKET_OPTIONAL, place)
        if fields["owner"] not in OWNERS:
            raise SettingsError(f"{place}: owner must be one of {', '.join(OWNERS)}")
        if fields["name"] in sockets:
            raise SettingsError(f"{place}: the name {fields['name']} is used twice")
        sockets[fields["name"]] = SocketSettings(**fields)
    return list(sockets.values())
