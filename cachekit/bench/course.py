"""One row's operations: what each worker does next, and what it saw."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass, field

from .accounting import Ledger
from .histogram import Histogram
from .source import Row, Source
from .workloads import INSERT, MODIFY, READ, Plan

Asked = tuple[int, Row | None]  # a key to read, or a key and the row to write
Script = Generator[Asked, tuple[Row | None, int], None]

_READS = (READ, MODIFY)


class Stop:
    """Set from a signal handler: the operations in hand are finished, then the run ends."""

    def __init__(self) -> None:
        self.requested = False


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much to run. Exactly one of ``operations`` and ``seconds`` is given; a plan that does
    not repeat ends with itself. ``warmup`` is the share of that run beforehand, unmeasured."""

    operations: int | None
    seconds: float | None
    warmup: float
    concurrency: int
    tasks: bool


@dataclass(slots=True)
class Tally:
    """What one worker saw in one phase."""

    reads: Histogram = field(default_factory=Histogram)
    writes: Histogram = field(default_factory=Histogram)
    ages: Histogram = field(default_factory=Histogram)  # of stale answers: how long they were old
    done: int = 0
    stale: int = 0
    errors: int = 0
    error: str = ""
    ended: float = 0.0

    def merge(self, other: Tally) -> None:
        self.reads.merge(other.reads)
        self.writes.merge(other.writes)
        self.ages.merge(other.ages)
        self.done += other.done
        self.stale += other.stale
        self.errors += other.errors
        self.error = self.error or other.error
        self.ended = max(self.ended, other.ended)

    def failed(self, error: Exception) -> None:
        self.errors += 1
        self.error = self.error or f"{type(error).__name__}: {error}"


class Course:
    """What one row's workers share: where the newest record is and what has been written."""

    def __init__(self, plan: Plan, source: Source, stop: Stop) -> None:
        self.plan = plan
        self.source = source
        self.stop = stop
        self.ledger = Ledger(plan.records)
        self.newest = plan.records - 1  # acknowledged; "latest" counts back from here
        self.new_keys = itertools.count(plan.records)
        self._lock = threading.Lock()

    def inserted(self, key: int) -> None:
        with self._lock:
            self.newest = max(self.newest, key)


class Phase:
    """A stretch of the plan, by operations or by time, and the tallies of its workers."""

    def __init__(self, course: Course, bounds: Bounds, first: int, *, warmup: bool) -> None:
        share = bounds.warmup if warmup else 1.0
        self.tallies = [Tally() for _ in range(bounds.concurrency)]
        self.indexes = itertools.count(first)
        self.first = first
        self.limit = 1 << 62
        if bounds.operations is not None:
            self.limit = first + int(bounds.operations * share)
        if not course.plan.repeats:
            self.limit = min(self.limit, len(course.plan))
        self._seconds = None if bounds.seconds is None else bounds.seconds * share
        self.until = float("inf")
        self.began = 0.0

    def start(self) -> None:
        """Start the clock; all workers are ready."""
        self.began = time.perf_counter()
        if self._seconds is not None:
            self.until = self.began + self._seconds

    def done(self) -> int:
        return sum(tally.done for tally in self.tallies)

    def share(self) -> float:
        if self._seconds is not None:
            return min(1.0, (time.perf_counter() - self.began) / self._seconds)
        return self.done() / max(1, self.limit - self.first)

    def total(self) -> Tally:
        whole = Tally()
        for tally in self.tallies:
            whole.merge(tally)
        return whole


def script(course: Course, phase: Phase, tally: Tally) -> Script:
    """One worker's operations. Whoever drives it makes the calls and sends the answers back."""
    plan, ledger, source, stop = course.plan, course.ledger, course.source, course.stop
    kinds, keys, length = plan.kinds, plan.keys, len(plan)
    clock = time.perf_counter
    for index in phase.indexes:
        began = clock()
        if index >= phase.limit or stop.requested or began >= phase.until:
            return
        kind = kinds[index % length]
        if kind == INSERT:
            key = next(course.new_keys)
        elif plan.latest:
            key = max(0, course.newest - keys[index % length])
        else:
            key = keys[index % length]
        try:
            if kind in _READS:
                floor = ledger.floor(key)
                row, took = yield key, None
                tally.reads.record(took)
                if row is not None and row["id"] != key:
                    raise ValueError(f"asked for row {key}, got row {row['id']}")
                seen = None if row is None else row["version"]
                if ledger.is_stale(floor, seen):
                    tally.stale += 1
                    age = ledger.stale_for(key, seen, began)
                    tally.ages.record(int(1e9 * (age or 0.0)))
            if kind != READ:
                version = ledger.begin(key)
                _, took = yield key, source.row(key, version)
                ledger.acknowledge(key, version)
                tally.writes.record(took)
                if kind == INSERT:
                    course.inserted(key)
        except Exception as error:
            tally.failed(error)
        tally.done += 1
