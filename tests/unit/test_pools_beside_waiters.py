"""Whoever waits for a connection hears of each place that comes free, in whatever way."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from cachekit import Cache
from cachekit.backends.pool import Pool, Right
from cachekit.backends.redis import blocking
from cachekit.backends.redis.wire import Address, Login
from cachekit.core.deadline import Deadline
from cachekit.schedules.scheduler import AFTER_FORK

LONG = 5.0
SLOW = 0.1


class Link:
    """A connection that is always ready."""


class Slowly(weakref.WeakSet[Any]):
    """Between its steps others come to theirs."""

    def add(self, item: Any) -> None:
        super().add(item)
        if isinstance(item, Link):
            time.sleep(SLOW)

    def discard(self, item: Any) -> None:
        time.sleep(SLOW)
        super().discard(item)


def pool_of(limit: int, connect: Callable[[], Link]) -> Pool[Link]:
    pool = Pool(
        lambda deadline: connect(),
        lambda link: None,
        limit=limit,
        ready=lambda link, deadline: True,
    )
    pool._alive = Slowly()
    return pool


class User(threading.Thread):
    """Uses the pool for ``seconds``; ``took``: how long it waited, None = in vain."""

    def __init__(self, pool: Pool[Link], seconds: float = 0.0) -> None:
        super().__init__(daemon=True)
        self.pool, self.seconds, self.inside = pool, seconds, threading.Event()
        self.took: float | None = None
        self.start()

    def run(self) -> None:
        began = time.monotonic()

        def step(link: Link) -> None:
            self.took = time.monotonic() - began
            self.inside.set()
            time.sleep(self.seconds)

        try:
            self.pool.use(Deadline(LONG, time.monotonic), step)
        except (TimeoutError, ConnectionError):
            return


def until(there: Callable[[], object]) -> None:
    end = time.monotonic() + LONG
    while not there():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_connect_that_fails_leaves_its_place_to_who_waits() -> None:
    fails = threading.Event()

    def connect() -> Link:
        if not fails.is_set():
            fails.wait(LONG)
            raise ConnectionError
        return Link()

    pool = pool_of(1, connect)
    User(pool)
    until(lambda: len(pool._alive))
    waits = User(pool)
    until(lambda: pool._free._waiting)
    fails.set()
    waits.join(2 * LONG)
    assert waits.took is not None
    assert waits.took < LONG / 2


def test_one_that_is_being_opened_is_counted_once() -> None:
    pool = pool_of(2, Link)
    first = User(pool, LONG)
    time.sleep(SLOW / 2)
    second = User(pool)
    second.join(2 * LONG)
    assert second.took is not None
    assert second.took < LONG / 2
    assert first.inside.is_set()


def test_what_is_closed_idle_makes_room_for_who_waits() -> None:
    pool = pool_of(1, Link)
    holder = User(pool, LONG)
    assert holder.inside.wait(LONG)
    waits = User(pool)
    until(lambda: pool._free._waiting)
    pool._idle += list(pool._alive)  # given back when nobody was seen to wait
    pool.close_idle()
    waits.join(2 * LONG)
    assert waits.took is not None
    assert waits.took < LONG / 2


def test_one_of_redis_that_is_being_opened_is_counted_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blocking, "Connection", lambda *given: Link())
    pool = blocking.Pool(Address("127.0.0.1", 1), Login(max_connections=2))
    pool._alive = Slowly()
    opener = threading.Thread(target=lambda: pool.take(time.monotonic() + LONG), daemon=True)
    opener.start()
    until(lambda: any(isinstance(one, Link) for one in list(pool._alive)))
    assert isinstance(pool.reserve(time.monotonic() + LONG / 2), Right)
    opener.join(LONG)


def test_the_thread_of_a_scheduler_ends_with_its_cache_in_a_forked_child_too() -> None:
    cache = Cache()
    cache.schedule(tags=["t"], every=3600)
    plans = cache._scheduler
    assert plans is not None
    before = plans._thread
    plans._after_fork()
    after = plans._thread
    assert before is not None
    assert after is not None
    time.sleep(AFTER_FORK + SLOW)
    changed = plans._changed
    until(lambda: changed._waiting)  # for the next firing, in an hour
    del cache, plans
    gc.collect()
    for thread in (before, after):
        thread.join(LONG)
        assert not thread.is_alive()
