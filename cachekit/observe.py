"""Counters, histograms, log lines and observers. Nothing here is on the hit road."""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter
from collections.abc import Iterable
from typing import Any

from .protocols import Observer

log = logging.getLogger("cachekit")

_BUCKETS_PER_DOUBLING = 8


class Histogram:
    """Durations in seconds, in buckets 9 % wide; quantiles within that. At most 400 buckets."""

    __slots__ = ("_buckets", "_lock", "count", "total")

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self._lock = threading.Lock()
        self.count = 0
        self.total = 0.0

    def add(self, seconds: float) -> None:
        nanos = max(seconds, 1e-9) * 1e9
        bucket = min(399, int(math.log2(nanos) * _BUCKETS_PER_DOUBLING))
        with self._lock:
            self._buckets[bucket] += 1
            self.count += 1
            self.total += seconds

    def quantile(self, q: float) -> float:
        """Upper edge of the bucket that holds quantile ``q``; 0.0 when empty."""
        with self._lock:
            want, seen = q * self.count, 0
            for bucket in sorted(self._buckets):
                seen += self._buckets[bucket]
                if seen >= want:
                    return float(2 ** ((bucket + 1) / _BUCKETS_PER_DOUBLING) * 1e-9)
        return 0.0

    def summary(self) -> dict[str, float]:
        return {
            "count": self.count,
            "mean": self.total / self.count if self.count else 0.0,
            "p50": self.quantile(0.5),
            "p99": self.quantile(0.99),
        }


class Meter:
    """One cache's counts and timings; events fan out to observers."""

    def __init__(self, observers: Iterable[Observer] = ()) -> None:
        self.counts: Counter[str] = Counter()
        self.timings: dict[str, Histogram] = {}
        self._observers = list(observers)
        self._said: set[str] = set()
        self._lock = threading.Lock()

    def count(self, name: str, n: int = 1) -> None:
        with self._lock:
            self.counts[name] += n

    def time(self, name: str, seconds: float) -> None:
        histogram = self.timings.get(name)
        if histogram is None:
            histogram = self.timings.setdefault(name, Histogram())
        histogram.add(seconds)

    def reset_after_fork(self) -> None:
        self._lock = threading.Lock()
        self.timings = {}

    def event(self, name: str, **fields: Any) -> None:
        """Count an event and tell the observers; what an observer raises is counted."""
        self.count(name)
        for observer in self._observers:
            try:
                observer(name, fields)
            except Exception:
                self.count("observer_errors")

    def warn_once(self, topic: str, message: str, *args: object) -> None:
        """A log line at most once per topic, so that a flood of misses is not a flood of lines."""
        with self._lock:
            if topic in self._said or len(self._said) > 1000:
                return
            self._said.add(topic)
        log.warning(message, *args)
