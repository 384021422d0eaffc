"""A proxy before a real Redis server that answers some commands with an error of its own."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

import hiredis

CHUNK = 1 << 16

Choice = Callable[[list[bytes]], bytes | None]


class Erring:
    """``choose`` gives the reply to a command, or None for that of the server behind.

    It may be exchanged while it runs. It answers CLUSTER SLOTS as a node that has all slots;
    ``counts`` is how many replies were its own."""

    def __init__(self, port: int) -> None:
        self.choose: Choice = lambda command: None
        self.count = 0
        self._upstream = port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self._listener, *self._sockets):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._upstream))
                for sock in (client, server):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sockets += (client, server)
                threading.Thread(target=self._serve, args=(client, server), daemon=True).start()

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        asked = hiredis.Reader()
        with client, server, suppress(OSError):
            while data := client.recv(CHUNK):
                asked.feed(data)
                while command := asked.gets():
                    client.sendall(self._answer(command, server))

    def _answer(self, command: list[bytes], server: socket.socket) -> bytes:
        if command[:2] == [b"CLUSTER", b"SLOTS"]:
            port = self.port
            return b"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:%d\r\n" % port
        own = self.choose(command)
        if own is not None:
            self.count += 1
            return own
        server.sendall(hiredis.pack_command(tuple(command)))
        reader: Any = hiredis.Reader(notEnoughData=Ellipsis)
        answer = b""
        while True:
            part = server.recv(CHUNK)
            if not part:
                raise ConnectionResetError
            answer += part
            reader.feed(part)
            if reader.gets() is not Ellipsis:
                return answer
