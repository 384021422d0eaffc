"""The Memcached backend and real servers: dead nodes, restarts, refusals, forks, cancellation."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from memcached_worlds import WORLDS, in_world

from cachekit.backends.memcached import MemcachedBackend
from cachekit.errors import BackendRefused, BackendUnavailable
from cachekit.protocols import Item, SlotState
from cachekit.runtime import AnyWorld, Runtime, drive
from cachekit.testing import MemcachedServer


@pytest.fixture
def two() -> Iterator[tuple[MemcachedServer, MemcachedServer]]:
    with MemcachedServer() as one, MemcachedServer() as other:
        yield one, other


@pytest.mark.server
@pytest.mark.parametrize("world", WORLDS)
def test_a_dead_node_is_unavailable_for_its_own_keys_and_they_never_move(
    world: str, two: tuple[MemcachedServer, MemcachedServer]
) -> None:
    one, other = two
    url = f"{one.url},127.0.0.1:{other.port}"

    async def body(here: AnyWorld) -> None:
        def late() -> Any:
            return here.deadline(2.0)

        store = MemcachedBackend(url).open(here)
        slots = store.slots
        keys = [f"k{n}" for n in range(40)]
        for key in keys:
            assert await slots.put(key, os.urandom(16), b"old", None, late())
        other.kill()
        dead, alive = [], []
        for key in keys:
            try:
                assert (await slots.read([key], [], late())).slots[0].data == b"old"
                alive.append(key)
            except BackendUnavailable:
                dead.append(key)
        assert len(dead) >= 5
        assert len(alive) >= 5
        for key in dead:
            with pytest.raises(BackendUnavailable):
                await slots.put(key, os.urandom(16), b"moved", None, late())
        # One invalidation over both nodes reaches the one that is there, and still fails.
        with pytest.raises(BackendUnavailable):
            await slots.void(keys, late())
        reading = await slots.read(alive, [], late())
        assert {slot.state for slot in reading.slots} == {SlotState.NOTHING}

        other.start()
        for key in dead:
            assert (await slots.read([key], [], late())).slots[0].state is SlotState.NOTHING
            assert await slots.put(key, os.urandom(16), b"new", None, late())
        only = MemcachedBackend(one.url).open(here)
        reading = await only.slots.read(dead, [], late())
        assert {slot.state for slot in reading.slots} == {SlotState.NOTHING}
        await only.close()
        await store.close()

    in_world(world, body)


@pytest.mark.server
@pytest.mark.parametrize("refresh", [False, True])
def test_a_restart_between_acquire_and_fill_refuses_the_fill(refresh: bool) -> None:
    with MemcachedServer() as server:
        here = Runtime().threads
        store = MemcachedBackend(server.url).open(here)
        slots: Any = store.slots
        stamp, token, later = (os.urandom(16) for _ in range(3))
        if refresh:
            assert drive(slots.put("k", stamp, b"old", None, here.deadline(1)))
        got = slots.acquire("k", token, 30.0, here.deadline(1), over=stamp, keep=refresh)
        assert drive(got).granted
        server.kill()
        server.start()
        # The new server counts its cas numbers from the beginning again: somebody else's token
        # may well carry the number of ours.
        assert drive(slots.acquire("k", later, 30.0, here.deadline(1))).granted
        assert not drive(slots.fill("k", token, b"stale", None, here.deadline(1)))
        assert drive(slots.fill("k", later, b"new", None, here.deadline(1)))
        drive(store.close())  # type: ignore[arg-type]


@pytest.mark.server
@pytest.mark.parametrize("verb", ["fill", "refresh", "put", "commit", "set_many"])
def test_a_value_the_server_refuses_leaves_nothing_older_behind(
    verb: str, memcached_server: MemcachedServer
) -> None:
    here = Runtime().threads
    store = MemcachedBackend(memcached_server.url, namespace=f"big-{verb}").open(here)
    slots: Any = store.slots
    stamp, own = os.urandom(16), os.urandom(16)
    big = b"x" * (2 * 2**20)

    def late() -> Any:
        return here.deadline(5)

    if verb == "set_many":
        drive(store.set_many([Item("k", b"old", None)], late()))  # type: ignore[arg-type]
        items = [Item("a", b"1", None), Item("k", big, None), Item("z", b"2", None)]
        with pytest.raises(BackendRefused):
            drive(store.set_many(items, late()))  # type: ignore[arg-type]
        assert drive(store.get_many(["a", "k", "z"], late())) == [b"1", None, b"2"]  # type: ignore[arg-type]
        drive(store.close())  # type: ignore[arg-type]
        return
    assert drive(slots.put("k", stamp, b"old", None, late()))
    if verb == "fill":
        drive(slots.acquire("k", own, 30, late(), over=stamp))
    elif verb == "refresh":
        drive(slots.acquire("k", own, 30, late(), over=stamp, keep=True))
    elif verb == "commit":
        drive(slots.seize(["k"], own, 30, late()))
    store_it = slots.fill if verb == "refresh" else getattr(slots, verb)
    with pytest.raises(BackendRefused) as refused:
        drive(store_it("k", own, big, None, late()))
    assert refused.value.key == "k"
    assert "too large" in str(refused.value)
    assert drive(slots.read(["k"], [], late())).slots[0].state is SlotState.NOTHING
    drive(store.close())  # type: ignore[arg-type]


@pytest.mark.server
def test_a_connection_that_died_while_idle_is_noticed_before_it_is_used() -> None:
    with MemcachedServer() as server:
        here = Runtime().threads
        store = MemcachedBackend(server.url).open(here)
        drive(store.get_many(["k"], here.deadline(1)))  # type: ignore[arg-type]
        server.kill()
        server.start()
        assert drive(store.get_many(["k"], here.deadline(1))) == [None]  # type: ignore[arg-type]
        drive(store.close())  # type: ignore[arg-type]


@pytest.mark.server
def test_a_forked_child_uses_no_socket_of_its_parent(memcached_server: MemcachedServer) -> None:
    here = Runtime().threads
    store: Any = MemcachedBackend(memcached_server.url, namespace="fork").open(here)
    drive(store.set_many([Item("k", b"1", None)], here.deadline(1)))
    (pool,) = store._driver._pools.values()
    (mine,) = [connection.socket._socket.getsockname() for connection in pool._idle]
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            empty = not pool._idle
            read = drive(store.get_many(["k"], here.deadline(1))) == [b"1"]
            (own,) = [connection.socket._socket.getsockname() for connection in pool._idle]
            code = 0 if empty and read and own != mine else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert drive(store.get_many(["k"], here.deadline(1))) == [b"1"]
    assert [connection.socket._socket.getsockname() for connection in pool._idle] == [mine]
    drive(store.close())


@pytest.mark.server
def test_cancelled_calls_never_leave_their_answer_to_another(
    memcached_server: MemcachedServer,
) -> None:
    async def body(here: AnyWorld) -> None:
        store = MemcachedBackend(memcached_server.url, namespace="cancel").open(here)
        keys = [f"k{n}" for n in range(50)]
        await store.set_many([Item(k, k.encode() * 50, None) for k in keys], here.deadline(5))
        rng = random.Random(7)
        cancelled = 0
        for _ in range(20):
            asked = [rng.choice(keys) for _ in range(25)]
            tasks = [asyncio.create_task(store.get_many([k], here.deadline(5))) for k in asked]
            await asyncio.sleep(rng.random() * 0.002)
            for task in rng.sample(tasks, 12):
                task.cancel()
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            for key, answer in zip(asked, answers, strict=True):
                if isinstance(answer, asyncio.CancelledError):
                    cancelled += 1
                else:
                    assert answer == [key.encode() * 50]
        assert cancelled > 50
        await store.close()

    in_world("asyncio", body)


@pytest.mark.server
def test_no_more_connections_are_opened_than_the_url_allows(
    memcached_server: MemcachedServer,
) -> None:
    here = Runtime().threads
    store: Any = MemcachedBackend(memcached_server.url + "?connections=2", namespace="few").open(
        here
    )
    (pool,) = store._driver._pools.values()
    barrier = threading.Barrier(12)
    answers: list[Any] = []

    def work() -> None:
        barrier.wait(5)
        for _ in range(30):
            answers.append(drive(store.get_many(["k"], here.deadline(5))))

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert answers == [[None]] * 360
    assert 1 <= len(pool._idle) == len(pool._alive) <= 2
    drive(store.close())
    assert (pool._idle, len(pool._alive)) == ([], 0)
