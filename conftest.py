"""Rules of every suite: skips are accounted for, and each suite tells its seconds.

1. A skip or an expected failure without a reason fails, everywhere.
2. With ``CI`` in the environment it fails too unless tests/allowed_skips.txt lists it: a test that
   did not run must not look like one that passed.
3. After the run the seconds of every suite are printed, most first; a suite is a folder of tests/,
   or bench/tests.

The rules turn the report itself into a failure, so pytest's closing line counts it. Its own tests
are in tests/architecture/test_skip_rules.py.
"""

import os
import re
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path

import pytest

ALLOWED_SKIPS = Path(__file__).parent / "tests" / "allowed_skips.txt"
NO_REASON = re.compile(r"^(Skipped: )?(unconditional skip|condition: .*)?$")


def allowed_skips(listing: str) -> dict[str, str]:
    """Return node id → reason, one a line: the id, white space, the reason.

    An id without parameters stands for all parameters of that test. Raises ``ValueError`` for an
    entry without a reason.
    """
    allowed = {}
    for line in listing.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        node, _, reason = line.partition(" ")
        if not reason.strip():
            raise ValueError(f"{ALLOWED_SKIPS.name}: {node} has no reason")
        allowed[node] = reason.strip()
    return allowed


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Judge a skipped or expectedly failed test."""
    report = yield
    _judge(report, getattr(report, "wasxfail", None))
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Judge a module that skips itself while it is imported."""
    report = yield
    _judge(report, None)
    return report


def _judge(report: pytest.TestReport | pytest.CollectReport, expected: str | None) -> None:
    if not report.skipped:
        return
    reason = expected if expected is not None else _reason(report.longrepr)
    if NO_REASON.match(reason):
        complaint = "skipped without a reason"
    elif os.environ.get("CI") and not _is_allowed(report.nodeid):
        complaint = f"skipped in CI and not listed in tests/{ALLOWED_SKIPS.name}: {reason}"
    else:
        return
    report.outcome = "failed"
    report.longrepr = f"{report.nodeid}: {complaint}"
    if expected is not None:
        del report.wasxfail


def _reason(longrepr: object) -> str:
    return str(longrepr[2]) if isinstance(longrepr, tuple) else str(longrepr)


def _is_allowed(node: str) -> bool:
    allowed = allowed_skips(ALLOWED_SKIPS.read_text(encoding="utf-8"))
    return node in allowed or node.partition("[")[0] in allowed


class SuiteSeconds:
    """Adds up set-up, call and tear-down of each test under its suite."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add one phase of one test."""
        parts = Path(report.nodeid.partition("::")[0]).parts
        self.seconds["/".join(parts[:2])] += report.duration

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print one line a suite."""
        terminalreporter.section("seconds per suite")
        for suite, seconds in sorted(self.seconds.items(), key=lambda entry: -entry[1]):
            terminalreporter.write_line(f"{suite:<28} {seconds:8.1f}")


def pytest_configure(config: pytest.Config) -> None:
    """Register the account of seconds."""
    config.pluginmanager.register(SuiteSeconds(), "suite-seconds")
