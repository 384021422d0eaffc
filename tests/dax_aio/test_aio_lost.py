"""asyncio clients behind the cache when replies are lost, on real sockets and by handlers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("aioboto3")

from aio_desk import Proxy, aio_stand, on_loop, response
from botocore.exceptions import ClientError, HTTPClientError
from dax_desk import item, key

if TYPE_CHECKING:
    from dax_desk import Desk

_CONDITION = {"ConditionExpression": "v = :v", "ExpressionAttributeValues": {":v": {"N": "1"}}}


@on_loop
async def test_a_write_whose_reply_is_lost_holds_its_key(any_desk: Desk) -> None:
    with Proxy(any_desk.server.endpoint) as proxy:
        async with aio_stand(any_desk, endpoint=proxy.endpoint) as on:
            await on.put("a", v=1)
            await on.put("b", v=1)
            proxy.lose.append("PutItem")
            with pytest.raises(HTTPClientError):
                await on.put("a", v=2)
            assert proxy.lost == 1
            assert any_desk.get_raw("a") == item("a", v=2), "it was applied"
            for version in (2, 3):
                any_desk.put_raw("a", v=version)
                assert (await on.get("a"))["Item"] == item("a", v=version)
            assert await on.served("b") == item("b", v=1)
            assert on.dax.stats()["unknown_outcomes"] == 1


@on_loop
async def test_a_write_sent_again_after_a_lost_reply_is_not_certain(any_desk: Desk) -> None:
    """The first attempt may be applied after the second was answered."""
    with Proxy(any_desk.server.endpoint) as proxy:
        async with aio_stand(any_desk, retries=3, endpoint=proxy.endpoint) as on:
            await on.put("a", v=1)
            proxy.lose.append("PutItem")
            answer = await on.put("a", v=2)
            assert answer["ResponseMetadata"]["RetryAttempts"] == 1
            any_desk.put_raw("a", v=3)
            assert (await on.get("a"))["Item"] == item("a", v=3)
            assert await on.served("a") is None


@on_loop
async def test_a_condition_that_failed_only_at_the_second_attempt_tells_nothing(
    any_desk: Desk,
) -> None:
    with Proxy(any_desk.server.endpoint) as proxy:
        async with aio_stand(any_desk, retries=3, endpoint=proxy.endpoint) as on:
            await on.put("a", v=1)
            proxy.lose.append("PutItem")
            with pytest.raises(ClientError, match="ConditionalCheckFailed"):
                await on.client.put_item(TableName=on.table, Item=item("a", v=2), **_CONDITION)
            assert any_desk.get_raw("a") == item("a", v=2), "the first attempt was applied"
            assert (await on.get("a"))["Item"] == item("a", v=2)
            assert await on.served("a") is None
            assert on.dax.stats()["unknown_outcomes"] == 1


@on_loop
async def test_a_read_whose_reply_is_lost_keeps_nothing_and_holds_nothing(any_desk: Desk) -> None:
    any_desk.put_raw("a", v=1)
    with Proxy(any_desk.server.endpoint) as proxy:
        async with aio_stand(any_desk, endpoint=proxy.endpoint) as on:
            proxy.lose.append("GetItem")
            with pytest.raises(HTTPClientError):
                await on.get("a")
            assert (await on.get("a"))["Item"] == item("a", v=1)
            assert await on.served("a") == item("a", v=1)


@on_loop
async def test_a_write_that_was_refused_before_it_was_applied_is_certain(desk: Desk) -> None:
    """Throttled twice, then applied: nothing else can land, so what was written is kept."""
    async with aio_stand(desk, retries=4) as on:
        left = [2]

        @on.wire.rule
        async def throttle(operation: str, _: Any) -> Any:
            if operation != "PutItem" or not left[0]:
                return None
            left[0] -= 1
            code = "com.amazonaws.dynamodb#ProvisionedThroughputExceededException"
            return response(400, {"__type": code, "message": "slower"})

        awaited = []

        async def note(attempts: int, **_: Any) -> None:
            """A handler that is awaited, among ours."""
            await asyncio.sleep(0)
            awaited.append(attempts)

        on.client.meta.events.register("needs-retry.dynamodb", note)
        answer = await on.put("a", v=2)
        assert answer["ResponseMetadata"]["RetryAttempts"] == 2
        assert len(awaited) == 3
        assert await on.served("a") == item("a", v=2)
        assert on.dax.stats()["unknown_outcomes"] == 0


@on_loop
async def test_an_answer_of_the_server_that_may_have_been_applied_holds(desk: Desk) -> None:
    async with aio_stand(desk) as on:
        await on.put("a", v=1)

        @on.wire.rule
        async def fail(operation: str, _: Any) -> Any:
            if operation != "UpdateItem":
                return None
            desk.put_raw("a", v=2)
            return response(500, {"__type": "com.amazonaws.dynamodb#InternalServerError"})

        with pytest.raises(ClientError):
            await on.update("a", 2)
        assert (await on.get("a"))["Item"] == item("a", v=2)
        assert await on.served("a") is None
        assert on.dax.stats()["unknown_outcomes"] == 1


@on_loop
async def test_an_awaited_handler_that_changes_a_write_is_noticed(desk: Desk) -> None:
    """What was really sent is kept, or nothing."""
    async with aio_stand(desk) as on:

        async def change(params: Any, **_: Any) -> None:
            await asyncio.sleep(0)
            params["body"] = params["body"].replace(b'"N": "1"}}', b'"N": "7"}}')

        on.client.meta.events.register("before-call.dynamodb.PutItem", change)
        await on.client.put_item(TableName=on.table, Item={**key("a", 5), "v": {"N": "1"}})
        stored = desk.get_raw("a", 5)
        assert stored["v"] == {"N": "7"}
        assert (await on.get("a", 5))["Item"] == stored
