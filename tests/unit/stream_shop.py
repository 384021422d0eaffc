"""A table with a stream on a private server, another client's writes, and caches that follow."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import cachekit
from cachekit.feeds.dynamodb_streams import DynamoDBStreamFeed, Record, dynamodb_stream
from cachekit.testing.dynamodb import CREDENTIALS, REGION, MinistackServer
from cachekit.testing.servers import ServerMissing

VIEW = {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"}
SOON = 10.0  # how long a test waits for what takes a fraction of it
_numbers = itertools.count(1)


def running() -> Iterator[MinistackServer]:
    """A server; skips the test, or fails it where servers are required."""
    server = MinistackServer()
    try:
        server.start()
    except ServerMissing as missing:
        if os.environ.get("CACHEKIT_REQUIRE_SERVERS") == "1":
            pytest.fail(str(missing))
        pytest.skip(str(missing))
    with server:
        yield server


class Shop:
    """A table with a stream, another client's writes, and caches that follow."""

    def __init__(self, server: MinistackServer) -> None:
        self.server = server
        self.table = f"users-{next(_numbers)}"
        self.other = server.client()
        self.connected = 0
        self.seen: list[Record] = []
        self.ends: list[Callable[[], None]] = []
        self.make()

    def make(self) -> None:
        self.other.create_table(
            TableName=self.table,
            KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
            AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "N"}],
            BillingMode="PAY_PER_REQUEST",
            StreamSpecification=VIEW,
        )

    def put(self, number: int, **more: Any) -> None:
        item = {"id": {"N": str(number)}, **{k: {"S": v} for k, v in more.items()}}
        self.other.put_item(TableName=self.table, Item=item)

    def read(self, number: int) -> str | None:
        found = self.other.get_item(TableName=self.table, Key={"id": {"N": str(number)}})
        return found["Item"]["name"]["S"] if "Item" in found else None

    def connect(self, service: str) -> Any:
        import boto3
        from botocore.config import Config

        self.connected += 1
        config = Config(
            connect_timeout=1, read_timeout=6, retries={"total_max_attempts": 1}, proxies={}
        )
        session = boto3.session.Session(region_name=REGION, **CREDENTIALS)
        return session.client(service, endpoint_url=self.server.url, config=config)

    def tags(self, record: Record) -> list[str]:
        self.seen.append(record)
        return [f"user:{record.keys['id']}"]

    def feed(self, **options: Any) -> DynamoDBStreamFeed:
        given = {"tags_of": self.tags, "connect": self.connect, "poll": 0.2, "max_lag": 5}
        return dynamodb_stream(self.table, **{**given, **options})

    def follow(self, cache: cachekit.Cache, **options: Any) -> Callable[[], None]:
        feed = self.feed(**options)
        end = cache.follow(feed)
        self.ends.append(end)
        wait(lambda: feed.states == ["reading"])
        return end

    def close(self) -> None:
        for end in self.ends:
            end()
        self.other.close()


def readers() -> int:
    return sum(t.name == "cachekit-dynamodb-stream" for t in threading.enumerate())


def wait(reached: Callable[[], bool], seconds: float = SOON) -> float:
    began = time.monotonic()
    while not reached():
        assert time.monotonic() - began < seconds, "it did not come to pass"
        time.sleep(0.01)
    return time.monotonic() - began


def counts(cache: cachekit.Cache) -> dict[str, int]:
    return cache.parts.meter.counts
