"""One SQLite table under three strategies: the same work, and what reached the database."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

import cachekit


@dataclass
class Counter:
    id: int
    value: int


class CounterTable:
    """The system of record. Knows nothing of a cache."""

    def __init__(self) -> None:
        # Write-back writes from a thread of its own.
        self.db = sqlite3.connect(":memory:", check_same_thread=False)
        self.db.execute("CREATE TABLE counter (id INTEGER PRIMARY KEY, value INTEGER)")
        self.reads = self.writes = 0

    def load(self, id: int) -> Counter | None:
        self.reads += 1
        row = self.db.execute("SELECT id, value FROM counter WHERE id = ?", (id,)).fetchone()
        return Counter(*row) if row else None

    def save_many(self, counters: list[Counter]) -> None:
        self.writes += 1
        rows = [(c.id, c.value) for c in counters]
        with self.db:
            self.db.executemany("INSERT OR REPLACE INTO counter VALUES (?, ?)", rows)

    def total(self) -> int:
        return int(self.db.execute("SELECT sum(value) FROM counter").fetchone()[0])


def work(counters: cachekit.Repository) -> None:
    """100 increments of 10 counters."""
    for step in range(100):
        id = step % 10
        counter = counters.get(id) or Counter(id, 0)
        counters.save(Counter(id, counter.value + 1))


def main() -> None:
    strategies = {
        "CacheAside": cachekit.CacheAside,
        "WriteThrough": cachekit.WriteThrough,
        "WriteBack": cachekit.WriteBack(log="memory", batch=50, delay="1h"),
    }
    for name, strategy in strategies.items():
        with cachekit.Cache() as cache:
            counters = cache.repository(CounterTable(), strategy=strategy, ttl="1h")
            work(counters)
            counters.flush()
            print(
                f"{name:12} {counters.reads:3} reads {counters.writes:3} write calls,"
                f" total {counters.total()}"
            )


if __name__ == "__main__":
    main()
