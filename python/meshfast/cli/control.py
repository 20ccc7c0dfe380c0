"""`meshfast control`: the control plane of a mesh, in the foreground.

Tests: tests/control/server/test_process.py.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path

import rich_click as click
from click.core import ParameterSource

from meshfast.cli.proxy import LOG_LEVELS, Duration
from meshfast.resources.texts import CLAIM_CHECKS, is_address

__all__ = ["check_advertised", "control", "default_state_dir", "split_address"]

CERT_TTL_MS_MIN = 10_000
CERT_TTL_MS_MAX = 24 * 3_600_000
DEBOUNCE_MS_MAX = 10_000  # after which control/push waits no longer, however busy it is


@click.command()
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the store and the authority are kept.  [default: ~/.local/state/meshfast/control]",
)
@click.option(
    "--address",
    metavar="IP:PORT",
    default="127.0.0.1:15012",
    show_default=True,
    help="Where sidecars connect. The default gives way to a free port, a given one does not.",
)
@click.option(
    "--advertise",
    metavar="HOST:PORT",
    default="",
    help="The address in join tokens, when sidecars reach it by another; needed with "
    "0.0.0.0.  [default: --address]",
)
@click.option(
    "--trust-domain",
    default="cluster.local",
    show_default=True,
    help="The domain of all identities; fixed when the state is made.",
)
@click.option(
    "--cert-ttl",
    "cert_ttl_ms",
    type=Duration(),
    default="24h",
    show_default=True,
    help="Life of a sidecar's certificate, 10s to 24h.",
)
@click.option(
    "--debounce",
    "debounce_ms",
    type=Duration(),
    default="100ms",
    show_default=True,
    help="How long changes have to be quiet before they are pushed (10s at most).",
)
@click.option(
    "-l", "--log-level", type=click.Choice(LOG_LEVELS), default="info", show_default=True,
    help="What the control plane says about itself, on stderr.",
)  # fmt: skip
@click.pass_context
def control(
    ctx: click.Context,
    /,
    state_dir: Path | None,
    address: str,
    advertise: str,
    trust_domain: str,
    cert_ttl_ms: int,
    debounce_ms: int,
    log_level: str,
) -> None:
    """Run the control plane: identities, registration, configuration.

    \b
        meshfast control --address 10.0.0.1:15012
    """
    # The library of certificates is loaded by this command and no other.
    from meshfast import _core
    from meshfast.control.api.serve import serve
    from meshfast.control.process import run
    from meshfast.control.server import Options

    if not CERT_TTL_MS_MIN <= cert_ttl_ms <= CERT_TTL_MS_MAX:
        raise click.BadParameter("a certificate lives 10s to 24h", param_hint="--cert-ttl")
    if debounce_ms > DEBOUNCE_MS_MAX:
        raise click.BadParameter("changes wait for 10s at most", param_hint="--debounce")
    host, port = split_address(address)
    check_advertised(host, advertise)
    directory = state_dir or default_state_dir(os.environ, os.getuid())
    directory = directory.absolute()
    directory.parent.mkdir(parents=True, exist_ok=True)
    run(
        Options(
            state_dir=directory,
            host=host,
            port=port,
            trust_domain=trust_domain,
            build=_core.Snapshot.build,
            cert_ttl_s=cert_ttl_ms // 1000,
            debounce_s=debounce_ms / 1000,
            advertise=advertise,
            fallback=ctx.get_parameter_source("address") is ParameterSource.DEFAULT,
        ),
        log_level=log_level,
        serve_api=lambda operations: serve(operations, directory),
    )


def default_state_dir(environment: Mapping[str, str], uid: int) -> Path:
    """Choose the directory of the state: it has to outlive reboots."""
    if uid == 0 and not environment.get("XDG_STATE_HOME"):
        return Path("/var/lib/meshfast/control")
    base = environment.get("XDG_STATE_HOME") or f"{environment.get('HOME', '')}/.local/state"
    return Path(base) / "meshfast" / "control"


def split_address(text: str) -> tuple[str, int]:
    """Split `IP:PORT` or `[IP6]:PORT`; port 0 is a free one. Raises BadParameter."""
    host, colon, port = text.rpartition(":")
    digits = port.isascii() and port.isdigit() and int(port) <= 65535
    if not (host and colon and digits) or (":" in host) != host.startswith("["):
        raise click.BadParameter(f"expected IP:PORT, got {text!r}", param_hint="--address")
    return host.removeprefix("[").removesuffix("]"), int(port)


def check_advertised(host: str, advertise: str) -> None:
    """Refuse what join tokens must not say. Raises BadParameter.

    0.0.0.0 is no address that a sidecar could connect to, and which of this host's addresses is
    meant nobody but the operator knows.
    """
    expected = CLAIM_CHECKS["host_port"](advertise) if advertise else None
    if expected is not None:
        raise click.BadParameter(
            f"expected {expected}, got {advertise!r}", param_hint="--advertise"
        )
    if not advertise and is_address(host) and ipaddress.ip_address(host).is_unspecified:
        raise click.BadParameter(
            f"{host} is every address of this host, and join tokens name one that sidecars can "
            "reach: give --advertise HOST:PORT too",
            param_hint="--address",
        )
