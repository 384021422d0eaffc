"""P07: a late, cut, reset or corrupted reply never answers another call, and neither does the
reply to a call that was cancelled, at whatever point."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from tampering import SPOILT, WHOLE, Cut, Tampering, Way, shorter

import cachekit
from cachekit.testing.servers import MemcachedServer, RedisServer, Server, ServerMissing

T = 0.15
LATE = 0.22  # seconds: after the budget of the call it belongs to
KEYS = 40
CANCELS = 500


@pytest.fixture(scope="module", params=[RedisServer, MemcachedServer], ids=["redis", "memcached"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    try:
        server = request.param()
        server.start()
    except ServerMissing as missing:
        if os.environ.get("CACHEKIT_REQUIRE_SERVERS") == "1":
            pytest.fail(str(missing))
        pytest.skip(str(missing))
    with server:
        yield server


def value_of(n: int) -> str:
    """Tells whose value it is, and is of another length for each."""
    return f"{n}:" * (30 + 17 * n)


class Seen:
    """A cache over ``url`` whose every call asks the server, and what its calls gave."""

    def __init__(self, url: str, **options: Any) -> None:
        self.events: Counter[str] = Counter()
        self.errors: list[str] = []
        self.wrong: list[object] = []
        self.calls = 0
        self.loads = 0
        self.cache = cachekit.Cache(
            url,
            coherence="strict",
            breaker_failures=1_000_000,
            observers=[self._observe],
            **options,
        )

        @self.cache.cached(key="v:{n}", ttl=600, tags=["all"])
        def plain(n: int) -> str:
            self.loads += 1
            return value_of(n)

        @self.cache.cached(key="v:{n}", ttl=600, tags=["all"])
        async def asynchronous(n: int) -> str:
            self.loads += 1
            return value_of(n)

        self.plain = plain
        self.asynchronous = asynchronous

    def _observe(self, event: str, fields: object) -> None:
        self.events[event] += 1
        if event == "backend_errors":  # told while it is being handled
            error = sys.exception()
            self.errors.append(f"{error!r} from {error and error.__cause__!r}")

    def take(self, n: int, got: object) -> None:
        self.calls += 1
        if got != value_of(n):
            self.wrong.append((n, str(got)[:40]))

    def take_many(self, asked: list[int], got: dict[str, Any]) -> None:
        """Of ``get_many`` over the keys of the plain function."""
        names = {self.plain.key(n): n for n in asked}
        for name, value in got.items():
            self.take(names[name], value)

    def crowd(self, world: str, workers: int, turns: int) -> None:
        """Calls of many threads or tasks at once; what they raise is a wrong answer."""

        def choose(worker: int, turn: int) -> tuple[int, list[int]]:
            rng = random.Random(worker * 1000 + turn)
            return rng.randrange(KEYS), rng.sample(range(KEYS), 3)

        def work(worker: int) -> None:
            for turn in range(turns):
                n, some = choose(worker, turn)
                try:
                    self.take(n, self.plain(n))
                    self.take_many(some, self.cache.get_many(map(self.plain.key, some)))
                except Exception as error:
                    self.wrong.append(error)

        async def work_async(worker: int) -> None:
            for turn in range(turns):
                n, some = choose(worker, turn)
                try:
                    self.take(n, await self.asynchronous(n))
                    found = await self.cache.aio.get_many(map(self.plain.key, some))
                    self.take_many(some, found)
                except Exception as error:
                    self.wrong.append(error)

        async def run() -> None:
            await asyncio.gather(*map(work_async, range(workers)))
            await self.cache.aio.close()

        if world == "async":
            asyncio.run(run())
            return
        threads = [threading.Thread(target=work, args=(w,), daemon=True) for w in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads)


@pytest.mark.server
@pytest.mark.parametrize("world", ["plain", "async"])
@pytest.mark.parametrize("ways", [WHOLE, SPOILT], ids=["late-cut-reset", "corrupted"])
def test_p07_a_spoilt_reply_never_answers_another_call(
    server: Server, world: str, ways: tuple[Way, ...]
) -> None:
    with Tampering(server.port, ways, LATE) as proxy:
        url = server.url.replace(str(server.port), str(proxy.port))
        seen = Seen(url, timeout=T, namespace=f"{world}-{ways[0].__name__}")
        for n in range(KEYS):
            seen.plain(n)
        proxy.share = 0.15
        end = time.monotonic() + 20
        while min(proxy.counts[way.__name__] for way in ways) < 8 and time.monotonic() < end:
            seen.crowd(world, 8 if world == "plain" else 50, 6)
        proxy.share = 0.0
        assert min(proxy.counts[way.__name__] for way in ways) >= 8, proxy.counts
        assert seen.events["backend_errors"] >= 20  # they were noticed
        assert seen.wrong == []
        if ways is WHOLE:
            # An entry that was read for another key would be one that can not be read.
            assert seen.events["unreadable"] == 0
        if world == "plain":
            before = seen.cache.stats().far_hits
            seen.crowd(world, 4, 20)
            assert seen.cache.stats().far_hits > before + 60
            assert seen.wrong == []
        seen.cache.close()


@pytest.mark.server
@pytest.mark.parametrize("server", [RedisServer], indirect=True)  # Memcached's have no counts
@pytest.mark.parametrize("world", ["plain", "async"])
def test_p07_a_reply_of_a_wrong_count_moves_no_later_reply_to_another_call(
    server: Server, world: str
) -> None:
    with Tampering(server.port, (shorter,), LATE) as proxy:
        url = server.url.replace(str(server.port), str(proxy.port))
        seen = Seen(url, timeout=T, namespace=f"count-{world}")
        for n in range(KEYS):
            seen.plain(n)
        proxy.share = 0.15
        seen.crowd(world, 8 if world == "plain" else 50, 12)
        assert proxy.counts["shorter"] >= 10
        assert seen.events["backend_errors"] >= 5
        assert seen.wrong == []
        assert seen.events["unreadable"] == 0  # an entry that was read for another key
        seen.cache.close()


@pytest.mark.server
@pytest.mark.parametrize("server", [RedisServer], indirect=True)
@pytest.mark.parametrize("world", ["plain", "async"])
def test_p07_a_grant_whose_reply_was_lost_is_given_back_when_the_server_answers_again(
    server: Server, world: str
) -> None:
    away = threading.Event()
    heard = threading.Event()

    def lost(data: bytes, rng: random.Random, seconds: float) -> bytes:
        """The server grants the right to load and is away from then on."""
        if data == b":1\r\n" and not heard.is_set():
            heard.set()
            away.set()
        if away.is_set():
            raise Cut(b"", reset=False)
        return data

    async def calls() -> float:
        """The second call's seconds, when the first one's lease would last 10 s."""
        aio = seen.cache.aio
        assert await aio.get_or_set("k", lambda: 7) == 7
        await asyncio.sleep(0.8)
        away.clear()
        await asyncio.sleep(1.2)
        started = time.perf_counter()
        assert await aio.get_or_set("k", lambda: 7) == 7
        took = time.perf_counter() - started
        await aio.close(0.1)
        return took

    def plain_calls() -> float:
        assert seen.cache.get_or_set("k", lambda: 7) == 7
        time.sleep(0.8)
        away.clear()
        time.sleep(1.2)
        started = time.perf_counter()
        assert seen.cache.get_or_set("k", lambda: 7) == 7
        return time.perf_counter() - started

    with Tampering(server.port, (lost,), LATE) as proxy:
        url = server.url.replace(str(server.port), str(proxy.port))
        seen = Seen(url, timeout=T, namespace=f"grant-{world}")
        seen.plain(1)
        proxy.share = 1.0
        took = plain_calls() if world == "plain" else asyncio.run(calls())
        assert heard.is_set()
        assert took < 1.0
        seen.cache.close()


@pytest.mark.server
def test_p07_five_hundred_calls_cancelled_at_any_point_answer_nobody_else(server: Server) -> None:
    rng = random.Random(11)
    seen = Seen(server.url, timeout=5.0, namespace="cancel")
    points: Counter[str] = Counter()

    async def cancelled(turn: int) -> bool:
        """Cancel one call of some kind after some steps or some time; whether it was in flight."""
        n = rng.randrange(KEYS)
        aio = seen.cache.aio
        call: Any
        kind = rng.choice(("hit", "many", "miss", "set", "delete", "tag"))
        if kind == "hit":
            call = seen.asynchronous(n)
        elif kind == "many":
            call = aio.get_many([seen.plain.key(m) for m in rng.sample(range(KEYS), 5)])
        elif kind == "miss":
            call = seen.asynchronous(n + KEYS * (turn + 1))
        elif kind == "set":
            call = aio.set(f"own{n}", value_of(n), ttl=600)
        elif kind == "delete":
            call = aio.delete(seen.plain.key(n))
        else:
            call = aio.invalidate(tags=["bystander"])
        doomed = asyncio.ensure_future(call)
        if turn % 3:
            for _ in range(rng.randrange(9)):
                await asyncio.sleep(0)
        else:
            await asyncio.sleep(rng.random() * 0.001)
        doomed.cancel()
        others = [rng.randrange(KEYS) for _ in range(4)]
        got = await asyncio.gather(
            *map(seen.asynchronous, others), *(aio.get(f"own{m}") for m in others)
        )
        for m, value in zip(others, got, strict=False):
            seen.take(m, value)
        for m, value in zip(others, got[4:], strict=True):
            if value is not None:
                seen.take(m, value)
        await asyncio.wait([doomed])
        if not doomed.cancelled() and kind == "hit":
            seen.take(n, doomed.result())
        points[kind] += doomed.cancelled()
        return doomed.cancelled()

    async def main() -> int:
        await asyncio.gather(*map(seen.asynchronous, range(KEYS)))
        count = turn = 0
        end = time.monotonic() + 60
        while count < CANCELS and time.monotonic() < end:
            count += await cancelled(turn)
            turn += 1
        # Nothing that a cancelled call held is left in the way of the others for long.
        end = time.monotonic() + 5
        while time.monotonic() < end:
            before = seen.loads
            await asyncio.gather(*map(seen.asynchronous, range(KEYS)))
            if seen.loads == before:
                break
            await asyncio.sleep(0.05)
        else:
            raise AssertionError("some keys are not cached any more")
        await seen.cache.aio.close()
        return count

    assert asyncio.run(main()) == CANCELS
    assert min(points.values()) >= 30, points
    assert seen.wrong == []
    assert seen.calls >= 4 * CANCELS
    assert seen.events["unreadable"] == 0  # an entry that was read for another key
    assert seen.errors == []
    seen.cache.close()
