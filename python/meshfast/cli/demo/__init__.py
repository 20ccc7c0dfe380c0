"""`meshfast demo`: a whole mesh on this machine, its story told under load, with a verdict.

A control plane and order → payment-service (v1, v2) → inventory, each an ordinary HTTP process
under `meshfast run`. Everything is real: processes, sockets, certificates, and this installation's
`meshfast`. It exits with 1 when any act did not come out as it should, and leaves nothing behind,
however it ends: sweeper.py is for SIGKILL.

Tests: tests/demo/test_demo.py.
"""

from __future__ import annotations

import io
import sys
from contextlib import ExitStack
from pathlib import Path

import msgspec
import rich_click as click

__all__ = ["demo"]


@click.command()
@click.option(
    "--duration",
    type=click.FloatRange(min=5.0),
    default=20.0,
    show_default=True,
    help="Seconds of load; a little more when the acts need them.",
)
@click.option(
    "--zipkin-address",
    metavar="HOST:PORT",
    default="",
    help="A Zipkin server for the traces.  [default: a small collector of the demo]",
)
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text")
def demo(duration: float, zipkin_address: str, output: str) -> None:
    """Show a canary, its rollback, a trace and a dead control plane in a mesh under load.

    \b
    order → payment-service v1, v2 → inventory, over mutual TLS. With -o json the
    measurements are one object on stdout; progress goes to stderr. Percentiles of hops are
    Prometheus's, estimated within Istio's buckets; those of the whole chain are exact.
    """
    # What shows and measures is loaded by this command alone, not by the load that it starts.
    from rich.console import Console

    from meshfast.cli.demo.interrupts import Interrupts
    from meshfast.cli.demo.screen import LiveScreen, PlainScreen, ending
    from meshfast.cli.demo.spans import Collector
    from meshfast.cli.demo.stage import Stage
    from meshfast.cli.demo.story import RATE, play
    from meshfast.cli.demo.sweeper import swept_folder
    from meshfast.cli.demo.verdict import problems, to_json

    stream = sys.stderr if output == "json" else sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")  # for terminals that have no arrows and ticks
    console = Console(file=stream, highlight=False)
    is_live = stream.isatty() and not console.is_dumb_terminal
    screen = LiveScreen(console) if is_live else PlainScreen(console)
    interrupts = Interrupts()
    interrupts.install()
    with ExitStack() as closing:
        with interrupts.held():
            folder = closing.enter_context(swept_folder())
        collector = zipkin_address
        if not collector:
            collecting = Collector()
            closing.callback(collecting.close)
            collector = collecting.address
        stage = Stage(folder, Path(sys.argv[0]).absolute(), interrupts)
        closing.callback(stage.close)
        console.print("a control plane, and five workloads under meshfast run, are starting")
        try:
            stage.start(RATE, zipkin_address=collector)
            with screen:
                measured = play(stage, collector, duration, screen)
        finally:
            interrupts.hold()
    console.print(ending(measured, with_hops=not is_live), soft_wrap=True)
    if output == "json":
        print(msgspec.json.format(msgspec.json.encode(to_json(measured))).decode())
    sys.exit(1 if problems(measured) else 0)
