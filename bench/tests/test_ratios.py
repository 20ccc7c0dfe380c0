"""Behaviour of bench.ratios on samples whose answer is known."""

from __future__ import annotations

import random

import pytest

from bench.ratios import pair_ratios, summarise


def test_summary_of_a_known_sample() -> None:
    found = summarise([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (found.median, found.least, found.most, found.count) == (3.0, 1.0, 5.0, 5)
    assert 1.0 <= found.low <= 3.0 <= found.high <= 5.0


def test_a_constant_sample_has_an_interval_of_no_width() -> None:
    found = summarise([7.5] * 7)
    assert (found.low, found.median, found.high) == (7.5, 7.5, 7.5)


def test_the_same_sample_gives_the_same_interval() -> None:
    values = [random.Random(1).gauss(20, 2) for _ in range(9)]
    assert summarise(values) == summarise(values)


def test_the_interval_covers_the_true_median_about_as_often_as_it_says() -> None:
    source = random.Random(2)
    samples = [[source.gauss(10, 1) for _ in range(9)] for _ in range(100)]
    covered = sum(1 for s in map(summarise, samples) if s.low <= 10 <= s.high)
    # The percentile bootstrap of nine values covers a little less than its nominal 95.
    assert 85 <= covered <= 100


def test_a_pair_ratio_is_taken_within_its_repetition() -> None:
    # The machine doubles its cost halfway; both sides see it, so the ratio does not move.
    found = pair_ratios([2.0, 2.0, 4.0, 4.0], [1.0, 1.0, 2.0, 2.0])
    assert (found.least, found.median, found.most) == (2.0, 2.0, 2.0)


def test_the_median_of_quotients_is_not_the_quotient_of_medians() -> None:
    assert pair_ratios([1.0, 10.0, 3.0], [2.0, 1.0, 6.0]).median == 0.5


def test_repetitions_without_a_partner_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        pair_ratios([1.0, 2.0], [1.0])


def test_an_empty_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        summarise([])
