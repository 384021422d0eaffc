"""Who follows a stream and for how long: lag, threads, forks, fleets."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from typing import Any

import pytest
from dax_desk import key
from dax_fleet import Process, client_of, wait
from dax_shop import BRIEF, Shop, ministack, readers, shop

import cachekit
import cachekit.dax
from cachekit.testing.dynamodb import MinistackServer
from cachekit.testing.servers import RedisServer

__all__ = ["ministack", "shop"]
pytestmark = pytest.mark.server


def test_who_lags_stops_keeping_until_it_has_caught_up(ministack: MinistackServer) -> None:
    with MinistackServer() as server:  # one that may be stopped
        lone = Shop(server, "NEW_AND_OLD_IMAGES")

        def connect(service: str) -> Any:
            return client_of(server.endpoint, service, connect_timeout=1, read_timeout=1)

        options = {"poll": 0.2, "max_lag": 1, "connect": connect}
        member = lone.following(streams={lone.table: options})
        member.get("a")
        assert member.holds("a")
        server.pause()
        try:
            wait(lambda: not member.holds("a"), 15)
        finally:
            server.resume()
        wait(lambda: member.has("a"), 15)
        assert member.dax.stats()["stream_flushes"] > 0
        lone.close()


def test_one_thread_per_table_from_its_first_use_to_the_end(shop: Callable[..., Shop]) -> None:
    wait(lambda: readers() == 0)  # those of other tests
    on = shop()
    member = on.member()
    assert readers() == 0, "nothing was asked yet"
    member.get("a"), member.get("b")
    assert readers() == 1
    member.dax.uninstall()
    wait(lambda: readers() == 0)


def test_a_handle_that_is_dropped_ends_its_threads(shop: Callable[..., Shop]) -> None:
    wait(lambda: readers() == 0)
    on = shop()
    client = client_of(on.server.endpoint)
    cachekit.dax.install(client, streams=True)
    client.get_item(TableName=on.table, Key=key("a"))
    assert readers() == 1
    del client
    # More than once: the thread may hold it for the moment of a look.
    wait(lambda: gc.collect() >= 0 and readers() == 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_reads_for_itself(shop: Callable[..., Shop]) -> None:
    on = shop()
    member = on.following()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            assert not member.holds("~")
            wait(lambda: member.has("a"))
            on.put("a", 5)
            wait(lambda: member.value("a") == 5)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    wait(lambda: member.value("a") == 5)


def test_of_a_fleet_one_reads_and_another_goes_on_when_it_is_killed(
    shop: Callable[..., Shop], redis_server: RedisServer
) -> None:
    on = shop()
    options = {"url": redis_server.url, "streams": {on.table: BRIEF}}
    first = Process(on.server.endpoint, on.table, **options)
    on.made.append(first)
    first.do("joined")
    wait(lambda: first.do("has", "~"))
    assert first.do("stats")["streams"] == {on.table: "reading"}
    cache = cachekit.Cache(redis_server.url)
    on.made.append(cache)
    member = on.following(cache=cache)
    assert member.dax.stats()["streams"] == {on.table: "standing by"}
    member.get("a")
    on.put("a", 1)
    wait(lambda: not member.holds("a"))
    assert member.dax.stats()["stream_records"] == 0
    assert member.value("a") == 1
    first.kill()
    on.put("a", 2)
    wait(lambda: member.value("a") == 2, 15)
    wait(lambda: member.dax.stats()["streams"] == {on.table: "reading"})
    wait(lambda: member.has("a"))
    on.put("a", 3)
    wait(lambda: member.value("a") == 3)
