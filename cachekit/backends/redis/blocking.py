"""The wire of the thread world: a bounded pool of sockets per server, used one caller at a time.

redis-py's connections time each ``recv`` by itself, so that a server which drips bytes can hold
a caller for ever; here every wait on the socket is cut to what is left of the one deadline.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Any
from weakref import WeakSet

from ...core.eventcount import EventCount
from ..pool import Right
from .resolve import resolve
from .wire import (
    NOT_ENOUGH,
    Address,
    Batch,
    Command,
    Login,
    NotTried,
    ProtocolViolation,
    Replies,
    check_width,
    closes,
    new_reader,
    pack,
    remaining,
    width,
)

READ_SIZE = 65536


class Connection:
    """One logged-in socket. After any exception it must be closed, never used again.

    ``run``: see ``wire.Replies``."""

    __slots__ = ("__weakref__", "_buffer", "_pending", "_poll", "_reader", "_socket", "run")

    def __init__(self, address: Address, login: Login, until: float) -> None:
        self.run = b""
        self._socket = _dial(address, login, until)
        try:
            # Waiting is by poll alone: a socket with a timeout would poll once more per call.
            self._socket.setblocking(False)
            self._reader: Any = new_reader()
            self._buffer = bytearray(READ_SIZE)
            # TLS may hold decrypted bytes that the kernel knows nothing of
            self._pending: Callable[[], int] | None = getattr(self._socket, "pending", None)
            poller = select.poll()
            poller.register(self._socket, select.POLLIN)
            self._poll = poller.poll
            if login.greeting:
                self.send(pack(login.greeting), until)
                self.run = login.check(self.receive(len(login.greeting), until))
        except BaseException:
            self.close()
            raise

    def send(self, data: bytes, until: float) -> None:
        view: Any = data
        while True:
            try:
                sent = self._socket.send(view)
            except (BlockingIOError, ssl.SSLWantWriteError):
                self._wait(select.POLLOUT, until)
                continue
            except ssl.SSLWantReadError:
                self._wait(select.POLLIN, until)
                continue
            if sent == len(view):
                return
            view = memoryview(view)[sent:]

    def receive(self, count: int, until: float) -> Replies:
        reader, sock, buffer = self._reader, self._socket, self._buffer
        replies = Replies()
        replies.run = self.run
        while True:
            if self._pending is None or not self._pending():
                # Also what has arrived by now counts, where another node used up the time.
                left = max(0.0, until - monotonic())
                if not self._poll(left * 1000 + 1 if left else 0):
                    raise TimeoutError("the server did not answer before the call's deadline")
            try:
                size = sock.recv_into(buffer)
            except (BlockingIOError, ssl.SSLWantReadError):
                continue
            except ssl.SSLWantWriteError:
                self._wait(select.POLLOUT, until)
                continue
            if size == 0:
                raise ConnectionResetError("the server closed the connection")
            reader.feed(buffer, 0, size)
            while (reply := reader.gets()) is not NOT_ENOUGH:
                replies.append(reply)
                if len(replies) == count:
                    if reader.has_data():
                        raise ProtocolViolation("the server sent more replies than commands")
                    return replies

    def _wait(self, event: int, until: float) -> None:
        poller = select.poll()
        poller.register(self._socket, event)
        if not poller.poll(remaining(until) * 1000 + 1):
            raise TimeoutError("the server did not take the command before the call's deadline")

    def is_quiet(self) -> bool:
        """False when the peer has closed, or has sent what nobody asked for."""
        if self._pending is not None and self._pending():
            return False
        return not self._poll(0)

    def close(self) -> None:
        # close() only gives the descriptor back: in a forked child it does not touch the
        # parent's session (no QUIT, no shutdown, no TLS close-notify)
        self._socket.close()


def _dial(address: Address, login: Login, until: float) -> socket.socket:
    if address.port == 0:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        return _connect(sock, address.host, login, address, until)
    last: OSError | None = None
    for family, target in resolve(address, until):
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
            return _connect(sock, target, login, address, until)
        except TimeoutError:
            raise
        except OSError as error:
            last = error
    raise last or ConnectionError(f"{address.host} has no address")


def _connect(
    sock: socket.socket, target: Any, login: Login, address: Address, until: float
) -> socket.socket:
    try:
        sock.settimeout(remaining(until))
        sock.connect(target)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if login.tls is not None:
            context = login.tls.context
            sock.settimeout(remaining(until))
            sock = context.wrap_socket(sock, server_hostname=address.host)
        return sock
    except BaseException:
        sock.close()
        raise


class Pool:
    """At most ``limit`` connections to one server; the one given back last is taken first.

    The usual take and give are one operation on a list each, atomic by themselves; the lock is
    for those that open, throw away or wait."""

    def __init__(self, address: Address, login: Login) -> None:
        self._address = address
        self._login = login
        self._idle: list[Connection] = []
        self._lock = threading.RLock()  # a finaliser may come back here
        self._changed = EventCount()
        self._alive: WeakSet[Connection | Right] = WeakSet()
        self._waiting = 0
        self._closed = False

    def take(self, until: float) -> Connection:
        found = self.reserve(until)
        return self.open(found, until) if isinstance(found, Right) else found

    def reserve(self, until: float) -> Connection | Right:
        """An open connection, or the right to ``open`` one."""
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                found = self._wait(until)
                if isinstance(found, Right):
                    return found
                connection = found
            if connection.is_quiet():
                return connection
            self.discard(connection)

    def open(self, right: Right, until: float) -> Connection:
        try:
            connection = Connection(self._address, self._login, until)
            with self._lock:  # nobody counts both
                self._alive.add(connection)
                self._alive.discard(right)
        except BaseException:
            self.forget(right)
            raise
        return connection

    def _wait(self, until: float) -> Connection | Right:
        """An idle connection, or the right to open one."""
        with self._lock:
            self._waiting += 1  # before looking again: who gives back from here on will tell
        try:
            while True:
                seen = self._changed.now
                with self._lock:
                    with suppress(IndexError):
                        return self._idle.pop()
                    if len(self._alive) < self._login.max_connections:
                        right = Right()
                        self._alive.add(right)
                        return right
                if not self._changed.wait(seen, remaining(until)):
                    raise TimeoutError("no connection of the pool came free in time")
        except BaseException:
            self._changed.advance_one()  # it may have been this one's turn
            raise
        finally:
            with self._lock:
                self._waiting -= 1

    def give(self, connection: Connection) -> None:
        self._idle.append(connection)
        if self._waiting:
            self._changed.advance_one()
        if self._closed:
            self.close()

    def discard(self, connection: Connection) -> None:
        connection.close()
        self.forget(connection)

    def forget(self, one: Connection | Right) -> None:
        """It is no more, or the right goes unused."""
        self._alive.discard(one)
        self._changed.advance_one()

    def close(self) -> None:
        self._closed = True
        while True:
            try:
                self._idle.pop().close()
            except IndexError:
                return


class _Exchange:
    """One call to several servers. What needs no connecting is sent first, and its replies count
    whenever they came: a server that hangs, connecting even, takes its own time alone."""

    def __init__(self, batches: Sequence[Batch], until: float) -> None:
        self.results: list[Replies | Exception] = [Replies() for _ in batches]
        self._batches = batches
        self._until = until
        self._fair = (monotonic() + until) / 2  # who began later may say that others were slow
        self._late: set[int] = set()
        self._to_open: list[tuple[int, Pool, Right]] = []
        self._held: list[tuple[int, Pool, Connection]] = []

    def reserve(self, i: int, pool: Pool) -> None:
        try:
            connection = pool.reserve(self._until)
        except TimeoutError as error:
            self.results[i] = NotTried(str(error))
            return
        if isinstance(connection, Right):
            self._to_open.append((i, pool, connection))
        else:
            self._held.append((i, pool, connection))
            self._send(i, connection)

    def run(self) -> None:
        while self._to_open:
            self._connect(*self._to_open.pop(0))
        while self._held:
            i, pool, connection = self._held[-1]
            if not isinstance(self.results[i], Exception):
                self._receive(i, connection)
            self._held.pop()
            result = self.results[i]
            if isinstance(result, Exception) or closes(result):
                pool.discard(connection)
            else:
                pool.give(connection)

    def abandon(self) -> None:
        for _, pool, right in self._to_open:
            pool.forget(right)
        for _, pool, connection in self._held:
            pool.discard(connection)

    def _connect(self, i: int, pool: Pool, right: Right) -> None:
        began = monotonic()
        if began >= self._until:
            pool.forget(right)
            self.results[i] = NotTried("another server used up the call's time")
            return
        try:
            connection = pool.open(right, self._until)
        except Exception as error:
            self.results[i] = self._judged(error, began > self._fair)
            return
        self._held.append((i, pool, connection))
        self._send(i, connection)

    def _send(self, i: int, connection: Connection) -> None:
        if monotonic() > self._fair:
            self._late.add(i)
        try:
            connection.send(pack(self._batches[i][1]), self._until)
        except Exception as error:
            self.results[i] = self._judged(error, i in self._late)

    def _receive(self, i: int, connection: Connection) -> None:
        commands = self._batches[i][1]
        try:
            replies = connection.receive(len(commands), self._until)
            for command, reply in zip(commands, replies, strict=True):
                check_width(reply, width(command))
            self.results[i] = replies
        except Exception as error:
            self.results[i] = self._judged(error, i in self._late)

    def _judged(self, error: Exception, late: bool) -> Exception:
        return NotTried(str(error)) if late and isinstance(error, TimeoutError) else error


class BlockingWire:
    """Safe to use from any thread, and in a forked child (which opens its own connections)."""

    def __init__(self, login: Login) -> None:
        self._login = login
        self._pools: dict[Address, Pool] = {}
        self._pid = os.getpid()

    def _pool(self, address: Address) -> Pool:
        if os.getpid() != self._pid:
            pools, self._pools, self._pid = self._pools, {}, os.getpid()
            for pool in pools.values():
                pool.close()
        pool_ = self._pools.get(address)
        if pool_ is None:
            pool_ = self._pools.setdefault(address, Pool(address, self._login))
        return pool_

    async def call(self, address: Address, commands: Sequence[Command], until: float) -> Replies:
        packed = pack(commands)
        pool = self._pool(address)
        connection = pool.take(until)
        try:
            connection.send(packed, until)
            replies = connection.receive(len(commands), until)
            for command, reply in zip(commands, replies, strict=True):
                check_width(reply, width(command))
        except BaseException:
            pool.discard(connection)
            raise
        if closes(replies):
            pool.discard(connection)
        else:
            pool.give(connection)
        return replies

    async def call_many(self, batches: Sequence[Batch], until: float) -> list[Replies | Exception]:
        exchange = _Exchange(batches, until)
        try:
            # In one order everywhere: two callers can not wait for each other's connections.
            for i in sorted(range(len(batches)), key=lambda i: batches[i][0]):
                exchange.reserve(i, self._pool(batches[i][0]))
            exchange.run()
        except BaseException:
            exchange.abandon()
            raise
        return exchange.results

    async def close(self) -> None:
        pools, self._pools = self._pools, {}
        for pool in pools.values():
            pool.close()
