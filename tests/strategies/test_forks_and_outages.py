"""Forked children, killed processes and far tiers that go away in the middle."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from stage import Opener, Rows, Stage, manual_runtime, opener_for

from cachekit import Cache
from cachekit.core.deadline import Deadline
from cachekit.errors import BackendUnavailable
from cachekit.invalidation import PART
from cachekit.observe import Meter
from cachekit.pending import Pending
from cachekit.testing.clock import ManualClock
from cachekit.testing.servers import MemcachedServer, RedisServer, Server

CHILD_SECONDS = 15
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@dataclass(frozen=True)
class Paid:
    user: int


def _until(holds: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def _fork(work: Callable[[], None]) -> int:
    """The id of a child that does ``work``; one that hangs is ended by an alarm."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(CHILD_SECONDS)
        work()
        code = 0
    finally:
        os._exit(code)


def _code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _ended(pid: int) -> int | None:
    """The exit code, or None while the child runs."""
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def _joined(cache: Cache) -> None:
    def joins() -> bool:
        cache.get_or_set("warm", lambda: 1)
        return cache.stats().coherence == "push"

    _until(joins, "the bus never joined")


def _ours() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("cachekit-")]


# -- forks ---------------------------------------------------------------------------------------


@needs_fork
def test_a_forked_child_goes_on_hearing_events(redis_server: RedisServer) -> None:
    """As under a server that loads the application before it forks its workers."""
    options: dict[str, Any] = {"namespace": "forked-events", "timeout": 3.0}
    with (
        Cache(redis_server.url, coherence="strict", **options) as cache,
        Cache(redis_server.url, **options) as sender,
    ):
        heard: list[int] = []

        def tags_of(event: Paid) -> list[str]:
            heard.append(event.user)
            return [f"user:{event.user}"]

        cache.on(Paid, tags_of)
        time.sleep(0.2)

        def work() -> None:
            _until(lambda: bool(heard), "the child heard nothing")
            assert _ours().count("cachekit-stream") == 1
            cache.close()
            _until(lambda: not _ours(), "a thread of the child stayed")

        child, end = _fork(work), time.monotonic() + CHILD_SECONDS
        while (code := _ended(child)) is None and time.monotonic() < end:
            sender.emit(Paid(7))
            time.sleep(0.05)
        assert code == 0
        _until(lambda: bool(heard), "the parent heard nothing")


@needs_fork
def test_a_forked_child_listens_once_and_stops_when_closed(open_shared: Opener) -> None:
    cache = open_shared(coherence="push")
    _joined(cache)
    listeners = 0 if open_shared.place == "memory" else 1

    def work() -> None:
        _joined(cache)
        assert len([name for name in _ours() if "bus" in name]) == listeners
        time.sleep(0.1)  # one that others renew after the fork comes a little later
        assert len([name for name in _ours() if "bus" in name]) == listeners
        assert cache.stats().coherence == "push"
        cache.close()
        _until(lambda: not [name for name in _ours() if "bus" in name], "a listener stayed")

    assert _code(_fork(work)) == 0
    assert cache.stats().coherence == "push"


@needs_fork
@pytest.mark.parametrize("place", ["sqlite", "redis", "memcached"])
def test_parent_and_forked_child_are_two_senders_and_follow_each_other(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    opener = opener_for(place, request, tmp_path)
    cache = opener(coherence="push")
    _joined(cache)
    cache.invalidate(keys=["k"])
    senders = cache.parts.far.senders if cache.parts.far is not None else set()
    assert len(senders) == 1

    def work() -> None:
        far = cache.parts.far
        assert far is not None
        assert not far.senders  # nothing of the parent's
        _joined(cache)
        cache.invalidate(keys=["k"])
        assert len(far.senders) == 1
        assert not far.senders & senders

    try:
        cache.set("k", "old", ttl=600)
        _until(lambda: cache.get("k") == "old", "it was not kept")
        assert _code(_fork(work)) == 0
        _until(lambda: cache.get("k") is None, "the parent did not follow its child")
    finally:
        opener.close()


def test_the_senders_of_a_cache_are_those_of_all_its_worlds(open_shared: Opener) -> None:
    cache = open_shared(coherence="push")
    far = cache.parts.far
    assert far is not None
    assert far.senders == set()
    cache.get("k")
    (plain,) = far.senders

    async def inside() -> set[bytes]:
        await cache.aio.get("k")
        try:
            return far.senders
        finally:
            await cache.aio.close()

    both = asyncio.run(inside())
    assert plain in both
    assert len(both) == 2


# -- grace ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", [RedisServer, MemcachedServer])
def test_grace_serves_nothing_that_another_process_invalidated_beyond_the_bound(
    embedded: Stage, server: type[Server]
) -> None:
    stage, rows, clock = embedded, Rows({1: "old"}), ManualClock()
    with server() as away:
        cache = Cache(away.url, coherence=3.0, runtime=manual_runtime(clock))
        other = Cache(away.url, coherence="strict", timeout=3.0)
        stage.open.caches += [cache, other]
        reader = stage.make("read-through", rows, cache=cache, ttl=60, grace=600)

        async def body() -> None:
            face = stage.face(reader)
            assert [await face.get(1) for _ in range(3)] == ["old"] * 3
            assert rows.count("load") == 1
            rows.rows[1] = "new"
            await stage.face(other).invalidate(keys=["row:1"])
            away.kill()
            clock.advance(4.0)
            assert await face.get(1) == "new"

        stage.play(body)


# -- replay: part by part ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["keys", "tags"])
def test_a_replay_that_is_cut_off_in_the_middle_goes_on_where_it_was(kind: str) -> None:
    count, parts = 5 * PART // 2, [PART, PART, PART // 2]
    names = [f"{kind}-{n}" for n in range(count)]
    with RedisServer() as server:
        options: dict[str, Any] = {"timeout": 0.4, "breaker_reset": 0.1}
        with Cache(server.url, invalidation="replay", **options) as cache:
            far, told, events = cache.parts.far, [], threading.Event()
            assert far is not None
            verb = "void" if kind == "keys" else "drop_tags"
            plain = getattr(far, verb)

            async def telling(world: Any, given: Sequence[str], deadline: Deadline) -> None:
                await plain(world, given, deadline)
                told.append(len(given))
                if len(told) == 1:
                    server.kill()
                    events.set()

            server.kill()
            cache.invalidate(**{kind: names})
            assert cache.stats().pending_invalidations == count
            setattr(far, verb, telling)
            server.start()
            assert events.wait(10), "nothing was replayed"
            _until(lambda: cache.stats().pending_invalidations == count - PART, "progress is lost")
            time.sleep(0.3)
            assert cache.stats().pending_invalidations == count - PART
            assert not cache.get("k")  # a read that finds the far tier away settles no more
            server.start()
            _until(lambda: cache.stats().pending_invalidations == 0, "it never went on")
            assert told == parts
            assert cache.stats().counts["invalidations_replayed"] == count


def test_events_that_waited_are_each_sent_once_though_the_stream_fails_in_between(
    redis_server: RedisServer,
) -> None:
    count, options = 60, {"namespace": "queued-events", "timeout": 3.0}
    with (
        Cache(redis_server.url, invalidation="replay", **options) as sender,
        Cache(redis_server.url, coherence="strict", **options) as receiver,
    ):
        receiver.on(Paid, lambda event: [f"user:{event.user}"])
        time.sleep(0.2)
        far, tries, away = sender.parts.far, 0, True
        failing = {count // 3, count}
        assert far is not None
        plain = far.append

        async def append(*given: Any) -> None:
            nonlocal tries
            tries += not away
            if away or tries in failing:
                raise BackendUnavailable("away", backend="redis", operation="append")
            await plain(*given)

        far.append = append  # type: ignore[method-assign]  # an outage of the stream alone
        for n in range(count):
            sender.emit(Paid(n))
        assert sender.stats().pending_invalidations == count
        sender.set("k", 1)
        assert sender.get("k") == 1  # no read waits for events
        assert sender.stats().pending_invalidations == count
        away = False
        _until(lambda: sender.stats().pending_invalidations == 0, "the queue never drained", 30)
        received = receiver.stats
        _until(lambda: received().counts.get("events_received", 0) >= count, "some were not sent")
        time.sleep(0.2)
        assert received().counts["events_received"] == count


# -- replay: what a killed process left behind ---------------------------------------------------


@needs_fork
def test_an_event_left_behind_by_a_killed_process_is_sent_by_the_next(tmp_path: Path) -> None:
    log, options = str(tmp_path / "pending.db"), {"namespace": "left", "timeout": 3.0}
    with RedisServer() as server, Cache(server.url, coherence="strict", **options) as receiver:
        receiver.on(Paid, lambda event: [f"user:{event.user}"])
        receiver.set("profile", 7, tags=["user:7"])

        def work() -> None:
            brief = {**options, "timeout": 0.2}
            cache = Cache(server.url, invalidation="replay", replay_log=log, **brief)
            cache.emit(Paid(7))
            os.kill(os.getpid(), signal.SIGKILL)

        time.sleep(0.2)
        server.pause()
        try:
            assert _code(_fork(work)) == -signal.SIGKILL
        finally:
            server.resume()
        left = Pending(Meter(), log)
        assert left.load()
        assert [kind for kind, _ in left.take()] == ["event"]
        left.close()
        with Cache(server.url, invalidation="replay", replay_log=log, **options) as successor:
            successor.get("anything")
            _until(lambda: receiver.get("profile") is None, "the event was never sent")
            _until(lambda: successor.stats().pending_invalidations == 0, "it stayed in the queue")
        left = Pending(Meter(), log)
        assert not left.load()
        left.close()
