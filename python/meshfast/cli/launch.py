"""From options to a running supervisor: compile, build the snapshot, hand over, exec.

Everything that can fail because of the configuration fails here, before anything is bound. What is
handed over lies in memory files, whose descriptors survive the exec; the lean interpreter of the
supervisor loads none of the modules that were needed to make them.

Tests: tests/core/test_launch.py; the running proxy in tests/dataplane.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import socket
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from meshfast.errors import ConfigError, Problem
from meshfast.policy import SlotAllocator, Source, build_loaded, load_source, warnings_about
from meshfast.policy.document import decode_document
from meshfast.supervisor.launch import launch
from meshfast.supervisor.settings import Settings, SettingsError

__all__ = [
    "Options",
    "check_access_log",
    "default_runtime_dir",
    "resolve",
    "sealed",
    "serve",
    "settings",
]

FIRST_GENERATION = 1
DNS_REFRESH_S = 5  # how often the agent looks names up again
DNS_WAIT_S = 3.0  # at start; a name that takes longer is looked up again by the agent
# What the supervisor holds: sockets, memory files, and for each of the two slots that a worker has
# two pairs of channels and a control channel.
DESCRIPTORS_OF_A_PROXY = 64
DESCRIPTORS_OF_A_WORKER = 12
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What `meshfast proxy` was asked for; paths are absolute, times in milliseconds."""

    source: Source
    workers: int
    drain_ms: int
    metrics_address: str
    metrics_fallback: bool
    log_level: str
    instance: str
    runtime_dir: str
    version: str


def serve(options: Options) -> NoReturn:
    """Become the supervisor of a proxy. Raises ConfigError when the configuration is refused."""
    from meshfast import _core

    check_access_log(options.source.access_log)
    resources = load_source(options.source, _core.Snapshot.build)
    document, snapshot = build_loaded(
        resources,
        options.source,
        generation=FIRST_GENERATION,
        allocator=SlotAllocator(),
        resolve=resolve,
        build=_core.Snapshot.build,
    )
    # The standard error may have been closed by whoever started us.
    if sys.stderr is not None and options.log_level != "error":
        for warning in warnings_about(resources):
            print(f"warning: {warning}", file=sys.stderr, flush=True)
    snapshot_fd = sealed("meshfast-snapshot", snapshot)
    # Half of the slots is for the other side of a hot restart.
    memory = _core.SharedMemory.create(2 * options.workers)
    kept = [memory.fileno(), snapshot_fd]
    written = msgspec.json.encode(settings(options, document, *kept))
    try:
        Settings.parse(written)  # the supervisor reads them again, after the way back is gone
    except SettingsError as error:
        raise ConfigError(str(error)) from None
    raise_descriptor_limit(options.workers)
    if sys.stdout is not None:  # closed by whoever started us
        sys.stdout.flush()
    launch(written, kept)


def settings(
    options: Options, document: bytes, shared_memory_fd: int, snapshot_fd: int
) -> dict[str, Any]:
    """Give the settings of the supervisor, version 1."""
    sockets = [
        {"name": listener.name, "address": listener.address, "owner": "worker", "fallback": False}
        for listener in decode_document(document).listeners
    ]
    metrics = {
        "name": "metrics",
        "address": options.metrics_address,
        "owner": "agent",
        "fallback": options.metrics_fallback,
    }
    agent = {
        **msgspec.to_builtins(options.source),
        "metrics_socket": "metrics",
        "dns_refresh_s": DNS_REFRESH_S,
        "version": options.version,
    }
    return {
        "version": 1,
        "instance": options.instance,
        "runtime_dir": options.runtime_dir,
        "workers": options.workers,
        "drain_ms": options.drain_ms,
        "sockets": [*sockets, metrics],
        "shared_memory_fd": shared_memory_fd,
        "snapshot_fd": snapshot_fd,
        "generation": FIRST_GENERATION,
        "agent": agent,
        "app": None,
        "log_level": options.log_level,
    }


def sealed(name: str, data: bytes) -> int:
    """Put bytes into a memory file that nobody can change any more."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def check_access_log(path: str) -> None:
    """Open the file as the agent will, and raise ConfigError when that fails.

    A named pipe that nobody reads yet will do: the agent opens it again until somebody does.
    """
    if path in ("off", "/dev/stderr", "/dev/stdout"):
        return
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        os.close(os.open(path, flags, 0o600))
    except OSError as error:
        if error.errno != errno.ENXIO:  # open(2): O_NONBLOCK, and no reader
            message = f"--access-log {path}: cannot be opened: {error.strerror}"
            hint = "its directory must exist and be writable; `off` writes no log"
            raise ConfigError([Problem(message, hint=hint)]) from None


def raise_descriptor_limit(workers: int) -> None:
    """Take as many descriptors as the system lets this user have; a shell's default is 1,024.

    Raises ConfigError when they do not suffice for the channels of so many workers.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = DESCRIPTORS_OF_A_PROXY + workers * DESCRIPTORS_OF_A_WORKER
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigError(
            f"{workers} workers need {needed} descriptors and this user may have {hard}: "
            "fewer --workers, or a higher `ulimit -Hn`"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def resolve(host: str) -> list[str]:
    """Look a name up; an empty list when it has no address or the answer takes too long."""
    found: list[str] = []

    def look_up() -> None:
        try:
            answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return
        found.extend(dict.fromkeys(str(answer[4][0]) for answer in answers))

    # getaddrinfo has no deadline of its own; a thread that is still waiting ends with the exec.
    thread = threading.Thread(target=look_up, daemon=True)
    thread.start()
    thread.join(DNS_WAIT_S)
    return [] if thread.is_alive() else found


def default_runtime_dir(environment: Mapping[str, str], uid: int) -> str:
    """Choose a directory that only this user can write, and that a reboot empties."""
    base = environment.get("XDG_RUNTIME_DIR") or f"/run/user/{uid}"
    if Path(base).is_dir():
        return f"{base}/meshfast"
    return "/run/meshfast" if uid == 0 else f"/tmp/meshfast-{uid}"
