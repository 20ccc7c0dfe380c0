"""`meshfast sidecar`: a service's sidecar for an application that somebody else starts.

Also what `run` has in common with it: the options, the plan that follows from them and from the
token or from what an earlier start left behind, and the way to a running supervisor.

A sidecar that has joined once keeps what it needs to come back (control plane, roots, names, never
the token's secret) in its state directory, so that a restart needs no token.

Does not do: joining (the agent does).

Tests: tests/core/test_sidecar_cli.py; the running mesh in tests/mesh.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import secrets
import shlex
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec
import rich_click as click
from click.core import ParameterSource

import meshfast
from meshfast.agent.mesh import IDENTITY, JOINING, RESOURCES, RUNNING, MeshSettings
from meshfast.agent.state import StateDirectory, StateError
from meshfast.cli import launch
from meshfast.cli.output import show
from meshfast.cli.proxy import LOG_LEVELS, Duration
from meshfast.cli.running import kept_addresses
from meshfast.cli.tracing import sampling_ppm, tracing_options
from meshfast.discovery.messages import LABELS_MAX
from meshfast.discovery.token import JoinToken, TokenError
from meshfast.errors import ConfigError, UsageError
from meshfast.policy import SlotAllocator
from meshfast.policy.document import Tracing, encode_document
from meshfast.policy.sidecar import Sidecar, Upstream, compose
from meshfast.resources.texts import CHECKS, CLAIM_CHECKS
from meshfast.supervisor.launch import launch as become_supervisor
from meshfast.supervisor.settings import WORKERS_MAX, Settings, SettingsError

__all__ = [
    "Plan",
    "default_state_dir",
    "explicit_options",
    "make_plan",
    "options",
    "print_plan",
    "remember",
    "serve",
    "settings",
    "sidecar",
]

PROTOCOLS = ("http", "tcp")
NOT_YET = ("grpc", "http2")  # protocols of Istio that workers do not speak yet
WORKERS = 2
TOKEN_VARIABLE = "MESHFAST_TOKEN"
MEMBERSHIP, CREDENTIAL, INSTANCE = "membership", "credential", "instance"
PROXY_VARIABLES = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy")
DIRECT = ("localhost", "127.0.0.1", "::1")
CONTROL_ACCOUNT = "/ns/meshfast-system/sa/control"

_ADDRESS = re.compile(r"(?:\[[0-9a-fA-F:.]+\]|[0-9.]+):[0-9]{1,5}")
_UPSTREAM = re.compile(r"(?P<host>[^=:]+)(?::(?P<port>[0-9]{1,5}))?=(?P<address>.+)")

Command = TypeVar("Command", bound=Callable[..., Any])


class Protocol(click.Choice[str]):
    """One of `PROTOCOLS`; what is not spoken yet is said to be that."""

    def __init__(self) -> None:
        """Take the choices."""
        super().__init__(PROTOCOLS)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Give the text back as it is."""
        if value in NOT_YET:
            known = ", ".join(PROTOCOLS)
            self.fail(f"{value} is not supported yet; choose from {known}", param, ctx)
        return super().convert(value, param, ctx)


class Membership(msgspec.Struct, frozen=True, kw_only=True):
    """What a token says without its secret; kept for starts without one."""

    control: str
    root: str
    service: str
    namespace: str
    service_account: str
    trust_domain: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a start needs. `explicit` names the addresses that must not give way."""

    mesh: MeshSettings
    instance: str
    runtime_dir: str
    workers: int
    drain_ms: int
    metrics_address: str
    explicit: frozenset[str]
    access_log: str
    log_level: str
    proxy_url: str
    membership: Membership
    zipkin_address: str | None = None
    command: tuple[str, ...] = ()


OPTIONS: tuple[Callable[[Command], Command], ...] = (
    click.option("--service", metavar="NAME", help="Name of the service.  [default: the token's]"),
    click.option("--port", type=click.IntRange(1, 65535), required=True,
                 help="Port on 127.0.0.1 where the application serves."),
    click.option(
        "--service-port",
        type=click.IntRange(1, 65535),
        help="Port that callers name; versions on one host share it.  [default: --port]",
    ),
    click.option("--protocol", type=Protocol(), default="http", show_default=True,
                 help="What the application speaks on its port."),
    click.option("--label", "labels", metavar="KEY=VALUE", multiple=True,
                 help="Label of the workload, as version=v2; may be repeated."),
    click.option("--namespace", metavar="NAME", help="Namespace.  [default: the token's]"),
    click.option("--workload", metavar="NAME",
                 help="Name of the workload.  [default: SERVICE-VERSION]"),
    click.option("--token-file", type=click.Path(dir_okay=False),
                 help=f"File with the join token; else {TOKEN_VARIABLE}, else an earlier start."),
    click.option("--upstream", "upstreams", metavar="NAME[:PORT]=ADDR:PORT", multiple=True,
                 help="Local TCP port of a service, for clients that ignore proxies."),
    click.option("--inbound-address", metavar="IP:PORT", default="0.0.0.0:15006",
                 show_default=True, help="Where other sidecars reach this one."),
    click.option("--outbound-address", metavar="IP:PORT", default="127.0.0.1:15001",
                 show_default=True, help="The application's HTTP proxy."),
    click.option("--metrics-address", metavar="IP:PORT", default="127.0.0.1:15020",
                 show_default=True, help="Metrics and health. Defaults give way to free ports."),
    click.option("--address", metavar="IP", default="",
                 help="IP that others reach this host by.  [default: towards the control plane]"),
    click.option("--key-storage", type=click.Choice(["disk", "memory"]), default="disk",
                 show_default=True, help="memory: a restart needs the control plane and a token."),
    tracing_options,
    click.option("--workers", type=click.IntRange(1, WORKERS_MAX), default=WORKERS,
                 show_default=True, help="Worker processes."),
    click.option("--drain-time", "drain_ms", type=Duration(), default="45s", show_default=True,
                 help="How long exchanges in flight may take once told to stop."),
    click.option("-l", "--log-level", type=click.Choice(LOG_LEVELS), default="info",
                 show_default=True, help="What the sidecar says about itself, on stderr."),
    click.option("--instance", metavar="NAME",
                 help="Name that tells sidecars of one user apart.  [default: SERVICE-PORT; among "
                 "all sidecars with a random end]"),
    click.option("--runtime-dir", type=click.Path(file_okay=False),
                 help="Directory of the lock.  [default: $XDG_RUNTIME_DIR/meshfast]"),
    click.option("--state-dir", type=click.Path(file_okay=False),
                 help="Keys and configuration.  [default: $XDG_STATE_HOME/meshfast/sidecars]"),
    click.option("-o", "--output", type=click.Choice(["text", "json", "yaml"]), default="text",
                 help="json, yaml: print the plan, without secrets, and stop."),
)  # fmt: skip


def options(command: Command) -> Command:
    """Give a command the options of a sidecar."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


@click.command()
@options
@click.option("--access-log", metavar="FILE", default="/dev/stdout", show_default=True,
              help="File for one JSON line per request; off for none.")  # fmt: skip
@click.pass_context
def sidecar(ctx: click.Context, /, **given: Any) -> None:
    """Be the sidecar of an application that is started elsewhere.

    \b
        meshfast sidecar --port 8080 --token-file payment.token
        . ~/.local/state/meshfast/sidecars/payment-8080/environment; exec ./payment
    """
    plan = make_plan(given, explicit_options(ctx), os.environ, keeps_credential=True)
    if given["output"] != "text":
        return print_plan(plan, given["output"])
    serve(plan, os.environ)


def make_plan(
    given: Mapping[str, Any],
    explicit: frozenset[str],
    environment: Mapping[str, str],
    *,
    command: Sequence[str] = (),
    keeps_credential: bool = False,
) -> Plan:
    """Work out everything from options and environment. Raises ConfigError.

    `keeps_credential`: the application's proxy password outlives this start, because nobody will
    tell the application another one.
    """
    token = _token(given["token_file"], environment)
    instance, state = _state(given, token)
    membership = _membership(given, token, state)
    labels = _labels(given["labels"])
    workload = _workload(given["workload"], membership.service, labels.get("version"))
    secret = _credential(state, keeps_credential)
    credential = base64.b64encode(f"{instance}:{secret}".encode())
    outbound, inbound = given["outbound_address"], given["inbound_address"]
    for option, address in (("--outbound-address", outbound), ("--inbound-address", inbound)):
        _check_address(option, address)
    if given["address"]:
        _check("--address", given["address"].removeprefix("[").removesuffix("]"), "peer_address")
    zipkin = given["zipkin_address"]
    share = sampling_ppm(zipkin, given["trace_sampling"])
    domain = membership.trust_domain
    facts = Sidecar(
        service=membership.service,
        namespace=membership.namespace,
        workload=workload,
        labels=labels,
        principal=f"spiffe://{domain}/ns/{membership.namespace}/sa/{membership.service_account}",
        app_port=given["port"],
        service_port=given["service_port"] or 0,
        inbound=f"inbound/{inbound}",
        outbound=f"outbound/{outbound}",
        upstreams=tuple(map(_upstream, given["upstreams"])),
        credential_sha256=hashlib.sha256(credential).hexdigest(),
        access_log_disabled=given["access_log"] == "off",
        tracing=None if zipkin is None else Tracing(sampling_parts_per_million=share),
    )
    proxy_url = f"http://{instance}:{secret}@{{outbound}}"
    runtime_dir = given["runtime_dir"] or launch.default_runtime_dir(environment, os.getuid())
    access_log = given["access_log"]
    return Plan(
        mesh=MeshSettings(
            sidecar=facts,
            control=membership.control,
            control_identity=f"spiffe://{domain}{CONTROL_ACCOUNT}",
            roots=[membership.root],
            trust_domain=domain,
            instance=_name_among_all(instance, state, is_given=given["instance"] is not None),
            state_dir=state.path,
            key_storage=given["key_storage"],
            token_id="" if token is None else token.id,
            token_secret="" if token is None else token.secret,
            protocol=given["protocol"],
            address=given["address"],
            environment="" if command else _exports(proxy_url, instance, environment),
        ),
        instance=instance,
        runtime_dir=str(Path(runtime_dir).absolute()),
        workers=given["workers"],
        drain_ms=given["drain_ms"],
        metrics_address=given["metrics_address"],
        explicit=explicit,
        access_log=access_log if access_log == "off" else str(Path(access_log).absolute()),
        log_level=given["log_level"],
        proxy_url=proxy_url,
        membership=membership,
        zipkin_address=zipkin,
        command=tuple(command),
    )


def serve(plan: Plan, environment: Mapping[str, str]) -> NoReturn:
    """Become the supervisor of the sidecar. Raises ConfigError when something is refused."""
    from meshfast import _core

    launch.check_access_log(plan.access_log)
    remember(plan)
    document = compose(plan.mesh.sidecar, {}, generation=1, allocator=SlotAllocator())
    snapshot_fd = launch.sealed(
        "meshfast-snapshot", _core.Snapshot.build(encode_document(document))
    )
    memory = _core.SharedMemory.create(2 * plan.workers)
    kept = [memory.fileno(), snapshot_fd]
    written = msgspec.json.encode(settings(plan, environment, *kept))
    try:
        Settings.parse(written)  # the supervisor reads them again, after the way back is gone
    except SettingsError as error:
        raise ConfigError(str(error)) from None
    os.environ.pop(TOKEN_VARIABLE, None)  # not for the application
    sys.stdout.flush()
    become_supervisor(written, kept)


def remember(plan: Plan) -> None:
    """Keep what a later start needs instead of a token. Raises ConfigError."""
    state = StateDirectory(plan.mesh.state_dir)
    with contextlib.suppress(ConfigError):  # of a first start, or damaged
        if _kept_membership(state).root != plan.membership.root:
            _forget_the_earlier_mesh(state)
    try:
        state.write_now(MEMBERSHIP, msgspec.json.encode(plan.membership))
    except OSError as error:
        raise ConfigError(f"--state-dir: {state.path}: {error.strerror}") from None


def settings(
    plan: Plan, environment: Mapping[str, str], shared_memory_fd: int, snapshot_fd: int
) -> dict[str, Any]:
    """Give the settings of the supervisor, version 1."""
    facts = plan.mesh.sidecar
    url = plan.proxy_url.replace("{outbound}", "{" + facts.outbound + "}")
    variables = {**_variables(url, environment), "MESHFAST_INSTANCE": plan.instance}
    return {
        "version": 1,
        "instance": plan.instance,
        "runtime_dir": plan.runtime_dir,
        "workers": plan.workers,
        "drain_ms": plan.drain_ms,
        "sockets": _sockets(plan),
        "shared_memory_fd": shared_memory_fd,
        "snapshot_fd": snapshot_fd,
        "generation": 1,
        "agent": {
            "mesh": msgspec.to_builtins(plan.mesh),
            "access_log": plan.access_log,
            "zipkin_address": plan.zipkin_address,
            "version": meshfast.__version__,
        },
        "app": {"command": list(plan.command), "env": variables} if plan.command else None,
        "log_level": plan.log_level,
    }


def print_plan(plan: Plan, output: str) -> None:
    """Print the plan as JSON or YAML, without what must stay secret."""
    shown = msgspec.to_builtins(plan)
    for secret in ("token_id", "token_secret", "environment"):
        del shown["mesh"][secret]
    del shown["proxy_url"], shown["membership"]
    shown["explicit"] = sorted(shown["explicit"])
    show(shown, output, str)


def default_state_dir(environment: Mapping[str, str], uid: int) -> str:
    """Choose where keys and configuration outlive a reboot."""
    if uid == 0 and "XDG_STATE_HOME" not in environment:
        return "/var/lib/meshfast/sidecars"
    base = environment.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return f"{base}/meshfast/sidecars"


def explicit_options(ctx: click.Context) -> frozenset[str]:
    """Name the options that somebody has written."""
    return frozenset(
        name for name in ctx.params if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
    )


def _sockets(plan: Plan) -> list[dict[str, Any]]:
    """Say what to bind; an address that nobody wrote gives way, and begins where it last was."""
    facts = plan.mesh.sidecar
    workers = [(facts.outbound, "outbound"), (facts.inbound, "inbound")]
    workers += [(one.listener, "") for one in facts.upstreams]
    sockets = [(name, name.partition("/")[2], "worker", part) for name, part in workers]
    sockets.append(("metrics", plan.metrics_address, "agent", "metrics"))
    giving_way = {
        part: address
        for _, address, _, part in sockets
        if part and f"{part}_address" not in plan.explicit
    }
    fixed = [address for _, address, _, part in sockets if part not in giving_way]
    reserved = {str(facts.app_port), *(address.rpartition(":")[2] for address in fixed)}
    kept = kept_addresses(StateDirectory(plan.mesh.state_dir), giving_way, reserved)
    return [
        {
            "name": name,
            "address": address,
            "owner": owner,
            "fallback": part in giving_way,
            "kept": kept.get(part, ""),
        }
        for name, address, owner, part in sockets
    ]


def _token(path: str | None, environment: Mapping[str, str]) -> JoinToken | None:
    try:
        text = environment.get(TOKEN_VARIABLE, "")
        if path is not None:
            text = Path(path).read_text(encoding="ascii")
            if not text.strip():
                raise TokenError("is empty; put a join token there, or leave --token-file out")
        return JoinToken.parse(text) if text else None
    except TokenError as error:
        raise ConfigError(f"{path or TOKEN_VARIABLE}: {error}") from None
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or 'not a token'}") from None


def _state(given: Mapping[str, Any], token: JoinToken | None) -> tuple[str, StateDirectory]:
    """Name the instance and open its directory."""
    service = given["service"] or (token.service if token is not None else None)
    if service is not None:
        _check("--service", service, "service")
    instance = given["instance"]
    if instance is None:
        if service is None:
            raise UsageError("give --service, --instance or a join token (--token-file)")
        instance = f"{service}-{given['port']}"
    base = given["state_dir"] or default_state_dir(os.environ, os.getuid())
    _check("--instance", instance, "instance")
    try:
        return instance, StateDirectory(str(Path(base).absolute() / instance))
    except StateError as error:
        raise ConfigError(f"--state-dir: {error}") from None


def _membership(
    given: Mapping[str, Any], token: JoinToken | None, state: StateDirectory
) -> Membership:
    """Take what the token says, or what was kept; the options have to agree."""
    if token is not None:
        membership = Membership(
            control=token.control,
            root=base64.b64encode(token.root).decode(),
            service=token.service,
            namespace=token.namespace,
            service_account=token.service_account,
            trust_domain=token.trust_domain,
        )
    else:
        membership = _kept_membership(state)
    for option in ("service", "namespace"):
        joined = getattr(membership, option)
        if given[option] is not None and given[option] != joined:
            raise ConfigError(
                f"--{option}: {given[option]!r} is not what the token is for: {joined!r} "
                "(create a token for it, or leave the option out)"
            )
    return membership


def _kept_membership(state: StateDirectory) -> Membership:
    try:
        kept = state.read(MEMBERSHIP)
        if kept is not None:
            return msgspec.json.decode(kept, type=Membership)
    except (StateError, msgspec.DecodeError) as error:
        raise ConfigError(f"{error} (start with a join token)") from None
    raise ConfigError(
        f"a join token is needed for the first start: --token-file FILE or {TOKEN_VARIABLE} "
        "(`meshfast token create --service NAME` makes one)"
    )


def _forget_the_earlier_mesh(state: StateDirectory) -> None:
    """Drop an identity that the other control plane does not take, and what belongs to it."""
    print(
        "meshfast: the token is of another control plane: what the earlier one has given to "
        f"{state.path} is dropped, and the sidecar joins again",
        file=sys.stderr,
        flush=True,
    )
    for name in (IDENTITY, JOINING, RESOURCES, RUNNING):
        state.remove(name)


def _credential(state: StateDirectory, is_kept: bool) -> str:
    """Make the password of the application's proxy, or take the kept one."""
    secret = secrets.token_urlsafe(24)
    return _kept_or_new(state, CREDENTIAL, secret) if is_kept else secret


def _kept_or_new(state: StateDirectory, name: str, new: str) -> str:
    """Give the text that an earlier start has kept, or keep the new one."""
    try:
        kept = state.read(name)
    except StateError:
        kept = None
    if kept is not None:
        return kept.decode("ascii")
    try:
        state.write_now(name, new.encode("ascii"))
    except OSError as error:
        raise ConfigError(f"--state-dir: {state.path}: {error.strerror}") from None
    return new


def _labels(written: Sequence[str]) -> dict[str, str]:
    labels = {}
    for text in written:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--label: expected KEY=VALUE, got {text!r}")
        _check("--label", key, "label_key")
        _check("--label", value, "label_value")
        labels[key] = value
    if len(labels) > LABELS_MAX:
        raise UsageError(f"--label: a workload has {LABELS_MAX} labels at most")
    return labels


def _workload(given: str | None, service: str, version: str | None) -> str:
    """Name the workload. Raises ConfigError for what the control plane would not register."""
    name = "-".join(filter(None, [service, version])) if given is None else given
    expected = CLAIM_CHECKS["workload"](name)
    if expected is not None and given is None:
        raise UsageError(
            f"--label: the workload would be named {name!r} after its version: expected {expected} "
            "(give --workload too)"
        )
    if expected is not None:
        raise UsageError(f"--workload: expected {expected}, got {name!r}")
    return name


def _check(option: str, text: str, check: str) -> None:
    """Refuse a text that the control plane would refuse."""
    expected = CLAIM_CHECKS[check](text)
    if expected is not None:
        raise UsageError(f"{option}: expected {expected}, got {text!r}")


def _upstream(text: str) -> Upstream:
    found = _UPSTREAM.fullmatch(text)
    if found is None or CHECKS["host"](found["host"]) is not None:
        raise UsageError(f"--upstream: expected NAME[:PORT]=ADDR:PORT, got {text!r}")
    _check_address("--upstream", found["address"])
    port = int(found["port"] or 0)
    return Upstream(service=found["host"], listener=f"outbound/{found['address']}", port=port)


def _check_address(option: str, address: str) -> None:
    if not _ADDRESS.fullmatch(address) or int(address.rpartition(":")[2]) > 65535:
        raise UsageError(f"{option}: expected IP:PORT, got {address!r}")


def _name_among_all(instance: str, state: StateDirectory, *, is_given: bool) -> str:
    """Name this sidecar among all: the instance and the host, the same at every start.

    A name that nobody gave has a random end, so that two of one service, port and host are two,
    and nobody can take it beforehand. It is kept as a whole: a host may get another name, but the
    certificate is for this one.
    """
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())
    end = "" if is_given else "-" + secrets.token_hex(4)
    return _kept_or_new(state, INSTANCE, f"{instance}.{host}"[: 253 - len(end)] + end)


def _variables(url: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Give the application's proxy variables; what the user excludes stays excluded."""
    written = environment.get("NO_PROXY") or environment.get("no_proxy") or ""
    excluded = [one.strip() for one in written.split(",") if one.strip()]
    direct = ",".join(dict.fromkeys([*excluded, *DIRECT]))
    return {**dict.fromkeys(PROXY_VARIABLES, url), "NO_PROXY": direct, "no_proxy": direct}


def _exports(url: str, instance: str, environment: Mapping[str, str]) -> str:
    """Write the same for a shell."""
    variables = {**_variables(url, environment), "MESHFAST_INSTANCE": instance}
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
