"""What a cache did, as numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .strategies.parts import Parts


@dataclass(frozen=True, slots=True)
class Stats:
    """Counts since the cache was opened, in this process; times in seconds.

    ``hits`` are near-tier hits, ``far_hits`` those of the shared backend, ``misses`` reads that
    led to or waited for a load, ``loads`` calls of the user's loaders. ``pending_invalidations``
    wait for the far tier; ``coherence`` is how the near tier follows other processes now
    ("embedded", "strict", "bound", "push", "push lost"), its measured lag ``timings["bus_lag"]``;
    ``unwritten`` and ``oldest_unwritten`` (seconds) are write-back's."""

    hits: int
    far_hits: int
    misses: int
    loads: int
    load_errors: int
    stale_served: int
    evictions: int
    entries: int
    invalidations: int
    pending_invalidations: int
    breaker: str
    coherence: str
    unwritten: int
    oldest_unwritten: float | None
    dead_letters: int
    counts: dict[str, int]
    timings: dict[str, dict[str, float]]
    functions: dict[str, dict[str, int]]

    @property
    def hit_ratio(self) -> float:
        """Reads that loaded nothing, over all reads; 0.0 before the first."""
        answered = self.hits + self.far_hits
        total = answered + self.misses
        return answered / total if total else 0.0


def stats_of(parts: Parts) -> Stats:
    """A snapshot. Walks the near tier's tables: O(entries), without holding its lock."""
    tables = parts.near.tables()
    standings = [s.last_standing() for s in parts.closers]
    counts = dict(parts.meter.counts)  # after it: the logs were asked
    ages = [age for _, age in standings if age is not None]
    functions: dict[str, dict[str, Any]] = {}
    for table in tables:
        tally = table.tally
        functions[table.name or "keys"] = {
            "hits": table.hits(),
            "misses": tally.misses,
            "loads": tally.loads,
            "errors": tally.errors,
            "stale": tally.stale,
            "evictions": tally.evictions,
            "entries": table.size(),
        }
    total = {
        name: sum(f[name] for f in functions.values())
        for name in ("hits", "misses", "loads", "errors", "stale", "evictions")
    }
    return Stats(
        hits=total["hits"],
        far_hits=counts.get("far_hits", 0),
        misses=total["misses"],
        loads=total["loads"],
        load_errors=total["errors"],
        stale_served=total["stale"],
        evictions=total["evictions"],
        entries=parts.near.live if parts.near.mapping is None else len(parts.near.mapping),
        invalidations=counts.get("invalidations", 0),
        pending_invalidations=len(parts.invalidator.pending),
        breaker=parts.far.breaker.state.value if parts.far is not None else "none",
        coherence=parts.coherence.state,
        unwritten=sum(standing.depth for standing, _ in standings),
        oldest_unwritten=max(ages, default=None),
        dead_letters=sum(standing.dead for standing, _ in standings),
        counts=counts,
        timings={name: h.summary() for name, h in dict(parts.meter.timings).items()},
        functions=functions,
    )
