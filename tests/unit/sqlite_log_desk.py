"""A SQLite log by hand: its verbs as plain calls, its turn to write held up."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any

from cachekit.core.ops import OpKind
from cachekit.logs.sqlite import SQLiteLog
from cachekit.protocols import Record
from cachekit.runtime import Runtime, drive

PATIENT = 10.0  # seconds
OWNER, OTHER = b"o" * 16, b"p" * 16


class Plain:
    """A log's verbs as plain calls."""

    def __init__(self, log: SQLiteLog, seconds: float = PATIENT) -> None:
        self.log = log
        self._world = Runtime().threads
        self._seconds = seconds

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            late = self._world.deadline(self._seconds)
            return drive(getattr(self.log, verb)(self._world, *args, late, **kwargs))

        return call

    def put(self, *keys: str) -> Any:
        return self.append([Record(key, OpKind.PUT, b"value") for key in keys])

    def all(self) -> list[tuple[int, str]]:
        return [(each.version, each.key) for each in self.read(0, 0, 100_000)]

    def settle_all(self, epoch: int) -> None:
        assert self.settle(0, epoch, [(key, version) for version, key in self.all()], [])


class Turn:
    """Takes the turn to write in this process, until it is let go."""

    def __init__(self, log: Plain) -> None:
        self._go, taken = threading.Event(), threading.Event()
        late = Runtime().threads.deadline(PATIENT)

        def step(db: sqlite3.Connection) -> None:
            taken.set()
            self._go.wait(PATIENT)

        file = log.log._file
        self._thread = threading.Thread(target=file.change, args=("hold", late, step), daemon=True)
        self._thread.start()
        assert taken.wait(PATIENT)

    def let_go(self) -> None:
        self._go.set()
        self._thread.join(PATIENT)


def in_threads(*jobs: Callable[[], Any]) -> tuple[list[threading.Thread], list[Any]]:
    results: list[Any] = [None] * len(jobs)

    def work(number: int) -> None:
        try:
            results[number] = jobs[number]()
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(len(jobs))]
    for thread in threads:
        thread.start()
    return threads, results


def wait_for_waiting(log: Plain, count: int) -> None:
    end = time.monotonic() + PATIENT
    while len(log.log._file._turns._waiting) < count:
        assert time.monotonic() < end
        time.sleep(0.001)
