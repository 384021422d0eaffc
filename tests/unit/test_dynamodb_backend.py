"""The DynamoDB backend: limits, times and clocks, tables, forks, and how much it asks."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from dynamodb_desk import BEGAN, Desk, Plain, backend_at, late, started

from cachekit.backends.dynamodb import DynamoDBBackend
from cachekit.backends.dynamodb.items import KEY, MAX_WRITERS, TTL
from cachekit.backends.dynamodb.sightings import CLOCKS_APART
from cachekit.errors import BackendRefused, BackendTimeout
from cachekit.protocols import Item, Slot, SlotState
from cachekit.runtime import Runtime
from cachekit.testing import ManualClock
from cachekit.testing.dynamodb import DynamoDBServer, MinistackServer

LEASE = 10.0


@pytest.fixture(scope="module")
def server() -> Iterator[DynamoDBServer]:
    yield from started(MinistackServer())


@pytest.fixture
def desk(server: DynamoDBServer) -> Iterator[Desk]:
    with Desk(server).open() as desk:
        yield desk


def opened(backend: DynamoDBBackend) -> Plain:
    return Plain(backend.open(Runtime().threads))


def new() -> bytes:
    return os.urandom(16)


# -- limits ------------------------------------------------------------------------------


@pytest.mark.server
@pytest.mark.parametrize("verb", ["fill", "refresh", "put", "commit", "set_many"])
def test_a_value_too_large_is_refused_and_leaves_nothing_older(
    verb: str, server: DynamoDBServer
) -> None:
    store = opened(backend_at(server.url, f"big-{verb}"))
    stamp, own, big = new(), new(), b"x" * (400 * 1024)
    if verb == "set_many":
        store.set_many([Item("k", b"old", None)])
        with pytest.raises(BackendRefused) as refused:
            store.set_many([Item("a", b"1", None), Item("k", big, None), Item("z", b"2", None)])
        assert store.get_many(["a", "k", "z"]) == [b"1", None, b"2"]
    else:
        store.put("k", stamp, b"old", None)
        if verb == "commit":
            store.seize(["k"], own, LEASE)
        elif verb != "put":
            assert store.acquire("k", own, LEASE, over=stamp, keep=verb == "refresh").granted
        with pytest.raises(BackendRefused) as refused:
            getattr(store, "fill" if verb == "refresh" else verb)("k", own, big, None)
        assert store.slot("k").state is SlotState.NOTHING
    assert refused.value.key == "k"
    assert "too large" in str(refused.value)
    store.close()


@pytest.mark.server
def test_the_largest_values_are_stored_and_read_many_at_once(server: DynamoDBServer) -> None:
    store = opened(backend_at(server.url, "large"))
    keys = [f"{n}".ljust(230, "k") for n in range(3)]
    most = 400 * 1024 - 230 - len("large:k:") - 200
    for key in keys:
        assert store.put(key, new(), b"\xff" * most, None)
    assert [len(s.data) for s in store.read(keys, []).slots] == [most] * 3
    with pytest.raises(BackendRefused):
        store.put(keys[0], new(), b"\xff" * (most + 1), None)
    store.close()


@pytest.mark.server
def test_a_block_of_very_many_writers_stays_small_and_ends_by_time_alone(
    server: DynamoDBServer,
) -> None:
    clock = ManualClock()
    store = opened(backend_at(server.url, "crowd", clock=clock))
    writers = [new() for _ in range(MAX_WRITERS + 3)]
    for writer in writers:
        store.seize(["k"], writer, LEASE)
    for writer in writers:
        store.end(["k"], writer)
    assert store.slot("k").state is SlotState.BLOCK
    lies = server.client().get_item(TableName="cache", Key={KEY: {"S": "crowd:k:k"}})["Item"]
    assert int(lies[TTL]["N"]) > BEGAN + 1000 + LEASE + 3600, "no server's clock ends a block"
    clock.advance(LEASE)
    assert store.slot("k").state is SlotState.NOTHING
    store.close()


# -- times -------------------------------------------------------------------------------


@pytest.mark.server
def test_expiry_is_judged_on_reading_exact_to_the_millisecond(server: DynamoDBServer) -> None:
    clock = ManualClock()
    store = opened(backend_at(server.url, "exact", clock=clock))
    store.put("k", new(), b"1", 0.3)
    store.set_many([Item("r", b"1", 0.3)])
    store.nonces([], ["t"], new, 0.3)
    clock.advance(0.298)
    assert store.slot("k").data == b"1"
    assert store.get_many(["r"]) == [b"1"]
    assert store.read([], ["t"]).nonces != [None]
    clock.advance(0.003)
    assert store.slot("k").state is SlotState.NOTHING
    assert store.get_many(["r"]) == [None]
    assert store.read([], ["t"]).nonces == [None]
    names = {item[KEY]["S"]: item for item in server.client().scan(TableName="cache")["Items"]}
    lies = names["exact:k:k"]  # the table still has it, and may delete it a second later
    assert BEGAN + 1000 + 1 <= int(lies[TTL]["N"]) <= BEGAN + 1000 + 4
    store.close()


@pytest.mark.server
@pytest.mark.parametrize("what", ["block", "tag", "token", "refresh"])
@pytest.mark.parametrize("skew", [600.0, -600.0])
def test_a_lease_never_ends_early_by_a_clock_that_is_ten_minutes_off(
    what: str, skew: float, server: DynamoDBServer
) -> None:
    clock, space = ManualClock(), f"skew-{what}-{skew}"
    mine = opened(backend_at(server.url, space, clock=clock))
    theirs = opened(backend_at(server.url, space, clock=clock, skew=skew))
    stamp = new()
    mine.put("k", stamp, b"1", None)
    mine.nonces([], ["k"], new, None)
    take = {
        "block": lambda: mine.seize(["k"], new(), LEASE),
        "tag": lambda: mine.seize_tags(["k"], new(), LEASE),
        "token": lambda: mine.acquire("k", new(), LEASE, over=stamp),
        "refresh": lambda: mine.acquire("k", new(), LEASE, over=stamp, keep=True),
    }[what]

    def stands(store: Plain) -> bool:
        reading = store.read(["k"], ["k"])
        if what == "tag":
            made: list[bytes | None] = store.nonces([], ["k"], new, None).tags
            return made == [None]
        state = reading.slots[0].state
        return state in (SlotState.BLOCK, SlotState.TOKEN, SlotState.REFRESHING)

    take()
    clock.advance(LEASE - 1)
    assert stands(mine)
    assert stands(theirs)
    clock.advance(LEASE - 1)  # over for who wrote it; seen for nine seconds by the other
    assert stands(theirs)
    clock.advance(2.0)
    assert not stands(theirs)
    assert not stands(mine)
    mine.close()
    theirs.close()


@pytest.mark.server
def test_a_lease_left_behind_long_ago_is_over_at_first_sight(server: DynamoDBServer) -> None:
    clock = ManualClock()
    dead = opened(backend_at(server.url, "left", clock=clock))
    dead.seize(["k"], new(), LEASE)
    clock.advance(LEASE + CLOCKS_APART - 1)
    first = opened(backend_at(server.url, "left", clock=clock))
    assert first.slot("k").state is SlotState.BLOCK
    clock.advance(2.0)
    second = opened(backend_at(server.url, "left", clock=clock))
    assert second.slot("k").state is SlotState.NOTHING
    assert second.acquire("k", new(), LEASE).granted
    for store in (dead, first, second):
        store.close()


@pytest.mark.server
def test_who_joins_a_block_keeps_what_is_left_of_the_longer_lease(server: DynamoDBServer) -> None:
    clock = ManualClock()
    mine = opened(backend_at(server.url, "join", clock=clock))
    theirs = opened(backend_at(server.url, "join", clock=clock, skew=600.0))
    mine.seize(["k"], new(), 100.0)
    theirs.seize(["k"], new(), 1.0)
    clock.advance(99.0)
    assert mine.slot("k").state is theirs.slot("k").state is SlotState.BLOCK
    clock.advance(2.0)
    assert theirs.slot("k").state is SlotState.NOTHING
    mine.close()
    theirs.close()


@pytest.mark.server
def test_a_tags_nonce_is_prolonged_when_half_of_its_life_is_over(server: DynamoDBServer) -> None:
    clock = ManualClock()
    store = opened(backend_at(server.url, "prolong", clock=clock))
    made = store.nonces([], ["t", "kept"], new, 100.0).tags
    clock.advance(60.0)
    assert store.nonces([], ["t"], new, 100.0).tags == made[:1]
    assert store.nonces([], ["kept"], new, None).tags == made[1:]
    clock.advance(60.0)
    assert store.read([], ["t", "kept"]).nonces == made
    clock.advance(10_000.0)
    assert store.read([], ["t", "kept"]).nonces == [None, made[1]]
    store.close()


# -- tables ------------------------------------------------------------------------------


@pytest.mark.server
def test_a_missing_table_is_refused_with_advice_and_made_when_asked(server: DynamoDBServer) -> None:
    url = f"dynamodb://made-{os.getpid()}?region=us-east-1&endpoint={server.url}"
    store = opened(DynamoDBBackend(url))
    with pytest.raises(BackendRefused, match="create=true"):
        store.get_many(["k"])
    makers = [opened(DynamoDBBackend(f"{url}&create=true")) for _ in range(3)]
    threads = [threading.Thread(target=m.get_many, args=(["k"],)) for m in makers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert store.get_many(["k"]) == [None]
    told = server.client().describe_time_to_live(TableName=f"made-{os.getpid()}")
    assert told["TimeToLiveDescription"] == {"TimeToLiveStatus": "ENABLED", "AttributeName": TTL}
    for each in (store, *makers):
        each.close()


@pytest.mark.server
def test_a_table_of_another_key_is_refused(server: DynamoDBServer) -> None:
    server.client().create_table(
        TableName="other",
        KeySchema=[{"AttributeName": "id", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "id", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    url = f"dynamodb://other?region=us-east-1&endpoint={server.url}"
    store = opened(DynamoDBBackend(f"{url}&create=true"))
    with pytest.raises(BackendRefused, match="a table of its own"):
        store.get_many(["k"])
    unlooked = opened(DynamoDBBackend(url))
    with pytest.raises(BackendRefused, match="ValidationException"):
        unlooked.get_many(["k"])
    for each in (store, unlooked):
        each.close()


@pytest.mark.server
def test_what_is_no_item_of_ours_reads_as_nothing_and_is_replaced(server: DynamoDBServer) -> None:
    store = opened(backend_at(server.url, "odd"))
    store.slot("k")
    name = {KEY: {"S": "odd:k:k"}}
    for odd in (
        {},
        {"v": {"B": b"x"}, "u": {"S": "soon"}, "w": {"B": b"1" * 16}},
        {"d": {"N": "1"}},
    ):
        server.client().put_item(TableName="cache", Item={**name, **odd})
        assert store.slot("k").state is SlotState.NOTHING
        token = new()
        assert store.acquire("k", token, LEASE).granted
        assert store.fill("k", token, b"1", None)
        assert store.slot("k") == Slot(SlotState.ENTRY, token, b"1")
    store.close()


# -- how much it asks --------------------------------------------------------------------


@pytest.mark.server
def test_each_usual_step_is_one_request(desk: Desk) -> None:
    store = opened(backend_at(desk.url, "few"))
    token, again, writer = new(), new(), new()
    store.nonces(["k"], ["t"], new, None)
    steps: list[tuple[str, Any]] = [
        ("BatchGetItem", lambda: store.read(["k"], ["t", "u"])),
        ("PutItem", lambda: store.acquire("k", token, LEASE)),
        ("UpdateItem", lambda: store.renew("k", token, LEASE)),
        ("PutItem", lambda: store.fill("k", token, b"1", None)),
        ("UpdateItem", lambda: store.acquire("k", again, LEASE, over=token, keep=True)),
        ("PutItem", lambda: store.fill("k", again, b"2", None)),
        ("PutItem", lambda: store.seize(["k"], writer, LEASE)),
        ("PutItem", lambda: store.commit("k", writer, b"3", None)),
        ("DeleteItem", lambda: store.void(["k"])),
        ("PutItem", lambda: store.put("k", token, b"4", None)),
        ("DeleteItem", lambda: store.end(["k"], writer)),
        ("BatchGetItem", lambda: store.nonces(["k"], ["t"], new, None)),
        ("DeleteItem", lambda: store.drop_tags(["t"])),
        ("PutItem", lambda: store.seize_tags(["t"], writer, LEASE)),
        ("DeleteItem", lambda: store.end_tags(["t"], writer)),
    ]
    for operation, step in steps:
        desk.asked.clear()
        step()
        assert dict(desk.asked) == {operation: 1}
        asked = json.loads(desk.bodies[-1])
        if operation == "BatchGetItem":  # an eventual read may show what was invalidated
            assert asked["RequestItems"]["cache"]["ConsistentRead"] is True
        else:
            assert "ConditionExpression" in asked
    store.close()


# -- processes and connections -----------------------------------------------------------


@pytest.mark.server
def test_a_forked_child_uses_no_socket_and_no_client_of_its_parent(server: DynamoDBServer) -> None:
    backend = backend_at(server.url, "fork")
    store = opened(backend)
    store.set_many([Item("k", b"1", None)])
    account, transport = backend._account, store.store._driver._table._transport
    (pool,) = transport._pools.values()
    client, (mine,) = account._client, pool._idle
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            fresh = account._client is None and not pool._idle
            read = store.get_many(["k"]) == [b"1"]
            code = 0 if fresh and read and account._client is not client else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert store.get_many(["k"]) == [b"1"]
    assert pool._idle == [mine]
    store.close()
    assert (pool._idle, account._client) == ([], None)
    assert store.get_many(["k"]) == [b"1"], "a call that comes later still works"


@pytest.mark.server
def test_a_client_that_is_long_in_making_lets_callers_go_and_serves_the_next(
    server: DynamoDBServer,
) -> None:
    gate = threading.Event()

    def make(config: Any) -> Any:
        gate.wait(20)
        return server.client()

    opened(backend_at(server.url)).slot("k")  # so that there is a table
    backend = DynamoDBBackend("dynamodb://cache", client=make)
    store = opened(backend)
    began = time.monotonic()
    with pytest.raises(BackendTimeout):
        store.get_many(["k"], deadline=late(0.2))
    assert time.monotonic() - began < 2.0

    async def body() -> None:
        runtime = Runtime()
        other = backend.open(runtime.asyncio())
        with pytest.raises(BackendTimeout):
            await other.get_many(["k"], late(0.2))
        gate.set()
        assert await other.get_many(["k"], late()) == [None]
        await other.close()
        runtime.close()

    asyncio.run(body())
    assert store.get_many(["k"]) == [None]
    store.close()
