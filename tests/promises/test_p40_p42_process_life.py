"""P40 and P42, and the far tiers of P27: forks, loops and threads, opening and closing, growth."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import subprocess
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from census import census, settled, sizes

from cachekit import Cache, ReadThrough, WriteBack, WriteThrough

HERE = Path(__file__).parent
FORKS = {"redis": 30, "sqlite": 30, "memcached": 10}
PLACES = ("memory", "redis", "sqlite", "memcached")
SHARED = PLACES[1:]


class Place:
    """Where a cache keeps its entries; each opened one shares with the others."""

    def __init__(self, name: str, url: str | None) -> None:
        self.name = name
        self.url = url
        self.namespace = f"life-{uuid.uuid4().hex[:10]}"

    def open(self, **options: Any) -> Cache:
        given: dict[str, Any] = {"namespace": self.namespace, "timeout": 10.0, **options}
        if self.url is not None:
            given.setdefault("coherence", "push")
        return Cache(self.url, **given)


def _url(name: str, request: pytest.FixtureRequest, folder: Path) -> str | None:
    if name in ("redis", "memcached"):
        url: str = request.getfixturevalue(f"{name}_server").url
        return url
    return f"sqlite:///{folder}/cache.db" if name == "sqlite" else None


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(request.param, _url(request.param, request, tmp_path))


@pytest.fixture(params=SHARED)
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(request.param, _url(request.param, request, tmp_path))


# -- P40 ---------------------------------------------------------------------------------


def test_forks_under_load_share_nothing_and_hang_nowhere(shared: Place, tmp_path: Path) -> None:
    forks = FORKS[shared.name]
    program = "import preloaded, sys; preloaded.main(*sys.argv[1:])"
    command = [sys.executable, "-W", "ignore", "-c", program]
    ran = subprocess.run(
        [*command, str(shared.url), str(tmp_path), str(forks)],
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    told = json.loads(ran.stdout)
    wrong = [n for n, child in enumerate(told["children"]) if child.get("status") != 0]
    assert not wrong, f"children {wrong} hung or died: {ran.stderr[-2000:]}"
    assert len(told["children"]) == forks
    for child in told["children"]:
        assert child["errors"] == []
        assert child["backend_errors"] == 0
        assert child["used"] == []  # what was said where a parent's socket had been
        assert child["flushed"]  # by a flusher of its own
        assert child["schedules"]  # and planned by a thread of its own
    listeners = [child for child in told["children"] if "joined" in child]
    assert len(listeners) == forks // 10
    for child in listeners:
        assert child["joined"]
        assert child["heard"]
        assert child["event"]
        assert child["renewed"] >= 1
    assert told["pooled"] == [[n, []] for n in range(4)]
    assert told["errors"] == []
    assert told["backend_errors"] == 0
    assert (told["stuck"], told["breaker"]) == (0, "closed")
    assert told["of the parent's, by others"] == []
    assert told["late"] == [f"late-{n}" for n in range(5)]


def test_a_sqlite_file_stays_one_file_when_the_parent_closes_it_first(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/cache.db"
    cache = Cache(url, coherence="strict", timeout=5.0)
    assert cache.set("k", "old", ttl=600)
    go, gone = os.pipe(), os.pipe()
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            assert cache.get("k") == "old"
            os.write(gone[1], b"x")
            os.read(go[0], 1)  # the parent has closed its cache
            cache.invalidate(keys=["k"])
            os._exit(0)
        os._exit(1)
    os.read(gone[0], 1)
    cache.close()
    os.write(go[1], b"x")
    assert os.waitpid(pid, 0)[1] == 0
    for end in (*go, *gone):
        os.close(end)
    with Cache(url, coherence="strict", timeout=5.0) as other:
        assert other.get("k") is None  # what the child invalidated is gone for everybody


def test_a_sqlite_file_stays_one_file_when_another_process_closes_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/cache.db"
    program = "import sys, cachekit; c = cachekit.Cache(sys.argv[1]); print(c.get('k')); c.close()"

    def elsewhere() -> str:
        return subprocess.check_output([sys.executable, "-c", program, url], text=True).strip()

    with Cache(url, timeout=5.0) as first, Cache(url, timeout=5.0) as second:
        assert first.set("k", "old", ttl=600)
        assert second.get("k") == "old"
        assert elsewhere() == "old"
        assert first.set("k", "new", ttl=600)
        assert elsewhere() == "new"


# -- P42 ---------------------------------------------------------------------------------


@pytest.mark.alone
def test_one_cache_serves_five_loops_and_eight_threads(place: Place) -> None:
    with place.open() as cache:
        cache.set("warm", 1)
        wrong: list[Any] = []
        start = threading.Barrier(13)

        @cache.cached(ttl=600, key="square:{n}")
        def square(n: int) -> int:
            return n * n

        @cache.cached(ttl=600, key="cube:{n}", tags=["cubes"])
        async def cube(n: int) -> int:
            await asyncio.sleep(0)
            return n * n * n

        def plain(number: int) -> None:
            start.wait(20)
            for n in range(60):
                if square((n + number) % 20) != ((n + number) % 20) ** 2:
                    wrong.append(n)
                if cache.get_or_set(f"k{n % 7}", lambda n=n: n % 7, ttl=60) != n % 7:
                    wrong.append(n)
                if n % 20 == number:
                    cache.invalidate(keys=[f"square:{n}"], tags=["cubes"])

        async def loop(number: int) -> None:
            await asyncio.to_thread(start.wait, 20)
            for n in range(0, 60, 4):
                got = await asyncio.gather(*(cube((n + i) % 20) for i in range(4)))
                if got != [((n + i) % 20) ** 3 for i in range(4)]:
                    wrong.append(got)
                got_many = await cache.aio.get_or_set_many(
                    [f"m{i}" for i in range(5)], lambda keys: {k: k for k in keys}
                )
                if any(key != value for key, value in got_many.items()):
                    wrong.append(got_many)
            if number % 2:  # the others' loops end without a word
                await cache.aio.close()

        def guarded(work: Callable[[], Any]) -> None:
            try:
                work()
            except BaseException as error:
                wrong.append(error)

        works: list[Callable[[], Any]] = [lambda n=n: plain(n) for n in range(8)]
        works += [lambda n=n: asyncio.run(loop(n)) for n in range(5)]
        before = sizes()
        threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not wrong
        assert not any(thread.is_alive() for thread in threads)
        # What the ended loops had open is gone: 16 connections of threads and a bus may stay.
        gc.collect()
        assert len(cache.parts.runtime.worlds()) == 1
        most = before[1] + (40 if place.name == "sqlite" else 24)  # two a connection there
        assert settled(before[0] + 18, most)[1] <= most
        assert cache.stats().counts.get("backend_errors", 0) == 0


def _life(place: Place, number: int, folder: Path, **options: Any) -> Cache:
    """Open a cache and use everything of it that starts something."""
    cache = place.open(replay_log=f"{folder}/replay/log", invalidation="replay", **options)
    rows: dict[int, Any] = {}
    through = WriteThrough(cache, load=rows.get, store=rows.__setitem__, key="row:{id}", ttl=60)
    back = WriteBack(cache, store_many=rows.update, key="back:{id}", log="memory", delay=0.001)
    read = ReadThrough(cache, load=lambda id: id, key="read:{id}", ttl=60, load_timeout=5.0)
    cache.on(Place, lambda event: ["event"])
    cache.schedule(every="1h", tags=["planned"], name="planned")
    for n in range(3):
        through.put(n, number)
        if options:
            back.put(n, number)
        assert through.get(n) == number
        assert read.get(n) == n
    assert cache.get_or_set("k", lambda: "k", ttl=60, tags=["t"]) == "k"
    cache.invalidate(tags=["t"])

    async def loop() -> None:
        assert await cache.aio.get_or_set("a", lambda: "a", ttl=60) == "a"
        assert await through.aio.get(0) == number
        await cache.aio.close()
        await cache.aio.close()

    asyncio.run(loop())
    return cache


@pytest.mark.alone
def test_thirty_lives_leave_no_thread_descriptor_or_object_behind(
    place: Place, tmp_path: Path
) -> None:
    def live(number: int) -> None:
        cache = _life(place, number, tmp_path, clock="coarse")
        cache.close()
        cache.close()

    for number in range(3):
        live(number)
    settled(0, 0, 0.3)
    threads, descriptors = sizes()
    before = census()
    for number in range(30):
        live(number)
    after = settled(threads, descriptors)
    assert after[0] <= threads, [thread.name for thread in threading.enumerate()]
    assert after[1] <= descriptors + 1
    grown = {name: n - before[name] for name, n in census().items() if n - before[name] >= 15}
    assert not grown


@pytest.mark.alone
def test_caches_dropped_without_close_take_their_threads_and_descriptors_along(
    place: Place, tmp_path: Path
) -> None:
    place.open().close()  # whatever a first use opens for good

    def drop(number: int) -> weakref.ref[Any]:
        return weakref.ref(_life(place, number, tmp_path).parts.near)

    gc.collect()
    threads, descriptors = sizes()
    dropped = [drop(number) for number in range(6)]
    after = settled(threads, descriptors, 12.0)
    assert after[0] <= threads, [thread.name for thread in threading.enumerate()]
    assert after[1] <= descriptors + 1
    assert [ref for ref in dropped if ref() is not None] == []


@pytest.mark.alone
@pytest.mark.parametrize("what", ["coarse clock", "write-back"])
def test_a_dropped_cache_with_a_thread_of_its_own_is_let_go(what: str) -> None:
    written: dict[int, int] = {}

    def drop() -> weakref.ref[Any]:
        cache = Cache(clock="coarse" if what == "coarse clock" else "precise")
        if what == "write-back":
            back = WriteBack(cache, store_many=written.update, key="b:{id}", log="memory", delay=0)
            back.put(7, 7)
        assert cache.get_or_set("k", lambda: 1) == 1
        return weakref.ref(cache.parts.near)

    threads = threading.active_count()
    dropped = drop()
    settled(threads, 0, 8.0)
    if what == "write-back":
        assert written == {7: 7}  # what was acknowledged is written all the same
    assert dropped() is None
    assert threading.active_count() <= threads


def test_cached_methods_and_what_is_bound_keep_no_instance_alive(place: Place) -> None:
    with place.open() as cache:

        class Shop:
            def __init__(self, id: int) -> None:
                self.id = id

            @cache.cached(ttl=600, key="plain:{self.id}:{n}")
            def plain(self, n: int) -> int:
                return n

            @cache.cached(ttl=600, key="async:{self.id}:{n}")
            async def asynchronous(self, n: int) -> int:
                return n

            @cache.cached(ttl=0.05, grace=600, key="stale:{self.id}", name="stale")
            def stale(self) -> int:
                return 7

        async def use(shop: Shop) -> None:
            assert [await shop.asynchronous(n) for n in (1, 1, 2)] == [1, 1, 2]
            await cache.aio.close()

        shops = [Shop(n) for n in range(20)]
        for shop in shops:
            bound = shop.plain
            assert [bound(n) for n in (1, 1, 2)] == [1, 1, 2]
            shop.stale()
            asyncio.run(use(shop))
        time.sleep(0.06)
        for shop in shops:
            assert shop.stale() == 7  # renewed behind
        alive = [weakref.ref(shop) for shop in shops]
        del shops, shop, bound
        end = time.monotonic() + 5.0  # the last renewals may still run
        while any(ref() is not None for ref in alive) and time.monotonic() < end:
            gc.collect()
            time.sleep(0.01)
        assert [ref for ref in alive if ref() is not None] == []


# -- P27 ---------------------------------------------------------------------------------


@pytest.fixture
def operations(place: Place) -> Iterator[tuple[Cache, Callable[[int, int], None], int]]:
    """A mix of everything over ever new keys: the cache, a round of it, and how many rounds."""
    with place.open(max_entries=100, coherence=None if place.url is None else 30.0) as cache:
        rows: dict[int, int] = {}
        book = WriteThrough(cache, load=rows.get, store=rows.__setitem__, key="row:{id}", ttl=60)

        @cache.cached(ttl=60, key="fn:{n}", tags=["of {n}"])
        def function(n: int) -> int:
            return n

        @cache.cached(ttl=60, key="afn:{n}")
        async def asynchronous(n: int) -> int:
            return n

        async def turn(first: int, last: int) -> None:
            for n in range(first, last, 4):
                assert await asynchronous(n) == n
            assert len(asyncio.all_tasks()) == 1
            await cache.aio.close()

        def run(first: int, last: int) -> None:
            for n in range(first, last):
                assert function(n) == n
                assert function(n) == n
                cache.set(f"k{n}", n, ttl=60)
                assert cache.get(f"k{n}") == n
                if n % 4 == 0:
                    book.put(n, n)
                    assert book.get(n) == n
                    book.invalidate(n)
                    cache.invalidate(keys=[f"k{n}"], tags=[f"of {n}"])
            rows.clear()
            asyncio.run(turn(first, last))

        yield cache, run, 20_000 if place.url is None else 700


@pytest.mark.alone
def test_operations_over_new_keys_make_nothing_grow(
    operations: tuple[Cache, Callable[[int, int], None], int],
) -> None:
    cache, run, rounds = operations
    run(0, rounds // 4)  # what is bounded is full by now
    settled(0, 0, 0.3)
    threads, descriptors = sizes()
    before, objects = census(), len(gc.get_objects())
    run(rounds // 4, rounds)
    found = settled(threads, descriptors)
    assert found[0] <= threads
    assert found[1] <= descriptors + 1
    grown = {name: n - before[name] for name, n in census().items() if n - before[name] > 40}
    # Memcached's commands kept ready: at most 1024 by a bound of their own.
    grown.pop("cachekit.backends.memcached.names.Wish", None)
    # Dead entries stay queued until they are 64 more than the live ones.
    for name in ("cachekit.core.entry.Entry", "cachekit.core.entry.Extra"):
        assert grown.pop(name, 0) <= 64 + 100
    assert not grown
    if "Wish" not in " ".join(before):
        assert len(gc.get_objects()) - objects < rounds // 2
    runtime = cache.parts.runtime
    assert len(runtime.threads.flights) == 0
    assert len(cache.parts.near.writers) == 0
    assert len(runtime.worlds()) == 1
    assert cache.stats().entries <= 100
