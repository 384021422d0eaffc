"""A DynamoDB table as a source, when the service throttles, fails, or leaves work undone."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dynamodb_desk import Desk, started
from source_tables import Ground, client_at

import cachekit
from cachekit.sources import DynamoDBTable, Throttled, Unsettled, connection
from cachekit.sources.connection import READS
from cachekit.strategies.answers import is_outage
from cachekit.strategies.intent import outcome_unknown
from cachekit.testing.dynamodb import MinistackServer

pytest.importorskip("boto3")

PATIENCE = 0.15


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[Ground, Desk]]:
    for server in started(MinistackServer()):
        with Desk(server).open() as desk:
            made = Ground(server, desk.url)
            yield made, desk
            made.close()


@pytest.fixture
def ground(place: tuple[Ground, Desk]) -> Ground:
    return place[0]


@pytest.fixture
def desk(place: tuple[Ground, Desk], monkeypatch: pytest.MonkeyPatch) -> Desk:
    """One for all tests, with nothing planned and nothing seen."""
    monkeypatch.setattr(connection, "PAUSE", 0.005)
    desk = place[1]
    desk.plans.clear()
    desk.asked.clear()
    del desk.bodies[:]
    return desk


def left_out(table: str, some: Callable[[Any], bool]) -> Callable[[dict[str, Any]], None]:
    """An answer of BatchGetItem that has not come to these ids."""

    def change(told: dict[str, Any]) -> None:
        items = told["Responses"][table]
        told["Responses"][table] = [item for item in items if not some(int(item["id"]["N"]))]
        left = [{"id": item["id"]} for item in items if some(int(item["id"]["N"]))]
        if left:
            told["UnprocessedKeys"] = {table: {"Keys": left}}

    return change


def undone(ground: Ground, desk: Desk, table: str, some: Callable[[Any], bool]) -> Any:
    """BatchWriteItem has not come to these ids: the server's items are put back as they were."""
    before = {
        item["id"]["N"]: item for item in ground.client.scan(TableName=table).get("Items", [])
    }

    def change(told: dict[str, Any]) -> None:
        left = []
        for request in json.loads(desk.bodies[-1])["RequestItems"][table]:
            ((_, what),) = request.items()
            key = what.get("Item", what.get("Key"))["id"]
            if not some(int(key["N"])):
                continue
            left.append(request)
            if key["N"] in before:
                ground.client.put_item(TableName=table, Item=before[key["N"]])
            else:
                ground.client.delete_item(TableName=table, Key={"id": key})
        told["UnprocessedItems"] = {table: left} if left else {}

    return change


def keys_asked(body: bytes, table: str) -> list[int]:
    return [int(key["id"]["N"]) for key in json.loads(body)["RequestItems"][table]["Keys"]]


def test_reads_are_strongly_consistent_unless_told_otherwise(ground: Ground, desk: Desk) -> None:
    for options, expected in (({}, True), ({"consistent": False}, False)):
        users = ground.source(**options)
        del desk.bodies[:]
        users.load(1)
        users.load_many([1, 2])
        one, many = map(json.loads, desk.bodies)
        (of_many,) = many["RequestItems"].values()
        assert (one["ConsistentRead"], of_many["ConsistentRead"]) == (expected, expected)


def test_a_batch_reads_at_most_100_different_keys_at_a_time(ground: Ground, desk: Desk) -> None:
    users = ground.source()
    users.load_many([*range(150), *range(150)])
    asked = [keys_asked(body, users.__cache_key__()) for body in desk.bodies]
    assert [len(keys) for keys in asked] == [100, 50]
    assert [key for keys in asked for key in keys] == list(range(150))


def test_keys_that_were_left_unprocessed_are_asked_for_again(ground: Ground, desk: Desk) -> None:
    table = ground.table()
    users = ground.source(table=table)
    users.save_many({"id": n} for n in range(60))
    del desk.bodies[:]
    desk.plan(
        "BatchGetItem",
        left_out(table, lambda n: n % 2 == 0),
        left_out(table, lambda n: n >= 0),
        left_out(table, lambda n: n % 4 == 0),
    )
    assert users.load_many(range(60)) == {n: {"id": n} for n in range(60)}
    asked = [sorted(keys_asked(body, table)) for body in desk.bodies]
    assert asked == [
        list(range(60)), list(range(0, 60, 2)), list(range(0, 60, 2)), list(range(0, 60, 4))
    ]  # fmt: skip


def test_items_that_were_left_unprocessed_are_written_again(ground: Ground, desk: Desk) -> None:
    table = ground.table()
    users = ground.source(table=table)
    desk.plan(
        "BatchWriteItem",
        undone(ground, desk, table, lambda n: n % 2 == 0),
        undone(ground, desk, table, lambda n: n < 10),
    )
    users.save_many({"id": n, "n": n} for n in range(40))
    assert users.load_many(range(40)) == {n: {"id": n, "n": n} for n in range(40)}
    assert desk.asked["BatchWriteItem"] == 4  # 25, those left of them twice, and 15
    desk.plan("BatchWriteItem", undone(ground, desk, table, lambda n: n > 3))
    users.delete_many(range(20))
    assert users.load_many(range(40)).keys() == set(range(20, 40))


def test_who_gets_nothing_through_for_its_patience_is_told(ground: Ground, desk: Desk) -> None:
    table = ground.table()
    users = ground.source(table=table, patience=PATIENCE)
    users.save_many({"id": n} for n in range(5))
    desk.plan("BatchGetItem", *[left_out(table, lambda n: n >= 0)] * 1000)
    desk.plan("BatchWriteItem", *[undone(ground, desk, table, lambda n: n == 3)] * 1000)
    began = time.monotonic()
    for ask in (
        lambda: users.load_many(range(5)),
        lambda: users.save_many([{"id": n} for n in range(5)]),
        lambda: users.delete_many(range(5)),
    ):
        with pytest.raises(Throttled, match=r"left undone for 0\.15 s") as told:
            ask()
        assert outcome_unknown(told.value)  # a part was done
        assert is_outage(told.value)
    assert time.monotonic() - began > PATIENCE
    desk.plans.clear()
    assert users.load_many(range(9)).keys() == {3}


def test_patience_counts_from_the_last_item_that_went_through(ground: Ground, desk: Desk) -> None:
    table = ground.table()
    users = ground.source(table=table, patience=0.3)
    users.save_many({"id": n} for n in range(12))

    def slow(least: int) -> Callable[[dict[str, Any]], None]:
        change = left_out(table, lambda n: n >= least)
        return lambda told: (time.sleep(0.06), change(told))[1]

    desk.plan("BatchGetItem", *[slow(n) for n in range(1, 12)])  # one more each time, 0.66 s in all
    assert len(users.load_many(range(12))) == 12


def test_pauses_have_full_jitter_grow_and_begin_anew_where_something_went_through(
    ground: Ground, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        drawn.append((low, high))
        return 0.0

    monkeypatch.setattr(connection.random, "uniform", uniform)
    table = ground.table()
    users = ground.source(table=table)
    users.save_many({"id": n} for n in range(6))
    nothing, half = left_out(table, lambda n: True), left_out(table, lambda n: n > 3)
    desk.plan("BatchGetItem", half, nothing, "throttle", nothing, left_out(table, lambda n: n > 4))
    assert len(users.load_many(range(6))) == 6
    least = connection.PAUSE
    assert drawn == [(0, each * least) for each in (1, 2, 4, 8, 1)]
    del drawn[:]
    desk.plan("PutItem", *["throttle"] * 12)
    users.save({"id": 7})
    assert max(drawn) == (0, connection.LONGEST_PAUSE)


VERBS: dict[str, tuple[str, Callable[[DynamoDBTable], Any]]] = {
    "load": ("GetItem", lambda users: users.load(1)),
    "load_many": ("BatchGetItem", lambda users: users.load_many([1])),
    "save": ("PutItem", lambda users: users.save({"id": 1, "n": 2})),
    "save_many": ("BatchWriteItem", lambda users: users.save_many([{"id": 1, "n": 2}])),
    "delete": ("DeleteItem", lambda users: users.delete(1)),
    "delete_many": ("BatchWriteItem", lambda users: users.delete_many([1])),
}
READING = ("load", "load_many")


@pytest.mark.parametrize("verb", VERBS)
def test_a_throttled_request_is_sent_again(ground: Ground, desk: Desk, verb: str) -> None:
    operation, ask = VERBS[verb]
    users = ground.source()
    desk.plan(operation, "throttle", "throttle", "throttle", "throttle")
    ask(users)
    assert desk.asked[operation] == 5
    brief = ground.source(patience=PATIENCE)
    desk.plan(operation, *["throttle"] * 1000)
    with pytest.raises(Throttled, match=r"ThrottlingException for 0\.15 s") as told:
        ask(brief)
    assert is_outage(told.value)  # write-back then tries again, and parks nothing


@pytest.mark.parametrize("fault", ["down", "lose reply", "lose request"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_read_that_failed_is_tried_again_and_a_write_is_left_unsettled(
    ground: Ground, desk: Desk, verb: str, fault: str
) -> None:
    operation, ask = VERBS[verb]
    users = ground.source()
    desk.plan(operation, *[fault] * (READS - 1))
    if verb in READING:
        ask(users)
        assert desk.asked[operation] == READS
        desk.plan(operation, *[fault] * READS)
        with pytest.raises(Exception, match=r"InternalServerError|[Cc]onnection"):
            ask(users)
        return
    with pytest.raises(Unsettled, match="nobody knows") as told:
        ask(users)
    assert desk.asked[operation] == 1
    assert outcome_unknown(told.value)
    assert told.value.__cause__ is not None


def test_no_read_waits_beyond_the_patience_for_a_service_that_fails(
    ground: Ground, desk: Desk
) -> None:
    users = ground.source(patience=0)
    desk.plan("GetItem", *["down"] * READS)
    with pytest.raises(Exception, match="InternalServerError"):
        users.load(1)
    assert desk.asked["GetItem"] == 1


def test_nothing_old_is_kept_beside_a_write_that_may_still_land(ground: Ground, desk: Desk) -> None:
    users = ground.source()
    with cachekit.Cache() as cache:
        kept = cache.repository(users, ttl="1h")
        kept.save({"id": 1, "n": 1})
        desk.plan("PutItem", "lose request")
        with pytest.raises(Unsettled):
            kept.save({"id": 1, "n": 2})
        assert kept.get(1) == {"id": 1, "n": 1}
        # It lands now, late; whoever read the old value before has not left it in the cache.
        ground.source(table=users.__cache_key__()).save({"id": 1, "n": 2})
        assert kept.get(1) == {"id": 1, "n": 2}


def test_a_write_that_was_refused_leaves_the_key_to_readers(ground: Ground, desk: Desk) -> None:
    users = ground.source(version="v")
    with cachekit.Cache() as cache:
        kept = cache.repository(users, ttl="1h")
        kept.save({"id": 1, "v": 1})
        ground.source(table=users.__cache_key__()).save({"id": 1, "v": 2})
        with pytest.raises(ValueError, match="another writer"):
            kept.save({"id": 1, "v": 2})
        before = desk.asked["GetItem"]
        assert [kept.get(1)["v"] for _ in range(3)] == [2, 2, 2]
        assert desk.asked["GetItem"] == before + 1


def test_a_write_that_a_frozen_server_does_late_leaves_nothing_old(ground: Ground) -> None:
    client = client_at(ground.server.url, read_timeout=0.3)
    users = ground.source(client=client)
    with cachekit.Cache() as cache:
        kept = cache.repository(users, ttl="1h")
        kept.save({"id": 1, "n": 1})
        ground.server.pause()
        try:
            with pytest.raises(Unsettled):
                kept.save({"id": 1, "n": 2})
            with pytest.raises(Exception, match=r"timed? ?out"):
                kept.get(1)
        finally:
            ground.server.resume()
        end = time.monotonic() + 3  # a server may also drop what nobody waits for any more
        plain = ground.source(table=users.__cache_key__())
        while plain.load(1) == {"id": 1, "n": 1} and time.monotonic() < end:
            assert kept.get(1)["n"] in (1, 2)
        assert kept.get(1) == plain.load(1)
    client.close()


def test_where_nobody_listens_reads_fail_soon_and_writes_are_unsettled(ground: Ground) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    client = client_at(f"http://127.0.0.1:{port}")
    users = DynamoDBTable("users", client=client)
    for verb, (_, ask) in VERBS.items():
        with pytest.raises(Exception, match=r"[Cc]ould not connect") as told:
            ask(users)
        assert isinstance(told.value, Unsettled) == (verb not in READING)
    client.close()
