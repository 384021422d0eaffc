"""For tests of what listens to Redis: a proxy that cuts, a small cluster, ears that write down."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Self

import redis
from redis_faults import free_port

from cachekit.backends.redis.bus import RedisBus
from cachekit.backends.redis.layout import bus_channel
from cachekit.backends.redis.options import parse_url
from cachekit.core.notes import Note, NoteKind, pack
from cachekit.testing.servers import RedisServer

CHANNEL = bus_channel("ns")
SENDER = b"somebody"


def eventually(condition: Callable[[], object], seconds: float = 10.0) -> float:
    """How many seconds it took until the condition held."""
    begin = time.monotonic()
    while True:
        with suppress(redis.RedisError):
            if condition():
                return time.monotonic() - begin
        assert time.monotonic() - begin < seconds, "it never came to be"
        time.sleep(0.005)


def threads_called(name: str) -> int:
    return sum(thread.name == name for thread in threading.enumerate())


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class Recorder:
    """Ears that keep what they hear; ``states`` is the order of ``joined`` and ``lost``."""

    def __init__(self) -> None:
        self.states: list[str] = []
        self.times: list[float] = []
        self.notes: list[Note] = []
        self.batches: list[int] = []
        self.lags: list[float] = []
        self.others = 0

    def joined(self) -> None:
        self._state("joined")

    def lost(self) -> None:
        self._state("lost")

    def _state(self, state: str) -> None:
        self.times.append(time.monotonic())
        self.states.append(state)

    def heard(self, notes: Sequence[Note]) -> None:
        self.batches.append(len(notes))
        self.notes += notes

    def lag(self, seconds: float) -> None:
        self.lags.append(seconds)

    def foreign(self, count: int) -> None:
        self.others += count

    @property
    def is_joined(self) -> bool:
        return self.states[-1:] == ["joined"]

    def names(self) -> list[str]:
        return [note.name for note in self.notes]


@contextmanager
def small_cluster() -> Iterator[list[RedisServer]]:
    """Three masters, each with a third of the slots; any two of them go on without the third."""
    with ExitStack() as stack:
        nodes = []
        for _ in range(3):
            bus = free_port()  # the default, port + 10000, may lie beyond 65535
            options = ["--cluster-enabled", "yes", "--cluster-port", str(bus)]
            options += ["--cluster-node-timeout", "1000", "--cluster-require-full-coverage", "no"]
            nodes.append((stack.enter_context(RedisServer(options)), bus))
        clients = [stack.enter_context(redis.Redis(port=node.port)) for node, _ in nodes]
        for i, client in enumerate(clients):
            client.execute_command(f"CLUSTER SET-CONFIG-EPOCH {i + 1}")
            first, last = i * 5461, 16383 if i == 2 else (i + 1) * 5461 - 1
            client.execute_command(f"CLUSTER ADDSLOTSRANGE {first} {last}")
            for node, bus in nodes[:i]:
                client.execute_command(f"CLUSTER MEET 127.0.0.1 {node.port} {bus}")
        eventually(lambda: all(client.cluster("slots").__len__() == 3 for client in clients), 30)
        eventually(lambda: all(c.cluster("info")["cluster_state"] == "ok" for c in clients), 30)
        yield [node for node, _ in nodes]


class Proxy:
    """``mode``: ``pass``; ``hole`` swallows both ways and accepts without an answer; ``slow``
    gives each piece ``delay`` seconds late. What a hole swallowed is never delivered."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.mode = "pass"
        self.delay = 0.0
        self.accepted = 0
        self._closing = False
        self._open: list[socket.socket] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.reset()

    def reset(self) -> None:
        """RST on every connection."""
        while self._open:
            sock = self._open.pop()
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.shutdown(socket.SHUT_RD)
            sock.close()

    def _accept(self) -> None:
        while not self._closing:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            self._open.append(near)
            try:
                far = socket.create_connection(("127.0.0.1", self._target), 1)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            self._open.append(far)
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        holed = False
        with suppress(OSError):
            while data := source.recv(65536):
                if self.mode == "slow":
                    time.sleep(self.delay)
                holed = holed or self.mode == "hole"
                if not holed:
                    sink.sendall(data)
        if not holed:
            for sock in (source, sink):
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)


def note(name: str, kind: NoteKind = NoteKind.KEY) -> bytes:
    return pack(Note(kind, name, SENDER, 1.5))


class Listening:
    """A bus with a recorder on it."""

    def __init__(self, url: str, ears: Recorder | None = None, **options: Any) -> None:
        self.ears = ears or Recorder()
        self.bus = RedisBus(parse_url(url), "ns", **options)
        self.stop = self.bus.listen(self.ears)

    def __enter__(self) -> Recorder:
        return self.ears

    def __exit__(self, *_: object) -> None:
        self.stop()
        eventually(lambda: not threads_called("cachekit-bus"), 5)
