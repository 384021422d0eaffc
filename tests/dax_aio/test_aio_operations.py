"""asyncio clients, resources and Tables behind the cache: what each operation does."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("aioboto3")

import aiobotocore.session
from aio_desk import AioWire, aio_stand, config, on_loop, session
from aiobotocore.client import AioBaseClient
from botocore.exceptions import ClientError, ParamValidationError
from dax_desk import is_hit, item, key

import cachekit.dax
from cachekit.errors import ConfigurationError
from cachekit.testing.dynamodb import CREDENTIALS, REGION

if TYPE_CHECKING:
    from dax_desk import Desk


@on_loop
async def test_a_read_asks_once_found_or_missing(any_desk: Desk) -> None:
    any_desk.put_raw("a", v=1)
    async with aio_stand(any_desk) as on:
        for pk, expected in (("a", item("a", v=1)), ("b", None)):
            first, second = await on.get(pk), await on.get(pk)
            assert first.get("Item") == second.get("Item") == expected
            assert (is_hit(first), is_hit(second)) == (False, True)
        assert on.wire.requests() == ["GetItem", "GetItem"]
        metadata = (await on.get("a", ReturnConsumedCapacity="TOTAL"))["ConsumedCapacity"]
        assert metadata == {"TableName": on.table, "CapacityUnits": 0.0}
        assert on.dax.stats()["item_hits"] == 3


@on_loop
async def test_a_callers_changes_to_an_answer_stay_its_own(any_desk: Desk) -> None:
    nested = {"M": {"l": {"L": [{"S": "x"}]}}}
    any_desk.put_raw("a", m=nested)
    async with aio_stand(any_desk) as on:
        for _ in range(8):  # through all forms in which a hot item is kept
            found = (await on.get("a"))["Item"]
            assert found == item("a", m=nested)
            found["m"]["M"]["l"]["L"].append({"S": "mine"})
            found["more"] = {"S": "mine"}
            page = await on.query("a")
            assert page["Items"] == [item("a", m=nested)]
            page["Items"][0]["m"]["M"].clear()
        assert on.wire.requests() == ["GetItem", "Query"]


@on_loop
async def test_writes_fill_and_drop_the_pages_of_their_partition(any_desk: Desk) -> None:
    async with aio_stand(any_desk) as on:
        await on.put("a", v=1)
        assert await on.served("a") == item("a", v=1)
        await on.query("a")
        await on.query("b")
        assert on.wire.requests() == ["Query", "Query"]
        answer = await on.update("a", 2)
        assert "Attributes" not in answer
        assert await on.served("a") == item("a", v=2)
        assert (await on.query("a"))["Items"] == [item("a", v=2)]
        await on.query("b")
        assert on.wire.requests() == ["Query"]
        await on.client.delete_item(TableName=on.table, Key=key("a"))
        assert await on.served("a") == "missing"
        assert any_desk.get_raw("a") is None


@on_loop
async def test_a_failed_condition_evicts_and_raises_as_it_did(any_desk: Desk) -> None:
    async with aio_stand(any_desk) as on:
        await on.put("a", v=1)
        any_desk.put_raw("a", v=5)
        assert await on.served("a") == item("a", v=1), "the cache does not hear of others"
        with pytest.raises(on.client.exceptions.ConditionalCheckFailedException):
            await on.client.put_item(
                TableName=on.table,
                Item=item("a", v=2),
                ConditionExpression="attribute_not_exists(pk)",
            )
        assert await on.served("a") is None
        assert await on.served("a") == item("a", v=5)
        assert on.dax.stats()["unknown_outcomes"] == 0


@on_loop
async def test_batches_ask_for_what_is_not_known_and_evict_what_they_write(any_desk: Desk) -> None:
    async with aio_stand(any_desk) as on:
        puts = [{"PutRequest": {"Item": item("a", n, v=n)}} for n in range(3)]
        await on.client.batch_write_item(RequestItems={on.table: puts})
        assert await on.served("a", 2) == item("a", 2, v=2)
        wanted = {on.table: {"Keys": [key("a", n) for n in range(5)]}}
        on.wire.requests()
        answer = await on.client.batch_get_item(RequestItems=wanted)
        found = answer["Responses"][on.table]
        assert sorted(each["v"]["N"] for each in found) == ["0", "1", "2"]
        assert on.wire.bodies[-1]["RequestItems"][on.table]["Keys"] == [key("a", 3), key("a", 4)]
        assert on.wire.requests() == ["BatchGetItem"]
        again = await on.client.batch_get_item(RequestItems=wanted)
        assert is_hit(again)
        assert on.wire.requests() == []


@on_loop
async def test_a_transaction_fills_puts_and_a_cancelled_one_evicts(desk: Desk) -> None:
    async with aio_stand(desk) as on:
        desk.put_raw("b", v=1)
        await on.get("b")
        put: Any = {"Put": {"TableName": on.table, "Item": item("a", v=1)}}
        change = {
            "Update": {
                "TableName": on.table,
                "Key": key("b"),
                "UpdateExpression": "SET v = :v",
                "ExpressionAttributeValues": {":v": {"N": "2"}},
            }
        }
        await on.client.transact_write_items(TransactItems=[put, change])
        assert await on.served("a") == item("a", v=1)
        assert await on.served("b") is None
        put["Put"]["ConditionExpression"] = "attribute_not_exists(pk)"
        with pytest.raises(on.client.exceptions.TransactionCanceledException):
            await on.client.transact_write_items(TransactItems=[put])
        assert await on.served("a") is None


@on_loop
async def test_paginators_and_waiters_pass_the_cache(any_desk: Desk) -> None:
    for n in range(7):
        any_desk.put_raw("a", n, v=n)
    async with aio_stand(any_desk) as on:
        waiter = on.client.get_waiter("table_exists")
        await waiter.wait(TableName=on.table)
        on.wire.requests()
        for expected in (4, 0):
            seen = []
            async for page in on.client.get_paginator("query").paginate(
                TableName=on.table,
                KeyConditionExpression="pk = :p",
                ExpressionAttributeValues={":p": {"S": "a"}},
                PaginationConfig={"PageSize": 2},
            ):
                seen += [int(each["v"]["N"]) for each in page["Items"]]
            assert seen == list(range(7))
            assert len(on.wire.requests()) == expected


@on_loop
async def test_a_session_of_aioboto3_serves_resources_and_tables(any_desk: Desk) -> None:
    made = session()
    dax = cachekit.dax.install(made, settle=0)
    async with made.resource(
        "dynamodb", endpoint_url=any_desk.server.endpoint, config=config()
    ) as dynamodb:
        wire = AioWire(dynamodb.meta.client)
        table = await dynamodb.Table(any_desk.name)
        await table.put_item(Item={"pk": "a", "sk": 1, "v": Decimal("1.50"), "tags": {"x"}})
        await table.load()
        assert table.meta.data is not None
        wire.requests()
        for _ in range(6):
            found = (await table.get_item(Key={"pk": "a", "sk": 1}))["Item"]
            assert found == {"pk": "a", "sk": 1, "v": Decimal("1.5"), "tags": {"x"}}
            found["tags"].add("mine")
        assert table.meta.data is None, "as after any action"
        assert (await table.get_item(Key={"pk": "b", "sk": 1})).get("Item") is None
        assert wire.requests() == ["GetItem"]
        async with table.batch_writer() as writer:
            for n in range(30):
                await writer.put_item(Item={"pk": "w", "sk": n})
        assert wire.requests() == ["BatchWriteItem", "BatchWriteItem"]
        assert (await table.get_item(Key={"pk": "w", "sk": 29}))["Item"]["sk"] == 29
        assert (await dynamodb.meta.client.get_item(
            TableName=any_desk.name, Key={"pk": "a", "sk": 1}
        ))["Item"]["tags"] == {"x"}  # fmt: skip
        assert wire.requests() == []
        dax.uninstall()
        await table.get_item(Key={"pk": "a", "sk": 1})
        assert wire.requests() == ["GetItem"]


@on_loop
async def test_a_session_of_aiobotocore_serves_its_clients(any_desk: Desk) -> None:
    made = aiobotocore.session.AioSession()
    with cachekit.dax.install(made, settle=0) as dax:
        options: dict[str, Any] = {"endpoint_url": any_desk.server.endpoint, **CREDENTIALS}
        async with (
            made.create_client("dynamodb", region_name=REGION, **options) as one,
            made.create_client("dynamodb", region_name=REGION, **options) as other,
        ):
            await one.put_item(TableName=any_desk.name, Item=item("a", v=1))
            answer = await other.get_item(TableName=any_desk.name, Key=key("a"))
            assert is_hit(answer), "two clients of the same credentials share"
            assert dax.stats()["not_served"] == 0


@on_loop
async def test_a_plain_function_that_others_put_around_requests_is_no_hindrance(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As tracers do."""
    behind, seen = AioBaseClient._make_api_call, []

    def traced(self: Any, operation_name: str, api_params: Any) -> Any:
        seen.append(operation_name)
        return behind(self, operation_name, api_params)

    monkeypatch.setattr(AioBaseClient, "_make_api_call", traced)
    async with aio_stand(desk) as on:
        await on.put("a", v=1)
        assert await on.served("a") == item("a", v=1)
        assert seen == ["DescribeTable", "PutItem"]
        assert on.dax.stats()["faults"] == 0


@on_loop
async def test_a_resource_that_exists_is_served_and_let_go(any_desk: Desk) -> None:
    any_desk.put_raw("a", v=1)
    endpoint = any_desk.server.endpoint
    async with session().resource("dynamodb", endpoint_url=endpoint) as dynamodb:
        wire = AioWire(dynamodb.meta.client)
        table = await dynamodb.Table(any_desk.name)
        before = type(table), type(dynamodb.meta.client)
        dax = cachekit.dax.install(table, settle=0)
        with pytest.raises(ConfigurationError, match="another"):
            cachekit.dax.install(dynamodb)
        for _ in range(3):
            assert (await table.get_item(Key={"pk": "a", "sk": 1}))["Item"]["v"] == 1
        assert wire.requests() == ["GetItem"]
        dax.uninstall()
        assert (type(table), type(dynamodb.meta.client)) == before
        await table.get_item(Key={"pk": "a", "sk": 1})
        assert wire.requests() == ["GetItem"]


@on_loop
async def test_an_active_stubber_answers_instead_of_the_cache(desk: Desk) -> None:
    stub = pytest.importorskip("aiobotocore.stub", reason="an aiobotocore before 2.9")
    async with aio_stand(desk) as on:
        await on.put("a", v=1)
        with stub.AioStubber(on.client) as stubber:
            stubber.add_response("get_item", {"Item": item("a", v=9)})
            stubber.add_client_error("get_item", "ThrottlingException", http_status_code=400)
            assert (await on.get("a"))["Item"] == item("a", v=9)
            with pytest.raises(ClientError):
                await on.get("a")
        assert await on.served("a") == item("a", v=1)


@on_loop
async def test_errors_are_the_clients_own(any_desk: Desk) -> None:
    async with aio_stand(any_desk) as on:
        with pytest.raises(ParamValidationError):
            await on.client.get_item(TableName=on.table, Key="a")
        with pytest.raises(ClientError, match="ValidationException"):
            await on.client.get_item(TableName=on.table, Key={"pk": {"S": "a"}})
        with pytest.raises(on.client.exceptions.ResourceNotFoundException):
            await on.client.get_item(TableName="no-such-table", Key=key("a"))
        stats = on.dax.stats()
        assert stats["faults"] == stats["unknown_outcomes"] == 0


@on_loop
async def test_a_fault_of_the_cache_fails_no_request(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise KeyError("a fault")

    desk.put_raw("a", v=1)
    async with aio_stand(desk) as on:
        await on.get("b")
        monkeypatch.setattr(on.dax._store, "keep_item", fails)
        assert (await on.get("a"))["Item"] == item("a", v=1)
        assert on.dax.stats()["faults"] == 1
        await on.put("a", v=2)
        assert on.dax.stats()["faults"] == 2
        monkeypatch.undo()
        assert await on.served("b") is None, "a fault in a write drops everything"
        assert (await on.get("a"))["Item"] == item("a", v=2)
