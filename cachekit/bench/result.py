"""What a benchmark found: one Result a row, one Outcome for the whole run."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..version import __version__
from .freshness import ABOUT, WATCHED, Freshness
from .histogram import Histogram
from .runner import Measured

SCHEMA = "cachekit-bench/1"


@dataclass(frozen=True, slots=True)
class Latency:
    """Percentiles in seconds."""

    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, histogram: Histogram) -> Latency | None:
        """None when nothing was recorded."""
        points = [histogram.percentile(p) for p in (50, 95, 99)]
        if points[0] is None:
            return None
        p50, p95, p99 = ((point or 0.0) / 1e9 for point in points)
        return cls(p50, p95, p99, histogram.largest / 1e9)

    def as_json(self) -> dict[str, float]:
        """Milliseconds."""
        return {n: round(getattr(self, n) * 1e3, 6) for n in ("p50", "p95", "p99", "max")}


@dataclass(frozen=True, slots=True)
class Result:
    """One row: a strategy over a backend. ``backend`` is "none" for the reference."""

    backend: str
    strategy: str
    level: str | None
    measured: Measured

    @property
    def reads(self) -> int:
        return self.measured.tally.reads.count

    @property
    def writes(self) -> int:
        return self.measured.tally.writes.count

    @property
    def throughput(self) -> float:
        """Operations a second; a read-modify-write is one operation."""
        return self.measured.tally.done / self.measured.seconds

    @property
    def hit_ratio(self) -> float | None:
        """1 - rows read from the source / reads; None without reads. Never below 0 (background
        reloads can read more rows than were asked for)."""
        if not self.reads:
            return None
        return max(0.0, 1.0 - self.measured.load.reads / self.reads)

    @property
    def trusted(self) -> bool:
        """Nothing stale, nothing lost, nothing failed, everything written."""
        m = self.measured
        return not (m.stale_reads or m.left_stale or m.lost_writes or m.errors) and m.flushed

    @property
    def kept(self) -> bool:
        """Every strategy promises the process that writes that it reads nothing old."""
        m = self.measured
        return not (m.stale_reads or m.left_stale or m.lost_writes)

    @property
    def label(self) -> str:
        return f"{self.strategy}, {self.level}" if self.level else self.strategy

    def as_json(self) -> dict[str, Any]:
        m = self.measured
        read, write = Latency.of(m.tally.reads), Latency.of(m.tally.writes)
        p99 = m.ages.percentile(99)
        return {
            "backend": self.backend,
            "strategy": self.strategy,
            "level": self.level,
            "operations": m.tally.done,
            "seconds": round(m.seconds, 6),
            "throughput": round(self.throughput, 3),
            "reads": self.reads,
            "writes": self.writes,
            "read_ms": read and read.as_json(),
            "write_ms": write and write.as_json(),
            "hit_ratio": None if self.hit_ratio is None else round(self.hit_ratio, 6),
            "source_reads": m.load.reads,
            "source_read_calls": m.load.read_calls,
            "source_writes": m.load.writes,
            "source_write_calls": m.load.write_calls,
            "promise": "0",
            "kept": self.kept,
            "stale_reads": m.stale_reads,
            "stale_p99_ms": None if p99 is None else round(p99 / 1e6, 6),
            "stale_max_ms": round(m.ages.largest / 1e6, 6) if m.stale_reads else None,
            "left_stale": m.left_stale,
            "lost_writes": m.lost_writes,
            "lost_keys": m.lost_keys,
            "errors": m.errors,
            "first_error": m.error or None,
            "backend_errors": m.backend_errors,
            "flush_seconds": round(m.flush_seconds, 6),
            "flushed": m.flushed,
            "complete": m.complete,
        }


@dataclass(slots=True)
class Outcome:
    """A whole run: the rows so far, and what a reader must know to judge them."""

    command: str
    workload: str
    about: str
    source: str
    settings: dict[str, Any]
    results: list[Result] = field(default_factory=list)
    freshness: list[Freshness] = field(default_factory=list)  # what other processes read
    skipped: list[str] = field(default_factory=list)  # backends that can not be had here
    failed: list[str] = field(default_factory=list)  # rows that could not be run to their end
    harness: float | None = None  # operations a second with nothing behind the harness
    interrupted: bool = False
    date: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))

    @property
    def broken(self) -> list[str]:
        """The rows that did not keep what they promise."""
        rows = [f"{r.backend} / {r.strategy}" for r in self.results if not r.kept]
        others = (f for f in self.freshness if not f.kept)
        return rows + [
            f"{f.backend} / {f.strategy} ({f.near}) read by another process" for f in others
        ]

    @property
    def about_freshness(self) -> str:
        """The paragraph that explains the table; empty without one."""
        if not self.freshness:
            return ""
        number = self.freshness[0].readers
        readers = "another one" if number == 1 else f"{number} others"
        return ABOUT.format(rows=min(WATCHED, self.settings["records"]), readers=readers)

    def as_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "date": self.date,
            "command": self.command,
            "versions": versions(),
            "machine": machine(),
            "workload": self.workload,
            "about": self.about,
            "source": self.source,
            "settings": self.settings,
            "harness_throughput": None if self.harness is None else round(self.harness, 3),
            "interrupted": self.interrupted,
            "skipped": self.skipped,
            "failed": self.failed,
            "rows": [result.as_json() for result in self.results],
            "about_freshness": self.about_freshness or None,
            "freshness": [row.as_json() for row in self.freshness],
            "broken_promises": self.broken,
        }


def versions() -> dict[str, str]:
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return {"cachekit": __version__, "python": python}


def machine() -> dict[str, Any]:
    """Processor, cores and system; never the host's name."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass  # not Linux: the platform module's answer stands
    return {
        "processor": model,
        "cores": os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.machine()}",
    }
