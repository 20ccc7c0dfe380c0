"""Medians, intervals and pair ratios of interleaved repetitions.

A ratio is taken within one repetition, where both sides saw the same minutes of the machine, and
only then are ratios summarised: medians of quotients, not quotients of medians. The interval is the
percentile bootstrap of the median, seeded, so that the same figures give the same report.

It does not reject outliers; flagged runs are the caller's business.

Tests: bench/tests/test_ratios.py.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

RESAMPLES = 5000
COVERAGE = 0.95
SEED = 20_250_101


@dataclass(frozen=True)
class Summary:
    """A sample in five figures. low and high bound the median with 95 % confidence."""

    median: float
    low: float
    high: float
    least: float
    most: float
    count: int

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def summarise(values: Sequence[float]) -> Summary:
    """Summarise one or more values. Raises ValueError on none."""
    if not values:
        raise ValueError("nothing to summarise: no values")
    source = random.Random(SEED)
    medians = sorted(
        statistics.median(source.choices(values, k=len(values))) for _ in range(RESAMPLES)
    )
    tail = (1 - COVERAGE) / 2
    return Summary(
        median=statistics.median(values),
        low=medians[round(tail * (RESAMPLES - 1))],
        high=medians[round((1 - tail) * (RESAMPLES - 1))],
        least=min(values),
        most=max(values),
        count=len(values),
    )


def pair_ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Summary:
    """Summarise numerator / denominator, repetition by repetition.

    Raises ValueError when the two differ in length: a pair belongs to one repetition.
    """
    return summarise([n / d for n, d in zip(numerators, denominators, strict=True)])
