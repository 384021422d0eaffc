"""Peers that misbehave like a broken Redis, and one body for both worlds."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

import hiredis

from cachekit.backends.redis import RedisBackend
from cachekit.errors import BackendError
from cachekit.protocols import Asking, Filling, Item, SlotState
from cachekit.runtime import AnyWorld, Runtime, drive

BUDGET = 0.2
SLACK = 0.15
WORLDS = ("threads", "asyncio")
ID = b"i" * 16

Verb = Callable[[Any, Any], Awaitable[Any]]

VERBS: dict[str, Verb] = {
    "get_many": lambda s, d: s.get_many(["k"], d),
    "set_many": lambda s, d: s.set_many([Item("k", b"v", 5)], d),
    "delete_many": lambda s, d: s.delete_many(["k"], d),
    "read": lambda s, d: s.slots.read(["k"], ["t"], d),
    "acquire": lambda s, d: s.slots.acquire("k", ID, 5, d),
    "renew": lambda s, d: s.slots.renew("k", ID, 5, d),
    "fill": lambda s, d: s.slots.fill("k", ID, b"v", 5, d),
    "release": lambda s, d: s.slots.release("k", ID, d),
    "acquire_many": lambda s, d: s.slots.acquire_many([Asking("k", ID)], 5, d),
    "fill_many": lambda s, d: s.slots.fill_many([Filling("k", ID, b"v", 5)], d),
    "put": lambda s, d: s.slots.put("k", ID, b"v", 5, d),
    "void": lambda s, d: s.slots.void(["k"], d),
    "seize": lambda s, d: s.slots.seize(["k"], ID, 5, d),
    "commit": lambda s, d: s.slots.commit("k", ID, b"v", 5, d),
    "end": lambda s, d: s.slots.end(["k"], ID, d),
    "nonces": lambda s, d: s.slots.nonces(["k"], ["t"], lambda: os.urandom(16), 5, d),
    "drop_tags": lambda s, d: s.slots.drop_tags(["t"], d),
    "seize_tags": lambda s, d: s.slots.seize_tags(["t"], ID, 5, d),
    "end_tags": lambda s, d: s.slots.end_tags(["t"], ID, d),
    "drop_space": lambda s, d: s.slots.drop_space(d),
}


def in_world(
    kind: str, backend: RedisBackend, body: Callable[[Any, AnyWorld], Awaitable[Any]]
) -> Any:
    """Run a body over a fresh store; the store is closed at the end."""
    runtime = Runtime()

    async def run(world: AnyWorld) -> Any:
        store = backend.open(world)
        try:
            return await body(store, world)
        finally:
            await store.close()

    if kind == "threads":
        return drive(run(runtime.threads))

    async def main() -> Any:
        return await run(runtime.asyncio())

    return asyncio.run(main())


def every_verb_at_once(
    kind: str, backend: RedisBackend, budget: float = BUDGET, verbs: dict[str, Verb] | None = None
) -> dict[str, tuple[float, Any]]:
    """Each verb's time and what it answered or raised; all run concurrently over one store."""
    verbs = VERBS if verbs is None else verbs
    outcomes: dict[str, tuple[float, Any]] = {}

    async def one(name: str, store: Any, world: AnyWorld) -> None:
        start = time.monotonic()
        outcome: Any
        try:
            outcome = await verbs[name](store, world.deadline(budget))
        except Exception as error:
            outcome = error
        outcomes[name] = (time.monotonic() - start, outcome)

    async def body(store: Any, world: AnyWorld) -> None:
        if kind == "asyncio":
            await asyncio.gather(*(one(name, store, world) for name in verbs))
            return
        threads = [
            threading.Thread(target=lambda n=name: drive(one(n, store, world))) for name in verbs
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    in_world(kind, backend, body)
    return outcomes


def assert_all_raise(
    outcomes: dict[str, tuple[float, Any]], error: type[BackendError], most: float = BUDGET + SLACK
) -> None:
    assert outcomes.keys() == VERBS.keys()
    for verb, (took, outcome) in outcomes.items():
        assert isinstance(outcome, error), (verb, outcome)
        assert took < most, (verb, took)
        assert (outcome.backend, outcome.operation) == ("redis", verb)
        assert outcome.__cause__ is not None
        one_key = verb not in ("set_many", "drop_space") and not verb.endswith("_tags")
        assert outcome.key == ("k" if one_key or verb == "set_many" else None)


def new_id() -> bytes:
    return os.urandom(16)


async def the_whole_story(store: Any, world: Any) -> None:
    """Every step once, over keys of many partitions, with the answers the contract wants."""
    slots, late = store.slots, lambda: world.deadline(3)
    keys = [f"key{i}" for i in range(20)]
    found = await slots.nonces(keys, ["a", "b"], new_id, 60, late())
    assert all(found.spaces)
    assert all(found.tags)
    reading = await slots.read(keys, ["b", "a"], late())
    assert (reading.spaces, reading.nonces) == (found.spaces, found.tags[::-1])
    for key in keys:
        token, refresh = new_id(), new_id()
        assert (await slots.acquire(key, token, 5, late())).granted
        assert await slots.renew(key, token, 5, late())
        assert await slots.fill(key, token, key.encode(), 60, late())
        assert (await slots.acquire(key, refresh, 5, late(), over=token, keep=True)).granted
        await slots.release(key, refresh, late())
    reading = await slots.read(keys, [], late())
    assert [slot.data for slot in reading.slots] == [key.encode() for key in keys]
    writer = new_id()
    await slots.seize(keys, writer, 5, late())
    assert await slots.commit(keys[0], writer, b"new", None, late())
    assert not await slots.put(keys[1], new_id(), b"x", None, late())
    await slots.end(keys[1:], writer, late())
    await slots.void(keys[:1], late())
    await slots.seize_tags(["a", "c"], writer, 5, late())
    await slots.drop_tags(["a"], late())
    blocked = await slots.nonces(keys[:1], ["a", "b", "c"], new_id, 60, late())
    assert blocked == (found.spaces[:1], [None, found.tags[1], None])
    await slots.end_tags(["a", "c"], writer, late())
    assert all((await slots.nonces(keys[:1], ["a", "c"], new_id, 60, late())).tags)
    assert {s.state for s in (await slots.read(keys, [], late())).slots} == {SlotState.NOTHING}
    await slots.drop_tags(["a"], late())
    await slots.drop_space(late())
    reading = await slots.read(keys, ["a", "b"], late())
    assert (set(reading.spaces), reading.nonces) == ({None}, [None, found.tags[1]])
    await store.set_many([Item(key, key.encode(), 60) for key in keys], late())
    assert await store.get_many([*keys, "no"], late()) == [*(k.encode() for k in keys), None]
    await store.delete_many(keys, late())
    assert await store.get_many(keys, late()) == [None] * 20


class FaultServer:
    """A loopback listener that treats every connection by ``serve`` in its own thread."""

    def __init__(self, serve: Callable[[socket.socket, FaultServer], None]) -> None:
        self._serve = serve
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.connections = 0
        self.closing = threading.Event()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        for sock in (self._listener, *self._open):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(5)

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self.closing.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(sock)
            self._start(self._guard, sock)

    def _guard(self, sock: socket.socket) -> None:
        with suppress(OSError):
            self._serve(sock, self)


def black_hole(sock: socket.socket, server: FaultServer) -> None:
    """Reads everything, answers nothing."""
    while sock.recv(65536):
        pass


def dripping(sock: socket.socket, server: FaultServer) -> None:
    """One byte of an endless reply every 50 ms: each recv is quick, the reply never ends."""
    sock.recv(65536)
    sock.sendall(b"$1000000\r\n")
    while not server.closing.wait(0.05):
        sock.sendall(b"x")


def resetting(sock: socket.socket, server: FaultServer) -> None:
    sock.recv(65536)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def scripted(
    answer: Callable[[list[bytes]], bytes | None],
    info: bytes = b"-NOPERM this user has no permissions to run the 'info' command\r\n",
) -> Callable[[socket.socket, FaultServer], None]:
    """A server that answers each command by ``answer``; None closes the connection.

    A namespace's partitions are answered by itself, so that verbs get to their point; and so is
    the question for the server's run, by ``info``."""

    def serve(sock: socket.socket, server: FaultServer) -> None:
        reader = hiredis.Reader()
        while data := sock.recv(65536):
            reader.feed(data)
            while command := reader.gets():
                reply: bytes | None
                if command[-1].endswith(b":partitions") or (
                    command[0] == b"SET" and (command[1].endswith(b":partitions"))
                ):
                    reply = b"$2\r\n64\r\n" if command[0] == b"GET" else b"$-1\r\n"
                elif command[0] == b"INFO":
                    reply = info
                else:
                    reply = answer(command)
                if reply is None:
                    sock.close()
                    return
                sock.sendall(reply)

    return serve


@contextmanager
def never_connects() -> Iterator[str]:
    """The URL of a listener whose backlog is full: SYNs are dropped, connect() hangs."""
    fillers: list[socket.socket] = []
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        try:
            for _ in range(8):
                filler = socket.socket()
                filler.setblocking(False)
                fillers.append(filler)
                with suppress(BlockingIOError):
                    filler.connect(("127.0.0.1", port))
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            for filler in fillers:
                filler.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
