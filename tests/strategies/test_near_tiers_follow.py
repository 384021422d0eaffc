"""Near tiers of two processes over one backend: what one invalidates the other drops."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from stage import Rows, Stage
from steps import STEPS

from cachekit import Cache, CacheKitError
from cachekit.errors import InvalidationFailed
from cachekit.testing.servers import RedisServer


async def _joined(stage: Stage, cache: Cache) -> None:
    """Its near copies are kept for their whole life from here on."""
    await stage.face(cache).get_or_set("warm", lambda: 1)
    await stage.until(lambda: cache.stats().coherence == "push", "the bus never joined")


@pytest.mark.parametrize("step", [s for s in STEPS if "discovered" not in s])
@pytest.mark.parametrize("word", ["cache-aside", "write-through", "write-around", "write-back"])
def test_whatever_one_process_invalidates_the_other_drops(
    shared_stage: Stage, word: str, step: str
) -> None:
    stage, rows = shared_stage, Rows({1: "old", 2: "two"})
    options = {"tags": ["row:{id}"], "wait": 0.05}
    actor = stage.make(word, rows, cache=stage.open(coherence="push"), **options)
    other = stage.open(coherence="push")
    reader = stage.make("read-through", rows, cache=other, **options)

    async def body() -> None:
        await _joined(stage, other)
        face = stage.face(reader)
        assert await face.get(1) == "old"
        assert await face.get(1) == "old"
        await STEPS[step](stage, actor, rows)
        new, began = rows.rows.get(1), time.monotonic()
        while await face.get(1) != new:
            assert time.monotonic() - began < 3.0, "it never followed"
            await asyncio.sleep(0.005)
        assert [await face.get(1) for _ in range(3)] == [new] * 3

    stage.play(body)


def test_a_near_copy_nobody_invalidates_outlives_the_bound(shared_stage: Stage) -> None:
    stage, rows = shared_stage, Rows({1: "row"})
    cache = stage.open(coherence="push")
    reader = stage.make("read-through", rows, cache=cache)

    async def body() -> None:
        await _joined(stage, cache)
        await stage.face(reader).get(1)
        await asyncio.sleep(1.3)
        far_hits = cache.stats().far_hits
        assert await stage.face(reader).get(1) == "row"
        assert cache.stats().far_hits == far_hits
        assert cache.stats().coherence == "push"

    stage.play(body)


def test_with_tracking_a_foreign_client_is_followed_too(redis_server: RedisServer) -> None:
    redis = pytest.importorskip("redis")
    foreign = redis.Redis.from_url(redis_server.url)
    with Cache(f"{redis_server.url}?bus=tracking", namespace="tracked", timeout=2.0) as cache:
        values = iter(range(100))

        def read() -> int:
            return cache.get_or_set("k", lambda: next(values), ttl=60)

        began = time.monotonic()
        while cache.stats().coherence != "push" and time.monotonic() - began < 5:
            read()
            time.sleep(0.02)
        first = read()
        time.sleep(0.3)  # our own fills are heard of, too
        assert read() == first
        for name in foreign.scan_iter("{tracked:*}:k"):
            foreign.delete(name)
        began = time.monotonic()
        while read() == first:
            assert time.monotonic() - began < 2.0
            time.sleep(0.005)


# -- events --------------------------------------------------------------------------------


@dataclass
class Paid:
    user: int


@dataclass
class PaidInFull(Paid):
    amount: int = 0


class Unsendable:
    def __init__(self) -> None:
        self.socket = object()


@pytest.fixture
def caches(redis_server: RedisServer, request: pytest.FixtureRequest) -> Iterator[Any]:
    opened: list[Cache] = []

    def make(**options: Any) -> Cache:
        name = f"events-{id(opened)}"
        opened.append(Cache(redis_server.url, **{"namespace": name, "timeout": 2.0, **options}))
        return opened[-1]

    yield make
    for cache in opened:
        cache.close()


def _follows(cache: Cache) -> None:
    """Wait until its follower has its position: events from before are not delivered."""
    time.sleep(0.3)


def _until_gone(cache: Cache, key: str, seconds: float = 3.0) -> None:
    began = time.monotonic()
    while cache.get(key) is not None:
        assert time.monotonic() - began < seconds, "the event never came"
        time.sleep(0.01)


@pytest.mark.parametrize("event", [Paid(7), PaidInFull(7, 5)])
def test_an_event_reaches_the_maps_of_another_process(caches: Any, event: Paid) -> None:
    sender, receiver = caches(), caches(coherence="strict")
    receiver.on(Paid, lambda e: [f"user:{e.user}"])
    if type(event) is PaidInFull:
        receiver.on(PaidInFull, lambda e: [f"amount:{e.amount}"])
    _follows(receiver)
    receiver.set("profile 7", 7, tags=["user:7"])
    receiver.set("profile 8", 8, tags=["user:8"])
    assert sender.emit(event) == []  # it has no map of its own
    _until_gone(receiver, "profile 7")
    assert receiver.get("profile 8") == 8
    assert receiver.stats().counts["events_received"] == 1


def test_what_the_sender_dropped_is_not_dropped_again(caches: Any) -> None:
    sender, receiver = caches(), caches(coherence="strict")
    for cache in (sender, receiver):
        cache.on(Paid, lambda e: [f"user:{e.user}"])
    receiver.on(Paid, lambda e: ["debts"])
    _follows(receiver)
    receiver.set("debts", 1, tags=["debts"])
    assert sender.emit(Paid(7)) == ["user:7"]
    sender.set("profile 7", 7, tags=["user:7"])
    _until_gone(receiver, "debts")
    assert receiver.get("profile 7") == 7  # loaded after the event


def test_an_event_whose_class_is_not_known_here_costs_the_namespace(caches: Any) -> None:
    """Its base is mapped, so its tags are wanted; they can not be known."""
    sender, receiver = caches(), caches(coherence="strict")
    receiver.on(Paid, lambda e: [f"user:{e.user}"])
    _follows(receiver)
    receiver.set("other", 1)
    sender.emit(PaidInFull(7, 5))
    _until_gone(receiver, "other")
    assert receiver.stats().counts["events_missed"] == 1


def test_a_map_that_fails_costs_the_namespace_and_does_not_end_the_listener(caches: Any) -> None:
    sender, receiver = caches(), caches(coherence="strict")

    def broken(event: Paid) -> list[str]:
        if event.user == 1:
            raise ValueError("no")
        return [f"user:{event.user}"]

    receiver.on(Paid, broken)
    _follows(receiver)
    receiver.set("other", 1)
    sender.emit(Paid(1))
    _until_gone(receiver, "other")
    receiver.set("profile 7", 7, tags=["user:7"])
    receiver.set("other", 2)
    sender.emit(Paid(7))
    _until_gone(receiver, "profile 7")
    assert receiver.get("other") == 2


def test_an_event_without_an_exact_form_is_told_after_its_own_tags_were_dropped(
    caches: Any,
) -> None:
    cache = caches(coherence="strict")
    cache.on(Unsendable, lambda e: ["mine"])
    cache.set("k", 1, tags=["mine"])
    with pytest.raises(InvalidationFailed, match="Unsendable"):
        cache.emit(Unsendable())
    assert cache.get("k") is None


def test_events_wait_for_a_server_that_is_away() -> None:
    with RedisServer() as server:
        options: dict[str, Any] = {"namespace": "away", "timeout": 0.3, "breaker_reset": 0.1}
        with (
            Cache(server.url, invalidation="replay", **options) as sender,
            Cache(server.url, coherence="strict", **options) as receiver,
        ):
            receiver.on(Paid, lambda e: [f"user:{e.user}"])
            time.sleep(0.3)
            server.stop()
            assert sender.emit(Paid(7)) == []
            assert sender.stats().pending_invalidations == 1
            server.start()
            began = time.monotonic()
            while sender.stats().pending_invalidations or not receiver.stats().counts.get(
                "events_missed", receiver.stats().counts.get("events_received", 0)
            ):
                assert time.monotonic() - began < 10
                time.sleep(0.02)


def test_without_replay_an_event_that_could_not_be_told_raises() -> None:
    with (
        Cache("redis://127.0.0.1:1/0", timeout=0.1) as cache,
        pytest.raises(CacheKitError, match="event"),
    ):
        cache.emit(Paid(7))
