"""P32: losing the server's memory, or clocks that disagree, can only cost misses."""

from __future__ import annotations

import random
import time

import pytest

import cachekit
from cachekit.runtime import Runtime
from cachekit.testing.servers import RedisServer


def flush(server: RedisServer) -> None:
    import socket

    with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
        connection.sendall(b"FLUSHALL\r\n")
        assert connection.recv(100) == b"+OK\r\n"


@pytest.mark.parametrize("seed", range(3))
def test_flushes_between_reads_and_invalidations_never_bring_an_old_value_back(seed: int) -> None:
    draw = random.Random(seed)
    source = dict.fromkeys(range(4), 0)
    with RedisServer() as server:
        caches = [
            cachekit.Cache(server.url, namespace="p32", timeout=2.0, coherence="strict")
            for _ in range(2)
        ]

        def reader(cache: cachekit.Cache, n: int) -> int:
            return cache.get_or_set(f"k{n}", lambda: source[n], ttl=600, tags=[f"t{n % 2}"])

        for _ in range(400):
            n, cache = draw.randrange(4), draw.choice(caches)
            step = draw.random()
            if step < 0.1:
                flush(server)
            elif step < 0.3:
                source[n] += 1
                cache.invalidate(tags=[f"t{n % 2}"])
                continue
            assert reader(cache, n) == source[n]
        for cache in caches:
            cache.close()


@pytest.mark.parametrize("skew", [-600.0, 600.0])
def test_ten_minutes_between_two_clocks_never_lengthen_a_life(
    redis_server: RedisServer, skew: float
) -> None:
    space = f"p32-{time.monotonic_ns()}"
    mine = cachekit.Cache(redis_server.url, namespace=space, timeout=2.0, coherence="strict")
    theirs = cachekit.Cache(
        redis_server.url,
        namespace=space,
        timeout=2.0,
        coherence="strict",
        runtime=Runtime(wall=lambda: time.time() + skew),
    )
    loads: list[str] = []

    def load(who: str) -> str:
        loads.append(who)
        return who

    assert theirs.get_or_set("k", lambda: load("theirs"), ttl=300, tags=["t"]) == "theirs"
    found = mine.get_or_set("k", lambda: load("mine"), ttl=300, tags=["t"])
    # Either a hit within its true life, or a miss: a clock ahead of mine is not believed.
    assert found in ("theirs", "mine")
    assert (found == "mine") == (loads == ["theirs", "mine"])
    theirs.invalidate(tags=["t"])
    assert mine.get_or_set("k", lambda: load("again"), ttl=300, tags=["t"]) == "again"
    mine.close()
    theirs.close()
