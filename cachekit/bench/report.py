"""The outcome for a terminal and as JSON."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import ConfigurationError
from .freshness import Freshness
from .histogram import Histogram
from .result import Latency, Outcome, Result
from .subjects import LOSSY

WIDE = 170  # columns of a terminal in which the whole table fits
NEAR_SOURCE = 100e-6  # seconds; a read from a server takes longer than this
NARROW = 110  # here it fits in two


def duration(seconds: float) -> str:
    """Three significant digits and a unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{_digits(seconds / scale)} {unit}"
    return f"{seconds * 1e9:.0f} ns"


def _digits(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def print_outcome(outcome: Outcome, console: Console) -> None:
    """One table where it fits, else several in turn; then what they need to be understood."""
    console.print(Text(f"{outcome.workload}: {outcome.about}", style="bold"))
    tables: list[Sequence[Column]] = [SPEED + LOAD]
    if console.width < NARROW:
        tables = [SPEED[:4], SPEED[4:], LOAD[:3], LOAD[3:]]
    elif console.width < WIDE:
        tables = [SPEED, LOAD]
    for columns in tables:
        table = _table(outcome.results, columns)
        if console.width < NARROW:
            table.padding = 0
        console.print(table)
    if outcome.freshness:
        console.print(Text("Freshness: what another process read", style="bold"))
        parts = [FRESHNESS[:4], FRESHNESS[4:]] if console.width < NARROW else [FRESHNESS]
        for part in parts:
            console.print(_freshness_table(outcome.freshness, part))
        console.print(Text(outcome.about_freshness))
        console.print()
    for line in notes(outcome):
        console.print(Text(line), soft_wrap=True)


def _table(results: Sequence[Result], columns: Sequence[Column]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("backend", overflow="fold", min_width=9)
    table.add_column("strategy", no_wrap=True)
    shown = [c for c in columns if not c.alarm or c.always or any(c.of(r) != "0" for r in results)]
    for column in shown:
        table.add_column(column.head, justify="right", no_wrap=True)
    backend = None
    for result in results:
        if backend not in (None, result.backend):
            table.add_section()
        backend = result.backend
        table.add_row(
            result.backend,
            f"{result.strategy}\n  {result.level}" if result.level else result.strategy,
            *(_cell(column, result) for column in shown),
        )
    return table


def _freshness_table(rows: Sequence[Freshness], columns: Sequence[FreshnessColumn]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    if len(columns) < len(FRESHNESS):
        table.padding = 0
    table.add_column("backend", overflow="fold", min_width=9)
    table.add_column("strategy", no_wrap=True)
    table.add_column("near copies", no_wrap=True)
    for head, _ in columns:
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("promise", no_wrap=True)
    backend = None
    for row in rows:
        if backend not in (None, row.backend):
            table.add_section()
        backend = row.backend
        verdict = Text("kept", style="green") if row.kept else Text("BROKEN", style="bold red")
        cells = (Text(of(row)) for _, of in columns)
        table.add_row(row.backend, row.strategy, row.near, *cells, verdict)
    return table


def age(row: Freshness, percent: float) -> str:
    """That of the stale reads, as text."""
    point = row.ages.percentile(percent)
    return "-" if point is None else duration(point / 1e9)


FreshnessColumn = tuple[str, Callable[[Freshness], str]]
FRESHNESS: Sequence[FreshnessColumn] = (
    ("writes", lambda f: f"{f.writes:,}"),
    ("reads", lambda f: f"{f.reads:,}"),
    ("stale", lambda f: f"{f.stale_reads:,}"),
    ("promised", lambda f: f.promise.text),
    ("stale p99", lambda f: age(f, 99)),
    ("oldest", lambda f: duration(f.oldest) if f.stale_reads else "-"),
    ("left stale", lambda f: f"{f.left_stale:,}"),
    ("lost", lambda f: f"{f.lost_writes:,}"),
)


def _cell(column: Column, result: Result) -> Text:
    text = column.of(result)
    if not column.alarm:
        return Text(text)
    return Text(text, style="green" if text == "0" else "bold red")


class Column(NamedTuple):
    """A column of numbers. An ``alarm`` should be 0; unless ``always``, it shows only if not."""

    head: str
    of: Callable[[Result], str]
    alarm: bool = False
    always: bool = True


def points(histogram: Histogram) -> tuple[str, str, str]:
    """p50, p95 and p99 as text."""
    latency = Latency.of(histogram)
    if latency is None:
        return "-", "-", "-"
    return duration(latency.p50), duration(latency.p95), duration(latency.p99)


def oldest(result: Result) -> str:
    """The age of the oldest stale read."""
    m = result.measured
    return duration(m.ages.largest / 1e9) if m.stale_reads else "0"


def percentage(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


SPEED = (
    Column("ops/s", lambda r: f"{r.throughput:,.0f}"),
    Column("read p50", lambda r: points(r.measured.tally.reads)[0]),
    Column("p95", lambda r: points(r.measured.tally.reads)[1]),
    Column("p99", lambda r: points(r.measured.tally.reads)[2]),
    Column("write p50", lambda r: points(r.measured.tally.writes)[0]),
    Column("p95", lambda r: points(r.measured.tally.writes)[1]),
    Column("p99", lambda r: points(r.measured.tally.writes)[2]),
)
LOAD = (
    Column("hits", lambda r: percentage(r.hit_ratio)),
    Column("source\nreads", lambda r: f"{r.measured.load.reads:,}"),
    Column("source\nwrites", lambda r: f"{r.measured.load.writes:,}"),
    Column("stale\nreads", lambda r: f"{r.measured.stale_reads:,}", alarm=True),
    Column("promised", lambda r: "0"),
    Column("oldest\nstale", lambda r: oldest(r), alarm=True, always=False),
    Column("left\nstale", lambda r: f"{r.measured.left_stale:,}", alarm=True, always=False),
    Column("lost\nwrites", lambda r: f"{r.measured.lost_writes:,}", alarm=True),
    Column("errors", lambda r: f"{r.measured.errors:,}", alarm=True, always=False),
)


def notes(outcome: Outcome) -> list[str]:
    """Plain sentences under the table: the source, the verdict, what went wrong."""
    delay = outcome.settings["source_delay_seconds"]
    slowed = f", slowed by {duration(delay)} an operation" if delay else ""
    lines = [f"source: {outcome.source}{slowed}; every row ran against fresh rows in it."]
    if outcome.harness is not None:
        lines.append(
            f"The harness by itself reaches {outcome.harness:,.0f} ops/s: "
            "a row near that is held back by it, not by the cache."
        )
    lines.extend(verdict(outcome))
    lines.extend(f"PROMISE BROKEN: {text}" for text in outcome.broken)
    for row in outcome.freshness:
        if row.errors:
            lines.append(
                f"{row.backend} / {row.strategy} ({row.near}): {row.errors} reads and writes "
                f"failed, the first with {row.error}"
            )
    for result in outcome.results:
        m, where = result.measured, f"{result.backend} / {result.strategy}"
        if m.errors:
            lines.append(f"{where}: {m.errors} operations failed, the first with {m.error}")
        if m.backend_errors:
            lines.append(
                f"{where}: {m.backend_errors:,} calls to the backend failed or timed out; no "
                "caller saw it, but the row measures a cache that was partly without its backend"
            )
        if not m.flushed:
            lines.append(f"{where}: not everything was written when the flush ended")
        if m.load.writes > m.load.write_calls > 0:
            lines.append(
                f"{where}: {m.load.writes:,} source writes went in {m.load.write_calls:,} batches"
            )
    lines.extend(f"FAILED {text}" for text in outcome.failed)
    lines.extend(f"skipped {text}" for text in outcome.skipped)
    if outcome.interrupted:
        lines.append("Interrupted: the last row is cut short and later rows are missing.")
    return lines


def verdict(outcome: Outcome) -> list[str]:
    """Which row to look at first, and which rows were caught."""
    cached = [r for r in outcome.results if r.backend != "none"]
    lines = []
    reference = next((r for r in outcome.results if r.backend == "none"), None)
    clean = [r for r in cached if r.trusted and r.measured.complete]
    if clean:
        best = max(clean, key=lambda r: r.throughput)
        text = f"Fastest with nothing stale, lost or failed: {best.label} on {best.backend}"
        if reference is not None and reference.throughput:
            text += f", {best.throughput / reference.throughput:.1f} x the source alone"
        lines.append(text + ".")
        safe = [r for r in clean if r.level != LOSSY]
        if best.level == LOSSY and safe:
            next_best = max(safe, key=lambda r: r.throughput)
            lines.append(
                "Fastest whose acknowledged writes survive a crash of the process: "
                f"{next_best.label} on {next_best.backend}."
            )
        least = min(clean, key=_source_rows)
        lines.append(
            f"Least load on the source among these: {least.label} on {least.backend}, "
            f"{1e3 * _source_rows(least):,.0f} rows for every 1,000 operations."
        )
    quick = reference and Latency.of(reference.measured.tally.reads)
    if quick and quick.p50 < NEAR_SOURCE:
        lines.append(
            f"The source answered half of the reads within {duration(quick.p50)}, faster than a "
            "cache server over a socket can: --source-delay 2ms shows a source behind a network."
        )
    for words, rows in (
        ("stale reads", [r for r in cached if r.measured.stale_reads or r.measured.left_stale]),
        ("lost writes", [r for r in cached if r.measured.lost_writes]),
    ):
        if rows:
            names = ", ".join(f"{r.backend} / {r.strategy}" for r in rows)
            lines.append(f"Caught with {words}: {names}.")
    return lines


def _source_rows(result: Result) -> float:
    load = result.measured.load
    return (load.reads + load.writes) / max(1, result.measured.tally.done)


def to_json(outcome: Outcome) -> str:
    return json.dumps(outcome.as_json(), indent=2, ensure_ascii=False) + "\n"


def check_target(path: Path, option: str) -> None:
    """Raises ConfigurationError unless a file can be written there. Leaves no trace."""
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        if path.exists():
            with path.open("ab"):
                return
        with tempfile.TemporaryFile(dir=path.parent):
            return
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigurationError(f"{option} {path} can not be written: {reason}") from error


def write_target(path: Path, text: str) -> None:
    """Write the whole file or nothing, where it is a plain file."""
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    number, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            file.write(text)
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
