"""What a hit costs, as ratios to other libraries timed in the same interleaved run.

    python benchmarks/hit_path.py [--quick] [--rounds N] [--json FILE]

Everything goes through the public API. The exit code says nothing about the figures.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import Any

import peers
import threads
from interleave import Group, Promise, Row, as_json, merged, table

import cachekit

ROUNDS = 300
PROCESSES = 3
DISTINCT = 1_000
LEGEND = """
Each subject's loop is written out for it alone; the fastest empty loop over the same keys is taken
off every subject. ratio: median of the rounds' ratios to the first row; of min: ratio of the
fastest rounds; a figure is met when both keep it. Figures marked >= are reference / subject.
(met), (not met): shown only. P80 is held to distinct keys, the way real traffic asks: a look-up
with the very object that is kept compares nothing, which flatters whoever does least beside it."""
NEWER = sys.version_info >= (3, 13)
COARSE_SAMPLED = 1.7 if NEWER else 1.6
COARSE_EXACT = 1.95 if NEWER else 1.75
PRECISE_EXACT = 2.8 if NEWER else 2.5


def fresh(n: int) -> list[int]:
    """The ints above a thousand, none of them an object that a cache could hold as its key."""
    return [(k + 10**9) - 10**9 for k in range(1_000, 1_000 + n)]


def cachekit_functions(stack: ExitStack) -> dict[str, tuple[Any, float | None]]:
    """One decorated function per clock and statistics, with its figure."""
    made: dict[str, tuple[Any, float | None]] = {}
    for clock, stats, figure in (
        ("precise", "exact", PRECISE_EXACT),
        ("precise", "sampled", None),
        ("coarse", "exact", COARSE_EXACT),
        ("coarse", "sampled", COARSE_SAMPLED),
    ):
        cache = stack.enter_context(cachekit.Cache(clock=clock, stats=stats))
        made[f"cachekit {clock} {stats}"] = cache.cached(ttl=60)(peers.identity), figure
    return made


def one_int(stack: ExitStack) -> Iterator[Group]:
    for title, keys, held in (
        (
            f"One int, {DISTINCT} distinct ones, never the very object kept (P80 is held to these)",
            fresh(DISTINCT),
            True,
        ),
        (
            "One int, the same object every time (a look-up that finds the very object compares "
            "nothing)",
            fresh(1) * DISTINCT,
            False,
        ),
    ):
        fill = fresh(DISTINCT) if held else keys
        group = Group(title, "functools.lru_cache", keys, fill=fill)
        group.add("functools.lru_cache", "f(k)", f=functools.lru_cache(peers.SIZE)(peers.identity))
        group.add("bare call", "f(k)", f=peers.identity)
        for name, (f, figure) in cachekit_functions(stack).items():
            promise = None if figure is None else Promise("P80", figure, held=held)
            group.add(name, "f(k)", promise, f=f)
        for name, make in peers.SYNC.items():
            peers.join(group, name, make, "f(k)")
        yield group


class Plain:
    """A class whose methods are cached, by functools and by us."""

    def __init__(self) -> None:
        self.kept = 0

    @functools.lru_cache(peers.SIZE)  # noqa: B019  # the reference
    def by_functools(self, k: int) -> int:
        return k


def signatures(stack: ExitStack) -> Iterator[Group]:
    """Spellings and arities, precise clock and exact statistics unless said."""
    cache = stack.enter_context(cachekit.Cache())
    coarse = stack.enter_context(cachekit.Cache(clock="coarse"))
    lru = functools.lru_cache(peers.SIZE)
    keys, fill = fresh(DISTINCT), fresh(DISTINCT)

    group = Group("Keyword call f(k=...)", "functools.lru_cache", keys, fill=fill)
    group.add("functools.lru_cache", "f(k=k)", f=lru(peers.identity))
    ours = cache.cached(ttl=60)(peers.identity)
    group.add("cachekit precise exact", "f(k=k)", Promise("P80", 1.35), f=ours)
    yield group

    class Ours(Plain):
        @cache.cached(ttl=60)
        def precise(self, k: int) -> int:
            return k

        @coarse.cached(ttl=60)
        def roughly(self, k: int) -> int:
            return k

    group = Group("Method, one int beside self", "functools.lru_cache", keys, fill=fill)
    group.add("functools.lru_cache", "o.by_functools(k)", o=Ours())
    group.add("cachekit precise exact", "o.precise(k)", Promise("P80", 2.4), o=Ours())
    group.add("cachekit coarse exact", "o.roughly(k)", Promise("P80", 1.9), o=Ours())
    yield group

    for arity in (2, 3, 5):
        names = ", ".join("abcde"[:arity])
        scope: dict[str, Any] = {"__name__": __name__}
        exec(f"def f({names}): return a", scope)
        many, equal = (
            list(zip(*(fresh(DISTINCT + i)[i:] for i in range(arity)), strict=True)) for _ in "12"
        )
        group = Group(f"{arity} positional ints", "functools.lru_cache", many, names, equal)
        group.add("functools.lru_cache", f"f({names})", f=lru(scope["f"]))
        ours = cache.cached(ttl=60)(scope["f"])
        group.add("cachekit precise exact", f"f({names})", Promise("P80", 3.0), f=ours)
        ours = coarse.cached(ttl=60, stats="sampled")(scope["f"])
        group.add("cachekit coarse sampled", f"f({names})", f=ours)
        yield group

    group = Group("Tags, against the same function without", "cachekit untagged", keys, fill=fill)
    group.add("cachekit untagged", "f(k)", f=cache.cached(ttl=60)(peers.identity))
    tagged = cache.cached(ttl=60, tags=["k:{k}"])(peers.identity)
    group.add("cachekit tagged", "f(k)", Promise("P92 near", 1.12), f=tagged)
    yield group


def asynchronous(stack: ExitStack) -> Iterator[Group]:
    cache = stack.enter_context(cachekit.Cache())
    coarse = stack.enter_context(cachekit.Cache(clock="coarse", stats="sampled"))
    group = Group("async def, one int", "async-lru", fresh(DISTINCT), fill=fresh(DISTINCT))
    plain: Promise | None = Promise("P81", 0.27)
    tagged: Promise | None = Promise("P81", 0.3)
    if not peers.join(group, "async-lru", peers.async_lru, "await f(k)"):
        group.reference, plain, tagged = "bare await", None, None
    group.add("bare await", "await f(k)", f=peers.identity_async)
    ours = cache.cached(ttl=60)(peers.identity_async)
    group.add("cachekit precise exact", "await f(k)", plain, f=ours)
    ours = cache.cached(ttl=60, tags=["k:{k}"])(peers.identity_async)
    group.add("cachekit precise exact, tagged", "await f(k)", tagged, f=ours)
    ours = coarse.cached(ttl=60)(peers.identity_async)
    group.add("cachekit coarse sampled", "await f(k)", f=ours)
    for name, make in peers.ASYNC.items():
        peers.join(group, name, make, "await f(k)")
    yield group


def loops(stack: ExitStack) -> Iterator[Group]:
    """P84: what a program's loop sees, puts, misses and evictions included."""
    try:
        import cachetools
    except ImportError as error:
        for title in ("Near tier by get/set", "Zipf trace"):
            yield Group(title, "", [], missing={"cachetools": str(error)})
        return
    room, texts = 1_000, [f"key:{k}" for k in range(DISTINCT)]
    for title, verb in (("get", "{0}.get(k)"), ("get, then put", "({0}.get(k), {1})")):
        group = Group(f"Text keys directly: {title}", "cachetools.LRUCache", texts, turn=0.002)
        lru: Any = cachetools.LRUCache(room)
        lru.update((k, k) for k in texts)
        cache = stack.enter_context(cachekit.Cache(max_entries=room))
        cache.set_many({k: k for k in texts}, ttl=60)
        group.add("cachetools.LRUCache", verb.format("c", "c.__setitem__(k, k)"), c=lru)
        group.add(
            "cachekit get / set",
            verb.format("c", "c.set(k, k, ttl=60)"),
            Promise("P84", 2.0, speed=True),
            "through the whole read and write path, not the bare near tier",
            c=cache,
        )
        yield group

    trace = zipf(20_000, 10_000, 1.0)
    group = Group(
        "Decorated loop, Zipf 1.0 over 10 000 keys, room for 1 000",
        "cachetools LRU + RLock",
        trace,
        turn=1.0,
        thin=10,
    )
    locked = cachetools.cached(cachetools.LRUCache(room), lock=threading.RLock(), info=True)
    theirs, promise = locked(peers.identity), Promise("P84", 1.4, speed=True)
    group.add("cachetools LRU + RLock", "f(k)", f=theirs)
    cache = stack.enter_context(cachekit.Cache(max_entries=room))
    ours = cache.cached(ttl=60)(peers.identity)
    group.add("cachekit precise exact", "f(k)", promise, f=ours)
    group.add("functools.lru_cache", "f(k)", f=functools.lru_cache(room)(peers.identity))
    for name, f in (("cachetools LRU + RLock", theirs), ("cachekit precise exact", ours)):
        for k in trace:
            f(k)
        info = f.cache_info()
        group.notes[name] = f"hit ratio {info.hits / (info.hits + info.misses):.3f}"
    yield group


def zipf(n: int, keys: int, skew: float) -> list[int]:
    draw = random.Random(1)
    weights = list(itertools.accumulate(1 / (rank + 1) ** skew for rank in range(keys)))
    return draw.choices(fresh(keys), cum_weights=weights, k=n)


def in_front_of_redis(stack: ExitStack) -> Iterator[Group]:
    title = "Near hit in front of a real redis-server, against the embedded hit"
    from cachekit.testing.servers import RedisServer, ServerMissing

    group = Group(title, "cachekit embedded", fresh(DISTINCT), fill=fresh(DISTINCT))
    try:
        server = stack.enter_context(RedisServer())
        # A bound longer than the run: near copies of shared entries are hits all the while.
        cache = stack.enter_context(cachekit.Cache(server.url, coherence=600))
    except (ServerMissing, cachekit.errors.MissingDependencyError, ImportError) as error:
        yield Group(title, "", [], missing={"redis": str(error)})
        return
    embedded = stack.enter_context(cachekit.Cache())
    group.add("cachekit embedded", "f(k)", f=embedded.cached(ttl=60)(peers.identity))
    ours = cache.cached(ttl=600)(peers.identity)
    group.add("cachekit near + redis", "f(k)", Promise("P90", 1.15), f=ours)
    yield group


PARTS = {
    part.__name__: part for part in (one_int, signatures, asynchronous, loops, in_front_of_redis)
}


def by_threads(stack: ExitStack, rounds: int, calls: int) -> list[Row]:
    cache = stack.enter_context(cachekit.Cache())
    keys = fresh(DISTINCT)
    subjects: dict[str, Any] = {
        "cachekit precise exact": cache.cached(ttl=60)(peers.identity),
        "functools.lru_cache": functools.lru_cache(peers.SIZE)(peers.identity),
    }
    try:
        subjects["cachetools LRU + lock"] = peers.cachetools_lru_locked()
    except ImportError:
        pass
    for f in subjects.values():
        for k in keys:
            f(k)
    return threads.measure(subjects, keys, rounds, calls)


def machine() -> dict[str, Any]:
    try:
        load: Sequence[float] = os.getloadavg()
    except OSError:
        load = ()
    return {
        "python": sys.version.split()[0],
        "implementation": platform.python_implementation(),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cpus": os.cpu_count(),
        "load": [round(x, 2) for x in load],
        "date": date.today().isoformat(),
        "cachekit": cachekit.__version__,
        "packages": peers.versions(),
    }


def measure(parts: Sequence[str], rounds: int, calls: int) -> list[Row]:
    """Everything once, in this process."""
    rows: list[Row] = []
    for name in (name for name in PARTS if name in parts):
        with ExitStack() as stack:
            for group in PARTS[name](stack):
                rows += group.measure(rounds // group.thin) if group.subjects else group.absent()
    if "by_threads" in parts:
        with ExitStack() as stack:
            rows += by_threads(stack, max(5, rounds // 20), calls)
    return rows


def elsewhere(arguments: Sequence[str]) -> list[Row]:
    """The rows of a fresh process: where code and dictionaries come to lie is luck, and decides
    up to a tenth of a ratio."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        command = [sys.executable, __file__, *arguments, "--processes", "1", "--json", str(file)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return [Row(**row) for row in json.loads(file.read_text())["rows"]]


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description="What a hit costs, as ratios in one run.")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--processes", type=int, default=PROCESSES, help="fresh ones, in turn")
    parser.add_argument("--quick", action="store_true", help="50 rounds once: no figure")
    parser.add_argument("--json", type=Path, metavar="FILE")
    names = [*PARTS, "by_threads"]
    parser.add_argument("--part", action="append", choices=names, help="only these")
    asked = parser.parse_args(argv)
    rounds = 50 if asked.quick else asked.rounds
    calls = 100_000 if asked.quick else 400_000
    processes = 1 if asked.quick else asked.processes
    command = " ".join(["python benchmarks/hit_path.py", *argv])
    facts = {**machine(), "rounds": rounds, "processes": processes, "command": command}
    for name, value in facts.items():
        print(f"{name}: {value}")
    print(LEGEND, flush=True)
    if processes == 1:
        rows = measure(asked.part or names, rounds, calls)
    else:
        rows = merged([elsewhere(argv) for _ in range(processes)])
    print(table(rows))
    if asked.json is not None:
        asked.json.write_text(json.dumps({**facts, "rows": as_json(rows)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
