"""A table with a stream on a private server, a writer past the cache, and members that follow."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dax_desk import item
from dax_fleet import Member, client_of, table_of, wait

from cachekit.testing.dynamodb import MinistackServer
from cachekit.testing.servers import ServerMissing

BRIEF = {"poll": 0.2, "max_lag": 2}
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def ministack() -> Iterator[MinistackServer]:
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
    """A table with a stream, a writer past the cache, and members that follow."""

    def __init__(self, server: MinistackServer, view: str | None) -> None:
        self.server = server
        self.table = f"followed-{next(_numbers)}"
        table_of(server, self.table, view)
        self.other = client_of(server.endpoint)
        self.made: list[Any] = [self.other]

    def member(self, **options: Any) -> Member:
        given = {"streams": {self.table: BRIEF}, **options}
        self.made.append(Member(self.server.endpoint, self.table, **given))
        return self.made[-1]

    def following(self, **options: Any) -> Member:
        member = self.member(**options)
        wait(lambda: member.has("~"))
        return member

    def put(self, pk: str, v: int) -> None:
        self.other.put_item(TableName=self.table, Item=item(pk, 1, v=v))

    def close(self) -> None:
        for each in reversed(self.made):
            each.close()


@pytest.fixture
def shop(ministack: MinistackServer) -> Iterator[Callable[..., Shop]]:
    made: list[Shop] = []

    def make(view: str | None = "NEW_AND_OLD_IMAGES") -> Shop:
        made.append(Shop(ministack, view))
        return made[-1]

    yield make
    for each in made:
        each.close()


def readers() -> int:
    return sum(t.name == "cachekit-dynamodb-stream" for t in threading.enumerate())
