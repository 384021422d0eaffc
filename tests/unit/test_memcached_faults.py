"""The Memcached backend against servers that hang, drip, lie, die and come back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from memcached_worlds import WORLDS, FakeServer, black_hole, in_world

from cachekit.backends.base import BlockingStore
from cachekit.backends.memcached import MemcachedBackend
from cachekit.errors import BackendError, BackendRefused, BackendTimeout, BackendUnavailable
from cachekit.protocols import Item, Store
from cachekit.runtime import AnyWorld, Runtime, drive

BUDGET = 0.2
SLACK = 0.15


def drips(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"VALUE :k:k 0 1000000 1\r\n")
    while True:
        connection.sendall(b"x")
        time.sleep(0.02)


def verbs(store: Store, world: AnyWorld) -> dict[str, Callable[[], Awaitable[Any]]]:
    slots, id_ = store.slots, b"i" * 16

    def late() -> Any:
        return world.deadline(BUDGET)

    return {
        "get_many": lambda: store.get_many(["k"], late()),
        "set_many": lambda: store.set_many([Item("k", b"1", None)], late()),
        "delete_many": lambda: store.delete_many(["k"], late()),
        "read": lambda: slots.read(["k"], ["t"], late()),
        "acquire": lambda: slots.acquire("k", id_, 5.0, late()),
        "fill": lambda: slots.fill("k", id_, b"x", None, late()),
        "put": lambda: slots.put("k", id_, b"x", None, late()),
        "void": lambda: slots.void(["k"], late()),
        "seize": lambda: slots.seize(["k"], id_, 5.0, late()),
        "commit": lambda: slots.commit("k", id_, b"x", None, late()),
        "nonces": lambda: slots.nonces(["k"], ["t"], lambda: os.urandom(16), None, late()),
        "drop_tags": lambda: slots.drop_tags(["t"], late()),
        "seize_tags": lambda: slots.seize_tags(["t"], id_, 5.0, late()),
        "end_tags": lambda: slots.end_tags(["t"], id_, late()),
        "drop_space": lambda: slots.drop_space(late()),
    }


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("script", [black_hole, drips])
def test_a_server_that_does_not_answer_costs_each_verb_its_deadline_and_no_more(
    world: str, script: Callable[[socket.socket], None]
) -> None:
    async def body(here: AnyWorld) -> None:
        store = MemcachedBackend(server.url).open(here)
        for verb, job in verbs(store, here).items():
            begun = time.monotonic()
            # Who is dripped at and asked for no value gets a line that is no answer.
            with pytest.raises((BackendTimeout, BackendUnavailable)) as failed:
                await job()
            assert time.monotonic() - begun < BUDGET + SLACK, verb
            if script is black_hole:
                assert isinstance(failed.value, BackendTimeout)
        await store.close()

    with FakeServer(script) as server:
        in_world(world, body)


@pytest.mark.parametrize("world", WORLDS)
def test_a_connect_that_never_completes_costs_the_deadline(world: str) -> None:
    # A listener whose backlog is full drops further connects.
    with socket.socket() as listener, contextlib.ExitStack() as fillers:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())

        async def body(here: AnyWorld) -> None:
            store = MemcachedBackend(f"memcached://127.0.0.1:{listener.getsockname()[1]}").open(
                here
            )
            begun = time.monotonic()
            with pytest.raises(BackendTimeout):
                await store.get_many(["k"], here.deadline(BUDGET))
            assert time.monotonic() - begun < BUDGET + SLACK

        in_world(world, body)


def test_two_hundred_tasks_at_a_black_hole_all_end_in_time_and_the_loop_goes_on() -> None:
    gaps: list[float] = []

    async def heartbeat() -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.005)
            gaps.append(time.monotonic() - last)
            last = time.monotonic()

    async def body(here: AnyWorld) -> None:
        store = MemcachedBackend(server.url).open(here)
        pulse = asyncio.create_task(heartbeat())
        begun = time.monotonic()
        jobs = [store.get_many([f"k{n}"], here.deadline(BUDGET)) for n in range(200)]
        answers = await asyncio.gather(*jobs, return_exceptions=True)
        assert time.monotonic() - begun < 3 * (BUDGET + SLACK)
        assert all(isinstance(answer, BackendTimeout) for answer in answers)
        pulse.cancel()
        await store.close()

    with FakeServer(black_hole) as server:
        in_world("asyncio", body)
    assert sorted(gaps)[int(len(gaps) * 0.95)] < 0.1


def test_the_deadline_holds_while_every_thread_of_the_pool_is_stuck() -> None:
    release = threading.Event()

    class Stuck:
        name = "stuck"

        def get_many(self, keys: Any, deadline: Any) -> list[bytes | None]:
            release.wait(10)
            return [None for _ in keys]

    async def body(here: AnyWorld) -> None:
        store = BlockingStore(here, Stuck())  # type: ignore[arg-type]  # one verb is enough here
        try:
            jobs = [store.get_many(["k"], here.deadline(BUDGET)) for _ in range(40)]
            begun = time.monotonic()
            answers = await asyncio.gather(*jobs, return_exceptions=True)
            assert time.monotonic() - begun < BUDGET + SLACK
            assert all(isinstance(answer, BackendTimeout) for answer in answers)
        finally:
            release.set()

    in_world("asyncio", body)


REPLIES = [
    b"SERVER_ERROR out of memory storing object\r\n",
    b"CLIENT_ERROR bad command line format\r\n",
    b"ERROR\r\n",
    b"VALUE other 0 1 1\r\nx\r\nEND\r\n",
    b"VALUE :k:k 0 99999999999 1\r\n",
    b"VALUE :k:k 0 1 1\r\nxxxEND\r\n",
    b"VALUE :k:k 0 -5 1\r\nx\r\nEND\r\n",
    b"VALUE :k:k 0 1\r\nx\r\nEND\r\n",
    b"END\r\nEND\r\n",
    b"\r\n",
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    b"\xff" * 5000,
    b"STORED\r\n",
    b"",
]


@pytest.mark.parametrize("reply", REPLIES)
def test_whatever_a_server_says_is_a_backend_error_and_ends_the_connection(reply: bytes) -> None:
    def script(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(reply)
        if reply:
            black_hole(connection)

    with FakeServer(script) as server:
        here = Runtime().threads
        store = MemcachedBackend(server.url).open(here)
        for _ in range(2):
            with pytest.raises(BackendError) as failed:
                drive(store.slots.read(["k"], [], here.deadline(BUDGET)))  # type: ignore[arg-type]
            assert (failed.value.backend, failed.value.operation) == ("memcached", "read")
            refused = reply.startswith((b"SERVER_ERROR", b"CLIENT_ERROR", b"ERROR"))
            assert isinstance(failed.value, BackendRefused) == refused
        assert server.accepted == 2
        drive(store.close())  # type: ignore[arg-type]


def test_a_reply_cut_into_single_bytes_is_read_whole() -> None:
    value = b"E" + b"s" * 16 + b"VALUE :k:k 0 1 1\r\nEND\r\n" * 3

    def script(connection: socket.socket) -> None:
        while connection.recv(65536):
            reply = b"VALUE :k:k 7 %d 12\r\n%b\r\nVALUE :n 0 16 13\r\n%b\r\nEND\r\n"
            for byte in reply % (len(value), value, b"n" * 16):
                connection.sendall(bytes([byte]))

    with FakeServer(script) as server:
        here = Runtime().threads
        store = MemcachedBackend(server.url).open(here)
        for _ in range(3):
            reading = drive(store.slots.read(["k"], [], here.deadline(5)))  # type: ignore[arg-type]
            assert reading.slots[0].data == value[17:]
            assert reading.spaces == [b"n" * 16]
        assert server.accepted == 1
        drive(store.close())  # type: ignore[arg-type]
