from __future__ import annotations

import random

import pytest

from cachekit.bench.histogram import Histogram


def test_percentiles_are_within_two_percent_of_the_sorted_sample():
    rng = random.Random(3)
    sample = sorted(int(rng.lognormvariate(11, 2)) for _ in range(20_000))
    histogram = Histogram()
    for value in sample:
        histogram.record(value)
    assert histogram.count == len(sample)
    for percent in (1, 50, 95, 99, 99.9, 100):
        exact = sample[max(0, -(-len(sample) * percent // 100) - 1).__int__()]
        assert histogram.percentile(percent) == pytest.approx(exact, rel=0.016)


def test_small_numbers_are_exact():
    histogram = Histogram()
    for value in (0, 1, 2, 127):
        histogram.record(value)
    assert histogram.percentile(50) == 1
    assert histogram.percentile(100) == 127


def test_nothing_recorded_has_no_percentile():
    assert Histogram().percentile(50) is None


def test_hours_are_counted_in_the_last_bucket():
    histogram = Histogram()
    histogram.record(1 << 60)
    assert histogram.count == 1
    assert histogram.largest == 1 << 60


def test_merging_adds_the_counts():
    one, two = Histogram(), Histogram()
    one.record(10)
    two.record(1_000_000)
    one.merge(two)
    assert one.count == 2
    assert one.percentile(50) == 10
    assert one.largest == 1_000_000
