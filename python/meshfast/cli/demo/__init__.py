"""`meshfast demo`: the story of one service in two versions behind a proxy, live, with a verdict.

Everything in it is real: the services are processes, the proxy is this installation's `meshfast`,
the load goes over sockets. It exits with 1 when any act did not come out as it should.

Tests: tests/demo/test_demo.py.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import msgspec
import rich_click as click
from rich.console import Console
from rich.live import Live
from rich.table import Table

from meshfast.cli.demo.load import Sample
from meshfast.cli.demo.story import ACTS, Result, Stage, play

__all__ = ["demo"]


@click.command()
@click.option(
    "--duration",
    type=click.FloatRange(min=2.0),
    default=10.0,
    show_default=True,
    help="Seconds of load, about.",
)
@click.option("-o", "output", type=click.Choice(["text", "json"]), default="text")
def demo(duration: float, output: str) -> None:
    """Show a canary, a killed worker and a hot restart, with traffic going on."""
    meshfast = Path(sys.argv[0]).absolute()
    with tempfile.TemporaryDirectory(prefix="meshfast-demo-") as folder:
        stage = Stage(Path(folder), meshfast)
        try:
            results = _show(stage, duration, output)
        finally:
            stage.close()
    failed = [result for result in results if result.problem]
    if output == "json":
        print(msgspec.json.format(msgspec.json.encode(_summary(results))).decode())
    elif failed:
        print("failed: " + "; ".join(f"{one.title}: {one.problem}" for one in failed))
    sys.exit(1 if failed else 0)


def _show(stage: Stage, duration: float, output: str) -> list[Result]:
    results: list[Result] = []
    if output == "json":
        return list(play(stage, duration))
    with Live(_table(results), console=Console(), auto_refresh=False) as live:
        for result in play(stage, duration):
            results.append(result)
            live.update(_table(results), refresh=True)
    return results


def _table(results: list[Result]) -> Table:
    table = Table(title="payment behind meshfast proxy")
    for column in ("act", "req/s", "v2", "errors", "p50 ms", "p95 ms", "p99 ms", ""):
        table.add_column(column, justify="left" if column == "act" else "right", no_wrap=True)
    for number, act in enumerate(ACTS):
        if number >= len(results):
            table.add_row(act.title, style="dim")
            continue
        result = results[number]
        sample = result.sample
        table.add_row(
            result.title,
            f"{sample.requests / sample.seconds:.0f}",
            f"{sample.share('v2'):.1%}",
            str(sample.errors),
            *(f"{sample.percentile_ms(percent):.1f}" for percent in (50, 95, 99)),
            f"[red]{result.problem}[/red]" if result.problem else "[green]ok[/green]",
        )
    return table


def _summary(results: list[Result]) -> dict[str, object]:
    whole = Sample()
    for result in results:
        whole.errors += result.sample.errors
        whole.versions.update(result.sample.versions)
        whole.latencies_ms.extend(result.sample.latencies_ms)
    canary = results[1].sample
    return {
        "requests": whole.requests,
        "errors": whole.errors,
        "v2_share": canary.share("v2"),
        "rollback_share": results[-1].sample.share("v2"),
        "p50_ms": whole.percentile_ms(50),
        "p99_ms": whole.percentile_ms(99),
        "acts": [
            {
                "title": result.title,
                "requests": result.sample.requests,
                "errors": result.sample.errors,
                "v2_share": result.sample.share("v2"),
                "problem": result.problem,
            }
            for result in results
        ],
    }
