"""One cache in front of asyncio clients of several loops, and of plain clients beside them."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("aioboto3")

from aio_desk import PATIENCE, AioStand, AioWire, Gate, aio_stand, config, on_loop, session, until
from aio_desk import waiting as waiting_in
from botocore.session import Session
from dax_desk import Wire, is_hit, item, key

import cachekit.dax
from cachekit.testing.dynamodb import CREDENTIALS, REGION

if TYPE_CHECKING:
    from dax_desk import Desk


def _placed(on: AioStand) -> tuple[Any, Wire]:
    """A plain client of the same endpoint behind the same cache."""
    client = on.desk.client()
    on.dax.placing.put(client)
    return client, Wire(client)


@on_loop
async def test_a_plain_client_beside_shares_items_and_evictions(any_desk: Desk) -> None:
    async with aio_stand(any_desk) as on:
        plain, wire = _placed(on)
        await on.put("a", v=1)
        assert is_hit(plain.get_item(TableName=on.table, Key=key("a")))
        plain.put_item(TableName=on.table, Item=item("a", v=2))
        assert await on.served("a") == item("a", v=2)
        await on.query("a")
        plain.delete_item(TableName=on.table, Key=key("a"))
        assert (await on.query("a"))["Items"] == []
        assert wire.sent == ["PutItem", "DeleteItem"]


@on_loop
async def test_threads_wait_for_a_task_and_a_task_for_threads(any_desk: Desk) -> None:
    any_desk.put_raw("a", v=1)
    any_desk.put_raw("b", v=1)
    async with aio_stand(any_desk, flight_wait=60) as on:
        plain, wire = _placed(on)
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(4) as pool:
            gate = Gate(on.wire, "GetItem")
            leader = asyncio.create_task(on.get("a"))
            await gate.entered.wait()
            asked = [
                loop.run_in_executor(pool, lambda: plain.get_item(TableName=on.table, Key=key("a")))
                for _ in range(4)
            ]
            await until(lambda: waiting_in(on.dax) == 4)
            gate.opened.set()
            for answer in await asyncio.gather(leader, *asked):
                assert answer["Item"] == item("a", v=1)
            assert (on.wire.requests(), wire.sent) == (["GetItem"], [])

            entered, opened = threading.Event(), threading.Event()

            def hold(operation: str, _: Any) -> None:
                entered.set()
                opened.wait(PATIENCE)

            wire.rule(hold)
            first = loop.run_in_executor(
                pool, lambda: plain.get_item(TableName=on.table, Key=key("b"))
            )
            await until(entered.is_set)
            tasks = [asyncio.create_task(on.get("b")) for _ in range(4)]
            await until(lambda: waiting_in(on.dax) == 4)
            opened.set()
            for answer in await asyncio.gather(first, *tasks):
                assert answer["Item"] == item("b", v=1)
            assert (on.wire.requests(), wire.sent) == ([], ["GetItem"])


@on_loop
async def test_a_plain_call_that_stops_a_loop_does_not_wait_for_its_tasks(desk: Desk) -> None:
    desk.put_raw("a", v=1)
    async with aio_stand(desk, flight_wait=PATIENCE) as on:
        plain, wire = _placed(on)
        gate = Gate(on.wire, "GetItem")
        leader = asyncio.create_task(on.get("a"))
        await gate.entered.wait()
        began = time.monotonic()
        assert plain.get_item(TableName=on.table, Key=key("a"))["Item"] == item("a", v=1)
        assert time.monotonic() - began < PATIENCE / 2, "it waited for a task that it stopped"
        assert wire.sent == ["GetItem"]
        gate.opened.set()
        assert (await leader)["Item"] == item("a", v=1)


def test_two_loops_share_requests_items_and_evictions(any_desk: Desk) -> None:
    """Loop 0 asks while loop 1 waits for the same; then 1 writes, and 0 sees it."""
    any_desk.put_raw("a", v=1)
    made = session()
    dax = cachekit.dax.install(made, settle=0, flight_wait=60)
    asked, waits, written = (threading.Event() for _ in range(3))
    sent: dict[int, AioWire] = {}

    def client() -> Any:
        return made.client("dynamodb", endpoint_url=any_desk.server.endpoint, config=config())

    async def get(by: Any) -> Any:
        return (await by.get_item(TableName=any_desk.name, Key=key("a")))["Item"]

    async def first() -> None:
        async with client() as mine:
            wire = sent[0] = AioWire(mine)
            gate = Gate(wire, "GetItem")
            asking = asyncio.create_task(get(mine))
            await gate.entered.wait()
            asked.set()
            await until(waits.is_set)
            gate.opened.set()
            assert await asking == item("a", v=1)
            await until(written.is_set)
            assert await get(mine) == item("a", v=2)

    async def second() -> None:
        await until(asked.is_set)  # a session makes its clients one by one
        async with client() as mine:
            sent[1] = AioWire(mine)
            crowd = [asyncio.create_task(get(mine)) for _ in range(5)]
            await until(lambda: waiting_in(dax) == 5)
            waits.set()
            assert await asyncio.gather(*crowd) == [item("a", v=1)] * 5
            await mine.put_item(TableName=any_desk.name, Item=item("a", v=2))
            written.set()

    def run(life: Any) -> None:
        asyncio.run(asyncio.wait_for(life(), 2 * PATIENCE))

    with ThreadPoolExecutor(2) as pool:
        for each in [pool.submit(run, first), pool.submit(run, second)]:
            each.result(3 * PATIENCE)
    assert {number: wire.requests() for number, wire in sent.items()} == {
        0: ["GetItem"],
        1: ["PutItem"],
    }
    assert dax.stats()["faults"] == 0
    dax.uninstall()


def test_a_loop_that_ended_in_the_middle_leaves_nobody_waiting(desk: Desk) -> None:
    """Its tasks are cancelled, as ``asyncio.run`` does; a thread that waited goes on."""
    desk.put_raw("a", v=1)
    made, other = session(), Session()
    other.set_credentials(*CREDENTIALS.values())
    dax = cachekit.dax.install(made, settle=0, flight_wait=60)
    dax.placing.put(other)
    plain = other.create_client("dynamodb", region_name=REGION, endpoint_url=desk.server.endpoint)

    with ThreadPoolExecutor(1) as pool:

        async def main() -> Any:
            async with made.client("dynamodb", endpoint_url=desk.server.endpoint) as client:
                gate = Gate(AioWire(client), "GetItem")
                task = asyncio.create_task(client.get_item(TableName=desk.name, Key=key("a")))
                await gate.entered.wait()
                asked = pool.submit(plain.get_item, TableName=desk.name, Key=key("a"))
                await until(lambda: waiting_in(dax) == 1)
                assert not task.done()
                return asked

        assert asyncio.run(main()).result(PATIENCE)["Item"] == item("a", v=1)
    assert is_hit(plain.get_item(TableName=desk.name, Key=key("a")))
    assert not len(dax._store.flights)
    dax.uninstall()


@pytest.mark.filterwarnings("ignore")  # of what nobody closes
def test_a_loop_that_was_closed_with_tasks_in_it_holds_what_they_wrote(desk: Desk) -> None:
    """Nobody cancels them: they end when they are collected, in no loop and another context."""
    made = session()
    dax = cachekit.dax.install(made, settle=0)
    loop = asyncio.new_event_loop()
    left = []

    async def begin() -> None:
        client = await made.client("dynamodb", endpoint_url=desk.server.endpoint).__aenter__()
        wire = AioWire(client)
        for operation in ("PutItem", "GetItem"):
            gate = Gate(wire, operation)
            request = {"Item": item("a", v=2)} if operation == "PutItem" else {"Key": key("b")}
            asked = getattr(client, "put_item" if "Item" in request else "get_item")
            left.append(loop.create_task(asked(TableName=desk.name, **request)))
            await gate.entered.wait()

    loop.run_until_complete(begin())
    loop.close()
    spots = dax._store.protocol._spots
    assert len(dax._store.flights) == sum(spot.writers for spot in spots.values()) - 2 == 1
    left.clear()
    gc.collect()
    assert not len(dax._store.flights)
    assert not any(spot.readers or spot.writers for spot in spots.values())
    assert dax.stats()["unknown_outcomes"] == 1
    told = dax.explain("GetItem", TableName=desk.name, Key=key("a"))
    assert "unknown outcome" in told["why"]
    dax.uninstall()
