"""P02-P05: connects that never complete, ports that never answer, the breaker and strict mode,
through every verb in both worlds."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from stage import WORLDS

from cachekit import Cache
from cachekit.errors import BackendError
from cachekit.testing.servers import MemcachedServer, RedisServer, Server, ServerMissing

T = 0.25
BOUND = 2 * T + 0.15
HEALS_WITHIN = 10.0


@contextlib.contextmanager
def own(kind: str) -> Iterator[Server]:
    """A server of the test's own, to be killed and frozen."""
    server: Server = RedisServer() if kind == "redis" else MemcachedServer()
    try:
        server.start()
    except ServerMissing as missing:
        if os.environ.get("CACHEKIT_REQUIRE_SERVERS") == "1":
            pytest.fail(str(missing))
        pytest.skip(str(missing))
    with server:
        yield server


class Caller:
    """Calls through a cache in one world, timed. The near tier is out of the way."""

    def __init__(self, world: str, url: str, **options: Any) -> None:
        self.cache = Cache(url, timeout=T, coherence="strict", namespace="p01", **options)
        self.runner = asyncio.Runner() if world == "async" else None
        self.loads = 0

    def _load(self) -> str:
        self.loads += 1
        return "from the source"

    def _timed(
        self, plain: Callable[[], Any], asynchronous: Callable[[], Any]
    ) -> tuple[Any, float]:
        began = time.monotonic()
        value = plain() if self.runner is None else self.runner.run(asynchronous())
        return value, time.monotonic() - began

    def load(self, key: str) -> tuple[Any, float]:
        cache = self.cache
        return self._timed(
            lambda: cache.get_or_set(key, self._load, ttl=60),
            lambda: cache.aio.get_or_set(key, self._load_async, ttl=60),
        )

    async def _load_async(self) -> str:
        return self._load()

    def get(self, key: str) -> tuple[Any, float]:
        return self._timed(lambda: self.cache.get(key), lambda: self.cache.aio.get(key))

    def set(self, key: str) -> tuple[Any, float]:
        return self._timed(
            lambda: self.cache.set(key, "v", ttl=60), lambda: self.cache.aio.set(key, "v", ttl=60)
        )

    def hits_again(self, key: str) -> float:
        """Seconds until a second call of a key is a hit of the server."""
        began = time.monotonic()
        while time.monotonic() - began < HEALS_WITHIN + 5:
            self.load(key)
            before = self.loads
            self.load(key)
            if self.loads == before:
                return time.monotonic() - began
            time.sleep(0.05)
        return float("inf")

    def close(self) -> None:
        if self.runner is not None:
            self.runner.run(self.cache.aio.close())
            self.runner.close()
        self.cache.close()


@contextlib.contextmanager
def _calling(world: str, url: str, **options: Any) -> Iterator[Caller]:
    caller = Caller(world, url, **options)
    try:
        yield caller
    finally:
        caller.close()


def _six_calls_fall_through(caller: Caller) -> None:
    for n in range(6):
        value, took = caller.load("warm" if n % 2 else f"cold {n}")
        assert value == "from the source"
        assert took < BOUND, f"call {n} took {took:.3f} s"
    value, took = caller.get("warm")
    assert value is None
    assert took < BOUND
    _, took = caller.set("warm")
    assert took < BOUND


@contextlib.contextmanager
def _black_hole() -> Iterator[int]:
    """A port that accepts, reads, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken: list[socket.socket] = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(listener.accept()[0])

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            for connection in taken:
                connection.close()


@contextlib.contextmanager
def _no_connect() -> Iterator[int]:
    """A port whose queue of connections is full: a connect never completes."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port: int = listener.getsockname()[1]
        for _ in range(8):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        time.sleep(0.05)
        yield port


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("kind", ["redis", "memcached"])
@pytest.mark.parametrize("hole", [_black_hole, _no_connect], ids=["silent", "no-connect"])
def test_p02_p03_a_black_hole_costs_no_more_than_the_budget(
    kind: str, world: str, hole: Callable[[], Any]
) -> None:
    with hole() as port, _calling(world, f"{kind}://127.0.0.1:{port}") as caller:
        _six_calls_fall_through(caller)


@pytest.mark.parametrize("world", WORLDS)
def test_p03_with_default_options_no_call_adds_more_than_a_second(world: str) -> None:
    with _no_connect() as port:
        caller = Caller(world, f"redis://127.0.0.1:{port}")
        caller.cache.close()
        caller.cache = Cache(f"redis://127.0.0.1:{port}")
        for n in range(3):
            value, took = caller.load(f"k{n}")
            assert value == "from the source"
            assert took < 1.0
        caller.close()


@pytest.mark.parametrize("world", WORLDS)
def test_p04_the_open_breaker_costs_next_to_nothing_and_closes_by_itself(world: str) -> None:
    with own("redis") as server, _calling(world, server.url, breaker_reset=1.0) as caller:
        caller.load("warm")
        server.pause()
        for n in range(8):
            caller.load(f"k{n}")
        assert caller.cache.stats().breaker == "open"
        took = [caller.load(f"k{n}")[1] for n in range(40)]
        # One probe a second may spend the budget; 95 % of the calls do not.
        assert statistics.quantiles(took, n=20)[-1] < 0.010, sorted(took)[-4:]
        server.resume()
        assert caller.hits_again("healed") < 1.0 + 3.0
        assert caller.cache.stats().breaker == "closed"


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("kind", ["redis", "memcached"])
@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_p05_strict_raises_one_error_type_within_the_budget(
    kind: str, how: str, world: str
) -> None:
    with own(kind) as server, _calling(world, server.url, strict=True) as caller:
        caller.load("warm")
        if how == "killed":
            server.kill()
        else:
            server.pause()
        for n in range(8):
            for call in (caller.load, caller.get, caller.set):
                began = time.monotonic()
                with pytest.raises(BackendError):
                    call(f"k{n}")
                assert time.monotonic() - began < BOUND
        assert caller.loads == 1
        if how == "frozen":
            server.resume()
