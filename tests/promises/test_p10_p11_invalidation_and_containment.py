"""P10: a failed invalidation raises or is replayed. P11: whatever a driver raises is contained."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from stage import WORLDS, Opener, Stage
from test_p02_p05_no_connect_and_strict import BOUND, HEALS_WITHIN, own

from cachekit import Cache, InvalidationFailed, WriteThrough
from cachekit.backends.memory import MemoryBackend
from cachekit.errors import BackendError

STEPS = {
    "key": lambda face: face.invalidate(keys=["k"]),
    "tag": lambda face: face.invalidate(tags=["t"]),
    "clear": lambda face: face.clear(),
    "delete": lambda face: face.delete("k"),
}


def _do(cache: Cache, world: str, step: str) -> None:
    if world == "plain":
        STEPS[step](cache)
        return

    async def once() -> None:
        try:
            await STEPS[step](cache.aio)
        finally:
            await cache.aio.close()

    asyncio.run(once())


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("step", STEPS)
def test_p10_an_invalidation_that_failed_raises_and_says_what_to_do(step: str, world: str) -> None:
    with own("redis") as server, Cache(server.url, timeout=0.25) as cache:
        cache.set("k", "old", tags=["t"])
        server.kill()
        began = time.monotonic()
        with pytest.raises(InvalidationFailed, match="replay") as caught:
            _do(cache, world, step)
        assert time.monotonic() - began < BOUND
        assert isinstance(caught.value, BackendError)
        assert cache.get("k") is None, "in this process it is gone all the same"
        server.start()


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("step", STEPS)
def test_p10_with_replay_the_old_value_is_gone_everywhere_after_healing(
    step: str, world: str
) -> None:
    with own("redis") as server:
        options: dict[str, Any] = {"timeout": 0.25, "namespace": "p10"}
        with (
            Cache(server.url, invalidation="replay", **options) as cache,
            Cache(server.url, coherence="strict", **options) as elsewhere,
        ):
            cache.set("k", "old", tags=["t"])
            assert elsewhere.get("k") == "old"
            server.pause()  # frozen, so that it comes back with all it had
            began = time.monotonic()
            _do(cache, world, step)
            assert time.monotonic() - began < BOUND
            assert cache.stats().pending_invalidations > 0
            assert cache.get("k") is None
            server.resume()
            healed = time.monotonic()
            # This process is idle: the replay must not wait for one of its reads.
            while elsewhere.get("k") == "old":
                assert time.monotonic() - healed < HEALS_WITHIN
                time.sleep(0.05)
            while cache.stats().pending_invalidations:
                assert time.monotonic() - healed < HEALS_WITHIN
                time.sleep(0.05)


def test_p10_p58_a_write_with_the_server_away_succeeds_as_pending_and_is_seen_after_healing() -> (
    None
):
    rows = {1: "old"}
    with own("redis") as server:
        made = [
            WriteThrough(
                Cache(server.url, timeout=0.25, namespace="p58", coherence=coherence),
                key="row:{id}", ttl=60, load=rows.get, store=rows.__setitem__,
            )
            for coherence in (1.0, "strict")
        ]  # fmt: skip
        here, elsewhere = made
        assert [here.get(1), elsewhere.get(1)] == ["old", "old"]
        server.pause()
        written = here.put(1, "new")
        assert written.pending
        assert rows[1] == "new"
        assert here.get(1) == "new"
        server.resume()
        healed = time.monotonic()
        while elsewhere.get(1) == "old":
            assert time.monotonic() - healed < HEALS_WITHIN
            time.sleep(0.05)
        assert elsewhere.get(1) == "new"
        for each in made:
            assert isinstance(each._cache, Cache)
            each._cache.close()


def test_p10_strict_refuses_the_write_before_the_source_is_touched() -> None:
    rows = {1: "old"}
    with own("redis") as server, Cache(server.url, timeout=0.25, strict=True) as cache:
        strategy = WriteThrough(
            cache, key="row:{id}", load=rows.get, store=rows.__setitem__, delete=rows.__delitem__
        )
        server.kill()
        with pytest.raises(BackendError):
            strategy.put(1, "new")
        with pytest.raises(BackendError):
            strategy.delete(1)
        assert rows == {1: "old"}


def test_p10_an_invalidation_queued_just_as_the_replay_ends_is_replayed_too() -> None:
    """The replaying thread looks, finds nothing, and is about to go: who comes then must not
    take it for still at work."""
    backend = MemoryBackend()
    cache = Cache(backend=backend, invalidation="replay")
    invalidator = cache.parts.invalidator
    real = invalidator._replaying

    class LateGuest:
        done = False

        def acquire(self, blocking: bool = True) -> bool:
            return real.acquire(blocking=blocking)

        def release(self) -> None:
            if not self.done:
                self.done = True
                invalidator.postpone([("key", "late")])
            real.release()

    invalidator._replaying = LateGuest()  # type: ignore[assignment]
    invalidator.postpone([("key", "first")])
    end = time.monotonic() + 5
    while len(invalidator.pending) and time.monotonic() < end:
        time.sleep(0.02)
    assert not len(invalidator.pending)
    cache.close()


class _Raising:
    """A memory backend whose reads and steps raise what they are told."""

    shared, bus, log = False, None, None

    def __init__(self) -> None:
        self.name = "raising"
        self.inner = MemoryBackend()
        self.error: BaseException | None = None

    def open(self, world: Any) -> Any:
        store = self.inner.open(world)
        return _Proxy(store, self, {"slots": _Proxy(store.slots, self, {})})


class _Proxy:
    def __init__(self, thing: Any, owner: _Raising, own: dict[str, Any]) -> None:
        self._thing, self._owner = thing, owner
        self.__dict__.update(own)

    def __getattr__(self, name: str) -> Any:
        verb = getattr(self._thing, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            if self._owner.error is not None and name != "close":
                raise self._owner.error
            return await verb(*args, **kwargs)

        return call


class Odd(Exception):
    pass


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(
    "error",
    [ValueError("x"), RecursionError(), MemoryError(), Odd(), KeyError("k"), OSError(5, "io"),
     StopIteration("from a driver"), UnicodeDecodeError("utf-8", b"x", 0, 1, "bad")],
    ids=lambda e: type(e).__name__,
)  # fmt: skip
def test_p11_whatever_a_driver_raises_the_caller_gets_the_value(
    world: str, error: Exception
) -> None:
    backend = _Raising()
    cache = Cache(backend=backend)  # type: ignore[arg-type]
    stage = Stage(world, Opener("embedded", None))
    stage.open.caches.append(cache)

    async def body() -> None:
        face = stage.face(cache)
        backend.error = error
        for n in range(8):
            assert await face.get_or_set(f"k{n}", stage.source(lambda: "v"), ttl=60) == "v"
            assert await face.get(f"other {n}") is None
            await face.set(f"set {n}", 1)
        with pytest.raises(InvalidationFailed) as caught:
            await face.delete("k1")
        assert isinstance(caught.value, BackendError)
        backend.error = None

    stage.play(body)
    cache.close()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_p11_interrupts_pass_are_not_retried_and_do_not_count_as_failures(
    error: type[BaseException],
) -> None:
    backend = _Raising()
    with Cache(backend=backend, breaker_failures=1) as cache:  # type: ignore[arg-type]
        backend.error = error()
        for n in range(3):
            with pytest.raises(error):
                cache.get_or_set(f"k{n}", lambda: 1)
        assert cache.stats().breaker == "closed"
        assert cache.stats().counts.get("backend_errors", 0) == 0
        backend.error = None
        done = threading.Event()
        threading.Thread(
            target=lambda: (cache.get_or_set("k0", lambda: 1), done.set()), daemon=True
        ).start()
        assert done.wait(5), "the interrupted key hangs"


def test_p11_cancellation_passes_and_does_not_count_as_a_failure() -> None:
    backend = _Raising()

    async def main() -> None:
        cache = Cache(backend=backend, breaker_failures=1)  # type: ignore[arg-type]
        backend.error = asyncio.CancelledError()

        async def load() -> int:
            raise AssertionError("not reached")

        with pytest.raises(asyncio.CancelledError):
            await cache.aio.get_or_set("k", load)
        assert cache.stats().breaker == "closed"
        backend.error = None
        cache.close()

    asyncio.run(main())
