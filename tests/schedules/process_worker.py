"""One real process of ``test_processes``: random reads, writes and invalidations until its time is
up. A read that is too old goes into the file of findings, one line each."""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from shared_source import KEYS, SharedSource

from cachekit import Cache, CacheAside, ReadThrough, WriteAround, WriteThrough
from cachekit.errors import InvalidationFailed

SLACK = 0.25  # seconds by which a loaded machine may stop a thread within a timed step


class Worker:
    def __init__(self, given: dict[str, Any]) -> None:
        self.rng = random.Random(given["seed"])
        self.source = SharedSource(Path(given["source"]))
        self.findings = Path(given["findings"])
        self.end = time.monotonic() + given["seconds"]
        self.bound = given["bound"]
        options = {} if given["coherence"] is None else {"coherence": given["coherence"]}
        self.cache = Cache(given["url"], namespace=given["namespace"], timeout=2.0, **options)
        tags = ["all", "row:{id}"]
        shared: dict[str, Any] = {"key": "row:{id}", "tags": tags, "ttl": 60, "load": self.load}
        self.strategies = [
            kind(self.cache, store=self.store, write_lease=5, lease=2, wait=0.2, **shared)
            for kind in (WriteThrough, WriteAround, CacheAside, ReadThrough)
        ]
        # What was the floor when: near copies of other processes may lag behind by the bound.
        self.seen: list[deque[tuple[float, int]]] = [deque([(-1e9, 0)]) for _ in range(KEYS)]

    def pause(self) -> None:
        if self.rng.random() < 0.3:
            time.sleep(self.rng.random() * 0.004)

    def load(self, id: int) -> int:
        self.pause()
        ticket = self.source.load(id)
        self.pause()
        return ticket

    def store(self, id: int, ticket: int) -> None:
        self.pause()
        self.source.land(id, ticket)
        self.pause()

    def run(self) -> None:
        while time.monotonic() < self.end:
            key = self.rng.randrange(KEYS)
            draw = self.rng.random()
            if draw < 0.75:
                self.read(key)
            elif draw < 0.9:
                self.write(key)
            else:
                self.invalidate(key)
        self.cache.close()

    def read(self, key: int) -> None:
        floor, now = self.source.floor(key), time.monotonic()
        if self.bound:
            seen = self.seen[key]
            seen.append((now, floor))
            while len(seen) > 1 and seen[1][0] <= now - self.bound - SLACK:
                seen.popleft()
            floor = seen[0][1]
        ticket = self.rng.choice(self.strategies).get(key)
        rank = self.source.rank(key, ticket)
        if rank < floor:
            with self.findings.open("a") as out:
                out.write(f"key {key}: ticket {ticket}, landed as {rank}, after {floor}\n")
        self.source.judged(key)

    def write(self, key: int) -> None:
        ticket = self.source.ticket(key)
        written = self.rng.choice(self.strategies).put(key, ticket)
        if not written.pending:
            self.source.raise_floor(key, self.source.rank(key, ticket))

    def invalidate(self, key: int) -> None:
        self.source.land(key, self.source.ticket(key))
        landed = self.source.landed(key)
        try:
            if self.rng.random() < 0.5:
                self.cache.invalidate(tags=[f"row:{key}"])
            else:
                self.strategies[0].invalidate(key)
        except InvalidationFailed:
            return
        self.source.raise_floor(key, landed)


def main() -> None:
    worker = Worker(json.loads(sys.argv[1]))
    threads = [threading.Thread(target=worker.run, daemon=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
