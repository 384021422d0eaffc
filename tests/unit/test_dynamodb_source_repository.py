"""Repositories over DynamoDB tables: strategies, both worlds, races, write-back."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from dynamodb_desk import started
from source_tables import Ground, client_at

from cachekit import Cache, CacheAside, ReadThrough, Repository, WriteBack, WriteThrough
from cachekit.errors import ConfigurationError
from cachekit.feeds.dynamodb_streams import Record, dynamodb_stream
from cachekit.sources import DynamoDBTable, VersionConflict
from cachekit.testing.dynamodb import MinistackServer

pytest.importorskip("boto3")

WRITES = 60
READERS = 3


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    for server in started(MinistackServer()):
        made = Ground(server)
        yield made
        made.close()


@pytest.fixture
def cache() -> Iterator[Cache]:
    with Cache() as cache:
        yield cache


@dataclass(frozen=True)
class User:
    name: str
    born: int = 0
    rate: float = 0.0


class Counted(DynamoDBTable):
    """Counts what it is asked."""

    loads = 0

    def load(self, id: Any) -> Any:
        self.loads += 1
        return super().load(id)

    def load_many(self, ids: Any) -> Any:
        self.loads += 1
        return super().load_many(ids)


def test_a_repository_finds_the_methods_the_key_and_a_name_by_itself(
    ground: Ground, cache: Cache
) -> None:
    people = ground.source(Counted, table=ground.table(name="S"), key="name")
    lines = ground.source(Counted, table=ground.table(order="N", line="N"), key=("order", "line"))
    kept, orders = cache.repository(people, ttl="5m"), cache.repository(lines, ttl="5m")
    kept.save({"name": "ada", "born": 1815})
    orders.save_many([{"order": 1, "line": n, "of": n} for n in range(30)])
    assert kept.get("ada") == {"name": "ada", "born": 1815}
    assert orders.get_many([(1, 2), (1, 29)]).keys() == {(1, 2), (1, 29)}
    assert (people.loads, lines.loads) == (0, 0)
    orders.save({"order": 1, "line": 2, "of": "other"})
    assert orders.get((1, 2))["of"] == "other"
    kept.delete("ada")
    assert kept.get("ada") is None
    assert orders.get_many([(1, 2), (1, 30), (2, 2)]).keys() == {(1, 2)}


def test_two_tables_of_one_cache_do_not_share_records(ground: Ground, tmp_path: Path) -> None:
    with Cache(f"sqlite:///{tmp_path}/far.db") as cache:
        one, other = (cache.repository(ground.source(), ttl="5m") for _ in range(2))
        assert one.strategy.key(1) != other.strategy.key(1)
        one.save({"id": 1, "of": "one"})
        assert other.get(1) is None
        other.save({"id": 1, "of": "other"})
        assert (one.get(1)["of"], other.get(1)["of"]) == ("one", "other")


@pytest.mark.parametrize("strategy", [WriteThrough, ReadThrough, CacheAside])
def test_records_of_a_class_are_kept_in_a_far_tier(
    ground: Ground, strategy: Any, tmp_path: Path
) -> None:
    table = ground.table(name="S")
    ada, bob = User("ada", 1815, 0.5), User("bob")

    def repository(cache: Cache) -> tuple[Counted, Any]:
        users = ground.source(Counted, table=table, key="name", record=User)
        return users, cache.repository(users, strategy=strategy, ttl="5m")

    with Cache(f"sqlite:///{tmp_path}/far.db") as first:
        _, kept = repository(first)
        kept.save(ada)
        kept.save_many([bob])
        assert kept.get_many(["ada", "bob", "cy"]) == {"ada": ada, "bob": bob}
    with Cache(f"sqlite:///{tmp_path}/far.db") as second:
        users, kept = repository(second)
        assert (kept.get("ada"), kept.get("bob")) == (ada, bob)
        assert kept.get_many(["ada", "bob"]) == {"ada": ada, "bob": bob}
        assert users.loads == 0


def test_an_event_loop_is_not_held_up_by_the_table(ground: Ground, cache: Cache) -> None:
    here = threading.get_ident()
    asked_in: list[int] = []

    class Watched(DynamoDBTable):
        def load(self, id: Any) -> Any:
            asked_in.append(threading.get_ident())
            return super().load(id)

        def save(self, record: Any) -> None:
            asked_in.append(threading.get_ident())
            super().save(record)

    kept = cache.repository(ground.source(Watched), ttl="5m")
    aio = kept.strategy.aio

    async def work() -> None:
        await aio.put(1, {"id": 1, "n": 1})
        await aio.invalidate(1)
        assert await aio.get(1) == {"id": 1, "n": 1}
        assert await aio.get(2) is None
        await aio.delete(1)
        assert await aio.get_many([1, 2]) == {}

    asyncio.run(work())
    assert asked_in
    assert here not in asked_in


def test_a_conflict_is_told_and_the_next_read_has_what_won(ground: Ground, cache: Cache) -> None:
    table = ground.table()
    docs = ground.source(table=table, version="v")
    kept = cache.repository(docs, ttl="5m", row_version=docs.row_version)
    kept.save({"id": 1, "v": 1, "by": "a"})
    ground.source(table=table, version="v").save({"id": 1, "v": 2, "by": "b"})
    with pytest.raises(VersionConflict):
        kept.save({"id": 1, "v": 2, "by": "a"})
    won = kept.get(1)
    assert won["by"] == "b"
    kept.save({**won, "v": won["v"] + 1, "by": "a"})
    assert docs.load(1) == {"id": 1, "v": 3, "by": "a"}


def test_of_two_threads_that_save_the_same_successor_one_is_refused(ground: Ground) -> None:
    docs = ground.source(version="v")
    docs.save({"id": 1, "v": 1})
    gate, refused = threading.Barrier(4), []

    def work(by: int) -> None:
        for version in range(2, 12):
            gate.wait(20)
            try:
                docs.save({"id": 1, "v": version, "by": by})
            except VersionConflict:
                refused.append(version)

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(refused) == sorted(3 * list(range(2, 12)))


class Slow(DynamoDBTable):
    """Loads that are under way for a while after they were answered: a race's worst case."""

    def load(self, id: Any) -> Any:
        found = super().load(id)
        time.sleep(0.003)
        return found


@pytest.mark.parametrize("strategy", [WriteThrough, ReadThrough, CacheAside])
@pytest.mark.parametrize("far", [False, True], ids=["embedded", "far"])
def test_no_read_that_begins_after_a_save_returned_sees_what_was_before(
    ground: Ground, strategy: Any, far: bool, tmp_path: Path
) -> None:
    with Cache(f"sqlite:///{tmp_path}/far.db" if far else None) as cache:
        kept = cache.repository(ground.source(Slow), strategy=strategy, ttl="5m")
        saved, stale, seen = [0], [], set()
        kept.save({"id": 1, "n": 0})
        over = threading.Event()

        def read(several: bool) -> None:
            while not over.is_set():
                least = saved[0]
                got = (kept.get_many([1])[1] if several else kept.get(1))["n"]
                seen.add(got)
                if got < least:
                    stale.append((got, least))

        def empty() -> None:
            while not over.is_set():
                kept.invalidate(1)
                time.sleep(0.002)

        threads = [
            threading.Thread(target=read, args=(n % 2 == 1,), daemon=True) for n in range(READERS)
        ]
        threads.append(threading.Thread(target=empty, daemon=True))
        for thread in threads:
            thread.start()
        try:
            for n in range(1, WRITES + 1):
                kept.save({"id": 1, "n": n})
                saved[0] = n
        finally:
            over.set()
            for thread in threads:
                thread.join(20)
        assert stale == []
        assert len(seen) > 5
        assert kept.get(1)["n"] == WRITES


def test_write_back_brings_records_by_the_fenced_sink_of_the_table(
    ground: Ground, cache: Cache, tmp_path: Path
) -> None:
    table = ground.table(name="S")
    users = ground.source(table=table, key="name", record=User)
    sink = users.sink(fence_table=f"{table}-fence", create_fence=True)
    assert sink.fences
    kept = cache.repository(
        users,
        strategy=WriteBack(log=f"sqlite:///{tmp_path}/q.db", sink=sink, batch=500, delay="1h"),
    )
    assert isinstance(kept, Repository)
    kept.save_many([User(f"user-{n}", n, n / 2) for n in range(120)])
    assert users.load("user-7") is None
    assert kept.get("user-7") == User("user-7", 7, 3.5)
    flushed = kept.flush(30)
    assert (flushed.complete, flushed.left, flushed.parked) == (True, 0, 0)
    assert users.load("user-7") == User("user-7", 7, 3.5)
    kept.delete("user-7")
    kept.save(User("user-8"))
    assert kept.flush(30).complete
    found = users.load_many([f"user-{n}" for n in range(130)])
    assert len(found) == 119
    assert found["user-8"] == User("user-8")
    lanes = ground.client.scan(TableName=f"{table}-fence")["Items"]
    assert [int(lane["epoch"]["N"]) > 0 for lane in lanes] == [True]


def test_write_back_without_a_sink_writes_by_the_tables_own_methods(
    ground: Ground, cache: Cache
) -> None:
    lines = ground.source(table=ground.table(order="N", line="N"), key=("order", "line"))
    kept = cache.repository(lines, strategy=WriteBack(log="memory", delay="1h"))
    kept.save_many([{"order": 1, "line": n, "price": Decimal("0.5")} for n in range(40)])
    kept.delete((1, 0))
    flushed = kept.flush(30)
    assert (flushed.complete, flushed.parked) == (True, 0)
    assert len(lines.load_many([(1, n) for n in range(40)])) == 39


def wait(until: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_writes_of_others_are_followed_by_the_tables_stream(ground: Ground, cache: Cache) -> None:
    name = ground.table(order="N", line="N")
    ground.client.update_table(
        TableName=name, StreamSpecification={"StreamEnabled": True, "StreamViewType": "KEYS_ONLY"}
    )
    source = ground.source(table=name, key=("order", "line"))
    lines = cache.repository(source, ttl="1h")

    def keys_of(record: Record) -> list[str]:
        return [lines.strategy.key(source.__cache_id__(record.keys))]

    def connect(service: str) -> Any:
        return client_at(ground.server.url, service)

    feed = dynamodb_stream(name, keys_of=keys_of, connect=connect, poll=0.2)
    detach = cache.follow(feed)
    try:
        wait(lambda: feed.states == ["reading"])
        lines.save_many([{"order": 1, "line": n, "by": "me"} for n in (1, 2)])
        wait(lambda: cache.stats().counts.get("feed_records", 0) >= 2)
        flushes = cache.stats().counts.get("feed_flushes", 0)
        assert lines.get_many([(1, 1), (1, 2)])[1, 2]["by"] == "me"
        source.save({"order": 1, "line": 2, "by": "another"})  # not by the repository
        wait(lambda: lines.get((1, 2))["by"] == "another")
        assert lines.get((1, 1))["by"] == "me"
        assert cache.stats().counts.get("feed_flushes", 0) == flushes
    finally:
        detach()


def test_a_sink_that_could_not_keep_its_word_is_refused() -> None:
    for options in ({"key": ("a", "b")}, {"version": "v"}):
        with pytest.raises(ConfigurationError, match="users: "):
            DynamoDBTable("users", **options).sink()
