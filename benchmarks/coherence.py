"""How long the near tier of another process gives an old value after it was invalidated.

    python benchmarks/coherence.py [--samples N] [--part NAME] [--json FILE]

Two real processes over one server: A changes the source and invalidates (or saves), B reads that
key from its near tier all the while. The *window* is the time from the return of A's call until
the beginning of B's first read that gave the new value; 0 where B was there before A returned.
The exit code says nothing about the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import peers
from tags import Wire
from two_processes import KEY, TAG, Board, Reader, Sightings, Wall, subject, wait

import cachekit
from cachekit.testing.servers import MemcachedServer, RedisServer, ServerMissing

SAMPLES = 2_000
CUT_SECONDS = 4.0
EVERY = 0.02  # seconds between two invalidations while the network is watched
FLOOD = 100_000
CALM = 5_000  # invalidations beforehand, to compare with
GENTLE = 0.00005
BOUND = 1.0  # seconds, stated


@dataclass(frozen=True, slots=True)
class Window:
    """Milliseconds from A's return to B's first new read."""

    what: str
    reader: str
    samples: int
    p50: float
    p99: float
    max: float
    at_once: float  # share of the samples in which B was new before A returned


class Writer:
    """Process A: this one."""

    def __init__(self, cache: cachekit.Cache, board: Board) -> None:
        self._cache = cache
        self._board = board
        self._strategy = subject(cache, board)
        self.version = 0

    def invalidate_key(self) -> None:
        self._next()
        self._cache.invalidate(keys=[KEY])

    def invalidate_tag(self) -> None:
        self._next()
        self._cache.invalidate(tags=[TAG])

    def save(self) -> None:
        self.version += 1
        self._strategy.put(KEY, self.version)

    def _next(self) -> None:
        self.version += 1
        self._board.source = self.version


def window(
    what: str, url: str, act: Callable[[Writer], None], samples: int, *, pause: float | None,
    coherence: str | None = None, spread: float = 0.003,
) -> Window:  # fmt: skip
    """``spread``: seconds, over which the moments of A's calls are strewn: a polling interval."""
    options: dict[str, Any] = {"namespace": "window", "timeout": 5.0, "coherence": coherence}
    draw = random.Random(1)
    found = []
    with Reader(url, options, pause=pause) as reader, cachekit.Cache(url, **options) as cache:
        writer = Writer(cache, reader.board)
        reader.ready(push=True)
        for number in range(samples + 10):
            act(writer)
            returned = time.perf_counter()
            wait(lambda: reader.board.seen >= writer.version, "the new value")
            if number >= 10:  # connections and scripts are warm by then
                found.append(reader.board.first - returned)
            time.sleep(draw.random() * spread)
    told = [1e3 * max(0.0, one) for one in sorted(found)]
    style = "hot loop" if pause is None else f"a read each {1e6 * pause:.0f} us"
    return Window(
        what, style, samples, statistics.median(told), told[int(0.99 * len(told))], told[-1],
        sum(one <= 0 for one in found) / len(found),
    )  # fmt: skip


def windows(stack: ExitStack, samples: int) -> Iterator[Window]:
    key, tag, save = Writer.invalidate_key, Writer.invalidate_tag, Writer.save
    server = stack.enter_context(RedisServer())
    for name, act in (("invalidate a key", key), ("invalidate a tag", tag), ("save", save)):
        for pause in (None, GENTLE):
            yield window(f"redis, {name}", server.url, act, samples, pause=pause)
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    url = f"sqlite:///{folder}/coherence.db"
    yield window(
        "sqlite, invalidate a key", url, key, max(50, samples // 4), pause=GENTLE, spread=0.05
    )
    try:
        poll = stack.enter_context(MemcachedServer()).url
    except ServerMissing as error:
        print(f"  memcached: {error}")
        return
    yield window(
        "memcached (push), invalidate a key", poll, key, max(20, samples // 10), pause=GENTLE,
        coherence="push", spread=0.25,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outage:
    """Seconds."""

    cut: float
    oldest_before: float
    oldest_during: float
    until_push: float  # from healing to B's near tier following the bus again
    until_right: (
        float  # from healing to the end of the last read older than it is while all is well
    )
    oldest_after: float  # from two seconds after healing on


def outage(seconds: float = CUT_SECONDS, calm: float = 1.0, after: float = 4.0) -> Outage:
    """B's network is a black hole for a while; A invalidates all the time."""
    options: dict[str, Any] = {"namespace": "outage"}
    with ExitStack() as stack:
        server = stack.enter_context(RedisServer())
        wall = stack.enter_context(Wall(server.port))
        url = f"redis://127.0.0.1:{wall.port}/0"
        reader = stack.enter_context(Reader(url, options, pause=0.0002))
        cache = stack.enter_context(cachekit.Cache(server.url, **options))
        writer = Writer(cache, reader.board)
        reader.ready(push=True)
        writer.invalidate_key()  # connected, scripts loaded
        began = time.perf_counter()
        cut, heal = began + calm, began + calm + seconds
        end = heal + after
        returned: list[float] = [time.perf_counter()] * (writer.version + 1)
        pushed = 0.0
        while (now := time.perf_counter()) < end:
            if now < cut or now >= heal:
                wall.heal()
            else:
                wall.cut()
            if now >= heal and not pushed and reader.board.pushed:
                pushed = now
            writer.invalidate_key()
            returned.append(time.perf_counter())
            time.sleep(EVERY)
        seen = reader.stop()
    ages = list(_ages(seen, returned))
    usual = max((age for at, age in ages if at < cut), default=0.0)
    late = [at for at, age in ages if at >= heal and age > max(usual, 0.05)]
    return Outage(
        cut=seconds,
        oldest_before=usual,
        oldest_during=max((age for at, age in ages if cut <= at < heal), default=0.0),
        until_push=max(0.0, pushed - heal) if pushed else float("inf"),
        until_right=max(late, default=heal) - heal,
        oldest_after=max((age for at, age in ages if at >= heal + 2.0), default=0.0),
    )


def _ages(seen: Sightings, returned: Sequence[float]) -> Iterator[tuple[float, float]]:
    """Per value that B gave: when it gave it last, and how old it was by then."""
    for version, last in zip(seen.versions, seen.last, strict=True):
        if version + 1 < len(returned):
            yield last, max(0.0, last - returned[version + 1])


@dataclass(frozen=True, slots=True)
class Slow:
    """A listener that is stopped while others invalidate. Milliseconds and bytes."""

    invalidations: int
    before_p50: float
    before_p99: float
    during_p50: float
    during_p99: float
    memory_before: int
    memory_most: int
    memory_after: int
    until_right: float  # seconds from SIGCONT to B's first new read


def slow_listener(
    count: int = FLOOD, calm: int = CALM, *, long: bool = False, options: Sequence[str] = ()
) -> Slow:
    """B is stopped while A invalidates ``count`` keys. ``long``: of 200 characters; ``options`` of
    the server."""
    chosen: dict[str, Any] = {"namespace": "slow", "timeout": 5.0}
    with ExitStack() as stack:
        server = stack.enter_context(RedisServer(options))
        wire = Wire(server.url)
        stack.callback(wire.close)
        reader = stack.enter_context(Reader(server.url, chosen, pause=GENTLE))
        cache = stack.enter_context(cachekit.Cache(server.url, **chosen))
        writer = Writer(cache, reader.board)
        reader.ready(push=True)
        pad = "x" * 190 if long else ""

        def flood(number: int) -> list[float]:
            costs = []
            for n in range(number):
                at = time.perf_counter()
                cache.invalidate(keys=[f"{pad}{n}"])
                costs.append(1e3 * (time.perf_counter() - at))
                if n % 2_000 == 0:
                    memory.append(_memory(wire))
            return sorted(costs)

        memory = [_memory(wire)]
        flood(200)
        before = flood(calm)
        wait(lambda: reader.board.pushed, "the reader")
        reader.freeze()
        try:
            start = len(memory)
            writer.invalidate_key()
            during = flood(count)
            memory.append(_memory(wire))
        finally:
            reader.thaw()
        thawed = time.perf_counter()
        wait(lambda: reader.board.seen >= writer.version, "the new value")
        right = reader.board.first - thawed
        wait(lambda: reader.board.pushed, "the bus")
        time.sleep(0.5)
        return Slow(
            count, statistics.median(before), before[int(0.99 * len(before))],
            statistics.median(during), during[int(0.99 * len(during))],
            memory[0], max(memory[start:]), _memory(wire), max(0.0, right),
        )  # fmt: skip


def _memory(wire: Wire) -> int:
    """What the server uses, its clients' buffers included."""
    [told] = wire((b"INFO", b"memory"))
    [line] = [line for line in told.decode().splitlines() if line.startswith("used_memory:")]
    return int(line.partition(":")[2])


PARTS = ("windows", "outage", "slow")


def machine() -> dict[str, Any]:
    return {
        "python": sys.version.split()[0],
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "load": [round(x, 2) for x in os.getloadavg()],
        "switch interval": sys.getswitchinterval(),
        "date": date.today().isoformat(),
        "cachekit": cachekit.__version__,
        "packages": {name: peers.versions()[name] for name in ("redis", "hiredis")},
    }


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description="How near tiers follow other processes.")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--cut", type=float, default=CUT_SECONDS, metavar="SECONDS")
    parser.add_argument("--flood", type=int, default=FLOOD, help="keys while B is stopped")
    parser.add_argument("--part", action="append", choices=PARTS, help="only these")
    parser.add_argument("--json", type=Path, metavar="FILE")
    asked = parser.parse_args(argv)
    parts = asked.part or PARTS
    facts = {**machine(), "command": " ".join(["python benchmarks/coherence.py", *argv])}
    for name, value in facts.items():
        print(f"{name}: {value}")
    told: dict[str, Any] = {**facts, "windows": [], "outage": None, "slow": []}
    with ExitStack() as stack:
        if "windows" in parts:
            print(
                f"\nWindow of staleness, ms\n  {'':38}{'B reads':22}{'samples':>8}{'p50':>9}"
                f"{'p99':>9}{'max':>9}{'none':>7}"
            )
            for row in windows(stack, asked.samples):
                told["windows"].append(asdict(row))
                print(
                    f"  {row.what:38}{row.reader:22}{row.samples:>8}{row.p50:>9.3f}"
                    f"{row.p99:>9.3f}{row.max:>9.3f}{row.at_once:>7.0%}",
                    flush=True,
                )
    if "outage" in parts:
        found = outage(asked.cut)
        told["outage"] = asdict(found)
        print(
            f"\nB's network a black hole for {found.cut:g} s: oldest answer before "
            f"{1e3 * found.oldest_before:.1f} ms, during {1e3 * found.oldest_during:.0f} ms "
            f"(stated: {1e3 * BOUND:.0f}); healed: by push again after "
            f"{found.until_push:.2f} s, last late answer after {found.until_right:.2f} s "
            f"(promised: < 2), from 2 s on the oldest was "
            f"{1e3 * found.oldest_after:.1f} ms",
            flush=True,
        )
    if "slow" in parts:
        for long in (False, True):
            slow = slow_listener(asked.flood, long=long)
            told["slow"].append({"long_names": long, **asdict(slow)})
            print(
                f"\nB stopped while A invalidates {slow.invalidations:,} keys"
                f"{' of 200 characters' if long else ''}: a call p50 {slow.before_p50:.3f} -> "
                f"{slow.during_p50:.3f} ms, p99 {slow.before_p99:.3f} -> {slow.during_p99:.3f} ms; "
                f"server memory {slow.memory_before / 1e6:.1f} -> at most "
                f"{slow.memory_most / 1e6:.1f} -> {slow.memory_after / 1e6:.1f} MB; B right "
                f"{slow.until_right:.3f} s after it went on",
                flush=True,
            )
    if asked.json is not None:
        asked.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
