"""Who reads a stream and for how long: threads, forks, fleets."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stream_shop import SOON, Shop, counts, readers, running, wait

import cachekit
from cachekit.feeds import seat
from cachekit.feeds.dynamodb_streams import Record
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


@pytest.mark.server
def test_nothing_starts_before_follow_and_its_end_ends_the_thread(
    shop: Shop, cache: cachekit.Cache
) -> None:
    feed = shop.feed()
    assert (shop.connected, readers()) == (0, 0)
    end = cache.follow(feed)
    wait(lambda: feed.states == ["reading"])
    assert readers() == 1
    end()
    end()
    assert (readers(), feed.states) == (0, [])
    cache.set("a", 1, tags=["user:1"])
    shop.put(1)
    time.sleep(0.5)
    assert cache.get("a") == 1


@pytest.mark.server
def test_the_thread_ends_with_its_cache(shop: Shop) -> None:
    with cachekit.Cache() as cache:
        shop.follow(cache)
        assert readers() == 1
    wait(lambda: readers() == 0)


@pytest.mark.server
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_reader_that_dies_comes_back_and_flushes(shop: Shop, cache: cachekit.Cache) -> None:
    class Fatal(BaseException):
        pass

    def fatal(record: Record) -> list[str]:
        if not shop.seen:
            shop.seen.append(record)
            raise Fatal
        return shop.tags(record)

    shop.follow(cache, tags_of=fatal)
    cache.set("a", 1)
    shop.put(1)
    wait(lambda: counts(cache)["feed_began"] == 2)
    assert cache.get("a") is None
    cache.set("a", 1, tags=["user:2"])
    shop.put(2)
    wait(lambda: cache.get("a") is None)


@pytest.mark.server
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_reads_by_itself(shop: Shop, cache: cachekit.Cache) -> None:
    shop.follow(cache)
    begun = counts(cache)["feed_began"]
    child = os.fork()
    if child == 0:
        code = 1
        try:
            wait(lambda: counts(cache)["feed_began"] > begun)
            cache.set("a", 1, tags=["user:1"])
            shop.connect("dynamodb").put_item(TableName=shop.table, Item={"id": {"N": "1"}})
            wait(lambda: cache.get("a") is None)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    cache.set("a", 1, tags=["user:2"])
    shop.put(2)
    wait(lambda: cache.get("a") is None)


@pytest.mark.server
def test_one_of_a_fleet_reads_and_another_takes_over(shop: Shop, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'far.db'}"
    with cachekit.Cache(url) as one, cachekit.Cache(url, coherence="strict") as two:
        first, second = shop.feed(max_lag=1.5), shop.feed(max_lag=1.5)
        end = one.follow(first)
        wait(lambda: first.states == ["reading"])
        shop.ends.append(two.follow(second))
        wait(lambda: second.states == ["standing by"])
        two.set("a", 1, tags=["user:1"])
        shop.put(1)
        wait(lambda: two.get("a") is None)
        assert (counts(one)["feed_records"], counts(two)["feed_records"]) == (1, 0)
        two.set("a", 1)
        end()
        wait(lambda: second.states == ["reading"])
        assert two.get("a") is None, "a change of the reader ends in a flush"


@pytest.mark.server
def test_a_reader_that_can_not_read_gives_way_to_one_that_can(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seat, "LEASE_LEAST", 0.5)

    def broken(service: str) -> Any:
        raise PermissionError(service)

    url = f"sqlite:///{tmp_path / 'far.db'}"
    with cachekit.Cache(url) as one, cachekit.Cache(url) as two:
        first, second = shop.feed(max_lag=0.5, connect=broken), shop.feed(max_lag=0.5)
        shop.ends.append(one.follow(first))
        wait(lambda: first.states == ["behind"])
        shop.ends.append(two.follow(second))
        wait(lambda: second.states == ["standing by"])
        wait(lambda: second.states == ["reading"], 3 * SOON)


@pytest.mark.server
def test_the_end_does_not_wait_for_a_server_that_hangs(
    server: MinistackServer, cache: cachekit.Cache
) -> None:
    with MinistackServer() as own:
        shop = Shop(own)
        end = shop.follow(cache)
        own.pause()
        time.sleep(0.5)  # until it is being asked
        began = time.monotonic()
        end()
        assert time.monotonic() - began < 4.0, "its answer is waited for 6 seconds"
        own.resume()
        shop.close()
        wait(lambda: readers() == 0)
