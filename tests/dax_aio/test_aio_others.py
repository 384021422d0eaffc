"""asyncio clients whose cache hears of other processes: by a bus, and by a table's stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("aioboto3")

from aio_cancel import CancelledAt, was_cancelled
from aio_desk import AioStand, aio_stand, on_loop, session, until
from dax_desk import is_hit, item, key

import cachekit
import cachekit.dax

if TYPE_CHECKING:
    from dax_desk import Desk


def _keeps(on: AioStand, pk: str) -> bool:
    told = on.dax.explain("GetItem", on.client, TableName=on.table, Key=key(pk))
    return bool(told["answer"] == "cache")


async def _settled(on: AioStand, pk: str) -> None:
    """Until it is kept."""
    async with asyncio.timeout(30):
        while not is_hit(await on.get(pk)):  # noqa: ASYNC110  # it is the asking that fills
            await asyncio.sleep(0.01)


@asynccontextmanager
async def _two(desk: Desk, folder: Path) -> AsyncIterator[list[AioStand]]:
    """Clients behind caches of their own on one bus."""
    url = f"sqlite:///{folder}/bus.db"
    with cachekit.Cache(url) as here, cachekit.Cache(url) as there:
        async with aio_stand(desk, cache=here) as one, aio_stand(desk, cache=there) as other:
            for on in (one, other):
                await on.get("-")
                await until(lambda on=on: on.dax.stats()["bus"] == "push")  # type: ignore[misc]  # bound
            yield [one, other]


@on_loop
async def test_another_process_hears_of_writes(desk: Desk, tmp_path: Path) -> None:
    async with _two(desk, tmp_path) as (one, other):
        await one.put("a", v=1)
        await _settled(other, "a")
        await one.update("a", 2)
        await until(lambda: not _keeps(other, "a"))
        await _settled(other, "a")
        assert (await other.get("a"))["Item"] == item("a", v=2)


@on_loop
async def test_another_process_holds_what_was_cancelled_at_any_await(
    desk: Desk, tmp_path: Path
) -> None:
    async with _two(desk, tmp_path) as (one, other):
        for at in count():
            pk = f"k{at}"
            desk.put_raw(pk, v=1)
            await _settled(other, pk)
            if not await was_cancelled(CancelledAt(one.put(pk, v=2), at)):
                break
            await until(lambda pk=pk: not _keeps(other, pk))  # type: ignore[misc]  # bound
            desk.put_raw(pk, v=2)  # it lands late, if it did not before
            for on in (one, other, one, other):
                assert (await on.get(pk))["Item"] == item(pk, v=2), f"cancelled at {at}"
        assert one.dax.stats()["faults"] == other.dax.stats()["faults"] == 0


@on_loop
async def test_a_stream_is_read_with_the_credentials_of_an_asyncio_client(desk: Desk) -> None:
    name = f"{desk.name}-followed"
    desk.raw.create_table(
        TableName=name,
        KeySchema=[
            {"AttributeName": "pk", "KeyType": "HASH"},
            {"AttributeName": "sk", "KeyType": "RANGE"},
        ],
        AttributeDefinitions=[
            {"AttributeName": "pk", "AttributeType": "S"},
            {"AttributeName": "sk", "AttributeType": "N"},
        ],
        BillingMode="PAY_PER_REQUEST",
        StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_IMAGE"},
    )
    made = session().client("dynamodb", endpoint_url=desk.server.endpoint)
    async with made as client:
        following: dict[str, Any] = {"poll": 0.2, "max_lag": 5}
        dax = cachekit.dax.install(client, settle=0, streams={name: following})
        on = AioStand(desk, client, dax)
        on.table = name
        desk.raw.put_item(TableName=name, Item=item("a", v=1))
        await _settled(on, "a")
        desk.raw.put_item(TableName=name, Item=item("a", v=2))
        await until(lambda: not _keeps(on, "a"))
        await _settled(on, "a")
        assert (await on.get("a"))["Item"] == item("a", v=2)
        await asyncio.to_thread(dax.uninstall)
