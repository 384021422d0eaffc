"""P71 and P72: who may read the files, and the numbers a person on call needs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cachekit import Cache, ReadThrough, RefreshAhead, WriteBack, WriteThrough
from cachekit.errors import CacheKitError, ConfigurationError
from cachekit.testing.servers import RedisServer

# -- P71 ---------------------------------------------------------------------------------


@pytest.fixture(params=[0o000, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def _modes(folder: Path) -> dict[str, str]:
    found = {}
    for base, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(base, name)
            found[str(path.relative_to(folder))] = oct(stat.S_IMODE(path.lstat().st_mode))
    return found


def _is_private(folder: Path, *expected: str) -> None:
    modes = _modes(folder)
    assert set(expected) <= set(modes), modes
    for name, mode in modes.items():
        assert mode == ("0o700" if (folder / name).is_dir() else "0o600"), (name, modes)


@contextlib.contextmanager
def _queueing(log: Path) -> Iterator[Cache]:
    """A cache with an invalidation that can not be told: nobody listens there."""
    cache = Cache("redis://127.0.0.1:1/0", replay_log=str(log), invalidation="replay", timeout=0.2)
    try:
        cache.invalidate(keys=["k"])
        yield cache
    finally:
        cache.close(timeout=0.01)


def test_a_cache_file_and_all_beside_it_are_private(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "one" / "two" / "cache.db"
    with Cache(f"sqlite:///{path}", timeout=5.0) as cache:
        cache.set("k", 1)
        assert cache.get("k") == 1
        _is_private(
            tmp_path,
            "one",
            "one/two",
            *(f"one/two/cache.db{suffix}" for suffix in ("", "-wal", "-shm", ".lock")),
        )
    _is_private(tmp_path, "one/two/cache.db")
    path.write_bytes(b"damaged " * 1000)
    with Cache(f"sqlite:///{path}", timeout=5.0) as cache:
        cache.set("k", 1)
        assert cache.get("k") == 1
    _is_private(tmp_path)
    assert any("corrupt" in name for name in _modes(tmp_path))


def test_a_replay_log_and_all_beside_it_are_private(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "one" / "two" / "replay.log"
    with _queueing(path) as cache:
        assert cache.stats().pending_invalidations == 1
        beside = [f"one/two/replay.log{suffix}" for suffix in ("", "-wal", "-shm")]
        _is_private(tmp_path, "one", "one/two", *beside)


@pytest.mark.parametrize("kind", ["cache", "replay log"])
def test_a_file_that_others_may_read_is_made_private(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    path.touch(0o666)
    path.chmod(0o666)
    tmp_path.chmod(0o700)
    _use(kind, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def _use(kind: str, path: Path) -> dict[str, int]:
    """Make the cache or the log write its file; what it counted."""
    if kind == "cache":
        with Cache(f"sqlite:///{path}", timeout=2.0) as cache:
            assert cache.get_or_set("k", lambda: 1) == 1
            return cache.stats().counts
    with _queueing(path) as cache:
        return cache.stats().counts


@pytest.mark.parametrize("dangling", [False, True])
@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        (kind, suffix)
        for kind in ("cache", "replay log")
        for suffix in ("", "-wal", "-shm", "-journal")
    ]
    + [("cache", ".lock")],
)
def test_symbolic_links_are_refused_and_what_they_name_untouched(
    tmp_path: Path, kind: str, suffix: str, dangling: bool
) -> None:
    victim = tmp_path / "victim"
    if not dangling:
        victim.write_bytes(b"precious")
    folder = tmp_path / "folder"
    folder.mkdir(0o700)
    (folder / f"file{suffix}").symlink_to(victim)
    link = folder / f"file{suffix}"
    errors = "backend_errors" if kind == "cache" else "replay_log_errors"
    with contextlib.suppress(ConfigurationError):
        counts = _use(kind, folder / "file")
        # Refused, or a leftover of no file: then it is taken away, not followed.
        if suffix != "-journal":  # in WAL mode nothing opens one
            assert counts.get(errors, 0) > 0 or not link.is_symlink()
    if dangling:
        assert not victim.exists()
    else:
        assert victim.read_bytes() == b"precious"


# -- P72 ---------------------------------------------------------------------------------


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


def _wait(condition: Callable[[], bool], seconds: float = 8.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture
def told() -> list[tuple[str, dict[str, Any]]]:
    return []


@pytest.fixture
def cache(redis_server: RedisServer, told: list[tuple[str, dict[str, Any]]]) -> Iterator[Cache]:
    with Cache(
        redis_server.url,
        namespace=f"p72-{uuid.uuid4().hex[:10]}",
        timeout=5.0,
        observers=[lambda name, fields: told.append((name, dict(fields)))],
    ) as made:
        yield made


def _other(cache: Cache, **options: Any) -> Cache:
    return Cache(cache.settings.url, namespace=cache.settings.namespace, timeout=5.0, **options)


def test_hits_are_counted_by_tier_and_misses_and_loads_with_their_time(cache: Cache) -> None:
    def load() -> int:
        time.sleep(0.02)
        return 1

    assert cache.get_or_set("k", load) == 1
    first = cache.stats()
    assert (first.hits, first.far_hits, first.misses, first.loads) == (0, 0, 1, 1)
    assert first.timings["load"]["count"] == 1
    assert first.timings["load"]["p50"] >= 0.02
    assert cache.get_or_set("k", load) == 1
    assert cache.stats().hits == 1
    with _other(cache) as other:
        assert other.get_or_set("k", load) == 1
        found = other.stats()
        assert (found.hits, found.far_hits, found.misses, found.loads) == (0, 1, 0, 0)
        assert found.hit_ratio == 1.0

        async def run() -> None:
            await other.aio.get_or_set("k", load)
            await other.aio.get_or_set("second", load)
            await other.aio.close()

        asyncio.run(run())
        found = other.stats()
        assert (found.hits, found.far_hits, found.misses, found.loads) == (1, 1, 1, 1)


def test_failed_loads_stale_values_and_their_renewal_are_counted(cache: Cache) -> None:
    fails = False

    def load(id: int) -> int:
        if fails:
            raise LookupError(id)
        return id

    read = ReadThrough(cache, load=load, key="r:{id}", ttl=0.05, grace=60)
    assert read.get(1) == 1
    fails = True
    time.sleep(0.06)
    assert read.get(1) == 1
    assert _wait(lambda: cache.stats().counts.get("refresh_failed", 0) == 1)
    assert cache.stats().stale_served == 1
    with pytest.raises(LookupError):
        read.get(2)
    assert cache.stats().load_errors >= 1


def test_waits_for_loads_of_others_are_counted_and_timed(cache: Cache) -> None:
    """How many callers waited, and how long: in this process and for another one."""
    loading, go = threading.Event(), threading.Event()

    def load() -> int:
        loading.set()
        assert go.wait(10)
        return 1

    with _other(cache) as other:
        callers = [threading.Thread(target=cache.get_or_set, args=("k", load)) for _ in range(3)]
        for caller in callers:
            caller.start()
        assert loading.wait(10)
        callers.append(threading.Thread(target=other.get_or_set, args=("k", lambda: 2)))
        callers[-1].start()
        time.sleep(0.3)
        go.set()
        for caller in callers:
            caller.join(10)
        here, there = cache.stats(), other.stats()
    assert here.counts.get("waits") == 2
    assert there.counts.get("waits") == 1
    assert here.timings["wait"]["p99"] >= 0.2


def test_invalidations_and_those_that_fail_are_counted(own_server: RedisServer) -> None:
    with Cache(own_server.url, timeout=0.5, invalidation="replay", breaker_failures=2) as cache:
        cache.invalidate(keys=["a", "b"], tags=["t"])
        assert cache.stats().invalidations == 3
        assert cache.stats().breaker == "closed"
        latency = cache.stats().timings
        assert sum(one["count"] for name, one in latency.items() if name != "load") >= 1
        assert all(one["p99"] > 0 for one in latency.values())
        own_server.kill()
        for key in ("c", "d", "e"):
            cache.invalidate(keys=[key])
        found = cache.stats()
        assert found.pending_invalidations == 3
        assert found.counts["invalidations_failed"] == 3
        assert found.counts["backend_errors"] >= 2
        assert found.breaker == "open"
        own_server.start()
        assert _wait(lambda: cache.stats().pending_invalidations == 0)
        assert cache.stats().counts["invalidations_replayed"] == 3
        assert cache.stats().breaker == "closed"


def test_the_opening_and_closing_of_the_breaker_is_told(own_server: RedisServer) -> None:
    """A state read now and then misses an outage between two looks."""
    told: list[str] = []
    with Cache(
        own_server.url,
        timeout=0.5,
        breaker_failures=2,
        breaker_reset=0.2,
        observers=[lambda name, fields: told.append(name)],
    ) as cache:
        own_server.kill()
        for n in range(3):
            cache.get_or_set(f"k{n}", lambda: 1)
        own_server.start()
        assert _wait(lambda: bool(cache.get_or_set("x", lambda: 1)) and _closed(cache))
    assert "breaker_opened" in told
    assert "breaker_closed" in told


def _closed(cache: Cache) -> bool:
    return cache.stats().breaker == "closed"


def test_failed_backend_calls_are_timed_too(own_server: RedisServer) -> None:
    """During an outage the latency that callers pay is that of the calls that fail."""
    with Cache(own_server.url, timeout=0.2, breaker_failures=100) as cache:
        cache.get_or_set("k", lambda: 1)
        own_server.pause()
        try:
            before = cache.stats().timings
            for n in range(3):
                cache.get_or_set(f"k{n}", lambda: 1)
            after = cache.stats().timings
        finally:
            own_server.resume()
        slow = {name: one["p99"] for name, one in after.items() if name != "load"}
        assert max(slow.values()) >= 0.15, (before, after)


def test_the_bus_tells_its_state_and_lag(
    cache: Cache, told: list[tuple[str, dict[str, Any]]]
) -> None:
    cache.get_or_set("k", lambda: 1)
    assert _wait(lambda: cache.stats().coherence == "push")
    assert "bus_joined" in [name for name, _ in told]
    with _other(cache) as other:
        other.invalidate(keys=["k"])
    assert _wait(lambda: cache.stats().counts.get("bus_notes", 0) >= 1)
    assert _wait(lambda: cache.stats().timings.get("bus_lag", {}).get("count", 0) >= 1)


def test_write_back_tells_depth_age_batches_retries_and_dead_letters(
    cache: Cache, told: list[tuple[str, dict[str, Any]]]
) -> None:
    gate, rows = threading.Event(), dict[int, int]()
    tries: list[int] = []

    def store_many(values: dict[int, int]) -> None:
        assert gate.wait(10)
        tries.append(len(values))
        if len(tries) == 1:
            raise ConnectionError("the source is away")
        if 3 in values:
            raise ValueError("a poison record")
        rows.update(values)

    back = WriteBack(cache, store_many=store_many, key="b:{id}", log="memory", delay=0.01, batch=10)
    for n in range(5):
        back.put(n, n)
    time.sleep(0.25)
    found = cache.stats()
    assert found.unwritten == 5
    assert found.oldest_unwritten is not None
    assert 0.2 <= found.oldest_unwritten < 10
    gate.set()
    assert _wait(lambda: cache.stats().unwritten == 0, 20.0)
    found = cache.stats()
    assert found.oldest_unwritten is None
    assert found.counts["retries"] >= 1
    assert found.counts["batch_failures"] >= 1
    assert found.counts["writes_applied"] == 4
    assert found.dead_letters == 1
    assert found.timings["batch_size"]["count"] >= 1
    assert "dead_letters" in [name for name, _ in told]
    assert rows == {n: n for n in range(5) if n != 3}


def test_a_refused_store_of_a_late_owner_is_counted(cache: Cache) -> None:
    with _other(cache) as other:

        def load() -> int:
            other.invalidate(keys=["k"])
            return 1

        assert cache.get_or_set("k", load) == 1
    assert cache.stats().counts["fills_refused"] == 1


def test_batch_sizes_are_told_as_numbers(cache: Cache) -> None:
    """Not in seconds: a batch of 7 has to read as about 7."""
    back = WriteBack(
        cache, store_many=lambda rows: None, key="s:{id}", log="memory", delay=0.05, batch=50
    )
    back.put_many({n: n for n in range(7)})
    back.flush(5.0)
    sizes = cache.stats().timings["batch_size"]
    assert sizes["count"] == 1
    assert sizes["mean"] == 7
    assert 6.9 <= sizes["p50"] <= 7.7


def test_an_observer_that_raises_or_hangs_on_to_nothing_breaks_no_call(
    redis_server: RedisServer,
) -> None:
    def broken(name: str, fields: Any) -> None:
        raise RuntimeError(name)

    with Cache(redis_server.url, namespace=uuid.uuid4().hex, observers=[broken]) as cache:
        through = WriteThrough(
            cache, load=lambda id: id, store=lambda id, row: None, key="o:{id}", ttl=60
        )
        ahead = RefreshAhead(cache, load=lambda id: object(), key="p:{id}", ttl=60)
        assert ahead.get(1) is not None  # refused by the codec: an event
        through.put(1, 1)
        assert cache.stats().counts["observer_errors"] >= 1
        with contextlib.suppress(CacheKitError):
            cache.set("k", object())
