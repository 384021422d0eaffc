"""Run one test body in the thread world or in an event loop; servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable

from cachekit.runtime import AnyWorld, Runtime, drive

WORLDS = ["threads", "asyncio"]


def in_world(world: str, body: Callable[[AnyWorld], Awaitable[None]]) -> None:
    runtime = Runtime()
    try:
        if world == "threads":
            drive(body(runtime.threads))  # type: ignore[arg-type]  # every body is a coroutine
        else:

            async def run() -> None:
                await body(runtime.asyncio())

            asyncio.run(run())
    finally:
        runtime.close()


class FakeServer:
    """Answers every connection by a script: it gets the socket and runs in its own thread."""

    def __init__(self, script: Callable[[socket.socket], None]) -> None:
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.ended = threading.Event()
        self.accepted = 0
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    @property
    def url(self) -> str:
        return f"memcached://127.0.0.1:{self.port}"

    def __enter__(self) -> FakeServer:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        while not self.ended.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            self._sockets.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self._script(connection)


def black_hole(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass
