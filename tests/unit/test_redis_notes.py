"""What Redis tells those who listen: which steps publish what, in which order, and refusals."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from redis_faults import WORLDS, in_world

from cachekit.backends.redis import RedisBackend
from cachekit.backends.redis.layout import bus_channel, encode_namespace
from cachekit.core.notes import Note, NoteKind, unpack
from cachekit.protocols import Filling, Item, SlotState
from cachekit.runtime import Runtime
from cachekit.testing.servers import RedisServer

pytestmark = pytest.mark.server
BOTH = pytest.mark.parametrize("world", WORLDS)
A, B, C = b"a" * 16, b"b" * 16, b"c" * 16
NAMESPACE = "bus {1}"
CHANNEL = bus_channel(encode_namespace(NAMESPACE))
KEY, TAG, SPACE = NoteKind.KEY, NoteKind.TAG, NoteKind.SPACE


@pytest.fixture
def control(redis_server: RedisServer) -> Iterator[Any]:
    with redis.Redis(port=redis_server.port) as client:
        client.flushall()
        yield client


class Listener:
    """Everything that is published on the namespace's channel."""

    def __init__(self, control: redis.Redis) -> None:
        self._control = control
        self._pubsub = control.pubsub(ignore_subscribe_messages=False)
        self._pubsub.subscribe(CHANNEL)
        assert self._next()["type"] == "subscribe"

    def _next(self) -> Any:
        message = self._pubsub.get_message(timeout=5)
        assert message is not None
        return message

    def notes(self) -> list[Note]:
        """Those that came since the last time."""
        end = os.urandom(8)
        self._control.publish(CHANNEL, end)
        found = []
        while (data := self._next()["data"]) != end:
            note = unpack(data)
            assert note is not None
            found.append(note)
        return found

    def heard(self) -> list[tuple[NoteKind, str]]:
        return [(note.kind, note.name) for note in self.notes()]

    def close(self) -> None:
        self._pubsub.close()


@pytest.fixture
def listener(control: redis.Redis) -> Iterator[Listener]:
    listener = Listener(control)
    yield listener
    listener.close()


def new_id() -> bytes:
    return os.urandom(16)


@BOTH
def test_each_invalidating_step_names_what_it_invalidated_and_no_other_step_speaks(
    world: str, listener: Listener, redis_server: RedisServer
) -> None:
    async def body(store: Any, w: Any) -> None:
        slots, late = store.slots, w.deadline(10)
        two = ["k", "l"]
        keys, tags = [(KEY, "k"), (KEY, "l")], [(TAG, "k"), (TAG, "l")]
        loud = [
            (slots.void, (two,), keys),
            (slots.put, ("k", A, b"v", None), keys[:1]),
            (slots.seize, (two, A, 5), keys),
            (slots.seize, (two, B, 5), keys),
            (slots.put, ("k", A, b"v", None), keys[:1]),  # contests the block
            (slots.void, (["l"],), keys[1:]),
            (slots.drop_tags, (two,), tags),
            (slots.seize_tags, (two, A, 5), tags),
            (slots.drop_tags, (two,), tags),
            (slots.drop_space, (), [(SPACE, "")]),
        ]
        for step, args, expected in loud:
            await step(*args, late)
            assert listener.heard() == expected, step.__name__
        quiet = [
            (slots.end, (two, A)),
            (slots.end, (two, B)),
            (slots.end_tags, (two, A)),
            (slots.acquire, ("k", A, 5)),
            (slots.fill, ("k", A, b"v", None)),
            (slots.acquire, ("l", A, 5)),
            (slots.renew, ("l", A, 5)),
            (slots.release, ("l", A)),
            (slots.acquire_many, ([], 5)),
            (slots.fill_many, ([Filling("l", A, b"v", None)],)),
            (slots.nonces, (two, ["t"], new_id, 60)),
            (slots.read, (two, ["t"])),
            (slots.void, ([],)),
            (slots.drop_tags, ([],)),
            (store.set_many, ([Item("k", b"v", None)],)),
            (store.get_many, (two,)),
            (store.delete_many, (two,)),
        ]
        for step, args in quiet:
            await step(*args, late)
            assert listener.heard() == [], step.__name__

    in_world(world, RedisBackend(redis_server.url, namespace=NAMESPACE), body)


@BOTH
def test_a_writer_that_ends_speaks_only_of_what_was_not_his_block(
    world: str, listener: Listener, control: redis.Redis, redis_server: RedisServer
) -> None:
    async def body(store: Any, w: Any) -> None:
        slots, late = store.slots, w.deadline(10)

        async def leave(how: str, key: str) -> list[tuple[NoteKind, str]]:
            listener.notes()
            if how == "commit":
                await slots.commit(key, A, b"v", None, late)
            elif how == "end":
                await slots.end([key], A, late)
            else:
                await slots.end_tags([key], A, late)
            return listener.heard()

        for how in ("commit", "end"):
            await slots.seize([how], A, 5, late)
            assert await leave(how, how) == []  # mine alone
            await slots.seize([how], A, 5, late)
            await slots.void([how], late)
            assert await leave(how, how) == []  # mine, contested
            await slots.seize([how], B, 5, late)
            await slots.seize([how], A, 5, late)
            assert await leave(how, how) == []  # shared
            assert await leave(how, how) == []  # another's only
            await slots.end([how], B, late)
            assert await leave(how, how) == [(KEY, how)]  # mine ran out
            assert (await slots.acquire(how, C, 5, late)).granted
            assert await leave(how, how) == [(KEY, how)]  # a loader's token
            await slots.put(how, C, b"v", None, late)
            assert await leave(how, how) == [(KEY, how)]  # an entry
            assert (await slots.read([how], [], late)).slots[0].state is SlotState.NOTHING
        await slots.seize_tags(["t"], A, 5, late)
        assert await leave("end_tags", "t") == []
        await slots.seize_tags(["t"], B, 5, late)
        assert await leave("end_tags", "t") == []
        await slots.end_tags(["t"], B, late)
        assert await leave("end_tags", "t") == [(TAG, "t")]  # mine ran out
        [nonce] = (await slots.nonces([], ["t"], new_id, 60, late)).tags
        assert nonce is not None
        assert await leave("end_tags", "t") == [(TAG, "t")]
        assert control.get(store._layout.tag("t")) is None

    in_world(world, RedisBackend(redis_server.url, namespace=NAMESPACE), body)


@BOTH
def test_a_note_is_published_in_the_same_script_after_the_change(
    world: str, control: redis.Redis, redis_server: RedisServer
) -> None:
    async def body(store: Any, w: Any) -> None:
        slots, late = store.slots, w.deadline(10)
        await slots.void(["k"], late)
        steps = [
            (slots.void, (["k"],), "DEL"),
            (slots.seize, (["k"], A, 5), "SET"),
            (slots.put, ("k", A, b"v", None), "SETRANGE"),
            (slots.void, (["k"],), "SETRANGE"),
            (slots.seize, (["k"], B, 5), "SET"),
            (slots.drop_tags, (["t"],), "DEL"),
            (slots.put, ("l", A, b"v", None), "SET"),
            (slots.end, (["l"], A), "DEL"),
        ]
        with control.monitor() as monitor:
            for step, args, change in steps:
                await step(*args, late)
                control.echo("end")
                said = []
                while not (command := monitor.next_command())["command"].startswith("ECHO"):
                    said.append((command["client_type"], command["command"].split()[0]))
                by_script = [name for kind, name in said if kind == "lua"]
                assert by_script[-2:] == [change, "PUBLISH"], step.__name__

    in_world(world, RedisBackend(redis_server.url, namespace=NAMESPACE), body)


@BOTH
def test_a_note_carries_its_store_and_its_time(
    world: str, listener: Listener, redis_server: RedisServer
) -> None:
    async def body(store: Any, w: Any) -> None:
        other = RedisBackend(redis_server.url, namespace=NAMESPACE).open(w)
        before = time.monotonic()
        await store.slots.void(["k"], w.deadline(3))
        await store.slots.drop_space(w.deadline(3))
        await other.slots.drop_tags(["t"], w.deadline(3))
        notes = listener.notes()
        assert len(store.sender) == 8
        assert [note.sender for note in notes] == [store.sender, store.sender, other.sender]
        assert before <= notes[0].sent <= notes[1].sent <= notes[2].sent <= time.monotonic()
        assert store.sender != other.sender
        await other.close()

    in_world(world, RedisBackend(redis_server.url, namespace=NAMESPACE), body)


def test_a_forked_child_sends_under_a_name_of_its_own() -> None:
    store: Any = RedisBackend("redis://127.0.0.1:1/0").open(Runtime().threads)
    told, telling = os.pipe()
    pid = os.fork()
    if pid == 0:  # only system calls here; never back into pytest
        try:
            os.write(telling, store.sender)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    child = os.read(told, 100)
    os.close(told)
    os.close(telling)
    assert len(child) == 8
    assert child != store.sender


@BOTH
def test_whom_the_channel_is_closed_to_still_invalidates_and_counts(world: str) -> None:
    users = "app on >pw ~* resetchannels +@all"
    with RedisServer(["--user", *users.split()]) as server:
        url = server.url.replace("//", "//app:pw@")

        async def body(store: Any, w: Any) -> None:
            slots, late = store.slots, w.deadline(10)
            told: list[int] = []
            store.on_refused = lambda: told.append(store.refused)
            await slots.nonces(["k"], ["t", "u"], new_id, 60, late)
            assert await slots.put("k", A, b"v", None, late)
            await slots.void(["k", "l"], late)
            await slots.seize(["k"], A, 5, late)
            assert not await slots.put("k", B, b"v", None, late)
            assert not await slots.commit("k", A, b"v", None, late)  # contested: says nothing
            assert store.refused == 5
            await slots.put("k", B, b"v", None, late)
            assert not await slots.commit("k", A, b"v", None, late)
            await slots.drop_tags(["t"], late)
            await slots.seize_tags(["u"], A, 5, late)
            await slots.end_tags(["u"], A, late)
            await slots.drop_space(late)
            found = await slots.read(["k"], ["t", "u"], late)
            assert (found.slots[0].state, found.spaces) == (SlotState.NOTHING, [None])
            assert found.nonces == [None, None]
            assert store.refused == 10
            assert told == list(range(1, 11))

        in_world(world, RedisBackend(url, namespace=NAMESPACE), body)


# -- blocks of tags ------------------------------------------------------------------------


@BOTH
def test_a_tags_block_runs_out_by_the_longest_lease(
    world: str, control: redis.Redis, redis_server: RedisServer
) -> None:
    async def body(store: Any, w: Any) -> None:
        slots, late = store.slots, w.deadline(10)
        await slots.nonces([], ["t"], new_id, 600, late)
        name = store._layout.tag("t")
        for writer, lease, least in ((A, 5, 4), (B, 60, 50), (C, 5, 50), (A, 90, 80)):
            await slots.seize_tags(["t"], writer, lease, late)
            assert least * 1000 < control.pttl(name) <= 90_000
        assert (await slots.nonces([], ["t"], new_id, None, late)).tags == [None]
        assert control.pttl(name) > 0  # not made to last
        for writer in (A, C, B):
            assert (await slots.read([], ["t"], late)).nonces == [None]
            await slots.drop_tags(["t"], late)
            await slots.end_tags(["t"], writer, late)
        assert not control.exists(name)
        assert (await slots.nonces([], ["t"], new_id, 60, late)).tags != [None]

    in_world(world, RedisBackend(redis_server.url, namespace=NAMESPACE), body)


@BOTH
@pytest.mark.parametrize("head", [b"B\x010", b"T\x01", b"E\x01"])
def test_no_nonce_is_taken_for_a_block(
    world: str, head: bytes, control: redis.Redis, redis_server: RedisServer
) -> None:
    nonce = head.ljust(16, b"x")

    async def body(store: Any, w: Any) -> None:
        slots, late = store.slots, w.deadline(10)
        made = await slots.nonces([], ["t"], lambda: nonce, 60, late)
        assert made.tags == [nonce]
        assert (await slots.read(["k"], ["t"], late)).nonces == [nonce]
        await slots.drop_tags(["t"], late)
        assert not control.exists(store._layout.tag("t"))
        await slots.nonces([], ["t"], lambda: nonce, 60, late)
        await slots.seize_tags(["t"], A, 5, late)
        assert control.get(store._layout.tag("t")) == b"B\x010" + A

    in_world(world, RedisBackend(redis_server.url, namespace=NAMESPACE), body)
