"""``cache.schedule`` and ``cache.follow``: the doors to schedules and feeds."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cachekit import Cache
from cachekit.errors import ConfigurationError
from cachekit.testing.servers import RedisServer

EVERY = 0.1


def _until(holds: Callable[[], object], seconds: float = 8.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.01)


def _threads() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if t.name == "cachekit-schedules"}


@pytest.fixture(params=["embedded", "redis"])
def two(request: pytest.FixtureRequest) -> Iterator[tuple[Cache, Cache]]:
    """A cache to plan and follow with, and one that sees what becomes of it: the same one where
    there is no far tier."""
    if request.param == "embedded":
        with Cache() as cache:
            yield cache, cache
        return
    server: RedisServer = request.getfixturevalue("redis_server")
    options: dict[str, Any] = {"namespace": f"doors-{request.node.name}", "timeout": 3.0}
    with (
        Cache(server.url, **options) as cache,
        Cache(server.url, coherence="strict", **options) as other,
    ):
        yield cache, other


# -- schedule ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "left"),
    [
        ({"keys": ["k"]}, {"tagged", "other"}),
        ({"tags": lambda: ["t"]}, {"k", "other"}),
        ({"everything": True}, set()),
    ],
)
def test_a_schedule_invalidates_what_it_names_each_time(
    two: tuple[Cache, Cache], what: dict[str, Any], left: set[str]
) -> None:
    cache, other = two
    names = ["k", "tagged", "other"]
    schedule = cache.schedule(every=EVERY, name="often", **what)
    for _ in range(2):
        other.set_many({"k": 1, "other": 1}, ttl=60)
        other.set("tagged", 1, ttl=60, tags=["t"])
        _until(lambda: set(other.get_many(names)) <= left)
        fired = cache.stats().counts.get("schedule_fired", 0)
        _until(lambda fired=fired: cache.stats().counts.get("schedule_fired", 0) > fired)
        if left:
            assert set(other.get_many(names)) == left
    assert schedule.next is not None
    schedule.cancel()
    assert schedule.next is None
    time.sleep(3 * EVERY)  # one that was under way
    other.set("k", 1, ttl=60)
    time.sleep(2 * EVERY)
    assert other.get("k") == 1


def test_a_closed_cache_plans_nothing_and_its_thread_is_gone(two: tuple[Cache, Cache]) -> None:
    before, (cache, _) = _threads(), two
    first, second = (
        cache.schedule(keys=["k"], every="10m"),
        cache.schedule(tags=["t"], at="03:00", tz="Europe/Berlin"),
    )
    assert len(_threads() - before) == 1
    assert first.next is not None
    assert second.next is not None
    cache.close()
    _until(lambda: not _threads() - before)
    with pytest.raises(ConfigurationError, match="closed"):
        cache.schedule(keys=["other"], every="10m")


def test_no_schedule_no_thread() -> None:
    before = _threads()
    with Cache() as cache:
        cache.set("k", 1)
        with pytest.raises(ConfigurationError, match="keys"):
            cache.schedule(every="10m")
        assert not _threads() - before


def test_the_thread_of_a_cache_that_was_dropped_ends_soon() -> None:
    before = _threads()
    cache = Cache()
    cache.schedule(keys=["k"], every="10m")
    time.sleep(0.05)  # it sleeps now, for 30 s if nobody wakes it
    assert _threads() - before
    del cache
    gc.collect()
    _until(lambda: not _threads() - before, 3.0)


# -- follow --------------------------------------------------------------------------------------


class Bell:
    """A feed: whoever rings it makes tags outdated."""

    def __init__(self) -> None:
        self.caches: list[Any] = []

    def attach(self, cache: Any) -> Callable[[], None]:
        self.caches.append(cache)
        return lambda: self.caches.remove(cache) if cache in self.caches else None

    def ring(self, *tags: str) -> None:
        for cache in self.caches:
            cache.invalidate(tags=tags)


def test_a_feed_is_given_the_cache_until_it_is_ended(two: tuple[Cache, Cache]) -> None:
    cache, other = two
    bell = Bell()
    stop = cache.follow(bell)
    assert bell.caches == [cache]
    other.set("k", 1, tags=["row:1"])
    bell.ring("row:1")
    assert other.get("k") is None
    stop()
    stop()
    other.set("k", 2, tags=["row:1"])
    bell.ring("row:1")
    assert other.get("k") == 2


def test_the_sessions_of_sqlalchemy_are_followed(two: tuple[Cache, Cache]) -> None:
    sa = pytest.importorskip("sqlalchemy")
    orm = pytest.importorskip("sqlalchemy.orm")
    from cachekit.feeds.sqlalchemy import session_feed

    base: Any = orm.declarative_base()

    class Note(base):  # type: ignore[misc]  # a class made at run time
        __tablename__ = "note"
        id = sa.Column(sa.Integer, primary_key=True)
        text = sa.Column(sa.String)

    engine = sa.create_engine("sqlite://", poolclass=sa.pool.StaticPool)
    base.metadata.create_all(engine)
    make = orm.sessionmaker(engine)
    cache, other = two
    stop = cache.follow(session_feed(make, lambda row, change: [f"note:{row.id}"]))
    with make.begin() as session:
        session.add(Note(id=1, text="old"))
    other.set("note 1", "old", tags=["note:1"])
    other.set("note 2", "two", tags=["note:2"])
    with make.begin() as session:
        session.get(Note, 1).text = "new"
        session.flush()
        assert other.get("note 1") == "old"  # not before the commit
    assert other.get("note 1") is None
    assert other.get("note 2") == "two"
    stop()
    other.set("note 1", "new", tags=["note:1"])
    with make.begin() as session:
        session.get(Note, 1).text = "newer"
    assert other.get("note 1") == "new"
    engine.dispose()
