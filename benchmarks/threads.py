"""P82: hits of one decorated function by eight threads against one."""

from __future__ import annotations

import statistics
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from typing import Any

from interleave import Promise, Row, judge

THREADS = 8


def measure(
    subjects: dict[str, Callable[[int], Any]], keys: Sequence[int], rounds: int, calls: int
) -> list[Row]:
    """Throughput of 8 threads over that of 1 (same number of calls in all), and the 99.9th
    percentile of single hits among 8 threads. Every round times both, for every subject."""
    ratios: dict[str, list[float]] = {name: [] for name in subjects}
    one: dict[str, list[float]] = {name: [] for name in subjects}
    eight: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, f in subjects.items():
            one[name].append(_wall(_loop(f, keys), 1, calls) / calls)
            eight[name].append(_wall(_loop(f, keys), THREADS, calls // THREADS) / calls)
            ratios[name].append(one[name][-1] / eight[name][-1])
    rows = []
    for name, f in subjects.items():
        ours = name.startswith("cachekit")
        row = Row(
            "8 threads against 1: hits a second (ratio: 8 threads / 1 thread)",
            name,
            min(eight[name]) * 1e9,
            statistics.median(eight[name]) * 1e9,
            statistics.median(ratios[name]),
            min(one[name]) / min(eight[name]),
        )
        judge(row, Promise("P82", 0.8, speed=True) if ours else None)
        rows.append(row)
        tail = _tail(f, keys, calls // THREADS)
        late = Row(row.group, f"{name}: p99.9, µs", ratio=tail * 1e6, ratio_of_minima=tail * 1e6)
        judge(late, Promise("P82", 10.0) if ours else None)
        rows.append(late)
    return rows


def _loop(f: Callable[[int], Any], keys: Sequence[int]) -> Callable[[int], None]:
    def run(calls: int) -> None:
        for _ in range(calls // len(keys)):
            for k in keys:
                f(k)

    return run


def _wall(run: Callable[[int], None], threads: int, calls: int) -> float:
    """Seconds from the moment all threads stand ready until the last is done."""
    ready, done = threading.Barrier(threads + 1), threading.Barrier(threads + 1)

    def work() -> None:
        ready.wait()
        run(calls)
        done.wait()

    started = [threading.Thread(target=work) for _ in range(threads)]
    for thread in started:
        thread.start()
    ready.wait()
    start = time.perf_counter()
    done.wait()
    taken = time.perf_counter() - start
    for thread in started:
        thread.join()
    return taken


def _tail(f: Callable[[int], Any], keys: Sequence[int], calls: int) -> float:
    """The 99.9th percentile of one hit, by 8 threads at once, in seconds (two readings of the
    clock included)."""
    taken = [array("q") for _ in range(THREADS)]
    ready = threading.Barrier(THREADS)

    def work(times: array[int]) -> None:
        now = time.perf_counter_ns
        ready.wait()
        for _ in range(calls // len(keys)):
            for k in keys:
                start = now()
                f(k)
                times.append(now() - start)

    started = [threading.Thread(target=work, args=(times,)) for times in taken]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    every = sorted(t for times in taken for t in times)
    return every[int(len(every) * 0.999)] / 1e9
