"""Counters, histograms and observers."""

from __future__ import annotations

import logging
import random
import threading
from typing import Any

import pytest

from cachekit.observe import Histogram, Meter


def test_a_quantile_is_right_within_a_bucket() -> None:
    rng, histogram = random.Random(1), Histogram()
    values = sorted(rng.lognormvariate(-7, 2) for _ in range(5_000))
    for value in values:
        histogram.add(value)
    for q in (0.01, 0.5, 0.9, 0.99, 1.0):
        exact = values[max(0, int(q * len(values)) - 1)]
        assert exact <= histogram.quantile(q) <= exact * 2 ** (1 / 8) * 1.0001
    assert histogram.summary()["mean"] == pytest.approx(sum(values) / len(values))


def test_an_empty_histogram_says_nought_and_extremes_are_held() -> None:
    histogram = Histogram()
    assert histogram.quantile(0.5) == 0.0
    assert histogram.summary()["mean"] == 0.0
    for seconds in (0.0, -1.0, 1e-12, 1e9):
        histogram.add(seconds)
    assert histogram.count == 4
    assert len(histogram._buckets) <= 400


def test_counts_of_many_threads_are_exact() -> None:
    meter, barrier = Meter(), threading.Barrier(4)

    def work() -> None:
        barrier.wait()
        for _ in range(2_000):
            meter.count("n")
            meter.time("t", 0.001)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert meter.counts["n"] == meter.timings["t"].count == 8_000


def test_an_observer_that_fails_is_counted_and_the_others_still_see() -> None:
    seen: list[Any] = []

    def failing(event: str, fields: dict[str, Any]) -> None:
        raise LookupError

    meter = Meter([failing, lambda event, fields: seen.append((event, fields))])
    meter.event("evicted", function="f")
    assert seen == [("evicted", {"function": "f"})]
    assert meter.counts == {"evicted": 1, "observer_errors": 1}


def test_a_topic_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    meter = Meter()
    with caplog.at_level(logging.WARNING, "cachekit"):
        for _ in range(5):
            meter.warn_once("a", "about %s", "a")
        meter.warn_once("b", "about %s", "b")
        for topic in range(5_000):
            meter.warn_once(str(topic), "flood")
    assert [r.getMessage() for r in caplog.records[:2]] == ["about a", "about b"]
    assert len(caplog.records) <= 1_001
