"""`meshfast check`: is the sidecar well, and which clients go beside it.

For every sidecar that runs under a runtime directory it looks at what can be seen from outside: the
sidecar's health, where the application listens, and each process of the application: its proxy
variables, its program (some are known to ignore proxies), and its open connections.

On loopback a connection is beside the sidecar when it goes to the application of another sidecar
that runs under the same directories.

What it cannot see: connections that are closed again, processes of other users, other hosts. A
program that is known to ignore proxies is named although it may have been told otherwise, unless it
is connected to its sidecar. Processes are known by the name of their instance, so that those of a
namesake under other directories are taken for its own.

Tests: tests/core/test_check.py, with a tree of files in the place of /proc.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import os
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

import msgspec
import rich_click as click

from meshfast.agent.health import listening_addresses, network_order
from meshfast.cli.launch import default_runtime_dir
from meshfast.cli.output import show
from meshfast.cli.running import Running
from meshfast.cli.sidecar import PROXY_VARIABLES, default_state_dir
from meshfast.errors import ConfigError

__all__ = ["Finding", "check", "findings_of"]

ESTABLISHED, SYN_SENT = "01", "02"  # include/net/tcp_states.h
HEALTH_S = 2.0

UPSTREAM_HINT = "give it a local port: --upstream NAME=127.0.0.1:PORT, and connect there"
#: Programs by the name of their process, and what makes them take the sidecar.
IGNORE_PROXIES = {
    "java": "set -Dhttp.proxyHost, -Dhttp.proxyPort and a proxy Authenticator, or " + UPSTREAM_HINT,
    "mongosh": UPSTREAM_HINT,
    "mysql": UPSTREAM_HINT,
    "node": "set NODE_USE_ENV_PROXY=1 (Node 24 or later), or " + UPSTREAM_HINT,
    "psql": UPSTREAM_HINT,
    "redis-cli": UPSTREAM_HINT,
}
TOLD_OTHERWISE = {"node": "NODE_USE_ENV_PROXY"}


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is not as it should be. `subject` is `pid 12 (node)`, or a part."""

    instance: str
    kind: str
    subject: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        """Render as one line."""
        text = f"{self.instance}: {self.subject}: {self.message}"
        return f"{text} ({self.hint})" if self.hint else text


@click.command()
@click.option("--instance", metavar="NAME", help="Look at this sidecar only.")
@click.option("--runtime-dir", type=click.Path(file_okay=False), help="As given to `run`.")
@click.option("--state-dir", type=click.Path(file_okay=False), help="As given to `run`.")
@click.option("-o", "--output", type=click.Choice(["text", "json", "yaml"]), default="text")
def check(
    instance: str | None, runtime_dir: str | None, state_dir: str | None, output: str
) -> None:
    """Look for clients that go beside their sidecar, and for sidecars that are not well.

    Exits with 1 when something was found.
    """
    runtime = Path(runtime_dir or default_runtime_dir(os.environ, os.getuid()))
    state = Path(state_dir or default_state_dir(os.environ, os.getuid()))
    # A proxy of `meshfast proxy` runs there too, and has no state directory.
    running = [name for name in _running_instances(runtime) if (state / name).is_dir()]
    names = [name for name in running if instance in (None, name)]
    if not names:
        which = "no sidecar" if instance is None else f"no sidecar {instance!r}"
        raise ConfigError(
            f"{which} runs under {runtime} (--runtime-dir) with its state in {state} (--state-dir)"
        )
    findings: list[Finding] = []
    neighbours = _applications(state, running)
    for name in names:
        findings += findings_of(name, state / name, neighbours=neighbours)
    shown = {"instances": names, "findings": msgspec.to_builtins(findings)}
    count = f"{len(names)} sidecar{'s'[: len(names) != 1]}, {len(findings)} found"
    show(shown, output, lambda: "\n".join([*map(str, findings), count]))
    sys.exit(1 if findings else 0)


def findings_of(
    instance: str,
    state: Path,
    proc: Path = Path("/proc"),
    neighbours: Mapping[int, str] = MappingProxyType({}),
) -> list[Finding]:
    """Look at one sidecar; `neighbours` maps ports of applications on this host to instances.

    A sidecar that has not written its facts yet is one that is starting. Raises ConfigError when
    they cannot be read.
    """
    running = _running(state)
    if running is None:
        return [_of_sidecar(instance, "is starting", "ask again when it has started")]
    others = {port: name for port, name in neighbours.items() if name != instance}
    beside = _Beside(instance, running, proc, others)
    return [*_health(instance, running.metrics), *beside.listening(), *beside.processes()]


def _running(state: Path) -> Running | None:
    try:
        return msgspec.json.decode((state / "running").read_bytes(), type=Running)
    except FileNotFoundError:  # its lock is taken before the agent writes this
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{state}: the sidecar's facts cannot be read: {error}") from None


def _applications(state: Path, instances: Iterable[str]) -> dict[int, str]:
    """Map the port of each application to its instance; without those that cannot be read."""
    found = {}
    for name in instances:
        with contextlib.suppress(ConfigError):
            if running := _running(state / name):
                found[running.port] = name
    return found


def _running_instances(runtime: Path) -> Iterator[str]:
    """Name the instances whose lock names a living supervisor."""
    for path in sorted(runtime.glob("*.lock")):
        pid = path.read_text().strip()
        if pid and b"meshfast.supervisor" in _read(Path("/proc") / pid / "cmdline"):
            yield path.stem


def _of_sidecar(instance: str, message: str, hint: str = "") -> Finding:
    return Finding(instance=instance, kind="health", subject="sidecar", message=message, hint=hint)


def _health(instance: str, metrics: str) -> Iterator[Finding]:
    found = functools.partial(_of_sidecar, instance)
    host, _, port = metrics.rpartition(":")
    connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=HEALTH_S)
    try:
        connection.request("GET", "/healthz/ready", headers={"Connection": "close"})
        answer = connection.getresponse()
        state = answer.read().decode("ascii", "replace").strip()
        if answer.status != 200:
            yield found(f"not ready: {state}", "its log on stderr says why")
        connection.close()
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode("utf-8", "replace").splitlines()
    except (OSError, http.client.HTTPException) as error:
        yield found(f"does not answer on {metrics}: {error}")
        return
    finally:
        connection.close()
    if "meshfast_control_plane_connected 0" in text:
        yield found("no control plane; it serves what it knew last")
    if "meshfast_certificate_overdue 1" in text:
        yield found("its certificate is not renewed")


class _Beside:
    """What goes beside one sidecar."""

    def __init__(
        self, instance: str, running: Running, proc: Path, neighbours: Mapping[int, str]
    ) -> None:
        self._instance = instance
        self._running = running
        self._proc = proc
        self._neighbours = neighbours
        self._connections = dict(_connections(proc))
        entrances = (running.outbound, *running.upstreams)
        self._entrances = {(host, port) for host, _, port in (e.rpartition(":") for e in entrances)}

    def listening(self) -> Iterator[Finding]:
        """Name the addresses beyond loopback on which the application's port is open."""
        addresses = listening_addresses(self._running.port, str(self._proc / "net"))
        beyond = sorted(one for one in addresses if not _is_loopback(one))
        if beyond:
            yield Finding(
                instance=self._instance,
                kind="listens-beyond-loopback",
                subject="application",
                message=f"port {self._running.port} can be reached beside the sidecar "
                f"on {', '.join(beyond)}",
                hint="let it listen on 127.0.0.1",
            )

    def processes(self) -> Iterator[Finding]:
        """Look at each process that was started with this sidecar."""
        for path in sorted(self._proc.glob("[0-9]*"), key=lambda path: int(path.name)):
            environment = _environment(path)
            if environment.get("MESHFAST_INSTANCE") == self._instance:
                program = _read(path / "comm").decode(errors="replace").strip()
                subject = f"pid {path.name} ({program})"
                remotes = self._remotes(path)
                yield from self._variables(subject, environment)
                if not any(self._is_entrance(*remote) for remote in remotes):
                    yield from self._program(subject, program, environment)
                yield from self._direct(subject, remotes)

    def _variables(self, subject: str, environment: dict[str, str]) -> Iterator[Finding]:
        wrong = []
        for name in PROXY_VARIABLES:
            proxy = urlsplit(environment.get(name, ""))
            if proxy.netloc.rpartition("@")[2] != self._running.outbound:
                wrong.append(name)
        if wrong:
            yield Finding(
                instance=self._instance,
                kind="proxy-variables",
                subject=subject,
                message=f"{', '.join(wrong)} do not name the sidecar",
                hint=f"something set them after the start; it is {self._running.outbound}",
            )
        excluded = {
            one.strip()
            for name in ("NO_PROXY", "no_proxy")
            for one in environment.get(name, "").split(",")
        }
        if "*" in excluded:
            yield Finding(
                instance=self._instance,
                kind="proxy-variables",
                subject=subject,
                message="NO_PROXY is *: no call uses the sidecar",
            )

    def _program(
        self, subject: str, program: str, environment: dict[str, str]
    ) -> Iterator[Finding]:
        hint = IGNORE_PROXIES.get(program)
        if hint is not None and not environment.get(TOLD_OTHERWISE.get(program, "")):
            yield Finding(
                instance=self._instance,
                kind="ignores-proxies",
                subject=subject,
                message="this program ignores proxy variables",
                hint=hint,
            )

    def _direct(self, subject: str, remotes: Iterable[tuple[str, int]]) -> Iterator[Finding]:
        beside = sorted(filter(None, (self._beside(*remote) for remote in remotes)))
        if beside:
            yield Finding(
                instance=self._instance,
                kind="direct-connection",
                subject=subject,
                message=f"is connected directly to {', '.join(beside)}",
                hint=UPSTREAM_HINT,
            )

    def _beside(self, remote: str, port: int) -> str | None:
        """Name where a connection goes that should have gone through the sidecar."""
        if self._is_entrance(remote, port):
            return None
        if not _is_loopback(remote):
            return f"{remote}:{port}"
        neighbour = self._neighbours.get(port)
        return neighbour and f"{remote}:{port} (the application of {neighbour})"

    def _is_entrance(self, remote: str, port: int) -> bool:
        """Tell whether the sidecar itself listens there; a wildcard is every address."""
        hosts = (remote, f"[{remote}]", "0.0.0.0", "[::]")
        return any((host, str(port)) in self._entrances for host in hosts)

    def _remotes(self, path: Path) -> set[tuple[str, int]]:
        """Where the connections of a process go, without those that callers made to it."""
        found = (self._connections.get(inode) for inode in _socket_inodes(path))
        return {
            (remote, remote_port)
            for local_port, remote, remote_port in filter(None, found)
            if local_port != self._running.port
        }


def _connections(proc: Path) -> Iterator[tuple[str, tuple[int, str, int]]]:
    """Give inode → local port, remote address, remote port of TCP connections that are open."""
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in _read(proc / "net" / name).decode("ascii").splitlines()[1:]:
            fields = line.split()
            if fields[3] in (ESTABLISHED, SYN_SENT):
                local, remote = fields[1], fields[2]
                address, _, port = remote.partition(":")
                ip = socket.inet_ntop(family, network_order(address)).removeprefix("::ffff:")
                yield fields[9], (int(local.partition(":")[2], 16), ip, int(port, 16))


def _socket_inodes(path: Path) -> Iterator[str]:
    try:
        fds = list((path / "fd").iterdir())
    except OSError:
        return
    for fd in fds:
        try:
            target = os.readlink(fd)
        except OSError:
            continue
        if target.startswith("socket:["):
            yield target[len("socket:[") : -1]


def _environment(path: Path) -> dict[str, str]:
    entries: Iterable[str] = _read(path / "environ").decode(errors="replace").split("\0")
    return {
        name: value for name, equals, value in (one.partition("=") for one in entries) if equals
    }


def _is_loopback(address: str) -> bool:
    return address == "::1" or address.startswith(("127.", "::ffff:127."))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
