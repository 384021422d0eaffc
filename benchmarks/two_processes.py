"""A writer and a second, real process with a near tier of its own; a network that can be cut.

The source both load from is eight bytes of shared memory. What the second process saw, and when, is
beside them; both sides read one clock of the machine (``time.perf_counter``).
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import selectors
import signal
import socket
import tempfile
import threading
import time
from array import array
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import cachekit

KEY = "hot"
TAG = "warm"
TTL = 3_600.0
PATIENCE = 30.0
_CHECK = 16  # reads between two looks at whether to stop
_FIELDS = 8


class Board:
    """Shared memory of two processes, in fields of eight aligned bytes."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            file.truncate(8 * _FIELDS)
            self._memory = mmap.mmap(file.fileno(), 8 * _FIELDS)
        self._ints = memoryview(self._memory).cast("q")
        self._floats = memoryview(self._memory).cast("d")

    @property
    def source(self) -> int:
        """The version in the source."""
        return self._ints[0]

    @source.setter
    def source(self, version: int) -> None:
        self._ints[0] = version

    @property
    def seen(self) -> int:
        """The newest version that the reader has seen."""
        return self._ints[1]

    @property
    def first(self) -> float:
        """When the read began that saw it first."""
        return self._floats[2]

    @property
    def pushed(self) -> bool:
        """Whether the reader's near tier follows the bus at the moment."""
        return self._ints[3] == 1

    @property
    def reads(self) -> int:
        return self._ints[4]

    def saw(self, version: int, began: float) -> None:
        self._floats[2] = began
        self._ints[1] = version

    def tell(self, pushed: bool, reads: int) -> None:
        self._ints[3] = pushed
        self._ints[4] = reads

    @property
    def ended(self) -> bool:
        return self._ints[5] == 1

    def end(self) -> None:
        """Have the reader stop. No question over a pipe: that would let go of its interpreter."""
        self._ints[5] = 1

    def close(self) -> None:
        self._ints.release()
        self._floats.release()
        self._memory.close()


def subject(cache: cachekit.Cache, board: Board) -> cachekit.WriteThrough:
    """The strategy that both processes use: it reads and writes the board."""

    def store(id: str, version: int) -> None:
        board.source = version

    return cachekit.WriteThrough(
        cache, load=lambda id: board.source, store=store, key="{id}", tags=[TAG], ttl=TTL
    )


class Sightings(NamedTuple):
    """By version as it was seen: when its first and its last read began."""

    versions: array[int]
    first: array[float]
    last: array[float]


class Reader:
    """The second process: reads one key, as fast as it can or with a pause, until it is stopped.

    ``pause`` None: a loop of near hits that never lets go of its interpreter by itself, so that
    the thread that listens waits for ``sys.getswitchinterval()``; seconds: after every read. It
    ends with this process. A context manager."""

    def __init__(
        self, url: str, options: Mapping[str, Any] | None = None, *, pause: float | None = None
    ) -> None:
        number, name = tempfile.mkstemp(prefix="cachekit-board-")
        os.close(number)
        self._path = Path(name)
        self.board = Board(self._path)
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        given = (theirs, name, url, dict(options or {}), pause)
        self.process = context.Process(target=_read, args=given, daemon=True)
        self.process.start()
        theirs.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *raised: object) -> None:
        self.board.end()
        self._pipe.close()
        self.process.join(5.0)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.board.close()
        self._path.unlink(missing_ok=True)

    def ready(self, *, push: bool) -> None:
        """Wait until it has read, and with ``push`` until its near tier follows the bus."""
        wait(lambda: self.board.reads > 0 and (self.board.pushed or not push), "the reader")

    def stop(self) -> Sightings:
        self.board.end()
        if not self._pipe.poll(PATIENCE):
            raise TimeoutError("the reading process did not stop")
        versions, first, last = self._pipe.recv()
        return Sightings(versions, first, last)

    def freeze(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGCONT)


def _read(
    pipe: Connection, path: str, url: str, options: Mapping[str, Any], pause: float | None
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    board, parent = Board(Path(path)), os.getppid()
    clock = time.perf_counter
    seen = Sightings(array("q"), array("d"), array("d"))
    with cachekit.Cache(url, **options) as cache:
        get = subject(cache, board).get
        coherence = cache._parts.coherence
        present, began, reads = -1, 0.0, 0
        try:
            while not board.ended:
                for _ in range(_CHECK):
                    before, began = began, clock()
                    version = get(KEY)
                    if version != present:
                        if seen.last:
                            seen.last[-1] = before
                        present = version
                        seen.versions.append(version)
                        seen.first.append(began)
                        seen.last.append(began)
                        board.saw(version, began)
                    if pause is not None:
                        time.sleep(pause)
                reads += _CHECK
                board.tell(coherence.state == "push", reads)
                if os.getppid() != parent:
                    return
            seen.last[-1] = began
            pipe.send(tuple(seen))
        except (EOFError, OSError):
            return


def wait(condition: Any, what: str, seconds: float = PATIENCE) -> float:
    """Wait until it holds; gives the seconds that took. Raises TimeoutError."""
    began = time.perf_counter()
    while not condition():
        if time.perf_counter() - began > seconds:
            raise TimeoutError(f"{what} was not ready within {seconds:g} s")
        time.sleep(0.0002)
    return time.perf_counter() - began


class Wall:
    """A TCP proxy that can become a black hole for both directions, and heal. A context manager.

    Connections stay open while it is cut and new ones are taken; what was sent arrives once it is
    healed."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._open = threading.Event()
        self._open.set()
        self._ended = False
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._thread = threading.Thread(target=self._run, name="wall", daemon=True)
        self._thread.start()

    def __enter__(self) -> Wall:
        return self

    def __exit__(self, *raised: object) -> None:
        self._ended = True
        self._open.set()
        self._thread.join(5.0)

    def cut(self) -> None:
        self._open.clear()

    def heal(self) -> None:
        self._open.set()

    def _run(self) -> None:
        with selectors.DefaultSelector() as ready, self._server:
            ready.register(self._server, selectors.EVENT_READ)
            while not self._ended:
                for key, _ in ready.select(0.01):
                    end: Any = key.fileobj
                    if end is self._server:
                        self._take(ready)
                    elif self._open.wait(0.01):
                        self._forward(end, ready)
            for end in list(self._pairs):
                end.close()

    def _take(self, ready: selectors.BaseSelector) -> None:
        near, _ = self._server.accept()
        far = socket.create_connection(("127.0.0.1", self._target))
        for one, other in ((near, far), (far, near)):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._pairs[one] = other
            ready.register(one, selectors.EVENT_READ)

    def _forward(self, end: socket.socket, ready: selectors.BaseSelector) -> None:
        other = self._pairs.get(end)
        if other is None:
            return  # closed a moment ago
        try:
            data = end.recv(65536)
            other.sendall(data)
        except OSError:
            data = b""
        if not data:
            for one in (end, other):
                self._pairs.pop(one, None)
                ready.unregister(one)
                one.close()
