"""What a lost node of a Redis Cluster costs: what lies on it, and nothing else."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from redis_faults import WORLDS, in_world, new_id
from redis_nodes import are_whole, killed, node_of, three_nodes, within

from cachekit import Cache
from cachekit.backends.redis import RedisBackend
from cachekit.backends.redis.blocking import BlockingWire
from cachekit.backends.redis.cluster import COPIES, ClusterRoute
from cachekit.backends.redis.layout import Layout, partitions_key
from cachekit.backends.redis.wire import Address, Login, NotTried
from cachekit.core.keys import physical
from cachekit.errors import BackendUnavailable, InvalidationFailed, PartUnavailable
from cachekit.protocols import NOTHING, SlotState
from cachekit.runtime import drive
from cachekit.testing.servers import RedisServer

pytestmark = pytest.mark.server
BOTH = pytest.mark.parametrize("world", WORLDS)
KEYS = [f"k{i}" for i in range(30)]
TAGS = [f"t{i}" for i in range(12)]
TIMEOUT = 0.5


@pytest.fixture(scope="module")
def cluster() -> Iterator[list[RedisServer]]:
    with three_nodes() as nodes:
        yield nodes


def url_of(cluster: list[RedisServer], node: int) -> str:
    return f"redis+cluster://127.0.0.1:{cluster[node].port}"


class Where:
    """Which node has what of a namespace."""

    def __init__(self, cluster: list[RedisServer], namespace: str) -> None:
        self.record = node_of(cluster, partitions_key(namespace))
        layout = Layout(namespace, 64)
        self.keys = {key: node_of(cluster, layout.slot(physical(key))) for key in KEYS}
        self.tags = {tag: node_of(cluster, layout.tag(tag)) for tag in TAGS}

    def of(self, what: dict[str, int], node: int) -> list[str]:
        return [name for name, at in what.items() if at == node]


# -- one call over several nodes ---------------------------------------------------------------


@BOTH
def test_a_call_over_several_nodes_does_the_living_ones_part_and_names_the_rest(
    world: str, cluster: list[RedisServer]
) -> None:
    namespace = f"part{world}"
    where = Where(cluster, namespace)
    lost = next(n for n in range(3) if n != where.record)
    gone = where.of(where.keys, lost)
    assert 0 < len(gone) < len(KEYS)

    async def body(store: Any, w: Any) -> None:
        stamp = new_id()
        for key in KEYS:
            await store.slots.put(key, stamp, key.encode(), None, w.deadline(3))
        made = await store.slots.nonces(KEYS, TAGS, new_id, None, w.deadline(3))
        with killed(cluster, lost):
            for _ in range(8):  # the node is asked first, and not any more later
                with pytest.raises(PartUnavailable) as caught:
                    await store.slots.read(KEYS, TAGS, w.deadline(3))
                assert caught.value.keys == set(gone)
                assert caught.value.tags == set(where.of(where.tags, lost))
                part = caught.value.part
                for i, key in enumerate(KEYS):
                    if key in gone:
                        assert (part.slots[i].state, part.spaces[i]) == (SlotState.BLOCK, None)
                    else:
                        assert (part.slots[i].data, part.spaces[i]) == (
                            key.encode(),
                            made.spaces[i],
                        )
                for i, tag in enumerate(TAGS):
                    assert part.nonces[i] == (None if where.tags[tag] == lost else made.tags[i])
            with pytest.raises(BackendUnavailable) as alone:
                await store.slots.read(gone, [], w.deadline(3))
            assert getattr(alone.value, "part", None) is None
            with pytest.raises(PartUnavailable) as untold:
                await store.slots.void(KEYS, w.deadline(3))
            assert (untold.value.keys, untold.value.tags) == (set(gone), set())
            with pytest.raises(PartUnavailable) as untold:
                await store.slots.drop_tags(TAGS, w.deadline(3))
            assert untold.value.tags == set(where.of(where.tags, lost))
            here = [key for key in KEYS if key not in gone]
            reading = await store.slots.read(
                here, [t for t in TAGS if where.tags[t] != lost], w.deadline(3)
            )
            assert set(reading.slots) == {NOTHING}
            assert set(reading.nonces) == {None}

    in_world(world, RedisBackend(url_of(cluster, where.record), namespace=namespace), body)


def test_a_server_that_hangs_while_it_is_connected_to_takes_no_other_servers_answer(
    cluster: list[RedisServer],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hangs = Address("127.0.0.1", silent.getsockname()[1])
        lives = [Address("127.0.0.1", node.port) for node in cluster]
        wire = BlockingWire(Login(ask_run=True))  # a greeting that is never answered
        ping = [(b"PING",)]
        (first,) = drive(wire.call_many([(lives[0], ping)], time.monotonic() + 3))
        assert first == [b"PONG"]
        asked = sorted([hangs, *lives])
        until = time.monotonic() + 0.3
        answers = dict(
            zip(
                asked,
                drive(wire.call_many([(address, ping) for address in asked], until)),
                strict=True,
            )
        )
        assert answers[lives[0]] == [b"PONG"]  # it was connected before
        assert isinstance(answers[hangs], TimeoutError)
        assert not isinstance(answers[hangs], NotTried)
        for late in lives[1:]:  # nobody says that they failed
            assert answers[late] == [b"PONG"] or isinstance(answers[late], NotTried)
        drive(wire.close())


@BOTH
def test_a_node_that_hangs_takes_the_time_of_few_calls_and_no_living_ones_answer(
    world: str, cluster: list[RedisServer]
) -> None:
    namespace = f"hang{world}"
    where = Where(cluster, namespace)
    lost = next(n for n in range(3) if n != where.record)

    async def body(store: Any, w: Any) -> None:
        for key in KEYS:
            await store.slots.put(key, new_id(), key.encode(), None, w.deadline(3))
        cluster[lost].pause()
        try:
            slow = 0
            for _ in range(30):
                began = time.monotonic()
                with pytest.raises(PartUnavailable) as caught:
                    await store.slots.read(KEYS, [], w.deadline(TIMEOUT))
                slow += time.monotonic() - began > TIMEOUT / 2
                for slot, key in zip(caught.value.part.slots, KEYS, strict=True):
                    assert (slot.data is None) == (where.keys[key] == lost)
            assert slow <= 10
        finally:
            cluster[lost].resume()

    within(20, lambda: are_whole(cluster))
    in_world(world, RedisBackend(url_of(cluster, where.record), namespace=namespace), body)
    within(20, lambda: are_whole(cluster))


# -- the number of partitions ------------------------------------------------------------------


@BOTH
def test_a_new_process_reads_what_the_living_nodes_have_while_the_record_is_lost(
    world: str, cluster: list[RedisServer]
) -> None:
    namespace = f"record{world}"
    where = Where(cluster, namespace)
    url = url_of(cluster, (where.record + 1) % 3)
    others = (f"never{world}{i}" for i in range(1000))
    never = next(n for n in others if node_of(cluster, partitions_key(n)) == where.record)

    async def fill(store: Any, w: Any) -> None:
        for key in KEYS:
            await store.slots.put(key, new_id(), b"v", None, w.deadline(3))

    async def look(store: Any, w: Any) -> None:
        for key in KEYS:
            if where.keys[key] != where.record:
                reading = await store.slots.read([key], [], w.deadline(3))
                assert reading.slots[0].data == b"v"
        assert store._layout.partitions == 64
        # A nonce of the namespace that is not there yet can be made too.
        fresh = [key for key in KEYS if where.keys[key] != where.record][:1]
        made = await store.slots.nonces(fresh, [], new_id, None, w.deadline(3))
        assert None not in made.spaces

    in_world(world, RedisBackend(url, namespace=namespace), fill)
    with killed(cluster, where.record):
        # Another number in its settings does not count: one is in use.
        in_world(world, RedisBackend(f"{url}?partitions=7", namespace=namespace), look)
        with pytest.raises(BackendUnavailable):  # nobody knows, and a guess could be wrong
            in_world(world, RedisBackend(url, namespace=never), look)


def test_a_record_that_is_gone_is_brought_back_by_its_copies_and_corrects_them(
    cluster: list[RedisServer],
) -> None:
    name = partitions_key("back")
    copies = ClusterRoute(BlockingWire(Login()), [], lambda s: None).copies(name)  # type: ignore[arg-type]  # it never sleeps
    assert len(set(copies)) == COPIES
    assert len({node_of(cluster, copy) for copy in copies}) == 3

    async def number(store: Any, w: Any) -> int:
        await store.slots.read(["k"], [], w.deadline(3))
        return int(store._layout.partitions)

    def asked_with(partitions: int) -> Any:
        url = f"{url_of(cluster, 0)}?partitions={partitions}"
        return in_world("threads", RedisBackend(url, namespace="back"), number)

    with redis.RedisCluster("127.0.0.1", cluster[0].port) as client:
        assert asked_with(5) == 5
        assert {client.get(each) for each in (name, *copies)} == {b"5"}
        client.delete(name)
        assert asked_with(9) == 5
        assert client.get(name) == b"5"
        client.set(name, 6)
        client.delete(copies[0])
        client.set(copies[1], "damaged")
        assert asked_with(9) == 6
        assert {client.get(each) for each in (name, *copies)} == {b"6"}
        for each in (name, *copies):
            client.delete(each)
        assert asked_with(9) == 9


# -- invalidations -----------------------------------------------------------------------------


def test_only_what_a_lost_node_has_stays_pending_and_is_told_when_it_is_back(
    cluster: list[RedisServer],
) -> None:
    where = Where(cluster, "owed")
    lost = next(n for n in range(3) if n != where.record)
    gone = where.of(where.keys, lost)
    tags_gone = where.of(where.tags, lost)
    url, options = url_of(cluster, where.record), {"namespace": "owed", "timeout": 1.0}
    with (
        Cache(url, invalidation="replay", coherence="strict", **options) as cache,
        Cache(url, coherence="strict", **options) as loud,
    ):
        for key in KEYS:
            assert cache.set(key, "old", tags=TAGS)
        pending = cache.parts.invalidator.pending
        with killed(cluster, lost):
            with pytest.raises(InvalidationFailed) as caught:
                loud.invalidate(keys=KEYS, tags=TAGS)
            assert any(repr(key) in str(caught.value) for key in gone)
            assert not any(repr(key) in str(caught.value) for key in KEYS if key not in gone)
            cache.invalidate(keys=KEYS, tags=TAGS)
            owed = {("key", key) for key in gone} | {("tag", tag) for tag in tags_gone}
            assert set(pending.take()) == owed
            # What is queued as one, and not told one by one, is told in part as well.
            cache.parts.invalidator.postpone([("key", key) for key in KEYS])
            within(10, lambda: set(pending.take()) == owed)
            assert cache.parts.invalidator.due(gone[:1])
            assert cache.parts.invalidator.due((), tags_gone[:1])
            here = [key for key in KEYS if key not in gone]
            assert not cache.parts.invalidator.due(here, set(TAGS) - set(tags_gone))
        within(10, lambda: not len(pending))
        assert cache.get_many(KEYS) == {}
