"""How the demo looks: live on a terminal, a line an act elsewhere; 80 columns in both.

A terminal shows one picture that is drawn again and again: hops with their golden signals and
identities, the canary as a bar, the acts with ticks and times. Where the output is not a terminal
each act is a line when it ends, and the table of the hops comes once, at the end.

Does not do: measure, judge.

Tests: tests/demo/test_screen.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.live import Live
from rich.text import Text

from meshfast.cli.demo.hops import Hop
from meshfast.cli.demo.load import Sample
from meshfast.cli.demo.story import Act, Progress
from meshfast.cli.demo.verdict import Measured, problems

__all__ = ["LiveScreen", "PlainScreen", "ending", "picture"]

MARKS = {
    "waiting": ("·", "dim"),
    "running": ("▸", "cyan"),
    "done": ("✓", "green"),
    "failed": ("✗", "bold red"),
}
#: The same where a terminal's characters may be missing.
WORDS = {"done": ("ok    ", "green"), "failed": ("FAILED", "bold red")}
MUTUAL_TLS = {True: ("yes", "green"), False: ("NO", "bold red")}
TITLES = ("hop", "req/s", "errors", "~p50 ms", "~p95", "~p99", "mTLS")
#: A hop of 2 ms counts in the bucket from 1 to 5 ms, whose middle is 3; the chain is timed.
ESTIMATED = "~ estimated within Istio's buckets: may exceed the chain's, which are exact"
LINE = "{:<34} {:>7} {:>6} {:>7} {:>6} {:>6}  {}"
BAR = 48


class LiveScreen:
    """One picture on a terminal, from `__enter__` to `__exit__`; the last one stays."""

    def __init__(self, console: Console) -> None:
        """Draw nothing yet."""
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> LiveScreen:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, progress: Progress) -> None:
        """Draw the picture of now."""
        self._live.update(picture(progress), refresh=True)


class PlainScreen:
    """Lines for a file, a pipe or a build log."""

    def __init__(self, console: Console) -> None:
        """Print nothing yet."""
        self._console = console
        self._printed = 0

    def __enter__(self) -> PlainScreen:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held."""

    def show(self, progress: Progress) -> None:
        """Print the acts that have ended since the last time."""
        ended = [act for act in progress.acts if act.state in ("done", "failed")]
        for act in ended[self._printed :]:
            self._console.print(*_act(act, WORDS), sep="\n", soft_wrap=True)
        self._printed = len(ended)


def picture(progress: Progress) -> Text:
    """Everything, as it is now."""
    lines = [*table(progress.measured.hops), Text(), _bar(progress), _sums(progress), Text()]
    for act in progress.acts:
        lines += _act(act, MARKS)
    return Text("\n").join(lines)


def table(hops: list[Hop]) -> Iterator[Text]:
    """Give the hops, two lines for each: numbers, and who was on the line."""
    yield Text(LINE.format(*TITLES), "bold")
    for hop in hops:
        percentiles = (f"{hop.percentile_ms(percent):.1f}" for percent in (50, 95, 99))
        name = f"{hop.source} → {hop.destination} {hop.version}"
        rate, errors = f"{hop.rate:.1f}", str(hop.errors)
        line = Text(LINE.format(name, rate, errors, *percentiles, ""))
        yield line.append(*MUTUAL_TLS[hop.is_mutual_tls])
        yield Text("  " + _identities(hop), "dim")
    yield Text(ESTIMATED, "dim")


def ending(measured: Measured, *, with_hops: bool) -> Text:
    """Give what is said last: the hops unless they are on the screen, trace, memory, verdict."""
    lines = [Text()]
    if with_hops:
        chain = f"the whole chain: p50/p95/p99 {_percentiles(measured.whole)} ms"
        lines += [*table(measured.hops), Text(chain), Text()]
    if measured.trace is not None:
        services = " → ".join(measured.trace.services)
        lines.append(Text(f"trace {measured.trace.id}: {services}"))
    parts = ", ".join(f"{role} {size}" for role, size in measured.pss_kb.items() if role != "total")
    total = measured.pss_kb.get("total", 0)
    lines.append(Text(f"memory of a sidecar, PSS in kB: {parts}; together {total}"))
    return Text("\n").join([*lines, *_verdict(measured)])


def _verdict(measured: Measured) -> list[Text]:
    wrong = problems(measured)
    if wrong:
        return [Text("failed:", "bold red"), *(Text(f"  {problem}") for problem in wrong)]
    whole, back = measured.whole, measured.rollback.share("v2")
    return [
        Text(
            f"ok: {whole.requests} requests, {whole.errors} errors; the canary got "
            f"{measured.canary.share('v2'):.1%}, and {back:.0%} once taken back",
            "green",
        )
    ]


def _identities(hop: Hop) -> str:
    """Give both SPIFFE ids; what the second has in common with the first is left out."""
    source, destination = hop.source_principal or "-", hop.destination_principal or "-"
    head = source.rpartition("/")[0] + "/"
    return f"{source} → {destination.replace(head, '…/', 1)}"


def _bar(progress: Progress) -> Text:
    share = progress.recent.share("v2")
    filled = round(share * BAR)
    bar = Text("v1 ").append("█" * (BAR - filled), "blue").append("█" * filled, "yellow")
    return bar.append(f" v2 {share:.1%}, set {progress.wanted:.0%}")


def _sums(progress: Progress) -> Text:
    recent, whole = progress.recent, progress.measured.whole
    return Text(
        f"{recent.rate:.0f} req/s, p50/p95/p99 {_percentiles(recent)} ms; "
        f"{whole.requests} requests, {whole.errors} errors"
    )


def _percentiles(sample: Sample) -> str:
    return "/".join(f"{sample.percentile_ms(percent):.1f}" for percent in (50, 95, 99))


def _act(act: Act, marks: dict[str, tuple[str, str]]) -> list[Text]:
    """Give the line of an act; what is wrong with it, or does not fit, on lines of their own."""
    mark, style = marks[act.state]
    seconds = f"{act.seconds:.1f} s" if act.seconds else ""
    line = Text(mark, style).append(f" {act.title:<32} {seconds:>7}  ", "default")
    first, *more = ["", *act.notes] if act.state == "failed" else act.notes or [""]
    return [line.append(first, "default"), *(Text(f"    {one}", "yellow") for one in more)]
