"""What write-back costs: a put beside the bare append of its log, and draining beside the bare
batches of its source.

    python benchmarks/write_back.py [--rounds R] [--rows N] [--json FILE] [--part puts|drain]

Every round times, in turn, the reference and the library, on the same machine state; the figures
are minima over the rounds, and the median of the ratios. The exit code says nothing about them.

- Puts (no worker runs): level memory beside ``deque.append``; level process beside one INSERT and
  commit into a SQLite file (WAL, synchronous NORMAL) of a row of the same size.
- Drain: N operations wait in a SQLite log, or in one in memory; the time until ``flush`` says
  they are applied, beside ``executemany`` of 500 rows at a time, a transaction each, with the
  sink's statement for one row, beside the sink itself called with the same batches, and beside a
  bare loop that does no more than a durable queue must: read 500 rows of JSON from a SQLite file,
  decode them, write them with that ``executemany``, delete them there. SQLite with WAL and
  synchronous NORMAL and FULL, and PostgreSQL where it is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cachekit
from cachekit.core.ops import Op, OpKind
from cachekit.sinks import DBAPISink
from cachekit.testing import PostgreSQLServer, ServerMissing

SIZE = 500
TABLE = "items"
TEXT = "x" * 40


@dataclass(slots=True)
class Line:
    """One comparison. Times in microseconds an operation."""

    what: str
    reference: str
    reference_us: float
    ours_us: float
    ratio: float  # the median over the rounds: of times for puts, of rates for drains
    figure: str


def interleaved(
    rounds: int, reference: Callable[[], float], ours: Callable[[], float]
) -> tuple[float, float, float]:
    """Minimum of each (seconds), and the median of ours / reference."""
    pairs = []
    for number in range(rounds):
        if number % 2:
            a = reference()
            pairs.append((a, ours()))
        else:
            b = ours()
            pairs.append((reference(), b))
    return (
        min(a for a, _ in pairs),
        min(b for _, b in pairs),
        statistics.median(b / a for a, b in pairs),
    )


# -- puts --------------------------------------------------------------------------------


def row(i: int) -> dict[str, Any]:
    return {"id": i, "payload": TEXT}


def puts(folder: Path, rounds: int, count: int) -> Iterator[Line]:
    cache = cachekit.Cache()
    options: dict[str, Any] = {"batch": 10**9, "delay": 3600, "max_pending": 10**9}
    options["max_bytes"] = 10**12
    memory = cachekit.WriteBack(
        cache, key="m:{id}", log="memory", store_many=lambda rows: None, **options
    )
    durable = cachekit.WriteBack(
        cache,
        key="d:{id}",
        log=f"sqlite:///{folder}/put.log",
        store_many=lambda rows: None,
        worker=False,
        **options,
    )
    queue: deque[Any] = deque()
    plain = sqlite3.connect(folder / "plain.db", isolation_level=None)
    plain.execute("PRAGMA journal_mode=WAL")
    plain.execute("PRAGMA synchronous=NORMAL")
    plain.execute("CREATE TABLE log (id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT, data BLOB)")
    at = iter(range(0, 10**12, count))

    def timed(write: Callable[[int], Any]) -> Callable[[], float]:
        def run() -> float:
            first = next(at)
            keys = range(first, first + count)
            began = time.perf_counter()
            for i in keys:
                write(i)
            return (time.perf_counter() - began) / count

        return run

    def insert(i: int) -> None:
        data = json.dumps(row(i)).encode()
        plain.execute("INSERT INTO log (key, data) VALUES (?, ?)", (f"d:{i}", data))

    made = ((i, row(i)) for i in range(10**9))
    lines: list[tuple[str, str, Callable[[int], Any], Callable[[int], Any], str]] = [
        ("put, level memory", "deque.append", lambda i: queue.append(next(made)),
         lambda i: memory.put(i, row(i)), "<= 8"),
        ("put, level process", "json + INSERT, WAL NORMAL", insert,
         lambda i: durable.put(i, row(i)), "<= 1.5"),
    ]  # fmt: skip
    for what, name, bare, ours, figure in lines:
        a, b, ratio = interleaved(rounds, timed(bare), timed(ours))
        yield Line(what, name, a * 1e6, b * 1e6, ratio, figure)
    plain.close()
    cache.close()


# -- drain -------------------------------------------------------------------------------


@dataclass(slots=True)
class Source:
    """Where rows go. ``connect`` opens a connection whose commits are as the row's name says."""

    name: str
    connect: Callable[[], Any]
    mark: str
    figure: str


def statement(mark: str) -> str:
    return (
        f"INSERT INTO {TABLE} (id, payload) VALUES ({mark}, {mark}) "
        "ON CONFLICT (id) DO UPDATE SET payload = excluded.payload"
    )


def sqlite_source(folder: Path, level: str) -> Source:
    path = folder / f"source-{level}.db"

    def connect() -> Any:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={level}")
        return connection

    return Source(f"SQLite WAL {level}", connect, "?", ">= 0.8")


@contextmanager
def postgresql_source() -> Iterator[Source]:
    with PostgreSQLServer() as server:
        import psycopg

        yield Source(
            "PostgreSQL", lambda: psycopg.connect(server.dsn, autocommit=True), "%s", ">= 0.8"
        )


def bare(source: Source, first: int, count: int, size: int) -> float:
    """Seconds for ``count`` rows, ``size`` at a time, a transaction each."""
    connection = source.connect()
    cursor = connection.cursor()
    batches = [
        [(i, TEXT) for i in range(at, at + size)] for at in range(first, first + count, size)
    ]
    sql = statement(source.mark)
    began = time.perf_counter()
    for batch in batches:
        cursor.execute("BEGIN")
        cursor.executemany(sql, batch)
        cursor.execute("COMMIT")
    took = time.perf_counter() - began
    connection.close()
    return took


def bare_queue(source: Source, folder: Path, first: int, count: int) -> float:
    """Seconds for ``count`` rows from a SQLite file into the source, by the shortest code that
    loses none of them: no keys, no fence, no owner, no caches to tell."""
    log = sqlite3.connect(folder / "bare.log", isolation_level=None)
    log.execute("PRAGMA journal_mode=WAL")
    log.execute("PRAGMA synchronous=NORMAL")
    log.execute("CREATE TABLE IF NOT EXISTS ops (id INTEGER PRIMARY KEY, data BLOB)")
    log.execute("BEGIN")
    log.executemany(
        "INSERT INTO ops (data) VALUES (?)",
        [(json.dumps(row(i)).encode(),) for i in range(first, first + count)],
    )
    log.execute("COMMIT")
    connection = source.connect()
    cursor = connection.cursor()
    sql = statement(source.mark)
    began = time.perf_counter()
    at = 0
    while rows := log.execute(
        "SELECT id, data FROM ops WHERE id > ? ORDER BY id LIMIT ?", (at, SIZE)
    ).fetchall():
        values = [json.loads(data) for _, data in rows]
        cursor.execute("BEGIN")
        cursor.executemany(sql, [(value["id"], value["payload"]) for value in values])
        cursor.execute("COMMIT")
        at = rows[-1][0]
        log.execute("DELETE FROM ops WHERE id <= ?", (at,))
    took = time.perf_counter() - began
    connection.close()
    log.close()
    return took


def through_the_sink(source: Source, sink: Any, first: int, count: int, epoch: list[int]) -> float:
    batches = []
    for at in range(first, first + count, SIZE):
        epoch[0] += 1
        batches.append(
            [
                Op(f"d:{i}", OpKind.PUT, row(i), i, i + 1, epoch[0], "bench")
                for i in range(at, at + SIZE)
            ]
        )
    began = time.perf_counter()
    for batch in batches:
        sink.write_many(batch)
    return time.perf_counter() - began


def drained(source: Source, folder: Path, sink: Any, first: int, count: int) -> float:
    log = f"sqlite:///{folder}/drain.log"
    options: dict[str, Any] = {"batch": SIZE, "delay": 0.05, "max_pending": 10**9}
    options["max_bytes"] = 10**12
    with cachekit.Cache() as cache:
        writer = cachekit.WriteBack(
            cache, key="d:{id}", log=log, sink=sink, worker=False, **options
        )
        writer.put_many({i: row(i) for i in range(first, first + count)})
        began = time.perf_counter()
        writer.work(cache.parts.runtime.threads)
        flushed = writer.flush(600)
        took = time.perf_counter() - began
        assert flushed.complete, flushed
    return took


class Gated(DBAPISink):
    """Takes nothing until the gate is open."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.gate = threading.Event()

    def write_many(self, ops: Sequence[Op]) -> Any:
        self.gate.wait()
        return super().write_many(ops)


def drained_from_memory(sink: Gated, first: int, count: int) -> float:
    """As :func:`drained`, of level memory; its worker has taken one batch when the time begins,
    so that one more is drained than is counted."""
    options: dict[str, Any] = {"batch": SIZE, "delay": 0.05, "max_pending": 10**9}
    options["max_bytes"] = 10**12
    sink.gate.clear()
    with cachekit.Cache() as cache:
        writer = cachekit.WriteBack(cache, key="d:{id}", log="memory", sink=sink, **options)
        for i in range(first, first + count + SIZE):
            writer.put(i, row(i))
        began = time.perf_counter()
        sink.gate.set()
        flushed = writer.flush(600)
        took = time.perf_counter() - began
        assert flushed.complete, flushed
    return took


def drains(folder: Path, source: Source, rounds: int, count: int) -> Iterator[Line]:
    connection = source.connect()
    connection.execute(f"CREATE TABLE {TABLE} (id BIGINT PRIMARY KEY, payload TEXT)")
    connection.close()
    named: dict[str, Any] = {"table": TABLE, "key": "id", "columns": ("id", "payload")}
    sink, gated = DBAPISink(source.connect, **named), Gated(source.connect, **named)
    at, epoch = iter(range(0, 10**12, count + SIZE)), [0]

    def reference() -> float:
        return bare(source, next(at), count, SIZE) / count

    def sinking() -> float:
        return through_the_sink(source, sink, next(at), count, epoch) / count

    def ours() -> float:
        return drained(source, folder, sink, next(at), count) / count

    def bare_loop() -> float:
        return bare_queue(source, folder, next(at), count) / count

    def from_memory() -> float:
        return drained_from_memory(gated, next(at), count) / count

    runs = {
        "the sink alone": sinking,
        "a bare loop": bare_loop,
        "drain": ours,
        "drain, log memory": from_memory,
    }
    for what, run in runs.items():
        a, b, ratio = interleaved(rounds, reference, run)
        figure = source.figure if what.startswith("drain") else ""
        yield Line(
            f"{what}, {source.name}", f"executemany({SIZE})", a * 1e6, b * 1e6, 1 / ratio, figure
        )
    one = min(bare(source, next(at), 300, 1) / 300 for _ in range(3))
    figure = ">= 30" if source.name.endswith("FULL") else ""
    for what in ("drain", "drain, log memory"):
        each = min(runs[what]() for _ in range(3))
        yield Line(
            f"{what}, {source.name}", "row by row", one * 1e6, each * 1e6, one / each, figure
        )
    for each_sink in (sink, gated):
        with suppress(AttributeError):
            each_sink.close()


def show(lines: Sequence[Line]) -> None:
    print(f"{'':38}{'reference':>28}{'us':>9}{'ours us':>10}{'ratio':>8}  figure")
    for line in lines:
        print(
            f"{line.what:38}{line.reference:>28}{line.reference_us:9.2f}{line.ours_us:10.2f}"
            f"{line.ratio:8.2f}  {line.figure}"
        )
    print("ratio: of times for puts, of rates for drains (row by row included)")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--part", choices=("puts", "drain"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="cachekit-write-back-") as name:
        folder = Path(name)
        if given.part != "drain":
            lines += puts(folder, given.rounds, 2_000)
        if given.part != "puts":
            for level in ("NORMAL", "FULL"):
                source = sqlite_source(folder, level)
                lines += drains(folder, source, given.rounds, given.rows)
            try:
                with postgresql_source() as source:
                    lines += drains(folder, source, max(3, given.rounds // 3), given.rows)
            except (ServerMissing, ImportError) as error:
                print(f"PostgreSQL left out: {error}", file=sys.stderr)
    show(lines)
    if given.json is not None:
        told = {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "lines": [asdict(line) for line in lines],
        }
        given.json.write_text(json.dumps(told, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
