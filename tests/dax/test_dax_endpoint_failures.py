"""A DAX cluster that is refused, silent, cut off in the middle of a write, and back again."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from botocore.exceptions import ConnectionClosedError, ReadTimeoutError

if importlib.util.find_spec("amazondax") is None and (
    os.environ.get("CACHEKIT_REQUIRE_SERVERS") != "1"
):
    pytest.skip("no amazon-dax-client", allow_module_level=True)

from dax_clustered import Behind, Clustered
from dax_desk import Desk, item, key

from cachekit.core.outcome import Outcome
from cachekit.dax.endpoint import Endpoint
from cachekit.dax.endpoint_link import EndpointSettings
from cachekit.dax.endpoint_shapes import was_unsent
from cachekit.runtime import Runtime

SHORT = {"timeout": 0.3}
LONG = 30.0


@pytest.fixture
def clustered(desk: Desk) -> Iterator[Clustered]:
    with Clustered(desk) as make:
        yield make


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def linked(on: Behind) -> Behind:
    """With a connection to its cluster: making one may take longer than its requests may."""
    numbers = itertools.count()

    def answers() -> int:
        on.get(f"nobody-{next(numbers)}")
        return int(on.dax.stats()["cluster_answers"])

    until(lambda: answers() > 0)
    on.cluster.asked.clear()
    on.requests()
    return on


def fallbacks(on: Behind) -> int:
    return int(on.dax.stats()["cluster_fallbacks"])


def test_a_cluster_that_never_was_there_costs_reads_and_writes_nothing(
    clustered: Clustered,
) -> None:
    on = clustered(begun=False)
    on.put("a", v=1)
    on.dax.flush()
    assert on.get("a")["Item"] == item("a", v=1)
    assert on.cluster.asked == []
    assert fallbacks(on) == 1  # the read of a table that was written around it does not even try
    assert on.requests() == ["PutItem", "GetItem"]


def test_reads_go_on_when_it_is_killed_and_use_it_again_when_it_is_back(
    clustered: Clustered,
) -> None:
    on = clustered(item_ttl=0)
    on.desk.put_raw("a", v=1)
    assert on.get("a")["Item"] == item("a", v=1)
    on.cluster.kill()
    for _ in range(10):
        assert on.get("a")["Item"] == item("a", v=1)
    assert on.requests() == ["GetItem"] * 10
    assert on.cluster.asked == ["GetItem"]
    on.cluster.start()

    def answered_there() -> bool:
        assert on.get("a")["Item"] == item("a", v=1)
        return len(on.cluster.asked) > 1

    until(answered_there)


def test_a_silent_cluster_is_waited_for_only_at_first(clustered: Clustered) -> None:
    on = linked(clustered(SHORT, item_ttl=0))
    on.desk.put_raw("a", v=1)
    assert on.get("a")["Item"] == item("a", v=1)
    on.cluster.silent.set()
    for _ in range(20):
        assert on.get("a")["Item"] == item("a", v=1)
    # Three waits and no more: the rest did not even ask.
    assert on.cluster.asked == ["GetItem"] * 4
    assert on.requests() == ["GetItem"] * 20


def test_one_that_accepts_and_says_nothing_is_none(clustered: Clustered) -> None:
    on = clustered(SHORT, item_ttl=0)
    on.cluster.silent.set()
    on.desk.put_raw("a", v=1)
    began = time.monotonic()
    for _ in range(3):
        assert on.get("a")["Item"] == item("a", v=1)
    assert time.monotonic() - began < LONG
    assert on.cluster.asked == []
    on.cluster.silent.clear()
    until(lambda: bool(on.get("a") and on.cluster.asked))


@pytest.mark.parametrize("how", ["lose", "cut"])
def test_a_write_without_its_reply_is_unknown_and_made_once(clustered: Clustered, how: str) -> None:
    on = clustered()
    on.put("a", v=1)
    assert on.get("a")["Item"] == item("a", v=1)
    on.cluster.asked.clear()
    on.cluster.spoil = how
    with pytest.raises(ConnectionClosedError, match="dax://"):
        on.client.update_item(
            TableName=on.table,
            Key=key("a"),
            UpdateExpression="ADD v :one",
            ExpressionAttributeValues={":one": {"N": "1"}},
        )
    assert on.cluster.asked == ["UpdateItem"]
    assert not on.requests()
    assert on.dax.stats()["unknown_outcomes"] == 1
    assert on.desk.get_raw("a") == item("a", v=2)
    # It may still land: nothing is kept of the key for now, so another's write is seen.
    assert on.get("a")["Item"] == item("a", v=2)
    on.desk.put_raw("a", v=3)
    assert on.get("a")["Item"] == item("a", v=3)


def test_a_write_that_is_not_answered_in_time_is_unknown(clustered: Clustered) -> None:
    on = linked(clustered(SHORT))
    on.put("a", v=1)
    on.cluster.silent.set()
    with pytest.raises(ReadTimeoutError):
        on.put("a", v=2)
    assert on.dax.stats()["unknown_outcomes"] == 1
    until(lambda: on.desk.get_raw("a") == item("a", v=2))
    assert on.get("a")["Item"] == item("a", v=2)


def test_a_read_without_its_reply_is_asked_of_dynamodb(clustered: Clustered) -> None:
    on = clustered()
    on.desk.put_raw("a", v=1)
    for how in ("lose", "cut"):
        on.cluster.spoil = how
        assert on.get("a")["Item"] == item("a", v=1)
        on.dax.flush()
    assert on.requests() == ["GetItem"] * 2


def test_a_write_that_certainly_never_left_is_made_at_dynamodb_once(clustered: Clustered) -> None:
    on = clustered(begun=False)
    add: dict[str, Any] = {
        "TableName": on.table,
        "Key": key("a"),
        "UpdateExpression": "ADD v :one",
        "ExpressionAttributeValues": {":one": {"N": "1"}},
    }
    on.client.update_item(**add)
    on.client.update_item(**add)
    assert on.desk.get_raw("a") == item("a", v=2)
    assert on.requests() == ["UpdateItem"] * 2
    assert on.dax.stats()["unknown_outcomes"] == 0
    assert on.get("a")["Item"] == item("a", v=2)  # and it is kept as any write is
    assert not on.requests()


def test_what_a_handler_makes_of_a_write_on_its_way_to_dynamodb_is_what_counts(
    clustered: Clustered,
) -> None:
    on = clustered()
    on.get("y")
    on.cluster.kill()
    on.get("z")  # the connection is found dead here; a write would be of unknown outcome

    def change(params: Any, **_: Any) -> None:
        params["body"] = params["body"].replace(b'"v": {"N": "1"}', b'"v": {"N": "9"}')

    on.client.meta.events.register_last("before-call.dynamodb.PutItem", change)
    on.put("a", v=1)
    assert on.get("a")["Item"] == on.desk.get_raw("a") == item("a", v=9)


def test_what_the_cluster_kept_before_a_write_passed_it_is_not_believed(
    clustered: Clustered,
) -> None:
    on = clustered(item_ttl=0)
    on.put("a", v=1)
    assert on.get("a")["Item"] == item("a", v=1)  # now the cluster keeps it
    kept = dict(on.cluster.kept)
    on.cluster.kill()
    on.get("a")  # it is found dead here; a write would be of unknown outcome
    on.put("a", v=2)
    on.cluster.start()
    on.cluster.kept.update(kept)
    on.put("other", v=1)
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        assert on.get("a")["Item"] == item("a", v=2)
        time.sleep(0.05)


def test_another_table_is_still_read_there(clustered: Clustered) -> None:
    on = clustered(item_ttl=0)
    on.desk.make(on.table + "-more")
    on.client.put_item(
        TableName=on.table + "-more", Item=item("a"), ReturnValuesOnConditionCheckFailure="NONE"
    )
    on.client.get_item(TableName=on.table + "-more", Key=key("a"))
    assert on.cluster.asked == []
    on.get("a")
    assert on.cluster.asked == ["GetItem"]


def test_troubles_of_the_cluster_itself_are_no_answers(clustered: Clustered) -> None:
    on = clustered()
    on.desk.put_raw("a", v=1)
    on.cluster.fail = ["InternalServerError", "InternalServerError"]
    assert on.get("a")["Item"] == item("a", v=1)
    with pytest.raises(ConnectionClosedError):
        on.put("a", v=2)
    assert on.dax.stats()["unknown_outcomes"] == 1


def test_uninstalled_it_is_left_alone(clustered: Clustered) -> None:
    on = clustered()
    on.get("a")
    on.dax.uninstall()
    on.get("a")
    assert on.cluster.asked == ["GetItem"]


def test_a_forked_child_makes_a_connection_of_its_own(clustered: Clustered) -> None:
    on = clustered(item_ttl=0)
    on.desk.put_raw("a", v=1)
    on.get("a")

    accepted = on.cluster.accepted

    def child(pipe: Any) -> None:
        pipe.send([on.get("a")["Item"]])

    ours, theirs = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("fork").Process(target=child, args=(theirs,))
    process.start()
    assert ours.poll(LONG)
    assert ours.recv() == [item("a", v=1)]
    process.join(LONG)
    assert on.cluster.accepted > accepted
    assert on.cluster.asked == ["GetItem"] * 2
    assert on.get("a")["Item"] == item("a", v=1)
    assert not on.requests()


def test_a_loop_goes_on_while_the_cluster_is_waited_for(clustered: Clustered) -> None:
    on = clustered()
    on.cluster.silent.set()
    endpoint = Endpoint(EndpointSettings.make({"url": on.cluster.url, "timeout": 1.0}))
    asked: list[str] = []

    async def send(operation: str, params: Any) -> Outcome:
        asked.append(operation)
        return Outcome({"Item": {}})

    async def main() -> int:
        through = endpoint.over(send, on.desk.raw, Runtime().asyncio())
        read = asyncio.ensure_future(through("GetItem", {"TableName": "t", "Key": key("a")}))
        turns = 0
        while not read.done():
            turns += 1
            await asyncio.sleep(0.01)
        assert read.result().value == {"Item": {}}
        return turns

    assert asyncio.run(main()) > 3
    assert asked == ["GetItem"]
    endpoint.close()


def _stale_socket() -> None:
    raise ConnectionResetError("somewhere")


def test_an_error_from_elsewhere_may_have_been_sent() -> None:
    with pytest.raises(ConnectionResetError) as found:
        _stale_socket()
    assert not was_unsent(found.value)
