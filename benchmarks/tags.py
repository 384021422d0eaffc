"""What tags cost: invalidating one that N entries carry, and reading entries that carry some.

    python benchmarks/tags.py [--entries N ...] [--rounds R] [--json FILE] [--part NAME]

On Redis each round times, in turn, an INCR and ``cache.invalidate(tags=[...])``, both through the
library's own kind of connection to one private server. Before each invalidation, untimed, the
tag's former nonce is put back, so that every time all N entries are alive and go. The exit code
says nothing about the figures.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import peers
from interleave import Group, Promise, Row, as_json, table

import cachekit
from cachekit.backends.redis.blocking import BlockingWire
from cachekit.backends.redis.layout import ENTRY, Layout, milliseconds
from cachekit.backends.redis.options import parse_url
from cachekit.codecs import resolve
from cachekit.core.keys import physical, tag_name
from cachekit.core.policy import Span
from cachekit.packing import Right
from cachekit.runtime import drive
from cachekit.testing.servers import MemcachedServer, RedisServer, ServerMissing

ENTRIES = (1, 1_000, 1_000_000)
LESS = (1, 1_000, 20_000)  # where entries are loaded one at a time
ROUNDS = 2_000
TAG = "all"
TTL = 3_600.0
BATCH = 1_000
SLOWER_THAN = 1_000  # microseconds
INCR_FIGURE = 5.0
NEAR_FIGURE = 1.12
REDIS_FIGURE = 1.20


class Wire:
    """Commands over the library's own blocking connection."""

    def __init__(self, url: str) -> None:
        options = parse_url(url)
        self._wire = BlockingWire(options.login)
        self._address = options.addresses[0]

    def __call__(self, *commands: tuple[Any, ...], patience: float = 60.0) -> list[Any]:
        until = time.monotonic() + patience
        return list(drive(self._wire.call(self._address, commands, until)))

    def close(self) -> None:
        drive(self._wire.close())


@dataclass(slots=True)
class Cost:
    """Invalidations of one tag over ``entries`` entries. Times in microseconds."""

    backend: str
    entries: int
    reference: str
    reference_min: float
    reference_median: float
    minimum: float
    median: float
    ratio: float  # median of the rounds' ratios
    note: str = ""
    slow: list[str] = field(default_factory=list)


def load(cache: cachekit.Cache, wire: Wire, count: int, tag: str = TAG) -> tuple[bytes, bytes]:
    """Store ``count`` entries under the tag: the library's packer makes their bytes, plain SETs
    carry them, ``BATCH`` to a write. Gives the name and value of the tag's nonce."""
    parts = cache._parts
    assert parts.far is not None
    store: Any = parts.far.store(parts.runtime.threads)
    cache.set("first", 0, ttl=TTL)  # the store now knows the server's partitions
    layout: Layout = store._layout
    name = tag_name(tag)
    codec = resolve("json")
    token = parts.runtime.token
    rights: dict[int, Right] = {}
    commands: list[tuple[Any, ...]] = []
    px = milliseconds(TTL)
    for number in range(count):
        key = physical(f"k{number}")
        partition = layout.partition(key)
        right = rights.get(partition)
        if right is None:
            deadline = parts.runtime.threads.deadline(10.0)
            made = store.slots.nonces([key], [name], token, None, deadline)
            found = drive(made)
            right = rights[partition] = Right(token(), found.spaces[0], {name: found.tags[0]})
        data = parts.far.packer.pack(key, number, codec, Span(TTL, TTL), 0.001, right)
        commands.append((b"SET", layout.slot(key), ENTRY + right.token + data, b"PX", px))
        if len(commands) == BATCH:
            wire(*commands)
            commands = []
    if commands:
        wire(*commands)
    nonce = layout.tag(name)
    [value] = wire((b"GET", nonce))
    return nonce, value


def on_redis(entries: Sequence[int], rounds: int) -> Iterator[Cost]:
    for count in entries:
        with ExitStack() as stack:
            server = stack.enter_context(
                RedisServer(("--slowlog-log-slower-than", str(SLOWER_THAN)))
            )
            wire = Wire(server.url)
            stack.callback(wire.close)
            cache = stack.enter_context(
                cachekit.Cache(server.url, namespace="tags", timeout=10.0, coherence="strict")
            )
            name, nonce = load(cache, wire, count)
            keys = [f"k{number}" for number in range(count)]
            alive = cache.get_many([keys[0], keys[-1]])
            assert len(alive) == len({keys[0], keys[-1]}), "the loaded entries can not be read"
            wire((b"SLOWLOG", b"RESET"), (b"CONFIG", b"RESETSTAT"))
            cost = timed(
                functools.partial(wire, (b"INCR", b"counter")),
                functools.partial(cache.invalidate, tags=[TAG]),
                functools.partial(wire, (b"SET", name, nonce)),
                rounds,
            )
            assert cache.get(keys[-1]) is None, "the tag was invalidated, its entries are alive"
            slow, [size, stats] = (
                wire((b"SLOWLOG", b"GET", 10)),
                wire((b"DBSIZE",), (b"INFO", b"commandstats")),
            )
            told = [b" ".join(each[3][:1]).decode() + f" {each[2]} us" for each in slow[0]]
            yield Cost(
                "redis", count, "INCR", *cost,
                note=f"{size:,} keys in the server; {_server_time(stats)}", slow=told,
            )  # fmt: skip


def _server_time(stats: bytes) -> str:
    """What the server itself needed, from its own statistics."""
    found = []
    for line in stats.decode().splitlines():
        name, _, fields = line.partition(":")
        if name.lower() in ("cmdstat_incr", "cmdstat_evalsha", "cmdstat_del", "cmdstat_unlink"):
            cost = dict(pair.split("=") for pair in fields.split(","))["usec_per_call"]
            found.append(f"{name[8:]} {cost} us")
    return "in the server: " + ", ".join(found)


def elsewhere(stack: ExitStack, rounds: int, most: int) -> Iterator[Cost]:
    """Memory, SQLite, Memcached: against the same with one entry."""
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    urls: dict[str, str | None] = {"memory": None, "sqlite": f"sqlite:///{folder}/tags.db"}
    with suppress(ServerMissing):
        urls["memcached"] = stack.enter_context(MemcachedServer(("-m", "512"))).url
    for backend, url in urls.items():
        sizes = ENTRIES if url is None else LESS
        caches = {}
        for count in (n for n in sizes if n <= most):
            options: dict[str, Any] = {"max_entries": 2 * max(sizes), "namespace": f"n{count}"}
            if url is not None:
                options |= {"coherence": "strict", "timeout": 10.0}
            cache = caches[count] = stack.enter_context(cachekit.Cache(url, **options))
            for start in range(0, count, BATCH):
                stop = min(count, start + BATCH)
                cache.set_many({f"k{n}": n for n in range(start, stop)}, ttl=TTL, tags=[TAG])
        one = caches[1]

        def again(cache: cachekit.Cache) -> Callable[[], None]:
            # One entry makes the tag's nonce; the others are gone after the first time.
            return lambda: cache.set("k0", 0, ttl=TTL, tags=[TAG])

        for count, cache in caches.items():
            restore = [again(one), again(cache)]
            first = functools.partial(cache.invalidate, tags=[TAG])
            began = time.perf_counter()
            first()
            took = 1e6 * (time.perf_counter() - began)
            cost = timed(
                functools.partial(one.invalidate, tags=[TAG]), first,
                lambda restore=restore: [each() for each in restore], max(50, rounds // 10),
            )  # fmt: skip
            yield Cost(backend, count, "1 entry", *cost, note=f"the first one: {took:.0f} us")


def timed(
    reference: Callable[[], Any],
    subject: Callable[[], Any],
    restore: Callable[[], Any],
    rounds: int,
) -> tuple[float, float, float, float, float]:
    """Minimum and median of both in microseconds, and the median of the rounds' ratios."""
    clock, costs = time.perf_counter, ([], [])
    calls = (reference, subject)
    for number in range(rounds + 20):
        restore()
        for which in (0, 1) if number % 2 else (1, 0):
            call = calls[which]
            began = clock()
            call()
            costs[which].append(1e6 * (clock() - began))
    first, second = costs[0][20:], costs[1][20:]  # connections and scripts are warm by then
    ratio = statistics.median(b / a for a, b in zip(first, second, strict=True))
    return min(first), statistics.median(first), min(second), statistics.median(second), ratio


def reading(stack: ExitStack) -> Iterator[Group]:
    """A hit of a function with 0, 1 and 3 declared tags: near, and under strict in Redis."""
    keys = [(k + 10**9) - 10**9 for k in range(1_000, 1_500)]
    plans: list[tuple[str, cachekit.Cache, float, Promise]] = [
        ("Near hit", stack.enter_context(cachekit.Cache()), 0.0004,
         Promise("P92 near", NEAR_FIGURE)),
    ]  # fmt: skip
    with suppress(ServerMissing):
        server = stack.enter_context(RedisServer())
        cache = stack.enter_context(cachekit.Cache(server.url, coherence="strict", timeout=5.0))
        plans.append(("Read from Redis (strict)", cache, 0.01, Promise("P92 Redis", REDIS_FIGURE)))
    for title, cache, turn, promise in plans:
        group = Group(title, "no tag", keys, turn=turn)
        for name, tags in (
            ("no tag", []),
            ("1 tag", ["k:{k}"]),
            ("3 tags", ["k:{k}", "kind", "all"]),
        ):
            f = cache.cached(ttl=TTL, tags=tags, name=name)(peers.identity)
            group.add(name, "f(k)", promise if tags else None, f=f)
        yield group


PARTS = ("redis", "elsewhere", "reading")


def machine() -> dict[str, Any]:
    return {
        "python": sys.version.split()[0],
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "load": [round(x, 2) for x in os.getloadavg()],
        "date": date.today().isoformat(),
        "cachekit": cachekit.__version__,
        "packages": {name: peers.versions()[name] for name in ("redis", "hiredis")},
    }


def show(cost: Cost) -> None:
    verdict = ""
    if cost.reference == "INCR":
        verdict = (
            f"  P33/P92 ≤ {INCR_FIGURE:g}: {'met' if cost.ratio <= INCR_FIGURE else 'not met'}"
        )
        verdict += f"; slow log: {', '.join(cost.slow) or 'empty'}"
    print(
        f"  {cost.backend:10}{cost.entries:>10,}{cost.minimum:>9.1f}{cost.median:>9.1f}   "
        f"{cost.reference:8}{cost.reference_min:>9.1f}{cost.reference_median:>9.1f}"
        f"{cost.ratio:>8.2f}{verdict}  {cost.note}".rstrip(),
        flush=True,
    )


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description="What tags cost, as ratios in one run.")
    parser.add_argument("--entries", type=int, nargs="+", default=ENTRIES, metavar="N")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--part", action="append", choices=PARTS, help="only these")
    parser.add_argument("--json", type=Path, metavar="FILE")
    asked = parser.parse_args(argv)
    parts = asked.part or PARTS
    facts = {**machine(), "command": " ".join(["python benchmarks/tags.py", *argv])}
    for name, value in facts.items():
        print(f"{name}: {value}")
    costs: list[Cost] = []
    rows: list[Row] = []
    print(
        f"\nInvalidating one tag, microseconds\n  {'backend':10}{'entries':>10}{'min':>9}"
        f"{'median':>9}   {'against':8}{'min':>9}{'median':>9}{'ratio':>8}"
    )
    with ExitStack() as stack:
        found: list[Iterator[Cost]] = []
        if "redis" in parts:
            found.append(on_redis(asked.entries, asked.rounds))
        if "elsewhere" in parts:
            found.append(elsewhere(stack, asked.rounds, max(asked.entries)))
        for each in found:
            for cost in each:
                costs.append(cost)
                show(cost)
        if "reading" in parts:
            for group in reading(stack):
                rows += group.measure(max(20, asked.rounds // 10))
            print(table(rows))
    if asked.json is not None:
        told = {**facts, "invalidating": [asdict(cost) for cost in costs], "reading": as_json(rows)}
        asked.json.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
