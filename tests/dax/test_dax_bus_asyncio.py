"""Tasks of an event loop on the bus: they tell and hear, and what is cancelled is ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dax_desk import Desk, item, key
from dax_fleet import Member, wait

import cachekit
import cachekit.dax
from cachekit.core.outcome import Outcome
from cachekit.dax import Dax
from cachekit.dax.sent import sending
from cachekit.testing.servers import RedisServer

pytestmark = pytest.mark.server


def test_asyncio_clients_tell_and_hear(desk: Desk, redis_server: RedisServer) -> None:
    session_of = pytest.importorskip("aiobotocore.session").get_session
    from cachekit.testing.dynamodb import CREDENTIALS, REGION

    async def scenario(other: Member) -> None:
        session = session_of()
        with cachekit.Cache(redis_server.url, namespace=desk.name) as cache:
            dax = cachekit.dax.install(session, cache=cache, settle=0)
            made = session.create_client(
                "dynamodb", region_name=REGION, endpoint_url=desk.server.endpoint, **CREDENTIALS
            )
            async with made as client:
                await client.get_item(TableName=desk.name, Key=key("a"))
                await client.put_item(TableName=desk.name, Item=item("a", v=1))
                await asyncio.to_thread(wait, lambda: not other.holds("a"))
                assert await asyncio.to_thread(other.value, "a") == 1
                assert dax.stats()["bus_untold"] == 0
            dax.uninstall()

    cache = cachekit.Cache(redis_server.url, namespace=desk.name)
    other = Member(desk.server.endpoint, desk.name, cache=cache).joined()
    wait(lambda: other.has("a"))
    asyncio.run(scenario(other))
    other.close()
    cache.close()


class Loop:
    """The engine of a handle as an asyncio client calls it; another member hears."""

    def __init__(self, desk: Desk, url: str) -> None:
        self.desk = desk
        self.caches = [cachekit.Cache(url, namespace=desk.name) for _ in "ab"]
        self.other = Member(desk.server.endpoint, desk.name, cache=self.caches[0]).joined()
        self.dax = Dax(cachekit.dax.Settings.make(cache=self.caches[1], settle=0))
        place = (desk.server.endpoint, "us-east-1")
        self.scope = self.dax._store.scope(place, "me")
        self.far = self.caches[1].parts.far

    async def put(self, send: Callable[[], Any] | None = None) -> None:
        async def asks(operation: str, params: Any) -> Outcome:
            if operation == "PutItem":
                sent = sending.get()
                assert sent is not None
                sent.request = {"body": json.dumps(params)}
                if send is not None:
                    await send()
            method = {"PutItem": "put_item", "DescribeTable": "describe_table"}[operation]
            return Outcome(await asyncio.to_thread(getattr(self.desk.raw, method), **params))

        params = {"TableName": self.desk.name, "Item": item("a", v=1)}
        world = self.dax._runtime.asyncio()
        outcome = await self.dax._engine.call(world, self.scope, ("PutItem", params, False), asks)
        outcome.settle()

    def close(self) -> None:
        self.dax.uninstall()
        self.other.close()
        for cache in self.caches:
            cache.close()


@pytest.fixture
def loop(desk: Desk, redis_server: RedisServer) -> Iterator[Loop]:
    made = Loop(desk, redis_server.url)
    yield made
    made.close()


def test_a_task_tells_before_it_sends_and_before_it_returns(loop: Loop) -> None:
    wait(lambda: loop.other.has("a"))

    async def told_first() -> None:
        await asyncio.to_thread(wait, lambda: not loop.other.holds("a"))

    asyncio.run(loop.put(told_first))
    wait(lambda: loop.other.value("a") == 1)
    wait(lambda: loop.other.has("a"))
    assert loop.dax.stats()["bus_untold"] == 0


def test_a_task_that_is_cancelled_in_its_write_quarantines_everywhere(loop: Loop) -> None:
    async def scenario() -> None:
        reached = asyncio.Event()

        async def hang() -> None:
            reached.set()
            await asyncio.sleep(60)

        task = asyncio.create_task(loop.put(hang))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    wait(lambda: loop.other.dax.stats()["others_told"] == 2)
    why = loop.other.dax.explain("GetItem", TableName=loop.desk.name, Key=key("a"))["why"]
    assert "unknown outcome" in why


def test_a_task_that_is_cancelled_while_it_tells_leaves_nobody_waiting(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was not sent, and the others were told that it begins, perhaps."""
    real = loop.far.void

    async def scenario() -> None:
        reached = asyncio.Event()

        async def void(*args: Any) -> None:
            await real(*args)
            if not reached.is_set():
                reached.set()
                await asyncio.sleep(60)

        monkeypatch.setattr(loop.far, "void", void)
        task = asyncio.create_task(loop.put())
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    wait(lambda: loop.other.dax.stats()["others_told"] == 2)
    wait(lambda: loop.other.has("a"))
    assert loop.desk.get_raw("a") is None
