"""The Redis backend on a Cluster: slots that move, runs of the nodes, notes on all of them."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import redis
from redis_faults import WORLDS, free_port, in_world, new_id, the_whole_story

from cachekit.backends.redis import RedisBackend
from cachekit.backends.redis.layout import bus_channel
from cachekit.core.notes import NoteKind, unpack
from cachekit.protocols import Item
from cachekit.testing.servers import RedisServer

pytestmark = pytest.mark.server
BOTH = pytest.mark.parametrize("world", WORLDS)


@pytest.fixture(scope="module")
def cluster() -> Iterator[list[RedisServer]]:
    if not shutil.which("redis-cli"):
        pytest.skip("no redis-cli on PATH to put a cluster together")
    with ExitStack() as stack:
        nodes = []
        for _ in range(3):
            bus = free_port()  # the default, port + 10000, may lie beyond 65535
            options = ["--cluster-enabled", "yes", "--cluster-port", str(bus)]
            nodes.append(stack.enter_context(RedisServer([*options, "--save", ""])))
        addresses = [f"127.0.0.1:{node.port}" for node in nodes]
        subprocess.run(
            ["redis-cli", "--cluster", "create", *addresses, "--cluster-yes"],
            check=True,
            capture_output=True,
            timeout=60,
        )
        clients = [stack.enter_context(redis.Redis(port=node.port)) for node in nodes]
        end = time.monotonic() + 30
        while not all(c.cluster("info")["cluster_state"] == "ok" for c in clients):
            assert time.monotonic() < end
            time.sleep(0.05)
        yield nodes


@BOTH
def test_a_cluster_serves_every_step(world: str, cluster: list[RedisServer]) -> None:
    dead = free_port()
    url = f"redis+cluster://127.0.0.1:{dead},127.0.0.1:{cluster[1].port}"
    backend = RedisBackend(url, namespace=f"c{world}")
    in_world(world, backend, the_whole_story)

    async def leave_some(store: Any, w: Any) -> None:
        await store.set_many([Item(f"k{i}", b"v", 60) for i in range(50)], w.deadline(3))

    in_world(world, backend, leave_some)
    for node in cluster:
        with redis.Redis(port=node.port) as client:
            assert client.dbsize() > 0  # the partitions are spread


@BOTH
def test_every_node_of_a_cluster_knows_its_own_run(world: str, cluster: list[RedisServer]) -> None:
    url = f"redis+cluster://127.0.0.1:{cluster[0].port}"
    keys = [f"k{i}" for i in range(30)]

    async def body(store: Any, w: Any) -> None:
        found = await store.slots.nonces(keys, [], new_id, 60, w.deadline(3))
        layout, by_run = store._layout, {}
        with redis.RedisCluster("127.0.0.1", cluster[1].port) as client:
            for key, nonce in zip(keys, found.spaces, strict=True):
                name = layout.spaces[layout.partition(key)]
                stored = client.get(name)
                assert stored[16:] == nonce
                by_run[key] = stored[:16]
            runs = sorted(set(by_run.values()))
            assert len(runs) == 3
            for key, run in by_run.items():  # a node's nonce under the run of another
                name = layout.spaces[layout.partition(key)]
                client.set(name, runs[(runs.index(run) + 1) % 3] + b"x" * 16)
        assert set((await store.slots.read(keys, [], w.deadline(3))).spaces) == {None}
        for key in keys:
            assert (await store.slots.read([key], ["t"], w.deadline(3))).spaces == [None]
        again = await store.slots.nonces(keys, [], new_id, 60, w.deadline(3))
        assert b"x" * 16 not in again.spaces
        reading = await store.slots.read(keys, [], w.deadline(3))
        assert reading.spaces == again.spaces

    in_world(world, RedisBackend(url, namespace=f"r{world}"), body)


@BOTH
def test_a_note_is_heard_on_every_node_of_a_cluster_and_after_all_deletes(
    world: str, cluster: list[RedisServer]
) -> None:
    url = f"redis+cluster://127.0.0.1:{cluster[0].port}"
    keys = [f"k{i}" for i in range(30)]

    async def body(store: Any, w: Any) -> None:
        await store.slots.nonces(keys, [], new_id, 60, w.deadline(3))
        with ExitStack() as stack:
            client = stack.enter_context(redis.RedisCluster("127.0.0.1", cluster[0].port))
            ears = []
            for node in cluster:
                ear = redis.Redis(port=node.port).pubsub(ignore_subscribe_messages=True)
                stack.callback(ear.close)
                ear.subscribe(bus_channel(f"n{world}"))
                assert ear.get_message(timeout=5) is None  # the confirmation
                ears.append(ear)
            await store.slots.drop_space(w.deadline(3))
            assert not any(client.exists(name) for name in store._layout.spaces)
            await store.slots.drop_tags(["t"], w.deadline(3))
            for ear in ears:
                heard: list[tuple[NoteKind, str]] = []
                while len(heard) < 2:
                    message = ear.get_message(timeout=5)
                    assert message is not None
                    note = unpack(message["data"])
                    assert note is not None
                    heard.append((note.kind, note.name))
                assert sorted(heard, key=str) == [(NoteKind.SPACE, ""), (NoteKind.TAG, "t")]

    in_world(world, RedisBackend(url, namespace=f"n{world}"), body)


@BOTH
def test_a_slot_that_moves_is_followed_without_an_error(
    world: str, cluster: list[RedisServer]
) -> None:
    clients = [redis.Redis(port=node.port) for node in cluster]
    ids = [client.cluster("myid").decode() for client in clients]
    backend = RedisBackend(f"redis+cluster://127.0.0.1:{cluster[0].port}", namespace=f"m{world}")

    async def body(store: Any, w: Any) -> None:
        stamp = new_id()
        await store.slots.put("k", stamp, b"old", None, w.deadline(3))
        await store.slots.nonces(["k"], [], new_id, None, w.deadline(3))
        slot = clients[0].cluster("keyslot", store._layout.slot("k"))
        owner = next(i for i, client in enumerate(clients) if serves(client, slot))
        target = (owner + 1) % 3
        clients[target].cluster("setslot", slot, "importing", ids[owner])
        clients[owner].cluster("setslot", slot, "migrating", ids[target])

        async def data() -> bytes | None:
            return (await store.slots.read(["k"], [], w.deadline(3))).slots[0].data

        assert await data() == b"old"  # still there
        clients[owner].migrate(
            "127.0.0.1", cluster[target].port, [store._layout.slot("k")], 0, 2000
        )
        name = store._layout.spaces[store._layout.partition("k")]
        run = clients[owner].info("server")["run_id"][:16].encode()
        for stored, space in ((run, stamp), (b"0" * 16, None)):  # it lies where k is no more
            clients[owner].set(name, stored + stamp)
            reading = await store.slots.read(["k"], [], w.deadline(3))
            assert (reading.slots[0].data, reading.spaces) == (b"old", [space])
        clients[owner].delete(name)
        assert not (await store.slots.acquire("k", new_id(), 5, w.deadline(3))).granted  # ASK
        await store.slots.void(["k"], w.deadline(3))
        await store.slots.put("k", stamp, b"new", None, w.deadline(3))
        for client in clients:
            client.cluster("setslot", slot, "node", ids[target])
        assert await data() == b"new"  # MOVED
        assert await data() == b"new"

    in_world(world, backend, body)
    for client in clients:
        client.close()


def serves(client: redis.Redis, slot: int) -> bool:
    port = client.connection_pool.connection_kwargs["port"]
    return any(
        int(first) <= slot <= int(last) and int(primary["port"]) == port
        for first, last, primary in shards(client)
    )


def shards(client: redis.Redis) -> list[tuple[int, int, dict[str, int]]]:
    """First slot, last slot and port of each range, straight from CLUSTER NODES."""
    found = []
    for node in client.execute_command("CLUSTER NODES").items():
        address, facts = node
        for first, *last in facts["slots"]:
            found.append((first, (last or [first])[0], {"port": address.rpartition(":")[2]}))
    return found
