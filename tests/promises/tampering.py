"""A proxy before a real server that spoils the replies on their way back."""

from __future__ import annotations

import random
import re
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Self

CHUNK = 1 << 16
_ARRAY = re.compile(rb"\*([2-9])\r\n")
_LENGTH = re.compile(rb"\$(\d+)\r\n")


class Cut(Exception):
    """Send this much, then end the connection; by a reset, or in order."""

    def __init__(self, data: bytes, reset: bool) -> None:
        self.data = data
        self.reset = reset


def late(data: bytes, rng: random.Random, seconds: float) -> bytes:
    time.sleep(seconds)
    return data


def cut(data: bytes, rng: random.Random, seconds: float) -> bytes:
    raise Cut(data[: rng.randrange(len(data))], reset=False)


def reset(data: bytes, rng: random.Random, seconds: float) -> bytes:
    raise Cut(data[: rng.randrange(len(data))], reset=True)


def flipped(data: bytes, rng: random.Random, seconds: float) -> bytes:
    """One bit is wrong."""
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def shorter(data: bytes, rng: random.Random, seconds: float) -> bytes:
    """A Redis array says one element less than it has: its last one looks like another reply."""
    return _ARRAY.sub(lambda m: b"*%d\r\n" % (int(m[1]) - 1), data, count=1)


def resized(data: bytes, rng: random.Random, seconds: float) -> bytes:
    """A Redis string says another length than it has."""
    return _LENGTH.sub(lambda m: b"$%d\r\n" % max(0, int(m[1]) - 7), data, count=1)


def twice(data: bytes, rng: random.Random, seconds: float) -> bytes:
    return data + data


def without_head(data: bytes, rng: random.Random, seconds: float) -> bytes:
    """The first line is lost."""
    return data.partition(b"\r\n")[2] or data


Way = Callable[[bytes, random.Random, float], bytes]

WHOLE: tuple[Way, ...] = (late, cut, reset)
SPOILT: tuple[Way, ...] = (flipped, shorter, resized, twice, without_head)


class Tampering:
    """Spoils each reply with the chance ``share``, by one of ``ways``; ``counts`` says how often.

    ``seconds`` is how late a late reply is. ``share`` may be set while it runs."""

    def __init__(self, port: int, ways: tuple[Way, ...], seconds: float, seed: int = 7) -> None:
        self.share = 0.0
        self.counts: Counter[str] = Counter()
        self._upstream = port
        self._ways = ways
        self._seconds = seconds
        self._rng = random.Random(seed)
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self._listener, *self._sockets):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _start(self, target: Callable[..., None], *args: socket.socket) -> None:
        threading.Thread(target=target, args=args, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._upstream))
                for sock in (client, server):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sockets += (client, server)
                self._start(self._carry, client, server)

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        # One thread for both ways: closing a socket that another thread reads resets nothing.
        with client, server, suppress(OSError):
            while True:
                ready, _, _ = select.select((client, server), (), ())
                if client in ready:
                    asked = client.recv(CHUNK)
                    if not asked:
                        return
                    server.sendall(asked)
                if server in ready:
                    answer = server.recv(CHUNK)
                    if not answer:
                        return
                    try:
                        client.sendall(self._spoilt(answer))
                    except Cut as end:
                        client.sendall(end.data)
                        if end.reset:
                            linger = struct.pack("ii", 1, 0)
                            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                        return

    def _spoilt(self, data: bytes) -> bytes:
        with self._lock:
            if self._rng.random() >= self.share:
                return data
            way = self._rng.choice(self._ways)
            self.counts[way.__name__] += 1
        return way(data, self._rng, self._seconds)
