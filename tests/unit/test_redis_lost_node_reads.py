"""What a cache answers while a node of a Redis Cluster is lost: all that the others have."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis_faults import WORLDS
from redis_nodes import killed, node_of, three_nodes, within

from cachekit import Cache, CacheAside
from cachekit.backends.redis.layout import Layout, partitions_key
from cachekit.core.keys import physical
from cachekit.errors import BackendError
from cachekit.testing.servers import RedisServer

pytestmark = pytest.mark.server
BOTH = pytest.mark.parametrize("world", WORLDS)
KEYS = [f"k{i}" for i in range(30)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[list[RedisServer]]:
    with three_nodes() as nodes:
        yield nodes


class Ground:
    """A namespace with the KEYS filled, and which of them lie on the node that will be lost."""

    def __init__(self, cluster: list[RedisServer], world: str, namespace: str) -> None:
        self.world = world
        self.namespace = f"{namespace}{world}"
        record = node_of(cluster, partitions_key(self.namespace))
        self.lost = (record + 1) % 3
        self.url = f"redis+cluster://127.0.0.1:{cluster[record].port}"
        layout = Layout(self.namespace, 64)
        at = {key: node_of(cluster, layout.slot(physical(key))) for key in KEYS}
        self.gone = [key for key in KEYS if at[key] == self.lost]
        self.here = [key for key in KEYS if at[key] != self.lost]
        tags = {f"t{i}": node_of(cluster, layout.tag(f"t{i}")) for i in range(30)}
        self.lost_tag = next(tag for tag, node in tags.items() if node == self.lost)
        self.kept_tag = next(tag for tag, node in tags.items() if node != self.lost)

    def cache(self, **options: Any) -> Cache:
        options = {"coherence": "strict", "invalidation": "replay", "timeout": 1.0, **options}
        return Cache(self.url, namespace=self.namespace, **options)

    def call(self, cache: Cache, verb: str, *args: Any, **options: Any) -> Any:
        """A verb of the cache in this world."""
        if self.world == "threads":
            return getattr(cache, verb)(*args, **options)

        async def run() -> Any:
            try:
                return await getattr(cache.aio, verb)(*args, **options)
            finally:
                await asyncio.sleep(0)

        return asyncio.run(run())


@BOTH
def test_one_pending_key_or_tag_stops_the_reads_that_need_it_and_no_other(
    world: str, cluster: list[RedisServer]
) -> None:
    ground = Ground(cluster, world, "one")
    here, gone = ground.here, ground.gone
    with ground.cache() as cache:
        for key in KEYS:
            tag = ground.lost_tag if key == here[0] else ground.kept_tag
            assert cache.set(key, "old", tags=[tag])

        def read(key: str, load: Callable[[], str]) -> Any:
            return ground.call(cache, "get_or_set", key, load, ttl=60)

        with killed(cluster, ground.lost):
            ground.call(cache, "invalidate", keys=[gone[0]])
            ground.call(cache, "invalidate", tags=[ground.lost_tag])
            assert cache.stats().pending_invalidations == 2
            before = cache.stats().far_hits
            for key in here[1:]:
                assert read(key, lambda: "loaded") == "old"
            assert cache.stats().far_hits == before + len(here) - 1
            for _ in range(3):
                # Its slot is untouched, its tag can not be told: nobody declared it.
                assert ground.call(cache, "get", here[0]) is None
                assert read(here[0], lambda: "new") == "new"
                assert read(gone[0], lambda: "new") == "new"
                assert ground.call(cache, "get_many", KEYS) == dict.fromkeys(here[1:], "old")
        within(10, lambda: cache.stats().pending_invalidations == 0)
        assert read(here[0], lambda: "new") == "new"
        assert read(gone[0], lambda: "new") == "new"


@BOTH
def test_a_batch_over_several_nodes_has_the_hits_of_those_that_live(
    world: str, cluster: list[RedisServer]
) -> None:
    ground = Ground(cluster, world, "many")
    here, gone = ground.here, ground.gone
    asked: list[list[str]] = []

    def load(keys: list[str]) -> dict[str, str]:
        asked.append(sorted(keys))
        return dict.fromkeys(keys, "loaded")

    first, tagged, *rest = here  # one that is not cached, one whose tag nobody can look up
    with ground.cache() as cache, ground.cache(strict=True) as strict:
        for key in (*rest, *gone):
            assert cache.set(key, "old")
        assert cache.set(tagged, "old", tags=[ground.lost_tag])
        with killed(cluster, ground.lost):
            for _ in range(6):
                assert ground.call(cache, "get_many", KEYS) == dict.fromkeys(rest, "old")
            everything = ground.call(cache, "get_or_set_many", KEYS, load, ttl=60)
            assert set(everything) == set(KEYS)
            assert asked == [sorted({*gone, first, tagged})]
            assert all(everything[key] == "old" for key in rest)
            assert ground.call(cache, "get", first) == "loaded"  # what could be kept was
            assert ground.call(cache, "get", tagged) is None  # and this one left as it is
            for verb in ("get_many", "get_or_set_many"):
                options = (KEYS, load) if verb != "get_many" else (KEYS,)
                with pytest.raises(BackendError):
                    ground.call(strict, verb, *options)
            assert cache.stats().breaker != "open"


def test_a_batch_keeps_what_it_loaded_where_key_and_tags_lie_on_living_nodes(
    cluster: list[RedisServer],
) -> None:
    ground = Ground(cluster, "threads", "kept")
    layout = Layout(ground.namespace, 64)
    tag_at = {key: node_of(cluster, layout.tag(f"row:{key}")) for key in KEYS}
    whole = [key for key in ground.here if tag_at[key] != ground.lost]
    assert 0 < len(whole) < len(ground.here)
    with ground.cache() as cache:
        assert cache.set("other", "value")
        rows = dict.fromkeys(KEYS, "row")
        users = CacheAside(cache, key="{id}", tags=["row:{id}"], load=rows.get)
        with killed(cluster, ground.lost):
            for _ in range(8):  # until the node is known to be down
                cache.get_many(ground.gone)
            assert users.get_many(KEYS) == rows
            before = cache.stats().far_hits
            assert users.get_many(KEYS) == rows
            assert cache.stats().far_hits == before + len(whole)


def test_a_write_that_a_lost_node_has_to_hear_of_is_pending_alone(
    cluster: list[RedisServer],
) -> None:
    ground = Ground(cluster, "threads", "write")
    rows = dict.fromkeys(KEYS, "old")
    with ground.cache(invalidation="raise") as cache:
        users = CacheAside(cache, key="{id}", load=rows.get, store=rows.__setitem__)
        assert set(users.get_many(KEYS).values()) == {"old"}
        with killed(cluster, ground.lost):
            assert users.put(ground.gone[0], "new").pending
            assert not users.put(ground.here[0], "new").pending
            loaded = [users.get(ground.gone[0]), users.get(ground.here[0])]
            assert loaded == ["new", "new"]
            before = cache.stats().far_hits
            for key in ground.here:
                users.get(key)
            assert cache.stats().far_hits == before + len(ground.here)
        within(10, lambda: cache.stats().pending_invalidations == 0)
        assert users.get(ground.gone[0]) == "new"
