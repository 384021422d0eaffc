"""Processes that die while they make the log's file: two begin at once on a file that is not there,
and both are killed within milliseconds. Forks, so it runs in an interpreter of its own; prints what
was acknowledged and is nowhere, as JSON."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from fault_app import App
from fault_sources import Doom, SQLiteSource

AT_ONCE = 2
SOON = 3.0  # times what a first put takes


def write(given: dict[str, Any], number: int, trail: int) -> None:
    app = App(given, Doom())
    for n in count():
        app.strategy.put(f"{number}-{n}", {"value": "here"})
        os.write(trail, f"{number}-{n}\n".encode())


def prepared(folder: Path, rng: random.Random) -> dict[str, Any]:
    folder.mkdir()
    source = SQLiteSource.made(folder)
    return {
        "log": f"sqlite:///{folder}/log.db",
        "level": rng.choice(["process", "host"]),
        "source": source.spec,
        "batch": 20,
        "delay": 0.01,
        "lease": 0.1,
    }


def first_put(folder: Path, rng: random.Random) -> float:
    """Seconds, of one that has all to make."""
    given = prepared(folder, rng)
    began = time.monotonic()
    app = App(given, Doom())
    app.strategy.put("first", {"value": "here"})
    took = time.monotonic() - began
    app.cache.close()
    return took


def race(folder: Path, rng: random.Random, most: float) -> tuple[int, list[str]]:
    """How many were acknowledged, and what was lost of them."""
    given = prepared(folder, rng)
    reading, writing = os.pipe()
    writers = []
    for number in range(AT_ONCE):
        writer = os.fork()
        if not writer:
            try:
                write(given, number, writing)
            finally:
                os._exit(1)
        writers.append(writer)
    time.sleep(rng.random() * most)
    for writer in writers:
        os.kill(writer, signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1]) for writer in writers]
    os.close(writing)
    with os.fdopen(reading) as trail:
        acknowledged = trail.read().split()
    heir = App(given, Doom())
    heir.strategy.put("heir", {"value": "here"})
    complete = heir.strategy.flush(20).complete
    heir.cache.close()
    rows = heir.source.rows()
    lost = [key for key in (*acknowledged, "heir") if key not in rows]
    lost += [f"exit code {code}" for code in codes if code != -signal.SIGKILL]
    return len(acknowledged), lost if complete else [*lost, "the log was not drained"]


def main() -> None:
    folder, rounds, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    rng = random.Random(seed)
    most = SOON * max(first_put(folder / f"first-{n}", rng) for n in range(3))
    told = [race(folder / str(n), rng, most) for n in range(rounds)]
    lost = [key for _, of_round in told for key in of_round]
    print(json.dumps({"acknowledged": [n for n, _ in told], "lost": lost}))


if __name__ == "__main__":
    main()
