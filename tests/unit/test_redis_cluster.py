"""The Redis backend on a Cluster: slots that move, lost nodes, runs of the nodes, their notes."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Self

import pytest
import redis
from redis_faults import WORLDS, free_port, in_world, new_id, the_whole_story
from redis_nodes import are_whole, three_nodes, within

from cachekit import Cache
from cachekit.backends.redis import RedisBackend
from cachekit.backends.redis.cluster import SlotMap
from cachekit.backends.redis.health import LONGEST, SHORTEST, STRIKES, Health
from cachekit.backends.redis.layout import bus_channel
from cachekit.backends.redis.wire import Address
from cachekit.core.notes import NoteKind, unpack
from cachekit.protocols import Item
from cachekit.testing.servers import RedisServer

pytestmark = pytest.mark.server
BOTH = pytest.mark.parametrize("world", WORLDS)


@pytest.fixture(scope="module")
def cluster() -> Iterator[list[RedisServer]]:
    with three_nodes() as nodes:
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


# -- nodes that are lost -----------------------------------------------------------------------

TIMEOUT = 0.25


class Reads:
    """A cache without near tier in one world: calls, and whether the far tier had the value."""

    def __init__(self, world: str, url: str, namespace: str) -> None:
        self.cache = Cache(url, namespace=namespace, coherence="strict", timeout=TIMEOUT)
        self.namespace = namespace
        self.loop = asyncio.new_event_loop() if world == "asyncio" else None

    def __enter__(self) -> Self:
        if self.loop is not None:  # one that turns between the calls too, as a server's does
            self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.loop is None:
            self.cache.close()
            return
        asyncio.run_coroutine_threadsafe(self.cache.aio.close(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()

    def read(self, key: str) -> tuple[bool, float]:
        """Whether it was a far hit, and the seconds it took."""
        before, start = self.cache.stats().far_hits, time.monotonic()
        if self.loop is None:
            value = self.cache.get_or_set(key, lambda: key, ttl=600)
        else:
            value = asyncio.run_coroutine_threadsafe(self._read(key), self.loop).result(10)
        took = time.monotonic() - start
        assert value == key
        return self.cache.stats().far_hits > before, took

    async def _read(self, key: str) -> Any:
        return await self.cache.aio.get_or_set(key, lambda: key, ttl=600)

    def keys_on(self, nodes: list[RedisServer]) -> list[list[str]]:
        """Which of 60 keys, all read just now, lie on each node."""
        for turn in range(2):
            assert all(self.read(f"k{i}")[0] or not turn for i in range(60))
        found = []
        for node in nodes:
            with redis.Redis(port=node.port) as client:
                names = client.scan_iter(f"{{{self.namespace}:*:k*", count=1000)
                found.append(sorted(name.decode().rpartition(":")[2] for name in names))
        assert sum(map(len, found)) == 60
        return found


def asked_for_slots(nodes: list[RedisServer]) -> int:
    count = 0
    for node in nodes:
        with redis.Redis(port=node.port) as client:
            count += client.info("commandstats").get("cmdstat_cluster|slots", {"calls": 0})["calls"]
    return count


@BOTH
@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_a_lost_node_costs_no_hit_and_no_time_on_the_others(
    world: str, how: str, cluster: list[RedisServer]
) -> None:
    lost, others = cluster[2], cluster[:2]
    with Reads(world, f"redis+cluster://127.0.0.1:{lost.port}", f"l{world}{how}") as reads:
        *kept, gone = reads.keys_on(cluster)
        here = [key for keys in kept for key in keys]
        questions, start = asked_for_slots(others), time.monotonic()
        _ = lost.kill() if how == "killed" else lost.pause()
        try:
            hits, slow, spent = 0, 0, 0.0
            for i in range(300):
                hit, took = reads.read(here[i % len(here)])
                hits += hit
                slow += took > TIMEOUT / 2
                if i % 2:
                    hit, took = reads.read(gone[i % len(gone)])
                    spent += took
                    assert not hit
            elapsed = time.monotonic() - start
            assert hits >= 299
            assert slow <= 3
            assert spent < 150 * TIMEOUT / 3  # most of them were told at once
            assert asked_for_slots(others) - questions <= 3 + elapsed / SHORTEST
        finally:
            _ = lost.start() if how == "killed" else lost.resume()
        within(10, lambda: reads.read(gone[0])[0])
    within(20, lambda: are_whole(cluster))


@BOTH
def test_many_first_calls_ask_for_the_slots_once(world: str, cluster: list[RedisServer]) -> None:
    backend = RedisBackend(f"redis+cluster://127.0.0.1:{cluster[1].port}", namespace=f"o{world}")

    async def one(store: Any, w: Any) -> None:
        assert await store.get_many(["k"], w.deadline(3)) == [None]

    async def body(store: Any, w: Any) -> None:
        before = asked_for_slots(cluster)
        if world == "asyncio":
            await asyncio.gather(*(one(store, w) for _ in range(30)))
        else:
            gate, failed = threading.Barrier(30), []

            def work() -> None:
                gate.wait()
                try:
                    one(store, w).send(None)
                except StopIteration:
                    return
                except BaseException as error:
                    failed.append(error)

            threads = [threading.Thread(target=work) for _ in range(30)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not failed
        assert asked_for_slots(cluster) - before == 1

    in_world(world, backend, body)


def test_a_replica_that_takes_over_is_found(cluster: list[RedisServer]) -> None:
    lost, url = cluster[2], f"redis+cluster://127.0.0.1:{cluster[0].port}"
    bus = free_port()
    options = ["--cluster-enabled", "yes", "--cluster-port", str(bus), "--save", ""]
    options += ["--cluster-require-full-coverage", "no", "--cluster-node-timeout", "600"]
    with ExitStack() as stack:
        spare = stack.enter_context(RedisServer(options))
        client = stack.enter_context(redis.Redis(port=spare.port))
        master = stack.enter_context(redis.Redis(port=lost.port))
        worlds = [stack.enter_context(Reads(world, url, f"f{world}")) for world in WORLDS]
        gone = [reads.keys_on(cluster)[2] for reads in worlds]
        main_bus = int(cluster[0].options[cluster[0].options.index("--cluster-port") + 1])
        client.execute_command("CLUSTER MEET", "127.0.0.1", cluster[0].port, main_bus)
        name = master.cluster("myid").decode()
        within(20, lambda: name in str(client.execute_command("CLUSTER NODES")))
        within(20, lambda: becomes_replica(client, name))
        within(20, lambda: client.info("replication")["master_link_status"] == "up")
        voters = [stack.enter_context(redis.Redis(port=node.port)) for node in cluster[:2]]
        within(20, lambda: all(name in masters_of(voter, spare.port) for voter in voters))
        lost.kill()
        try:
            within(30, lambda: client.info("replication")["role"] == "master")
            for reads, keys in zip(worlds, gone, strict=True):
                within(10, lambda reads=reads, keys=keys: reads.read(keys[0])[0])
                # Another run: what the lost one held is not trusted, so each is loaded once more.
                within(10, lambda reads=reads, keys=keys: all([reads.read(k)[0] for k in keys]))
        finally:
            lost.start()


def masters_of(client: redis.Redis, port: int) -> list[str]:
    """Whose replica the node at the port is, as another one sees it."""
    nodes = client.execute_command("CLUSTER NODES")
    return [told["master_id"] for node, told in nodes.items() if node.endswith(f":{port}")]


def becomes_replica(client: redis.Redis, name: str) -> bool:
    try:
        return bool(client.execute_command("CLUSTER REPLICATE", name))
    except redis.ResponseError:  # it has not yet heard enough of its master
        return False


def test_the_map_of_ranges_answers_as_a_table_of_all_slots() -> None:
    rng = random.Random(4)
    for _ in range(20):
        cuts = sorted(rng.sample(range(16384), 12))
        told, table = [], {}
        for first, after in zip(cuts[::2], cuts[1::2], strict=True):  # with holes between
            port = rng.randrange(7000, 7003)
            told.append([first, after - 1, [b"10.0.0.1", port, b"id"], [b"10.0.0.2", 1, b"id"]])
            table.update(dict.fromkeys(range(first, after), Address("10.0.0.1", port)))
        rng.shuffle(told)
        slots = SlotMap.told(told, Address("10.9.9.9", 1))
        for slot in rng.sample(range(16384), 3):
            slots.moved[slot] = table[slot] = Address("10.0.0.3", 9)
        assert all(slots.owner(slot) == table.get(slot) for slot in range(16384))
        assert set(slots.masters) == set(table.values())
    assert SlotMap.told([[0, 1, [b"", 5, b"id"]]], Address("h", 1)).owner(1) == Address("h", 5)
    with pytest.raises(ConnectionError):
        SlotMap.told([], Address("h", 1))


def test_a_node_is_down_after_failures_in_a_row_and_probed_by_one_call_at_a_time() -> None:
    health, node = Health(), Address("h", 1)
    began = time.monotonic()
    for _ in range(50):  # all under way when the connection broke
        health.failed(node, began)
    assert node not in health
    for _ in range(STRIKES - 1):
        assert health.admits(node, time.monotonic())
        health.failed(node, time.monotonic())
    assert node in health
    pauses = []
    for _ in range(6):
        now, pause = time.monotonic(), 0.0
        assert not health.admits(node, now)
        while not health.admits(node, now + pause):
            pause += 0.01
        assert not health.admits(node, now + pause)  # another call, while the probe is under way
        pauses.append(pause)
        health.failed(node, time.monotonic())
    assert SHORTEST / 2 < pauses[0] < 1.5 * SHORTEST
    assert pauses == sorted(pauses)
    assert LONGEST / 2 < pauses[-1] < 1.5 * LONGEST
    health.answered(node)
    assert node not in health
    assert health.admits(node, time.monotonic())
