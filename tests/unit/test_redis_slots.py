"""What the contract can not see of Redis: ttls, strangers' values, trips, and what is recorded."""

from __future__ import annotations

import os
from typing import Any

import pytest
import redis
from redis_faults import WORLDS, FaultServer, in_world, scripted

from cachekit.backends.redis import RedisBackend
from cachekit.errors import BackendUnavailable
from cachekit.protocols import NOTHING, Item, SlotState
from cachekit.runtime import Runtime, drive
from cachekit.testing.servers import RedisServer

pytestmark = pytest.mark.server
BOTH = pytest.mark.parametrize("world", WORLDS)
A, B = b"a" * 16, b"b" * 16


@pytest.fixture
def control(redis_server: RedisServer) -> Any:
    with redis.Redis(port=redis_server.port) as client:
        client.flushall()
        yield client


def new_id() -> bytes:
    return os.urandom(16)


@BOTH
@pytest.mark.parametrize("ttl", [None, 60.0])
def test_a_refresh_given_back_leaves_the_entrys_expiry_as_it_was(
    world: str, ttl: float | None, control: redis.Redis, redis_server: RedisServer
) -> None:
    async def body(store: Any, w: Any) -> None:
        late = w.deadline(3)
        await store.slots.put("k", A, b"v", ttl, late)
        name = store._layout.slot("k")

        def is_as_it_was() -> bool:
            left = control.pttl(name)
            return left == -1 if ttl is None else 50_000 < left <= 60_000

        assert is_as_it_was()
        assert (await store.slots.acquire("k", B, 5, late, over=A, keep=True)).granted
        assert ttl is None or is_as_it_was()
        await store.slots.release("k", B, late)
        assert is_as_it_was()
        again = new_id()
        assert (await store.slots.acquire("k", again, 90, late, over=A, keep=True)).granted
        assert (await store.slots.read(["k"], [], late)).slots[0].state is SlotState.REFRESHING
        assert await store.slots.fill("k", again, b"w", ttl, late)  # a lease beyond the ttl too
        assert is_as_it_was()

    in_world(world, RedisBackend(redis_server.url), body)


@BOTH
def test_a_strangers_value_reads_as_nothing_and_is_overwritten(
    world: str, control: redis.Redis, redis_server: RedisServer
) -> None:
    async def body(store: Any, w: Any) -> None:
        late = w.deadline(3)
        slots = store.slots
        await slots.put("mine", A, b"v", None, late)
        lay = store._layout

        def spoil() -> None:
            control.flushall()
            for key in ("list", "acquire", "put", "void", "seize", "fill", "record"):
                control.rpush(lay.slot(key), b"x")
            control.hset(lay.record("record"), "f", "x")
            control.set(lay.slot("text"), b"Elephants remember everything, they say")
            control.set(lay.slot("short"), b"E\x01short")
            control.rpush(lay.tag("t"), b"x")
            control.rpush(lay.spaces[lay.partition("list")], b"x")

        spoil()
        await slots.put("mine", A, b"v", None, late)
        reading = await slots.read(["list", "mine", "text", "short"], ["t"], late)
        assert reading.slots == [NOTHING, (SlotState.ENTRY, A, b"v"), NOTHING, NOTHING]
        assert (reading.spaces[0], reading.nonces) == (None, [None])
        assert await store.get_many(["record", "none"], late) == [None, None]
        for key in ("acquire", "text", "short"):
            assert (await slots.acquire(key, A, 5, late)).granted
        assert not await slots.fill("fill", A, b"v", None, late)
        assert await slots.put("put", A, b"v", None, late)
        await slots.void(["void"], late)
        await slots.seize(["seize"], A, 5, late)
        await store.set_many([Item("record", b"v", None)], late)
        found = await slots.read(["acquire", "put", "void", "seize"], [], late)
        assert [s.state.name for s in found.slots] == ["TOKEN", "ENTRY", "NOTHING", "BLOCK"]
        assert all((await slots.nonces(["list"], ["t"], new_id, 60, late)).tags)

    in_world(world, RedisBackend(redis_server.url), body)


@BOTH
def test_a_read_is_one_command_and_a_void_one_script_per_key(
    world: str, control: redis.Redis, redis_server: RedisServer
) -> None:
    def calls() -> dict[str, int]:
        stats = control.info("commandstats")
        ours = {"mget", "evalsha", "eval", "unlink", "set", "get", "pttl", "keys", "scan"}
        return {c: stats[f"cmdstat_{c}"]["calls"] for c in ours if f"cmdstat_{c}" in stats}

    async def body(store: Any, w: Any) -> None:
        late = w.deadline(3)
        keys = [f"k{i}" for i in range(10)]
        await store.slots.void(["warm"], late)
        steps = [
            (store.slots.read(keys, ["t1", "t2"], late), {"mget": 1}),
            (store.slots.void(["k"], late), {"evalsha": 1}),
            (store.slots.drop_tags(["t1", "t2", "t3"], late), {"evalsha": 3}),
            (store.slots.drop_space(late), {"unlink": 1}),
            (store.get_many(keys, late), {"mget": 1}),
        ]
        for step, expected in steps:
            control.config_resetstat()
            await step
            found = calls()
            # what the scripts themselves call is counted too
            assert {c: n for c, n in found.items() if c not in ("set", "get")} == expected

    in_world(world, RedisBackend(redis_server.url), body)


@BOTH
def test_scripts_flushed_from_the_server_are_sent_again(
    world: str, control: redis.Redis, redis_server: RedisServer
) -> None:
    async def body(store: Any, w: Any) -> None:
        for _ in range(3):
            control.script_flush()
            await store.slots.seize(["a", "b", "c"], A, 5, w.deadline(3))
            control.script_flush()
            assert await store.slots.commit("a", A, b"v", None, w.deadline(3))

    in_world(world, RedisBackend(redis_server.url), body)


@BOTH
def test_the_first_to_use_a_namespace_decides_its_partitions_for_all(
    world: str, control: redis.Redis, redis_server: RedisServer
) -> None:
    async def put(store: Any, w: Any) -> None:
        await store.slots.put("k", A, b"v", None, w.deadline(3))

    async def see(store: Any, w: Any) -> None:
        assert (await store.slots.read(["k"], [], w.deadline(3))).slots[0].data == b"v"
        assert store._layout.partitions == 8

    in_world(world, RedisBackend(redis_server.url, partitions=8), put)
    in_world(world, RedisBackend(redis_server.url, partitions=512), see)
    control.set("{}:partitions", "many")
    with pytest.raises(BackendUnavailable, match="partitions"):
        in_world(world, RedisBackend(redis_server.url), put)


@BOTH
def test_a_flushed_server_that_recorded_other_partitions_is_noticed_before_a_fill(
    world: str, control: redis.Redis, redis_server: RedisServer
) -> None:
    async def body(store: Any, w: Any) -> None:
        await store.slots.nonces(["k"], [], new_id, None, w.deadline(3))
        control.flushall()
        control.set("{}:partitions", 8)
        with pytest.raises(BackendUnavailable, match="partitions"):
            await store.slots.nonces(["k"], [], new_id, None, w.deadline(3))
        await store.slots.nonces(["k"], [], new_id, None, w.deadline(3))
        assert store._layout.partitions == 8

    in_world(world, RedisBackend(redis_server.url), body)


@BOTH
def test_a_tags_nonce_is_prolonged_below_half_of_its_ttl_and_never_set_anew(
    world: str, control: redis.Redis, redis_server: RedisServer
) -> None:
    async def body(store: Any, w: Any) -> None:
        async def ask(ttl: float | None) -> tuple[bytes, int]:
            found = await store.slots.nonces([], ["t"], new_id, ttl, w.deadline(3))
            return found.tags[0], round(control.pttl(store._layout.tag("t")) / 1000)

        nonce, left = await ask(100)
        assert left == 100
        assert await ask(150) == (nonce, 100)  # more than half is left
        assert await ask(300) == (nonce, 300)
        assert await ask(60) == (nonce, 300)
        assert await ask(None) == (nonce, 0)  # PTTL -1: no expiry
        assert await ask(60) == (nonce, 0)
        await store.slots.drop_tags(["t"], w.deadline(3))
        assert (await ask(60))[0] != nonce

    in_world(world, RedisBackend(redis_server.url), body)


@BOTH
def test_a_nonce_whose_creation_was_not_acknowledged_is_none_or_an_error(world: str) -> None:
    def answer(command: list[bytes]) -> bytes:
        return b"*1\r\n$-1\r\n" if command[0] == b"MGET" else b"$-1\r\n"

    with FaultServer(scripted(answer)) as server:

        async def body(store: Any, w: Any) -> None:
            found = await store.slots.nonces(["k"], [], new_id, None, w.deadline(2))
            assert found.spaces == [None]

        in_world(world, RedisBackend(server.url), body)


def test_a_forked_child_opens_its_own_connection(redis_server: RedisServer) -> None:
    world = Runtime().threads
    url = f"{redis_server.url}?client_name=forked"
    store = RedisBackend(url, namespace="fork").open(world)
    drive(store.set_many([Item("k", b"parent", None)], world.deadline(2)))
    told, telling = os.pipe()
    waiting, go = os.pipe()
    pid = os.fork()
    if pid == 0:  # only system calls and the store here; never back into pytest
        try:
            good = drive(store.get_many(["k"], world.deadline(2))) == [b"parent"]
            os.write(telling, b"good" if good else b"bad")
            os.read(waiting, 1)
        finally:
            os._exit(0)
    try:
        assert os.read(told, 10) == b"good"
        with redis.Redis(port=redis_server.port) as control:
            names = [client["name"] for client in control.client_list()]
        assert names.count("forked") == 2
    finally:
        os.write(go, b"x")
        os.waitpid(pid, 0)
        for end in (told, telling, waiting, go):
            os.close(end)
    assert drive(store.get_many(["k"], world.deadline(2))) == [b"parent"]
    drive(store.close())
