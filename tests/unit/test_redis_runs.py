"""A Redis that comes back with older memory: nothing of another run of the server counts."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import redis
from redis_faults import WORLDS, FaultServer, in_world, scripted

import cachekit
from cachekit.backends.redis import RedisBackend
from cachekit.backends.redis.wire import ErrorReply, Login
from cachekit.errors import BackendUnavailable
from cachekit.protocols import SlotState
from cachekit.runtime import Runtime, drive
from cachekit.testing.servers import RedisServer

pytestmark = pytest.mark.server
BOTH = pytest.mark.parametrize("world", WORLDS)
A = b"a" * 16
OLD_RUN, NO_RUN = b"0123456789abcdef", bytes(16)


@pytest.fixture
def control(redis_server: RedisServer) -> Iterator[Any]:
    with redis.Redis(port=redis_server.port) as client:
        client.flushall()
        yield client


def new_id() -> bytes:
    return os.urandom(16)


def run_of(client: redis.Redis) -> bytes:
    return client.info("server")["run_id"][:16].encode()


async def fill(store: Any, w: Any) -> bytes:
    """An entry under ``k`` and the nonce it is bound to."""
    [space] = (await store.slots.nonces(["k"], [], new_id, None, w.deadline(3))).spaces
    assert await store.slots.put("k", A, b"old", None, w.deadline(3))
    return bytes(space)


# -- older memory --------------------------------------------------------------------------


@pytest.mark.parametrize("trust", ["", "?trust_restart=true"])
def test_a_restart_from_an_old_dump_brings_back_nothing_that_was_invalidated(trust: str) -> None:
    row = ["old"]

    def reader(cache: cachekit.Cache) -> Any:
        return cache.cached(ttl=600, name="user")(lambda: row[0])

    with RedisServer() as server, redis.Redis(port=server.port) as control:
        url = server.url + trust
        with cachekit.Cache(url, coherence="strict", timeout=2) as cache:
            user = reader(cache)
            assert (user(), user()) == ("old", "old")
            control.save()
            row[0] = "new"
            user.invalidate()
            assert user() == "new"
            server.kill()
            server.start()
            with cachekit.Cache(url, coherence="strict", timeout=2) as other:
                assert reader(other)() == ("old" if trust else "new")
            assert user() == ("old" if trust else "new")


@BOTH
def test_a_replica_promoted_too_early_brings_back_nothing(world: str) -> None:
    with ExitStack() as stack:
        first = stack.enter_context(RedisServer(["--repl-diskless-sync-delay", "0"]))
        second = stack.enter_context(RedisServer(["--replicaof", "127.0.0.1", str(first.port)]))
        clients = [stack.enter_context(redis.Redis(port=s.port)) for s in (first, second)]
        named = [first.port]

        def answer(command: list[bytes]) -> bytes:
            port = b"%d" % named[0]
            return b"*2\r\n$9\r\n127.0.0.1\r\n$%d\r\n%s\r\n" % (len(port), port)

        sentinel = stack.enter_context(FaultServer(scripted(answer)))
        wait_for(lambda: clients[1].info("replication")["master_link_status"] == "up")
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/main"

        async def body(store: Any, w: Any) -> None:
            nonce = await fill(store, w)
            assert clients[0].wait(1, 5000) == 1
            clients[1].execute_command("REPLICAOF NO ONE")  # what comes now, it does not learn
            await store.slots.void(["k"], w.deadline(3))
            first.kill()
            named[0] = second.port
            found = await store.slots.read(["k"], [], w.deadline(3))
            assert (found.slots[0].data, found.spaces) == (b"old", [None])
            trusting = RedisBackend(url, trust_restart=True).open(w)
            found = await trusting.slots.read(["k"], [], w.deadline(3))
            assert found.spaces == [nonce]
            await trusting.close()
            new = await store.slots.nonces(["k"], [], new_id, None, w.deadline(3))
            assert new.spaces != [nonce]
            assert (await store.slots.read(["k"], [], w.deadline(3))).spaces == new.spaces

        in_world(world, RedisBackend(url), body)


def wait_for(condition: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# -- whose nonce counts --------------------------------------------------------------------


@BOTH
def test_a_namespace_nonce_counts_only_in_the_run_that_stored_it(
    world: str, control: redis.Redis, redis_server: RedisServer
) -> None:
    mine = run_of(control)

    async def body(store: Any, w: Any) -> None:
        nonce = await fill(store, w)
        layout = store._layout
        name = layout.spaces[layout.partition("k")]
        assert control.get(name) == mine + nonce
        for value in (OLD_RUN + nonce, NO_RUN + nonce, nonce, mine + nonce + b"x", b"", b"x" * 99):
            control.set(name, value)
            for keys in (["k"], ["k", "k2"]):
                assert (await store.slots.read(keys, [], w.deadline(3))).spaces[0] is None
            fresh = await store.slots.nonces(["k"], [], new_id, None, w.deadline(3))
            assert fresh.spaces[0] not in (None, nonce)
            assert control.get(name) == mine + fresh.spaces[0]
            again = await store.slots.nonces(["k"], [], new_id, None, w.deadline(3))
            assert again == fresh
            assert (await store.slots.read(["k"], ["t"], w.deadline(3))).spaces == fresh.spaces

    in_world(world, RedisBackend(redis_server.url), body)


@BOTH
@pytest.mark.parametrize("trust", [False, True])
def test_of_two_that_create_a_namespace_nonce_the_second_gets_the_firsts(
    world: str, trust: bool, control: redis.Redis, redis_server: RedisServer
) -> None:
    async def body(store: Any, w: Any) -> None:
        await store.slots.void(["k"], w.deadline(3))
        layout = store._layout
        name = layout.spaces[layout.partition("k")]

        def overtaken() -> bytes:  # between seeing none and creating one
            control.set(name, (OLD_RUN if trust else run_of(control)) + A)
            return new_id()

        found = await store.slots.nonces(["k"], [], overtaken, None, w.deadline(3))
        assert found.spaces == [A]

    in_world(world, RedisBackend(redis_server.url, trust_restart=trust), body)


@BOTH
def test_who_trusts_restarts_takes_every_runs_nonce_and_replaces_none(
    world: str, control: redis.Redis, redis_server: RedisServer
) -> None:
    async def body(store: Any, w: Any) -> None:
        nonce = await fill(store, w)
        layout = store._layout
        name = layout.spaces[layout.partition("k")]
        assert control.get(name) == run_of(control) + nonce  # for those who do not trust
        control.set(name, OLD_RUN + A)
        assert (await store.slots.read(["k"], [], w.deadline(3))).spaces == [A]
        assert (await store.slots.nonces(["k"], [], new_id, None, w.deadline(3))).spaces == [A]
        control.set(name, A)  # from before there were runs
        assert (await store.slots.read(["k"], [], w.deadline(3))).spaces == [None]

    in_world(world, RedisBackend(f"{redis_server.url}?trust_restart=true"), body)


@BOTH
def test_a_user_who_may_not_ask_for_the_run_takes_every_nonce(world: str) -> None:
    with RedisServer(["--user", *["app", "on", ">pw", "~*", "&*", "+@all", "-info"]]) as server:
        blind = server.url.replace("//", "//app:pw@")
        with redis.Redis(port=server.port) as control:

            async def body(store: Any, w: Any) -> None:
                nonce = await fill(store, w)
                layout = store._layout
                name = layout.spaces[layout.partition("k")]
                assert control.get(name) == NO_RUN + nonce
                for run in (NO_RUN, OLD_RUN, run_of(control)):
                    control.set(name, run + A)
                    assert (await store.slots.read(["k"], [], w.deadline(3))).spaces == [A]
                    made = await store.slots.nonces(["k"], [], new_id, None, w.deadline(3))
                    assert made.spaces == [A]

                def overtaken() -> bytes:  # by somebody who knows the run
                    control.set(name, OLD_RUN + A)
                    return new_id()

                control.delete(name)
                made = await store.slots.nonces(["k"], [], overtaken, None, w.deadline(3))
                assert made.spaces == [A]
                control.set(name, NO_RUN + A)
                seeing = RedisBackend(server.url).open(w)
                made = await seeing.slots.nonces(["k"], [], new_id, None, w.deadline(3))
                assert made.spaces not in ([A], [None])
                assert (await store.slots.read(["k"], [], w.deadline(3))).spaces == made.spaces
                await seeing.close()

            in_world(world, RedisBackend(blind), body)


def test_the_clients_of_the_caller_know_no_run_and_take_every_nonce(
    control: redis.Redis, redis_server: RedisServer
) -> None:
    world = Runtime().threads
    clients = (lambda: redis.Redis(port=redis_server.port), None)
    store = RedisBackend(clients=clients).open(world)
    nonce = drive(fill(store, world))
    layout: Any = store._layout  # type: ignore[attr-defined]  # the test looks inside
    name = layout.spaces[layout.partition("k")]
    assert control.get(name) == run_of(control) + nonce  # the script asks by itself
    control.set(name, OLD_RUN + A)
    reading = drive(store.slots.read(["k"], [], world.deadline(3)))
    assert (reading.slots[0].state, reading.spaces) == (SlotState.ENTRY, [A])
    drive(store.close())


# -- asking --------------------------------------------------------------------------------


def info(text: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(text), text)


@pytest.mark.parametrize(
    ("reply", "run"),
    [
        (b"# Server\r\nredis_version:7.0.15\r\nrun_id:0123456789abcdef0123\r\n", OLD_RUN),
        (b"# Server\r\nrun_id:0123\r\n", b""),
        (b"# Server\r\nno_such_field:1\r\n", b""),
        (b"", b""),
        (None, b""),
        (7, b""),
        ([b"run_id:" + OLD_RUN], b""),
        (ErrorReply("NOPERM this user has no permissions to run the 'info' command"), b""),
        (ErrorReply("ERR unknown command 'INFO'"), b""),
    ],
)
def test_the_run_is_read_from_what_the_server_says_or_is_unknown(reply: Any, run: bytes) -> None:
    assert Login(password="pw", ask_run=True).check([b"OK", reply]) == run


@BOTH
@pytest.mark.parametrize("text", [b"BUSY running a script", b"LOADING the dataset"])
def test_a_server_that_is_not_ready_to_tell_its_run_is_asked_again(world: str, text: bytes) -> None:
    # a connection made then would take every run's nonces as long as it lives
    with FaultServer(scripted(lambda _: b"*1\r\n$-1\r\n", b"-" + text + b"\r\n")) as server:

        async def body(store: Any, w: Any) -> None:
            for _ in range(2):
                with pytest.raises(BackendUnavailable, match="not ready"):
                    await store.get_many(["k"], w.deadline(2))

        in_world(world, RedisBackend(server.url), body)
        assert server.connections == 2
        trusting = RedisBackend(server.url, trust_restart=True)  # needs not ask

        async def ask(store: Any, w: Any) -> Any:
            return await store.get_many(["k"], w.deadline(2))

        assert in_world(world, trusting, ask) == [None]


@BOTH
def test_the_run_is_that_of_the_connection_which_brought_the_nonce(world: str) -> None:
    nonce = b"*2\r\n$-1\r\n" + info(OLD_RUN + A)
    for run, expected in ((OLD_RUN, A), (b"f" * 16, None)):
        told = info(b"# Server\r\nrun_id:" + run + b"ffff\r\n")
        with FaultServer(scripted(lambda _: nonce, told)) as server:

            async def body(store: Any, w: Any) -> Any:
                return (await store.slots.read(["k"], [], w.deadline(2))).spaces

            assert in_world(world, RedisBackend(server.url), body) == [expected]
