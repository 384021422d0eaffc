"""Who waits for whose request: of a reader that gives up, of a table's description."""

from __future__ import annotations

import asyncio
import json
from contextvars import copy_context
from typing import Any

import pytest
from dax_desk import item, key
from engine_races import SCHEMA, TABLE

from cachekit.core.outcome import Outcome
from cachekit.dax import Dax
from cachekit.dax.reads import Step
from cachekit.dax.sent import sending
from cachekit.dax.settings import Settings

META = {"HTTPStatusCode": 200, "RetryAttempts": 0, "HTTPHeaders": {}}


class Engine:
    """An engine without a client; ``asked`` is what it sends."""

    def __init__(self) -> None:
        self.dax = Dax(Settings.make(settle=0))
        self.scope = self.dax._store.scope("place", "me")
        self.asked: list[str] = []
        self.asking, self.hold = asyncio.Event(), asyncio.Event()

    def get(self) -> Step:
        params = {"TableName": TABLE, "Key": key("a")}
        step = self.dax._engine._step(self.scope, "GetItem", params, plain=False)
        assert step is not None
        return step

    async def call(self, operation: str, params: Any) -> Any:
        async def send(name: str, sent: Any) -> Outcome:
            self.asked.append(name)
            self.asking.set()
            held = sending.get()
            if held is not None:
                held.request = {"body": json.dumps(sent)}
            if name in ("DescribeTable", "GetItem"):
                await self.hold.wait()
            return Outcome({"Table": SCHEMA, "ResponseMetadata": META})

        request = (operation, params, False)
        world = self.dax._runtime.asyncio()
        return (await self.dax._engine.call(world, self.scope, request, send)).settle()


@pytest.mark.parametrize(("error", "leads"), [(KeyboardInterrupt(), 1), (OSError(), 3)])
def test_when_a_reader_gives_up_one_of_those_who_wait_asks_for_all(
    error: BaseException, leads: int
) -> None:
    on = Engine()
    contexts = [copy_context() for _ in range(4)]
    first, *others = (context.run(on.get) for context in contexts)
    assert all(step.flight is not None for step in others)
    contexts[0].run(first.failed, error)
    for context, step in zip(contexts[1:], others, strict=True):
        context.run(step.joined)
    assert sum(step.flight is None for step in others) == leads
    for step in others:
        if step.flight is None:
            step.landed({"Item": item("a", v=1), "ResponseMetadata": META})
    for step in others:
        if step.flight is not None:
            step.joined()
            assert step.answer is not None
    on.dax.uninstall()


def test_a_cancelled_leader_costs_one_request_more_not_one_for_each_who_waits() -> None:
    async def scenario() -> list[str]:
        on = Engine()
        asks = [
            asyncio.create_task(on.call("GetItem", {"TableName": TABLE, "Key": key("a")}))
            for _ in range(20)
        ]
        await on.asking.wait()
        asks[0].cancel()
        await asyncio.wait(asks[:1])
        for _ in range(20):
            await asyncio.sleep(0)
        on.hold.set()
        await asyncio.gather(*asks[1:])
        on.dax.uninstall()
        return on.asked

    assert asyncio.run(scenario()) == ["GetItem"] * 2


def test_puts_that_come_while_the_table_is_asked_for_wait_for_that() -> None:
    async def scenario() -> Engine:
        on = Engine()
        puts = [
            asyncio.create_task(on.call("PutItem", {"TableName": TABLE, "Item": item(f"k{n}")}))
            for n in range(50)
        ]
        await on.asking.wait()
        on.hold.set()
        await asyncio.gather(*puts)
        return on

    on = asyncio.run(scenario())
    assert on.asked.count("DescribeTable") == 1
    assert on.dax.stats()["flushes"] == 0
    assert on.dax.stats()["items"] == 50
    on.dax.uninstall()


def test_a_description_that_was_cancelled_is_asked_for_again() -> None:
    async def scenario() -> list[str]:
        on = Engine()
        params = {"TableName": TABLE, "Item": item("a")}
        put = asyncio.create_task(on.call("PutItem", params))
        await on.asking.wait()
        put.cancel()
        await asyncio.wait([put])
        on.hold.set()
        await on.call("PutItem", params)
        on.dax.uninstall()
        return on.asked

    assert asyncio.run(scenario()) == ["DescribeTable", "DescribeTable", "PutItem"]
