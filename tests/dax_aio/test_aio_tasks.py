"""asyncio clients behind the cache: tasks beside each other."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("aioboto3")

from aio_desk import PATIENCE, Gate, aio_stand, on_loop, until, waiting
from dax_desk import item, key

if TYPE_CHECKING:
    from dax_desk import Desk

CROWD = 200

# -- one request for all -------------------------------------------------------------------


@on_loop
async def test_a_crowd_that_misses_makes_one_request(any_desk: Desk) -> None:
    any_desk.put_raw("a", v=1)
    async with aio_stand(any_desk, flight_wait=60) as on:
        gate = Gate(on.wire, "GetItem")
        crowd = [asyncio.create_task(on.get("a")) for _ in range(CROWD)]
        await until(lambda: waiting(on.dax) == CROWD - 1)
        gate.opened.set()
        answers = [answer["Item"] for answer in await asyncio.gather(*crowd)]
        assert answers == [item("a", v=1)] * CROWD
        assert on.wire.requests() == ["GetItem"]
        assert len({id(answer["v"]) for answer in answers}) == CROWD, "callers share an answer"
        assert on.dax.stats()["shared"] == CROWD - 1
        assert not len(on.dax._store.flights)


@on_loop
async def test_a_crowd_that_queries_makes_one_request(any_desk: Desk) -> None:
    any_desk.put_raw("a", v=1)
    async with aio_stand(any_desk, flight_wait=60) as on:
        gate = Gate(on.wire, "Query")
        crowd = [asyncio.create_task(on.query("a")) for _ in range(20)]
        await until(lambda: waiting(on.dax) == 19)
        gate.opened.set()
        assert all(page["Items"] == [item("a", v=1)] for page in await asyncio.gather(*crowd))
        assert on.wire.requests() == ["Query"]


@on_loop
async def test_when_the_one_that_asks_fails_the_others_ask_themselves(desk: Desk) -> None:
    desk.put_raw("a", v=1)
    async with aio_stand(desk) as on:
        gate = Gate(on.wire, "GetItem")
        met = []

        @on.wire.rule
        async def fail_once(operation: str, _: Any) -> None:
            met.append(operation)
            if len(met) == 1:
                raise KeyError("the first request fails")

        leader = asyncio.create_task(on.get("a"))
        await gate.entered.wait()
        followers = [asyncio.create_task(on.get("a")) for _ in range(5)]
        await until(lambda: waiting(on.dax) == 5)
        gate.opened.set()
        with pytest.raises(KeyError):
            await leader
        assert [each["Item"] for each in await asyncio.gather(*followers)] == [item("a", v=1)] * 5
        assert not len(on.dax._store.flights)


@on_loop
async def test_a_reader_does_not_wait_for_ever_for_another(desk: Desk) -> None:
    desk.put_raw("a", v=1)
    async with aio_stand(desk, flight_wait=0.05) as on:
        gate = Gate(on.wire, "GetItem")
        slow = asyncio.create_task(on.get("a"))
        await gate.entered.wait()
        quick = asyncio.create_task(on.get("a"))
        await until(lambda: gate.met == 2)
        gate.opened.set()
        assert (await quick)["Item"] == (await slow)["Item"] == item("a", v=1)


@on_loop
async def test_a_crowd_of_first_writes_asks_once_what_the_table_is(any_desk: Desk) -> None:
    async with aio_stand(any_desk, learn=False) as on:
        gate = Gate(on.wire, "DescribeTable")
        crowd = [asyncio.create_task(on.put(f"k{n}", v=n)) for n in range(20)]
        await gate.entered.wait()
        await until(lambda: waiting(on.dax) == 19)
        gate.opened.set()
        await asyncio.gather(*crowd)
        assert on.wire.sent.count("DescribeTable") == 1
        assert on.dax.stats()["flushes"] == 0
        for n in range(20):
            assert await on.served(f"k{n}") == item(f"k{n}", v=n)


@on_loop
async def test_a_question_about_the_table_that_was_cancelled_is_asked_again(desk: Desk) -> None:
    async with aio_stand(desk, learn=False) as on:
        gate = Gate(on.wire, "DescribeTable")
        first = asyncio.create_task(on.put("a", v=1))
        await gate.entered.wait()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        gate.opened.set()
        assert on.wire.requests() == []
        await on.put("a", v=2)
        assert on.wire.sent == ["DescribeTable", "PutItem"]
        assert await on.served("a") == item("a", v=2)
        stats = on.dax.stats()
        assert stats["flushes"] == stats["unknown_outcomes"] == 0


# -- writes and reads in each other's way --------------------------------------------------


@on_loop
async def test_a_read_from_before_a_write_is_not_kept_after_it(desk: Desk) -> None:
    desk.put_raw("a", v=1)
    async with aio_stand(desk, return_images=False, flight_wait=60) as on:
        entered, opened = asyncio.Event(), asyncio.Event()

        async def late(parsed: Any, **_: Any) -> None:
            """The answer is on its way: what it says was read before the write."""
            if not entered.is_set():
                entered.set()
                await opened.wait()

        on.client.meta.events.register("after-call.dynamodb.GetItem", late)
        slow = asyncio.create_task(on.get("a"))
        await entered.wait()
        await on.update("a", 2)
        async with asyncio.timeout(PATIENCE / 2):  # else it joined a read from before the write
            assert (await on.get("a"))["Item"] == item("a", v=2)
        await on.client.update_item(  # and once more, so that nothing is kept now
            TableName=on.table,
            Key=key("a"),
            UpdateExpression="SET v = :v",
            ExpressionAttributeValues={":v": {"N": "3"}},
        )
        opened.set()
        assert (await slow)["Item"] == item("a", v=1)
        assert (await on.get("a"))["Item"] == item("a", v=3)


@on_loop
async def test_tasks_that_read_and_write_see_what_is_there_at_rest(any_desk: Desk) -> None:
    async with aio_stand(any_desk) as on:

        async def work(number: int) -> None:
            pk = f"k{number % 3}"
            for step in range(9):
                if (step + number) % 3 == 0:
                    await on.put(pk, v=number * 100 + step)
                elif (step + number) % 3 == 1:
                    await on.update(pk, number * 100 + step)
                else:
                    assert (await on.get(pk)).get("Item", item(pk))["pk"] == {"S": pk}
                    await on.query(pk)

        await asyncio.gather(*map(work, range(12)))
        for pk in ("k0", "k1", "k2"):
            for _ in range(2):
                assert (await on.get(pk)).get("Item") == any_desk.get_raw(pk)
                assert (await on.query(pk))["Items"] == [any_desk.get_raw(pk)]
        assert on.dax.stats()["faults"] == on.dax.stats()["unknown_outcomes"] == 0


@on_loop
async def test_bypass_is_a_tasks_own(desk: Desk) -> None:
    async with aio_stand(desk) as on:
        await on.put("a", v=1)
        inside, done = asyncio.Event(), asyncio.Event()

        async def around() -> None:
            with on.dax.bypass():
                inside.set()
                await done.wait()
                await on.get("a")

        passing = asyncio.create_task(around())
        await inside.wait()
        assert await on.served("a") == item("a", v=1)
        done.set()
        await passing
        assert on.wire.requests() == ["GetItem"]
