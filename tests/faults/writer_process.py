"""One process of the crash tests: threads (or tasks) that put and delete until it is killed, or
``mode: drain``, which writes nothing and flushes what is left."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from fault_app import App
from fault_sources import Doom
from history import Trail, tell

OWN_KEYS = 5  # hot ones, that only one writer has
SHARED_KEYS = 3  # hot ones of all
LIFE = 300.0  # seconds; one whose harness died must end some day


class Writer:
    """One thread's or task's calls, one after the other."""

    def __init__(self, given: dict[str, Any], name: str, doom: Doom) -> None:
        self.trail = Trail(Path(given["trails"]), name)
        self._name = name
        self._rng = random.Random(f"{given['seed']} {name}")
        self._doom = doom
        self._pause = given["pause"]
        self._unique: list[str] = []
        self._own = f"own-{given['slot']}-{name.rpartition('.')[2]}-"

    def next_call(self) -> tuple[str, list[str]]:
        draw, rng = self._rng.random(), self._rng
        if draw < 0.3:
            return "put", [self._fresh()]
        if draw < 0.4:
            some = [self._fresh() for _ in range(rng.randint(1, 8))]
            return "put", [*some, *rng.sample(self._owned(), 2), *self._shared(0.5)]
        if draw < 0.65:
            return "put", [rng.choice(self._owned())]
        if draw < 0.8:
            return "put", self._shared(1.0)
        if draw < 0.88:
            return "delete", [rng.choice(self._owned())]
        if draw < 0.92:
            return "delete", self._shared(1.0)
        old = self._unique.pop(0) if len(self._unique) > 20 else rng.choice(self._owned())
        return "delete", [old]

    def _fresh(self) -> str:
        self._unique.append(f"u-{self._name}-{len(self._unique)}-{self._rng.getrandbits(32):x}")
        return self._unique[-1]

    def _owned(self) -> list[str]:
        return [f"{self._own}{n}" for n in range(OWN_KEYS)]

    def _shared(self, chance: float) -> list[str]:
        if self._rng.random() >= chance:
            return []
        return [f"shared-{self._rng.randrange(SHARED_KEYS)}"]

    def begin(self) -> tuple[int, str, dict[str, Any]]:
        kind, keys = self.next_call()
        value = self.trail.next_value
        return self.trail.intend(kind, keys), kind, {key: {"value": value} for key in keys}

    def done(self, number: int) -> None:
        self.trail.acknowledged(number)
        self._doom.reach("acknowledged")

    def nap(self) -> float:
        return self._rng.random() * self._pause

    def look(self, kind: str, values: dict[str, Any]) -> str | None:
        """A key to read back: nobody else writes it."""
        own = [key for key in values if not key.startswith("shared")]
        return own[0] if own and self._rng.random() < 0.2 else None

    def judge(self, kind: str, key: str, wanted: Any, found: Any) -> None:
        wanted = None if kind == "delete" else wanted
        if found != wanted:
            self.trail.wrong(f"read {key} as {found} after a {kind} of {wanted}")


def write(app: App, writer: Writer, end: float) -> None:
    strategy = app.strategy
    while time.monotonic() < end:
        number, kind, values = writer.begin()
        try:
            if kind == "delete":
                strategy.delete(next(iter(values)))
            elif len(values) == 1:
                strategy.put(*next(iter(values.items())))
            else:
                strategy.put_many(values)
        except Exception as error:
            writer.trail.raised(number, error)
            time.sleep(0.02)
            continue
        writer.done(number)
        key = writer.look(kind, values)
        if key is not None:
            try:
                writer.judge(kind, key, values[key], strategy.get(key))
            except Exception as error:
                writer.trail.raised(0, error)
        time.sleep(writer.nap())


async def write_async(app: App, writer: Writer, end: float) -> None:
    strategy = app.strategy.aio
    while time.monotonic() < end:
        number, kind, values = writer.begin()
        try:
            if kind == "delete":
                await strategy.delete(next(iter(values)))
            elif len(values) == 1:
                await strategy.put(*next(iter(values.items())))
            else:
                await strategy.put_many(values)
        except Exception as error:
            writer.trail.raised(number, error)
            await asyncio.sleep(0.02)
            continue
        writer.done(number)
        key = writer.look(kind, values)
        if key is not None:
            try:
                writer.judge(kind, key, values[key], await strategy.get(key))
            except Exception as error:
                writer.trail.raised(0, error)
        await asyncio.sleep(writer.nap())


def drain(app: App, given: dict[str, Any]) -> None:
    if given["style"] == "async":

        async def flush() -> Any:
            return await app.strategy.aio.flush(given["patience"])

        flushed = asyncio.run(flush())
    else:
        flushed = app.strategy.flush(given["patience"])
    stats = app.cache.stats()
    facts = {"counts": stats.counts, "unwritten": stats.unwritten, "dead": stats.dead_letters}
    tell(Path(given["report"]), **asdict(flushed), **facts)


def main() -> None:
    given = json.loads(sys.argv[1])
    doom = Doom(given["point"], given["count"])
    app = App(given, doom)
    if given["mode"] == "drain":
        drain(app, given)
        if given.get("naive"):
            os._exit(0)  # what it keeps in the log will not leave it, however long one waits
        return
    writers = [Writer(given, name, doom) for name in given["writers"]]
    end = time.monotonic() + LIFE
    print("ready", flush=True)
    if given["style"] == "async":

        async def run() -> None:
            await asyncio.gather(*(write_async(app, writer, end) for writer in writers))

        asyncio.run(run())
        return
    threads = [threading.Thread(target=write, args=(app, writer, end)) for writer in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
