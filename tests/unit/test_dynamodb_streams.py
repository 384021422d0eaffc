"""A cache follows the stream of a real table: others' writes, and streams that go away."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stream_shop import VIEW, Shop, counts, running, wait

import cachekit
from cachekit.errors import ConfigurationError, InvalidationFailed
from cachekit.feeds.dynamodb_streams import Record, dynamodb_stream
from cachekit.testing.dynamodb import MinistackServer


@pytest.fixture(scope="module")
def server() -> Iterator[MinistackServer]:
    yield from running()


@pytest.fixture
def shop(server: MinistackServer) -> Iterator[Shop]:
    made = Shop(server)
    yield made
    made.close()


@pytest.fixture
def cache() -> Iterator[cachekit.Cache]:
    with cachekit.Cache() as made:
        yield made


# -- what changes ------------------------------------------------------------------------


@pytest.mark.server
def test_what_another_client_writes_is_read_anew_within_two_seconds(
    shop: Shop, cache: cachekit.Cache
) -> None:
    @cache.cached(tags=["user:{number}"])
    def name_of(number: int) -> str | None:
        return shop.read(number)

    shop.put(1, name="ann")
    shop.put(2, name="bob")
    shop.follow(cache)
    assert (name_of(1), name_of(2)) == ("ann", "bob")
    loads, took = cache.stats().loads, []
    for change, wanted in (
        (lambda: shop.put(1, name="eve"), "eve"),
        (lambda: shop.other.delete_item(TableName=shop.table, Key={"id": {"N": "1"}}), None),
        (lambda: shop.put(1, name="zoe"), "zoe"),
    ):
        change()
        took.append(wait(lambda wanted=wanted: name_of(1) == wanted))  # type: ignore[misc]
    assert min(took) < 2.0
    assert name_of(2) == "bob"
    assert cache.stats().loads == loads + 3, "what did not change was not loaded again"


@pytest.mark.server
def test_nothing_outdated_is_left_at_rest_while_others_write_and_this_process_reads(
    shop: Shop, cache: cachekit.Cache
) -> None:
    @cache.cached(tags=["user:{number}"])
    def name_of(number: int) -> str | None:
        return shop.read(number)

    def write() -> None:
        for turn in range(150):
            shop.put(turn % 5, name=f"name {turn}")

    shop.follow(cache)
    flushes = counts(cache)["feed_flushes"]
    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        for number in range(5):
            name_of(number)
    writer.join()
    wait(lambda: counts(cache)["feed_records"] == 150)
    stored = [shop.read(number) for number in range(5)]
    wait(lambda: [name_of(number) for number in range(5)] == stored)
    assert counts(cache)["feed_flushes"] == flushes


@pytest.mark.server
def test_functions_of_the_async_face_are_followed_too(shop: Shop, cache: cachekit.Cache) -> None:
    @cache.cached(tags=["user:{number}"])
    async def name_of(number: int) -> str | None:
        return await asyncio.to_thread(shop.read, number)

    async def story() -> None:
        await asyncio.to_thread(shop.put, 1, name="ann")
        assert await name_of(1) == "ann"
        await asyncio.to_thread(shop.put, 1, name="eve")
        for _ in range(500):
            if await name_of(1) == "eve":
                return
            await asyncio.sleep(0.02)
        raise AssertionError("the old name stands")

    shop.follow(cache)
    asyncio.run(story())


@pytest.mark.server
def test_a_record_has_plain_values_of_keys_and_both_images(
    shop: Shop, cache: cachekit.Cache
) -> None:
    shop.follow(cache)
    shop.put(7, name="ann", team="red")
    shop.put(7, name="ann", team="blue")
    shop.other.delete_item(TableName=shop.table, Key={"id": {"N": "7"}})
    wait(lambda: len(shop.seen) >= 3)
    red = {"id": 7, "name": "ann", "team": "red"}
    blue = {**red, "team": "blue"}
    assert [(r.kind, r.keys, r.old, r.new) for r in shop.seen] == [
        ("insert", {"id": 7}, None, red),
        ("modify", {"id": 7}, red, blue),
        ("remove", {"id": 7}, blue, None),
    ]
    assert shop.seen[1].images == [red, blue]
    assert counts(cache)["feed_records"] == 3


@pytest.mark.server
def test_keys_go_too_and_what_was_written_before_is_not_told(
    shop: Shop, cache: cachekit.Cache
) -> None:
    shop.put(1, name="ann")
    cache.set("early", 1)
    shop.follow(cache, tags_of=None, keys_of=lambda record: [f"item {record.keys['id']}"])
    assert cache.get("early") is None, "nothing loaded before the iterators is trusted"
    cache.set("item 1", "ann")
    cache.set("item 2", "bob")
    shop.put(2, name="eve")
    wait(lambda: cache.get("item 2") is None)
    assert cache.get("item 1") == "ann"


@pytest.mark.server
@pytest.mark.parametrize("covers", [None, ["users"]])
def test_tags_that_can_not_be_told_flush_what_the_feed_covers(
    shop: Shop, cache: cachekit.Cache, covers: list[str] | None
) -> None:
    def broken(record: Record) -> list[str]:
        raise LookupError(record.table)

    shop.follow(cache, tags_of=broken, covers=covers)
    cache.set("a", 1, tags=["users"])
    cache.set("b", 1, tags=["shoes"])
    shop.put(1)
    wait(lambda: cache.get("a") is None)
    assert cache.get("b") == (None if covers is None else 1)
    assert counts(cache)["feed_failed"] == 1, "the page is not told again and again"


# -- what is lost ------------------------------------------------------------------------


@pytest.mark.server
def test_a_disabled_stream_flushes_and_a_new_one_is_followed(
    shop: Shop, cache: cachekit.Cache
) -> None:
    shop.follow(cache, covers=["users"], max_lag=0.5)
    cache.set("a", 1, tags=["users"])
    change = {"TableName": shop.table, "StreamSpecification": {"StreamEnabled": False}}
    shop.other.update_table(**change)
    wait(lambda: cache.get("a") is None)
    cache.set("a", 2, tags=["users"])
    shop.put(1, name="unseen")
    wait(lambda: cache.get("a") is None)  # without a stream nothing stands for long
    began = counts(cache)["feed_began"]
    shop.other.update_table(TableName=shop.table, StreamSpecification=VIEW)
    wait(lambda: counts(cache)["feed_began"] > began)
    cache.set("a", 3, tags=["user:4"])
    shop.put(4)
    wait(lambda: cache.get("a") is None)
    assert counts(cache)["feed_lost"] >= 1


@pytest.mark.server
def test_a_table_made_anew_is_followed_after_a_flush(shop: Shop, cache: cachekit.Cache) -> None:
    shop.follow(cache, covers=["users"])
    cache.set("a", 1, tags=["users"])
    shop.other.delete_table(TableName=shop.table)
    shop.make()
    wait(lambda: cache.get("a") is None)
    wait(lambda: counts(cache)["feed_began"] == 2)
    cache.set("a", 2, tags=["user:4"])
    shop.put(4)
    wait(lambda: cache.get("a") is None)


@pytest.mark.server
def test_a_server_that_forgot_everything_costs_a_flush_and_one_away_flushes_again_and_again(
    cache: cachekit.Cache, server: MinistackServer
) -> None:
    with MinistackServer() as own:
        shop = Shop(own)
        shop.follow(cache, covers=["users"], max_lag=0.5)
        shop.put(1)
        wait(lambda: len(shop.seen) == 1)
        own.kill()
        for _ in range(2):
            cache.set("a", 1, tags=["users"])
            wait(lambda: cache.get("a") is None)
        assert counts(cache)["feed_behind"] == 1
        own.start()
        shop.make()
        wait(lambda: counts(cache)["feed_caught_up"] == 1)
        cache.set("a", 2, tags=["user:4"])
        shop.put(4)
        wait(lambda: cache.get("a") is None)
        shop.close()


class Aged:
    """A client of streams whose next iterator is changed before it is used."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.change: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def get_records(self, ShardIterator: str, Limit: int) -> Any:
        told = json.loads(base64.urlsafe_b64decode(ShardIterator))
        changed, self.change = {**told, **self.change}, {}
        again = base64.urlsafe_b64encode(json.dumps(changed).encode()).decode()
        return self._client.get_records(ShardIterator=again, Limit=Limit)


@pytest.mark.server
def test_an_expired_iterator_loses_nothing_or_flushes_and_a_trimmed_one_flushes(
    shop: Shop, cache: cachekit.Cache
) -> None:
    held: list[Aged] = []

    def connect(service: str) -> Any:
        client = shop.connect(service)
        if service == "dynamodbstreams":
            held.append(Aged(client))
            return held[-1]
        return client

    shop.follow(cache, covers=["users"], connect=connect)
    flushes = counts(cache)["feed_flushes"]
    cache.set("a", 1, tags=["users"])
    held[0].change = {"i": 0}  # issued in 1970, with nothing applied yet
    wait(lambda: cache.get("a") is None)
    wait(lambda: counts(cache)["feed_began"] == 2)
    assert (counts(cache)["feed_lost"], counts(cache)["feed_flushes"]) == (1, flushes + 2)
    shop.put(1)
    wait(lambda: len(shop.seen) == 1)
    cache.set("a", 2, tags=["users"])
    cache.set("b", 2, tags=["user:2"])
    held[-1].change = {"i": 0}
    shop.put(2)
    wait(lambda: cache.get("b") is None)
    assert (cache.get("a"), counts(cache)["feed_lost"], len(shop.seen)) == (2, 1, 2)
    held[-1].change = {"p": -1}  # before the oldest record there is
    wait(lambda: cache.get("a") is None)
    assert counts(cache)["feed_lost"] == 2


@pytest.mark.server
def test_what_eventual_reads_may_have_found_is_invalidated_twice(
    shop: Shop, cache: cachekit.Cache
) -> None:
    shop.follow(cache, settle=0.6)
    time.sleep(1.0)  # the flush of the beginning is carried out twice as well
    cache.set("a", 1, tags=["user:1"])
    shop.put(1)
    wait(lambda: cache.get("a") is None)
    cache.set("a", "old", tags=["user:1"])
    cache.set("b", "old", tags=["user:2"])
    wait(lambda: cache.get("a") is None)
    assert (len(shop.seen), cache.get("b")) == (1, "old")


@pytest.mark.server
def test_what_the_far_tier_could_not_be_told_is_queued(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cachekit.Cache(f"sqlite:///{tmp_path / 'far.db'}", coherence="strict") as cache:
        shop.follow(cache)
        cache.set("a", 1, tags=["user:1"])

        def refused(**_: Any) -> None:
            raise InvalidationFailed("the far tier is away")

        monkeypatch.setattr(cache, "invalidate", refused)
        shop.put(1)
        wait(lambda: cache.get("a") is None)
        wait(lambda: counts(cache)["invalidations_replayed"] == 1)


def test_what_does_not_fit_is_refused_by_its_name() -> None:
    def tags(record: Record) -> list[str]:
        return []

    for wrong, word in (
        ({"table": ""}, "table"),
        ({"tags_of": None}, "tags_of"),
        ({"tags_of": "user"}, "tags_of"),
        ({"covers": "users"}, "covers"),
        ({"covers": []}, "covers"),
        ({"poll": 0.1}, "poll"),
        ({"max_lag": 0.5}, "max_lag"),
        ({"settle": -1}, "settle"),
        ({"name": ""}, "name"),
    ):
        given: dict[str, Any] = {"table": "users", "tags_of": tags, **wrong}
        with pytest.raises(ConfigurationError, match=word):
            dynamodb_stream(**given)
