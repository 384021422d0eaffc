"""asyncio clients behind the cache when tasks are cancelled, wherever they wait."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("aioboto3")

from aio_cancel import CancelledAt, was_cancelled
from aio_desk import AioStand, Gate, aio_stand, on_loop, until, waiting
from dax_desk import item, key

if TYPE_CHECKING:
    from dax_desk import Desk


Request = Callable[[AioStand], Awaitable[Any]]
WRITES: dict[str, Request] = {
    "put": lambda on: on.put("a", v=2),
    "update": lambda on: on.update("a", 2),
    "delete": lambda on: on.client.delete_item(TableName=on.table, Key=key("a")),
    "batch": lambda on: on.client.batch_write_item(
        RequestItems={on.table: [{"PutRequest": {"Item": item("a", v=2)}}]}
    ),
    "transaction": lambda on: on.client.transact_write_items(
        TransactItems=[{"Put": {"TableName": on.table, "Item": item("a", v=2)}}]
    ),
    "statement": lambda on: on.client.execute_statement(
        Statement=f"UPDATE \"{on.table}\" SET v=2 WHERE pk='a' AND sk=1"
    ),
}


@pytest.mark.parametrize("write", WRITES)
@on_loop
async def test_a_write_cancelled_at_any_await_is_of_unknown_outcome(desk: Desk, write: str) -> None:
    async with aio_stand(desk) as on:
        for at in count():
            on.dax.flush()
            on.dax._store.protocol = on.dax._store._new_protocol()  # no hold of the round before
            await on.learn()
            desk.put_raw("a", v=1)
            await on.get("a")
            assert await on.served("a") == item("a", v=1)
            if not await was_cancelled(CancelledAt(WRITES[write](on), at)):
                break
            desk.put_raw("a", v=3)  # the write lands late, or another does
            for _ in range(2):
                assert (await on.get("a"))["Item"] == item("a", v=3), f"stale: cancelled at {at}"
            desk.put_raw("a", v=4)
            assert await on.served("a") is None, f"kept what may be overwritten: cancelled at {at}"
            assert (await on.get("a"))["Item"] == item("a", v=4)
        assert on.dax.stats()["faults"] == 0


@on_loop
async def test_a_write_cancelled_before_it_is_serialized_is_of_unknown_outcome_too(
    desk: Desk,
) -> None:
    """Something behind the cache may shield what it sends."""
    async with aio_stand(desk) as on:
        await on.put("a", v=1)
        entered = asyncio.Event()

        async def wait(**_: Any) -> None:
            entered.set()
            await asyncio.Event().wait()

        on.client.meta.events.register("before-parameter-build.dynamodb.PutItem", wait)
        write = asyncio.create_task(on.put("a", v=2))
        await entered.wait()
        write.cancel()
        with pytest.raises(asyncio.CancelledError):
            await write
        desk.put_raw("a", v=2)
        assert on.dax.stats()["unknown_outcomes"] == 1
        assert (await on.get("a"))["Item"] == item("a", v=2)
        assert await on.served("a") is None


@on_loop
async def test_a_read_cancelled_at_any_await_leaves_nothing_behind(desk: Desk) -> None:
    desk.put_raw("a", v=1)
    async with aio_stand(desk) as on:
        for request in (lambda on: on.get("a"), lambda on: on.query("a")):
            for at in count():
                on.dax.flush()
                if not await was_cancelled(CancelledAt(request(on), at)):
                    break
                assert not len(on.dax._store.flights)
                spots = on.dax._store.protocol._spots.values()
                assert not any(spot.readers or spot.writers for spot in spots)
                await request(on)
                on.wire.requests()
                await request(on)
                assert on.wire.requests() == [], f"not kept after one was cancelled at {at}"


@on_loop
async def test_when_the_one_that_asks_is_cancelled_the_others_go_on(any_desk: Desk) -> None:
    any_desk.put_raw("a", v=1)
    async with aio_stand(any_desk, flight_wait=60) as on:
        gate = Gate(on.wire, "GetItem")
        leader = asyncio.create_task(on.get("a"))
        await gate.entered.wait()
        followers = [asyncio.create_task(on.get("a")) for _ in range(10)]
        await until(lambda: waiting(on.dax) == 10)
        leader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leader
        gate.opened.set()
        assert [each["Item"] for each in await asyncio.gather(*followers)] == [item("a", v=1)] * 10
        assert on.wire.requests() == ["GetItem"] * 2, "one of them asks for all"
        assert await on.served("a") == item("a", v=1)
        assert not len(on.dax._store.flights)


@on_loop
async def test_who_waits_may_be_cancelled_without_harm(any_desk: Desk) -> None:
    any_desk.put_raw("a", v=1)
    async with aio_stand(any_desk, flight_wait=60) as on:
        gate = Gate(on.wire, "GetItem")
        leader = asyncio.create_task(on.get("a"))
        await gate.entered.wait()
        followers = [asyncio.create_task(on.get("a")) for _ in range(10)]
        await until(lambda: waiting(on.dax) == 10)
        for each in followers[::2]:
            each.cancel()
        gate.opened.set()
        ended = await asyncio.gather(leader, *followers, return_exceptions=True)
        assert [type(each) for each in ended[1::2]] == [asyncio.CancelledError] * 5
        assert [each["Item"] for each in ended[0::2]] == [item("a", v=1)] * 6
        assert on.wire.requests() == ["GetItem"]


@on_loop
async def test_a_timeout_around_a_write_holds_its_key_but_no_other(desk: Desk) -> None:
    async with aio_stand(desk) as on:
        await on.put("a", v=1)
        await on.put("b", v=1)
        gate = Gate(on.wire, "PutItem")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await on.put("a", v=2)
        gate.opened.set()
        assert await on.served("b") == item("b", v=1)
        await on.get("a")
        assert await on.served("a") is None
        assert on.dax.stats()["unknown_outcomes"] == 1
        told = on.dax.explain("GetItem", on.client, TableName=on.table, Key=key("a"))
        assert "unknown outcome" in told["why"]


@on_loop
async def test_a_crowd_of_requests_cancelled_at_random_leaves_only_holds(any_desk: Desk) -> None:
    chance = random.Random(7)
    async with aio_stand(any_desk) as on:

        async def once(pk: str, value: int, kind: int, at: int) -> None:
            requests: list[Callable[[], Any]] = [
                lambda: on.get(pk),
                lambda: on.query(pk),
                lambda: on.put(pk, v=value),
                lambda: on.update(pk, value),
                lambda: on.client.batch_get_item(
                    RequestItems={on.table: {"Keys": [key(pk), key("other")]}}
                ),
            ]
            with contextlib.suppress(asyncio.CancelledError):
                await CancelledAt(requests[kind](), at)

        async def work(number: int) -> None:
            for step in range(10):
                pk, kind = f"k{chance.randrange(4)}", chance.randrange(5)
                await once(pk, number * 100 + step, kind, chance.choice((0, 1, 2, 1000)))

        await asyncio.gather(*map(work, range(16)))
        assert not len(on.dax._store.flights)
        spots = on.dax._store.protocol._spots.values()
        assert not any(spot.readers or spot.writers for spot in spots)
        stats = on.dax.stats()
        assert stats["faults"] == 0
        assert stats["unknown_outcomes"] > 0
        for pk in ("k0", "k1", "k2", "k3"):
            assert (await on.get(pk)).get("Item") == any_desk.get_raw(pk)
