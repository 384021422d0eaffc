"""Handles on one bus: real Redis, real notes; and a bus that is cut."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from dax_desk import Desk, item, key
from dax_fleet import Member, Process, wait

import cachekit
import cachekit.dax
from cachekit.dax import notes
from cachekit.dax.notes import Reader
from cachekit.errors import ConfigurationError
from cachekit.testing.servers import RedisServer

pytestmark = pytest.mark.server
Make = Callable[..., Member]


@pytest.fixture
def member(desk: Desk, redis_server: RedisServer, request: Any) -> Iterator[Make]:
    """Makes members, each with a cache of its own on one Redis and in one namespace."""
    made: list[Any] = []

    def make(url: str = redis_server.url, **options: Any) -> Member:
        cache = cachekit.Cache(url, namespace=desk.name, **options.pop("with_cache", {}))
        made.append(cache)
        made.append(Member(desk.server.endpoint, desk.name, cache=cache, **options))
        return made[-1].joined()

    yield make
    for each in reversed(made):
        each.close()


def test_a_write_of_one_evicts_the_items_and_pages_of_the_other(member: Make) -> None:
    one, other = member(), member()
    one.put("a", 1)
    for _ in range(2):
        other.get("a"), other.query("a"), other.query("b")
    assert other.holds("a")
    one.put("a", 2)
    wait(lambda: not other.holds("a"))
    assert other.value("a") == 2
    assert other.query("a")["Items"][0]["v"] == {"N": "2"}
    before = other.dax.stats()["query_misses"]
    other.query("b")
    assert other.dax.stats()["query_misses"] == before, "a page of another partition stays"


@pytest.mark.parametrize(
    "write",
    [
        lambda c, t: c.delete_item(TableName=t, Key=key("a")),
        lambda c, t: c.batch_write_item(
            RequestItems={t: [{"PutRequest": {"Item": item("a", v=2)}}]}
        ),
        lambda c, t: c.transact_write_items(
            TransactItems=[{"Put": {"TableName": t, "Item": item("a", v=2)}}]
        ),
        lambda c, t: c.update_item(
            TableName=t, Key=key("a"), UpdateExpression="SET v = :v",
            ExpressionAttributeValues={":v": {"N": "2"}},
        ),
        lambda c, t: c.execute_statement(
            Statement=f"INSERT INTO \"{t}\" VALUE {{'pk': 'z', 'sk': 1}}"
        ),
    ],
    ids=["delete", "batch", "transaction", "update", "statement"],
)  # fmt: skip
def test_every_kind_of_write_is_told(member: Make, write: Callable[[Any, str], Any]) -> None:
    one, other = member(), member()
    other.put("a", 1)
    wait(lambda: other.has("a"))
    write(one.client, one.table)
    wait(lambda: not other.holds("a"))
    assert other.value("a") in (1, 2, None)


def test_a_refused_write_is_told_too_and_its_own_notes_do_not_evict(member: Make) -> None:
    one, other = member(), member()
    one.put("a", 1)
    time.sleep(0.2)
    assert one.holds("a"), "its own notes came back"
    other.get("a")
    with pytest.raises(ClientError):
        one.client.put_item(
            TableName=one.table, Item=item("a"), ConditionExpression="attribute_not_exists(pk)"
        )
    wait(lambda: not other.holds("a"))


def test_invalidate_and_flush_reach_the_others(member: Make) -> None:
    one, other = member(), member()
    for way in (
        lambda: one.dax.invalidate(one.table, key("a")),
        lambda: one.dax.flush(one.table),
        one.dax.flush,
        one.dax.settings.cache.clear,
    ):
        wait(lambda: other.has("a"))
        way()
        wait(lambda: not other.holds("a"))


def test_long_keys_travel_too(member: Make, desk: Desk) -> None:
    one, other = member(), member()
    for pk in ("ü" * 1000, "x" * 120, "-" * 90, "two\nlines: ~% {}"):
        one.put(pk, 1)
        wait(lambda pk=pk: other.has(pk))
        one.put(pk, 2)
        wait(lambda pk=pk: not other.holds(pk))
        assert other.value(pk) == 2
    other.get("a")
    one.put("x" * 121, 1)
    time.sleep(0.1)
    assert other.holds("a"), "more went than the item"


def test_two_handles_on_one_cache_tell_each_other_without_the_bus(
    desk: Desk, redis_server: RedisServer
) -> None:
    with cachekit.Cache(redis_server.url, namespace=desk.name) as cache:
        one, other = (Member(desk.server.endpoint, desk.name, cache=cache) for _ in "ab")
        other.joined()
        wait(lambda: other.has("a"))
        one.put("a", 1)
        assert not other.holds("a"), "before the write returned"
        one.close()
        other.close()


def test_while_the_bus_is_cut_nothing_is_served_for_longer_than_its_bound(
    member: Make, redis_server: RedisServer
) -> None:
    server = RedisServer()
    with server:
        one, other = member(server.url), member(server.url)
        wait(lambda: other.has("a"))
        server.pause()
        wait(lambda: other.dax.stats()["bus"] == "push lost")
        assert not other.holds("a")
        one.put("a", 1)
        assert one.dax.stats()["bus_untold"] > 0
        assert one.value("a") == 1
        other.get("a")
        wait(lambda: not other.holds("a"), 3)
        other.get("b")
        server.resume()
        other.joined()
        wait(lambda: one.dax.settings.cache.parts.invalidator.pending.__len__() == 0)
        wait(lambda: other.has("a"))
        assert other.value("a") == 1
        assert other.dax.stats()["bus_flushes"] > 0


def test_what_could_not_be_told_is_told_when_the_bus_is_back(
    member: Make, redis_server: RedisServer
) -> None:
    one, other = member(), member()
    wait(lambda: other.has("a"))
    far = one.dax.settings.cache.parts.far
    for _ in range(20):
        far.breaker.failure()  # this process alone has lost the far tier
    one.put("a", 1)
    assert one.dax.stats()["bus_untold"] == 2
    wait(lambda: other.value("a") == 1)


def test_a_beginning_that_could_not_be_told_is_owed_as_of_unknown_outcome(member: Make) -> None:
    """It is told while the write may be under way, and its process may be dead by then."""
    one = member()
    parts = one.dax.settings.cache.parts
    for _ in range(20):
        parts.far.breaker.failure()
    owed: list[bytes] = []

    def look(**_: Any) -> None:
        found = [Reader().read(name) for kind, name in parts.invalidator.pending.take()]
        owed.extend(each.kind for each in found if each is not None)

    one.client.meta.events.register("before-send.dynamodb.PutItem", look)
    one.put("a", 1)
    assert owed == [notes.UNKNOWN]
    owed.clear()
    look()
    assert owed == [notes.APPLIED], "it is known now"


def test_a_client_that_is_served_by_its_events_tells_too(
    desk: Desk, redis_server: RedisServer, member: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.client import BaseClient, ClientCreator

    other = member()
    wait(lambda: other.has("a"))

    def elsewhere(self: Any, name: str, operation: str, model: Any) -> Any:
        return lambda client, **params: client._another_way(operation, params)

    monkeypatch.setattr(BaseClient, "_another_way", BaseClient._make_api_call, raising=False)
    monkeypatch.setattr(ClientCreator, "_create_api_method", elsewhere)
    session = desk.session()
    with (
        cachekit.Cache(redis_server.url, namespace=desk.name) as cache,
        cachekit.dax.install(session, settle=0, cache=cache) as dax,
    ):
        client = session.client("dynamodb", endpoint_url=desk.server.endpoint)
        assert dax.stats()["by_events"] == 1
        client.put_item(TableName=desk.name, Item=item("a", v=1))
        wait(lambda: not other.holds("a"))
        assert other.value("a") == 1
        wait(lambda: other.has("a"))
        with pytest.raises(ClientError):
            client.put_item(
                TableName=desk.name, Item=item("a"), ConditionExpression="attribute_not_exists(pk)"
            )
        wait(lambda: not other.holds("a"))
        wait(lambda: other.has("a"))


def test_a_cache_that_was_closed_first_fails_no_write(
    desk: Desk, redis_server: RedisServer
) -> None:
    cache = cachekit.Cache(redis_server.url)
    with cache:
        one = Member(desk.server.endpoint, desk.name, cache=cache).joined()
    one.put("a", 1)
    assert one.value("a") == 1
    assert one.dax.stats()["bus_untold"] == 2
    one.close()


def test_a_cache_that_carries_nothing_is_refused(tmp_path: Path) -> None:
    client = Member.__new__(Member)
    urls = (None, "memcached://127.0.0.1:1", "redis://127.0.0.1:1/0?bus=tracking")
    for made in (*map(cachekit.Cache, urls), cachekit.Cache("redis://127.0.0.1:1", coherence=2)):
        with made as cache, pytest.raises(ConfigurationError, match="cache: "):
            cachekit.dax.install(client, cache=cache)


def test_the_bus_of_a_file_carries_too(desk: Desk, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'bus.db'}"
    with cachekit.Cache(url) as a, cachekit.Cache(url) as b:
        one = Member(desk.server.endpoint, desk.name, cache=a).joined()
        other = Member(desk.server.endpoint, desk.name, cache=b).joined()
        wait(lambda: other.has("a"))
        one.put("a", 1)
        wait(lambda: not other.holds("a"))
        one.close()
        other.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_hears_and_is_heard(member: Make) -> None:
    one, other = member(), member()
    wait(lambda: other.has("a"))
    wait(lambda: one.has("b"))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            one.joined()
            one.put("a", 1)
            wait(lambda: one.has("b"))
            wait(lambda: not one.holds("b"))
            code = 0
        finally:
            os._exit(code)
    wait(lambda: not other.holds("a"))
    end = time.monotonic() + 10
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        assert time.monotonic() < end
        other.put("b", 2)
        time.sleep(0.05)
    assert other.value("a") == 1


def test_a_writer_that_is_killed_in_its_write_leaves_nothing_stale(
    desk: Desk, redis_server: RedisServer
) -> None:
    """It has told that it begins: until it can not land any more, nobody keeps the item."""
    from cachekit.testing.dynamodb import DynamoDBServer

    assert isinstance(desk.server, DynamoDBServer)
    options = {"url": redis_server.url, "quarantine": 1.0}
    writer = Process(desk.server.endpoint, desk.name, **options)
    cache = cachekit.Cache(redis_server.url)
    other = Member(desk.server.endpoint, desk.name, cache=cache, quarantine=1.0).joined()
    try:
        writer.do("joined")
        writer.do("put", "b", 1)  # it knows the table from now on
        time.sleep(2)  # what is asked for sooner after joining is not kept for longer
        other.get("a")
        assert other.has("a")
        desk.server.pause()
        writer.start("put", "a", 1)
        wait(lambda: not other.holds("a"))
        time.sleep(0.3)  # so that it is sent: the server's host has it, and nobody answers
        writer.kill()
        desk.server.resume()
        wait(lambda: desk.get_raw("a") is not None)
        assert other.value("a") == 1
        assert not other.holds("a"), "its end was not told yet"
        wait(lambda: other.has("a"))
        assert other.value("a") == 1
        assert other.dax.stats()["writers_silent"] == 1
    finally:
        desk.server.resume()
        writer.close()
        other.close()
        cache.close()
