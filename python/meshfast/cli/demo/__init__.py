"""`meshfast demo`: the story of one service in two versions behind a proxy, live, with a verdict.

Everything in it is real: the services are processes, the proxy is this installation's `meshfast`,
the load goes over sockets. It exits with 1 when any act did not come out as it should.

Tests: tests/demo/test_demo.py.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import rich_click as click

from meshfast.cli.demo.load import Sample
from meshfast.cli.demo.story import ACTS, Result, Stage, play

__all__ = ["demo"]

# act, req/s, share of v2, errors, three latencies, verdict: 78 columns, so that a terminal of 80,
# a pipe and a build log show the same.
TITLE = max(len(act.title) for act in ACTS)
LINE = f"{{:<{TITLE}}}  {{:>5}}  {{:>6}}  {{:>6}}  {{:>5}}  {{:>5}}  {{:>5}}  {{}}"


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
    """Show a canary, a killed worker, a hot restart and a rollback under steady traffic."""
    meshfast = Path(sys.argv[0]).absolute()
    with tempfile.TemporaryDirectory(prefix="meshfast-demo-") as folder:
        stage = Stage(Path(folder), meshfast)
        try:
            acts = play(stage, duration)
            results = list(acts if output == "json" else _show(acts))
        finally:
            stage.close()
    story = _summary(results)
    if output == "json":
        print(msgspec.json.format(msgspec.json.encode(story)).decode())
    else:
        print(_sentence(results, story))
    sys.exit(1 if any(result.problem for result in results) else 0)


def _show(results: Iterator[Result]) -> Iterator[Result]:
    """Print each act as it ends, in lines of 80 columns at most, and pass it on."""
    click.echo("payment behind meshfast proxy; latencies in ms")
    click.echo(LINE.format("act", "req/s", "v2", "errors", "p50", "p95", "p99", ""))
    for result in results:
        sample = result.sample
        percentiles = (f"{sample.percentile_ms(percent):.1f}" for percent in (50, 95, 99))
        verdict = click.style("FAIL", fg="red") if result.problem else click.style("ok", fg="green")
        rate, share = f"{sample.requests / sample.seconds:.0f}", f"{sample.share('v2'):.1%}"
        click.echo(LINE.format(result.title, rate, share, result.errors, *percentiles, verdict))
        yield result


def _sentence(results: list[Result], story: dict[str, Any]) -> str:
    failed = [f"{result.title}: {result.problem}" for result in results if result.problem]
    if failed:
        return "failed: " + "; ".join(failed)
    return (
        f"ok: {story['requests']} requests, {story['errors']} errors; the canary got "
        f"{story['v2_share']:.1%}, and {story['rollback_share']:.0%} once taken back"
    )


def _summary(results: list[Result]) -> dict[str, Any]:
    whole = Sample()
    for result in results:
        whole.errors += result.errors
        whole.versions.update(result.changing.versions + result.sample.versions)
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
                "errors": result.errors,
                "v2_share": result.sample.share("v2"),
                "problem": result.problem,
            }
            for result in results
        ],
    }
