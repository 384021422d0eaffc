"""Runs one row: warm-up, measured run, flush, and the reckoning against the source."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from .course import Bounds, Course, Phase, Script, Stop, Tally, script
from .histogram import Histogram
from .source import Load, Row, Source
from .subjects import AsyncSubject, Recipe, Subject
from .workloads import Plan

YIELD_EVERY = 16  # a task whose reads all hit would never give its loop away
REPORT_SECONDS = 0.1
SOURCE_THREADS = 32
_SWEEP_LIMIT = 20_000

Report = Callable[[float], None]  # called with the share of the row that is done


@dataclass(frozen=True, slots=True)
class Measured:
    """One row. Counts of errors, stale reads and lost writes include the warm-up."""

    tally: Tally
    seconds: float
    load: Load
    stale_reads: int
    ages: Histogram  # of the stale reads: nanoseconds since what they gave was old
    left_stale: int
    lost_writes: int
    lost_keys: int
    errors: int
    error: str
    backend_errors: int  # failed calls that no caller saw: the cache went on without its backend
    flush_seconds: float
    flushed: bool
    complete: bool


def measure(
    recipe: Recipe, plan: Plan, bounds: Bounds, source: Source, *, stop: Stop, report: Report
) -> Measured:
    """Run one row. The source's rows are brought back to version 0 first."""
    source.reset(plan.records)
    course = Course(plan, source, stop)
    if bounds.tasks:
        return asyncio.run(_with_tasks(course, bounds, recipe, report))
    return _with_threads(course, bounds, recipe, report)


def _with_threads(course: Course, bounds: Bounds, recipe: Recipe, report: Report) -> Measured:
    subject = recipe.build(course.source)
    reckoning = Reckoning(course)
    try:
        warm = Phase(course, bounds, 0, warmup=True)
        if bounds.warmup:
            _run_threads(course, warm, subject, lambda share: None)
        reckoning.begin(warm)
        phase = Phase(course, bounds, warm.done(), warmup=False)
        _run_threads(course, phase, subject, report)
        reckoning.ran(phase)
        flushed = subject.flush()
        keys = reckoning.flushed(flushed, subject.troubles())
        _read_once(subject, keys, reckoning, bounds.concurrency)
    finally:
        subject.close()
    return reckoning.close()


async def _with_tasks(course: Course, bounds: Bounds, recipe: Recipe, report: Report) -> Measured:
    subject = recipe.build_async(course.source, min(bounds.concurrency, SOURCE_THREADS))
    reckoning = Reckoning(course)
    try:
        warm = Phase(course, bounds, 0, warmup=True)
        if bounds.warmup:
            await _run_tasks(course, warm, subject, lambda share: None)
        reckoning.begin(warm)
        phase = Phase(course, bounds, warm.done(), warmup=False)
        await _run_tasks(course, phase, subject, report)
        reckoning.ran(phase)
        flushed = await subject.flush()
        keys = reckoning.flushed(flushed, subject.troubles())
        await _read_once_async(subject, keys, reckoning, bounds.concurrency)
    finally:
        await subject.close()
    return reckoning.close()


class Reckoning:
    """Gathers what one row's phases, flush and final comparison with the source gave."""

    def __init__(self, course: Course) -> None:
        self._course = course
        self._lock = threading.Lock()
        self._left_stale = 0
        self._flush_seconds = 0.0
        self._flushed = False
        self._troubles = 0
        self._final: dict[int, int] = {}

    def begin(self, warm: Phase) -> None:
        """The warm-up is over."""
        self._warm = warm
        self._before = self._course.source.load()

    def ran(self, phase: Phase) -> None:
        """The measured phase is over."""
        self._phase = phase
        self._total = phase.total()
        self._flushing = time.perf_counter()

    def flushed(self, complete: bool, troubles: int) -> list[int]:
        """The flush is over; the keys to read once more, now that all has come to rest."""
        self._flush_seconds = time.perf_counter() - self._flushing
        self._flushed = complete
        self._troubles = troubles
        self._load = self._course.source.load().since(self._before)
        if not complete:
            return []
        self._final = dict(self._course.source.versions())
        return self._course.ledger.written()[:_SWEEP_LIMIT]

    def compare(self, key: int, row: Row | None) -> None:
        """No write is under way: what the cache gives must be what the source holds."""
        wrong = (None if row is None else row["version"]) != self._final.get(key)
        with self._lock:
            self._left_stale += wrong

    def failed(self, error: Exception) -> None:
        """One of these reads raised."""
        with self._lock:
            self._warm.tallies[0].failed(error)

    def close(self) -> Measured:
        """The subject is closed: compare the source with what was acknowledged."""
        course, total = self._course, self._total
        warm = self._warm.total()
        ages = Histogram()
        ages.merge(warm.ages)
        ages.merge(total.ages)
        loss = course.ledger.lost(course.source.versions())
        return Measured(
            tally=total,
            seconds=max(1e-9, total.ended - self._phase.began),
            load=self._load,
            stale_reads=warm.stale + total.stale,
            ages=ages,
            left_stale=self._left_stale,
            lost_writes=loss.writes,
            lost_keys=loss.keys,
            errors=warm.errors + total.errors,
            error=warm.error or total.error,
            backend_errors=self._troubles,
            flush_seconds=self._flush_seconds,
            flushed=self._flushed,
            complete=not course.stop.requested,
        )


def _read_once(subject: Subject, keys: list[int], reckoning: Reckoning, concurrency: int) -> None:
    todo = iter(keys)

    def work() -> None:
        for key in todo:
            try:
                reckoning.compare(key, subject.read(key))
            except Exception as error:
                reckoning.failed(error)

    workers = [
        threading.Thread(target=work, name="cachekit-bench", daemon=True)
        for _ in range(min(concurrency, len(keys)))
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


async def _read_once_async(
    subject: AsyncSubject, keys: list[int], reckoning: Reckoning, concurrency: int
) -> None:
    todo = iter(keys)

    async def work() -> None:
        for key in todo:
            try:
                reckoning.compare(key, await subject.read(key))
            except Exception as error:
                reckoning.failed(error)

    await asyncio.gather(*(work() for _ in range(min(concurrency, len(keys)))))


def _run_threads(course: Course, phase: Phase, subject: Subject, report: Report) -> None:
    ready = threading.Barrier(len(phase.tallies), action=phase.start)

    def work(tally: Tally) -> None:
        ready.wait()
        drive(script(course, phase, tally), subject)
        tally.ended = time.perf_counter()

    workers = [
        threading.Thread(target=work, args=(tally,), name="cachekit-bench", daemon=True)
        for tally in phase.tallies
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        while worker.is_alive():
            worker.join(REPORT_SECONDS)
            report(phase.share())


def drive(asked: Script, subject: Subject) -> None:
    """Make a script's calls, timed."""
    read, write, clock = subject.read, subject.write, time.perf_counter_ns
    answer: Row | None
    try:
        key, row = next(asked)
        while True:
            try:
                began = clock()
                answer = read(key) if row is None else write(key, row)
                took = clock() - began
            except Exception as error:
                key, row = asked.throw(error)
            else:
                key, row = asked.send((answer, took))
    except StopIteration:
        return


async def _run_tasks(course: Course, phase: Phase, subject: AsyncSubject, report: Report) -> None:
    async def work(tally: Tally) -> None:
        await drive_async(script(course, phase, tally), subject)
        tally.ended = time.perf_counter()

    phase.start()
    workers = [asyncio.create_task(work(tally)) for tally in phase.tallies]
    left = set(workers)
    while left:
        _, left = await asyncio.wait(left, timeout=REPORT_SECONDS)
        report(phase.share())
    for worker in workers:
        worker.result()


async def drive_async(asked: Script, subject: AsyncSubject) -> None:
    """:func:`drive` for a task."""
    read, write, clock = subject.read, subject.write, time.perf_counter_ns
    answer: Row | None
    try:
        key, row = next(asked)
        for turn in itertools.count():
            if turn % YIELD_EVERY == 0:
                await asyncio.sleep(0)
            try:
                began = clock()
                answer = await read(key) if row is None else await write(key, row)
                took = clock() - began
            except Exception as error:
                key, row = asked.throw(error)
            else:
                key, row = asked.send((answer, took))
    except StopIteration:
        return
