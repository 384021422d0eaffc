"""A connection whose every wait can be ended from another thread: for threads that listen."""

from __future__ import annotations

import math
import os
import select
import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress
from time import monotonic
from typing import Any

from .resolve import Target, resolve
from .wire import (
    NOT_ENOUGH,
    Address,
    Command,
    Login,
    ProtocolViolation,
    Reply,
    new_reader,
    pack,
    remaining,
)

READ_SIZE = 65536
STEP = 0.2  # seconds: how often a wait for the resolver looks whether it may go on


class Stopped(Exception):
    """The thread was told to end."""


class Overlong(ProtocolViolation):
    """A reply that is longer than it may be."""


class Halt:
    """Tells one thread to stop, in the midst of any wait."""

    __slots__ = ("_reader", "_writers", "stopped")

    def __init__(self) -> None:
        self.stopped = False
        self._reader, writer = socket.socketpair()
        # Whoever pops it may use and close it: nobody can write to a descriptor used anew.
        self._writers = [writer]

    def stop(self) -> None:
        """From any thread, any number of times."""
        self.stopped = True
        with suppress(IndexError):
            writer = self._writers.pop()
            with suppress(OSError):
                writer.send(b"\0")
            writer.close()

    def wait(self, sock: socket.socket | None, event: int, seconds: float) -> bool:
        """Whether the socket became ready within ``seconds``; raises Stopped when told to."""
        poller = select.poll()
        poller.register(self._reader, select.POLLIN)
        if sock is not None:
            poller.register(sock, event)
        ready = poller.poll(max(0, math.ceil(seconds * 1000)))
        self.check()
        return bool(ready)

    def check(self) -> None:
        if self.stopped:
            raise Stopped

    def close(self) -> None:
        """By the thread itself at its end, or in a forked child."""
        self.stopped = True
        with suppress(IndexError):
            self._writers.pop().close()  # nothing is sent: the parent would hear it
        self._reader.close()


class Line:
    """One socket of a listening thread. After any exception it must be closed.

    ``most`` bounds the bytes of one reply. Closing only gives the descriptor back, so that a
    forked child can do it without harm to the parent."""

    def __init__(self, halt: Halt, most: int) -> None:
        self._halt = halt
        self._most = most
        self._unparsed = 0  # bytes since the last complete reply
        self._buffer = bytearray(READ_SIZE)
        self._reader: Any = new_reader()
        self._socket: socket.socket | None = None

    def open(self, address: Address, login: Login, until: float) -> None:
        """Connect and log in."""
        self._dial(address, login, until)
        if login.greeting:
            login.check(self.ask(login.greeting, until))

    def ask(self, commands: Sequence[Command], until: float) -> list[Reply]:
        """Their replies in order; not for when the server may also send what nobody asked for."""
        self.send(commands, until)
        replies: list[Reply] = []
        while len(replies) < len(commands):
            replies += self.read(remaining(until))
        if len(replies) > len(commands):
            raise ProtocolViolation("the server sent more replies than commands")
        return replies

    def send(self, commands: Sequence[Command], until: float) -> None:
        assert self._socket is not None
        view = memoryview(pack(commands))
        while view:
            try:
                view = view[self._socket.send(view) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                self._wait(select.POLLOUT, until)
            except ssl.SSLWantReadError:
                self._wait(select.POLLIN, until)

    def read(self, seconds: float) -> list[Reply]:
        """What came in one recv, after waiting at most ``seconds`` for it; maybe nothing."""
        sock = self._socket
        assert sock is not None
        pending = isinstance(sock, ssl.SSLSocket) and sock.pending()
        if not pending and not self._halt.wait(sock, select.POLLIN, seconds):
            return []
        self._halt.check()
        try:
            size = sock.recv_into(self._buffer)
        except (BlockingIOError, ssl.SSLWantReadError):
            return []
        except ssl.SSLWantWriteError:
            self._halt.wait(sock, select.POLLOUT, seconds)
            return []
        if size == 0:
            raise ConnectionResetError("the server closed the connection")
        self._reader.feed(self._buffer, 0, size)
        self._unparsed += size
        replies: list[Reply] = []
        while (reply := self._reader.gets()) is not NOT_ENOUGH:
            replies.append(reply)
        if replies:
            # What is left of this recv belongs to the next reply; at most so much it is.
            self._unparsed = size if self._reader.has_data() else 0
        elif self._unparsed > self._most:
            raise Overlong(f"a reply of more than {self._most} bytes")
        return replies

    def close(self) -> None:
        sock, self._socket = self._socket, None
        if sock is not None:
            sock.close()

    def _wait(self, event: int, until: float) -> None:
        if not self._halt.wait(self._socket, event, remaining(until)):
            raise TimeoutError("the server did not take part in time")

    def _dial(self, address: Address, login: Login, until: float) -> None:
        problem: OSError | None = None
        for family, target in self._targets(address, until):
            self.close()
            self._socket = sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.setblocking(False)
                self._connect(sock, target, until)
                if family != socket.AF_UNIX:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if login.tls is not None:
                    self._handshake(sock, address, login.tls.context, until)
            except TimeoutError:
                raise
            except OSError as error:
                problem = error
                continue
            return
        raise problem or ConnectionError(f"{address.host} has no address")

    def _targets(self, address: Address, until: float) -> list[Target]:
        if address.port == 0:
            return [(socket.AF_UNIX, address.host)]
        while True:
            self._halt.check()
            try:
                return resolve(address, min(until, monotonic() + STEP))
            except TimeoutError:
                remaining(until)

    def _connect(self, sock: socket.socket, target: Any, until: float) -> None:
        try:
            sock.connect(target)
        except BlockingIOError:
            if sock.family == socket.AF_UNIX:  # its backlog is full: it will not get ready
                raise
            self._wait(select.POLLOUT, until)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code)) from None

    def _handshake(
        self, sock: socket.socket, address: Address, context: ssl.SSLContext, until: float
    ) -> None:
        self._socket = secured = context.wrap_socket(
            sock, server_hostname=address.host, do_handshake_on_connect=False
        )
        while True:
            try:
                return secured.do_handshake()
            except ssl.SSLWantReadError:
                self._wait(select.POLLIN, until)
            except ssl.SSLWantWriteError:
                self._wait(select.POLLOUT, until)
