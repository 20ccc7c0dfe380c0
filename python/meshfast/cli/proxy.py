"""`meshfast proxy`: serve (or validate, or print) the resources of a file or of three flags.

Tests: tests/core/test_cli.py; the running proxy in tests/dataplane.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import msgspec
import rich_click as click
from click.core import ParameterSource

import meshfast
from meshfast.cli import launch
from meshfast.cli.cpu import cpus
from meshfast.cli.tracing import sampling_ppm, tracing_options
from meshfast.errors import ConfigError, Problem
from meshfast.policy import SlotAllocator, Source, build_loaded, load_source, warnings_about
from meshfast.resources import render_json, render_yaml
from meshfast.resources.texts import duration_ms
from meshfast.supervisor.settings import WORKERS_MAX

__all__ = ["LOG_LEVELS", "Duration", "proxy"]

STDIN = "/dev/stdin"  # what `-c -` stands for
LOG_LEVELS = ("error", "warn", "info", "debug", "trace")


class Duration(click.ParamType[int]):
    """A duration as Go writes it, in whole milliseconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read `45s`; a number is one that was read already."""
        milliseconds = value if isinstance(value, int) else duration_ms(value)
        if milliseconds is None:
            self.fail(
                f"{value!r} is not a duration such as 45s, 1m30s or 500ms, 24h at most", param, ctx
            )
        return milliseconds


@click.command()
@click.option(
    "-c",
    "--config-path",
    "config_path",
    type=click.Path(dir_okay=False),
    help="File of resources: Gateway, VirtualService, ServiceEntry, ForwardProxy. "
    "- reads standard input, to validate or print.",
)
@click.option("--listen", metavar="[IP]:PORT", help="Listen here, without a file.")
@click.option("--to", metavar="HOST:PORT", help="With --listen: forward HTTP to this upstream.")
@click.option("--forward", is_flag=True, help="With --listen: be an HTTP forward proxy.")
@click.option(
    "-o",
    "--output",
    type=click.Choice(["text", "json", "yaml"]),
    default="text",
    help="json, yaml: print the resources and stop. With --mode validate, json: print the result.",
)
@click.option(
    "--mode",
    type=click.Choice(["serve", "validate"]),
    default="serve",
    show_default=True,
    help="validate: print every problem and stop.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, WORKERS_MAX),
    help="Worker processes.  [default: the CPUs this process may use]",
)
@click.option(
    "--drain-time",
    "drain_ms",
    type=Duration(),
    default="45s",
    show_default=True,
    help="How long requests in flight may take once the proxy is told to stop.",
)
@click.option(
    "--metrics-address",
    metavar="IP:PORT",
    default="127.0.0.1:15020",
    show_default=True,
    help="Metrics and health. The default gives way to a free port, a given one does not.",
)
@click.option(
    "--access-log",
    metavar="FILE",
    default="/dev/stdout",
    show_default=True,
    help="File for one JSON line per request; off for none.",
)
@tracing_options
@click.option(
    "-l",
    "--log-level",
    type=click.Choice(LOG_LEVELS),
    default="info",
    show_default=True,
    help="What the proxy says about itself, on stderr.",
)
@click.option(
    "--instance",
    default="default",
    show_default=True,
    help="Name that tells proxies of one user apart; one runs per name.",
)
@click.option(
    "--runtime-dir",
    type=click.Path(file_okay=False),
    help="Directory of the lock.  [default: $XDG_RUNTIME_DIR/meshfast]",
)
@click.pass_context
def proxy(
    ctx: click.Context,
    /,
    config_path: str | None,
    listen: str | None,
    to: str | None,
    forward: bool,
    output: str,
    mode: str,
    workers: int | None,
    **options: Any,
) -> None:
    """Serve the resources of a file, or one upstream, or be a forward proxy.

    \b
        meshfast proxy -c mesh.yaml
        meshfast proxy --listen :8080 --to 127.0.0.1:9000
        meshfast proxy --listen :3128 --forward
    """
    zipkin = options["zipkin_address"]
    source = msgspec.structs.replace(
        _source(config_path, listen, to, forward),
        zipkin_address=zipkin,
        sampling_parts_per_million=sampling_ppm(zipkin, options["trace_sampling"]),
    )
    if mode == "validate":
        if output == "yaml":
            raise click.UsageError("--mode validate prints text or json")
        sys.exit(_validate(source, output))
    if output != "text":
        render = render_yaml if output == "yaml" else render_json
        print(render(item.resource for item in load_source(source)), end="")
        return
    if source.config_path == STDIN:
        raise click.UsageError(
            "-c - only validates and prints: a proxy reads its file again at SIGHUP; "
            "write what comes from standard input to a file"
        )
    explicit = ctx.get_parameter_source("metrics_address") is not ParameterSource.DEFAULT
    runtime_dir = options["runtime_dir"] or launch.default_runtime_dir(os.environ, os.getuid())
    access_log = options["access_log"]
    if access_log != "off":
        access_log = str(Path(access_log).absolute())
    launch.serve(
        launch.Options(
            source=msgspec.structs.replace(source, access_log=access_log),
            workers=workers or min(cpus(), WORKERS_MAX),
            drain_ms=options["drain_ms"],
            metrics_address=options["metrics_address"],
            metrics_fallback=not explicit,
            log_level=options["log_level"],
            instance=options["instance"],
            runtime_dir=str(Path(runtime_dir).absolute()),
            version=meshfast.__version__,
        )
    )


def _source(config_path: str | None, listen: str | None, to: str | None, forward: bool) -> Source:
    """Take exactly one of the three forms; anything else is wrong usage."""
    match (config_path, listen, to, forward):
        case (str(), None, None, False):
            path = STDIN if config_path == "-" else str(Path(config_path).absolute())
            return Source(config_path=path)
        case (None, str(), str(), False) | (None, str(), None, True):
            source = Source(listen=listen, to=to, forward=forward)
            try:
                load_source(source)
            except ConfigError as error:
                raise click.UsageError(str(error)) from None
            return source
    raise click.UsageError("give either -c FILE, or --listen with --to, or --listen with --forward")


def _validate(source: Source, output: str) -> int:
    """Do what serving does up to the snapshot; print problems and warnings; return the exit code.

    A warning is about what is valid and may surprise; it does not change the exit code.
    """
    from meshfast import _core

    problems: tuple[Problem, ...] = ()
    warnings: list[Problem] = []
    try:
        resources = load_source(source, _core.Snapshot.build)
        warnings = warnings_about(resources)
        build_loaded(
            resources,
            source,
            generation=1,
            allocator=SlotAllocator(),
            resolve=lambda host: [],
            build=_core.Snapshot.build,
        )
    except ConfigError as error:
        problems = error.problems
    if output == "json":
        verdict = {"valid": not problems, "problems": problems, "warnings": warnings}
        print(msgspec.json.format(msgspec.json.encode(verdict)).decode())
    else:
        for problem in problems:
            print(problem, file=sys.stderr)
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
        print(f"{len(problems)} problem{'' if len(problems) == 1 else 's'}")
    return 1 if problems else 0
