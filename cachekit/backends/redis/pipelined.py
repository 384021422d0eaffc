"""The wire of the asyncio world: one connection per server and loop, shared by all its callers.

What the tasks of one turn of the loop ask is sent in one write, and the replies are handed out
in order by the protocol object, not by the callers. So a caller that is cancelled or runs out
of time leaves the order intact; all the same its connection gets no new commands and is closed
as soon as nobody waits on it.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from .wire import (
    NOT_ENOUGH,
    Address,
    Batch,
    Command,
    Login,
    ProtocolViolation,
    Replies,
    check_width,
    closes,
    new_reader,
    pack,
    remaining,
    width,
)


class _Exchange:
    """One caller's commands, and the future of their replies."""

    __slots__ = ("count", "future", "link", "packed", "replies", "until", "widths")

    def __init__(
        self, commands: Sequence[Command], until: float, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.packed = pack(commands)
        self.count = len(commands)
        self.widths = [width(command) for command in commands]
        self.until = until
        self.replies = Replies()
        self.future: asyncio.Future[Replies] = loop.create_future()
        self.link: Link | None = None

    def abandon(self) -> None:
        """The caller was cancelled."""
        self.future.cancel()
        if self.link is not None:
            self.link.retire()


class Link(asyncio.Protocol):
    """One connection. Takes commands from its birth on and sends them once it is logged in."""

    def __init__(
        self,
        address: Address,
        login: Login,
        loop: asyncio.AbstractEventLoop,
        wire: PipelinedWire,
    ) -> None:
        self.address = address
        self.usable = True
        self._login = login
        self.loop = loop
        self._wire = wire
        self._transport: Any = None
        self._reader = new_reader()
        self._poll: Callable[[int], list[Any]] | None = None
        self._waiting: deque[_Exchange] = deque()
        self._sent: deque[_Exchange] = deque()
        self._hello: _Exchange | None = None
        self._ready = False
        self._run = b""
        self._proven = False  # a reply came: what TLS sends by itself is behind us
        self._flushing = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._connecting = loop.create_task(self._connect(), name=f"cachekit:connect:{address}")

    # -- callers -----------------------------------------------------------------------

    def put(self, exchange: _Exchange) -> None:
        exchange.link = self
        self._waiting.append(exchange)
        if self._ready and not self._flushing:
            self._flushing = True
            # A lone call is sent at once; what follows it in this turn goes in one write.
            if self._sent:
                self.loop.call_soon(self._flush)
            else:
                self._flush()
        if self._timer is None or exchange.until < self._timer_at:
            self._watch(exchange.until)

    def retire(self) -> None:
        """No new commands; closed when nobody waits any more."""
        if self.usable:
            self.usable = False
            self._wire.forget(self)
        if not any(not x.future.done() for x in self._queued()):
            self.fail(ConnectionResetError("the connection was closed"))

    def _queued(self) -> list[_Exchange]:
        return [x for x in (*self._sent, *self._waiting) if x is not self._hello]

    def fail(self, error: BaseException) -> None:
        """Close now; everybody still waiting gets ``error``."""
        if self.usable:
            self.usable = False
            self._wire.forget(self)
        self._ready = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._connecting.done() and self._connecting is not asyncio.current_task():
            self._connecting.cancel()
        for queue in (self._sent, self._waiting):
            while queue:
                exchange = queue.popleft()
                if not exchange.future.done():
                    exchange.future.set_exception(error)
        if self._transport is not None:
            self._transport.abort()

    # -- time --------------------------------------------------------------------------

    def _watch(self, until: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = until
        delay = max(0.0, until - time.monotonic())
        self._timer = self.loop.call_later(delay, self._expire)

    def _expire(self) -> None:
        """One timer for all callers: the one of the nearest deadline."""
        self._timer = None
        now = time.monotonic()
        nearest = 0.0
        late = False
        for exchange in self._queued():
            if exchange.future.done():
                continue
            if exchange.until <= now:
                late = True
                exchange.future.set_exception(
                    TimeoutError("the server did not answer before the call's deadline")
                )
            elif not nearest or exchange.until < nearest:
                nearest = exchange.until
        if nearest:
            self._watch(nearest)
        if late or not (nearest or self._ready):
            self.retire()

    # -- the connection ----------------------------------------------------------------

    async def _connect(self) -> None:
        tls = self._login.tls
        try:
            if self.address.port == 0:
                await self.loop.create_unix_connection(lambda: self, self.address.host)
            else:
                await self.loop.create_connection(
                    lambda: self,
                    self.address.host,
                    self.address.port,
                    ssl=None if tls is None else tls.context,
                    server_hostname=None if tls is None else self.address.host,
                )
            greeting = self._login.greeting
            if greeting:
                # It needs no deadline of its own: it ends with the last caller, see retire().
                self._hello = hello = _Exchange(greeting, 0.0, self.loop)
                self._sent.append(hello)
                self._transport.write(hello.packed)
                self._run = self._login.check(await hello.future)
        except Exception as error:
            self.fail(error)
            return
        self._ready = True
        if self._waiting:
            self._flush()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        sock = transport.get_extra_info("socket")
        if sock is not None:
            if sock.family != getattr(socket, "AF_UNIX", None):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            poller = select.poll()
            poller.register(sock.fileno(), select.POLLIN)
            self._poll = poller.poll

    def _flush(self) -> None:
        self._flushing = False
        if not self._ready or not self._waiting:
            return
        if not self._sent and self._proven and self._poll is not None and self._poll(0):
            # Nobody waits for anything, and yet there is something to read: the end, mostly.
            # Nothing was sent, so another connection may have these.
            orphans = [x for x in self._waiting if not x.future.done()]
            self._waiting.clear()
            self.fail(ConnectionResetError("the server closed the connection"))
            for orphan in orphans:
                self._wire.link(self.address).put(orphan)
            return
        chunks = []
        while self._waiting:
            exchange = self._waiting.popleft()
            if not exchange.future.done():
                self._sent.append(exchange)
                chunks.append(exchange.packed)
                exchange.packed = b""
        if chunks:
            self._transport.write(b"".join(chunks))

    def data_received(self, data: bytes) -> None:
        reader, sent = self._reader, self._sent
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not NOT_ENOUGH:
                if not sent:
                    raise ProtocolViolation("the server sent what nobody asked for")
                exchange = sent[0]
                check_width(reply, exchange.widths[len(exchange.replies)])
                exchange.replies.append(reply)
                if len(exchange.replies) < exchange.count:
                    continue
                sent.popleft()
                self._proven = True
                if closes(exchange.replies) and self.usable:
                    self.usable = False
                    self._wire.forget(self)
                if not exchange.future.done():
                    exchange.replies.run = self._run
                    exchange.future.set_result(exchange.replies)
        except Exception as error:
            self.fail(error)
            return
        if not self.usable and not sent:
            self.retire()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.fail(exc or ConnectionResetError("the server closed the connection"))


class PipelinedWire:
    """Bound to the loop that runs its calls; another loop makes it start anew."""

    def __init__(self, login: Login) -> None:
        self._login = login
        self._links: dict[Address, Link] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = os.getpid()

    def link(self, address: Address) -> Link:
        loop = asyncio.get_running_loop()
        if loop is not self._loop or os.getpid() != self._pid:
            # the other loop's sockets are its own business (or the parent's)
            self._links, self._loop, self._pid = {}, loop, os.getpid()
        link = self._links.get(address)
        if link is None:
            link = self._links[address] = Link(address, self._login, loop, self)
        return link

    def forget(self, link: Link) -> None:
        if self._links.get(link.address) is link:
            del self._links[link.address]

    async def call(self, address: Address, commands: Sequence[Command], until: float) -> Replies:
        remaining(until)
        link = self.link(address)
        exchange = _Exchange(commands, until, link.loop)
        link.put(exchange)
        try:
            return await exchange.future
        except asyncio.CancelledError:
            exchange.abandon()
            raise

    async def call_many(self, batches: Sequence[Batch], until: float) -> list[Replies | Exception]:
        remaining(until)
        loop = asyncio.get_running_loop()
        exchanges = [_Exchange(commands, until, loop) for _, commands in batches]
        for (address, _), exchange in zip(batches, exchanges, strict=True):
            self.link(address).put(exchange)
        results: list[Replies | Exception] = []
        try:
            for exchange in exchanges:
                try:
                    results.append(await exchange.future)
                except Exception as error:
                    results.append(error)
        except asyncio.CancelledError:
            for exchange in exchanges:
                exchange.abandon()
            raise
        return results

    async def close(self) -> None:
        links, self._links = self._links, {}
        if self._loop is not asyncio.get_running_loop() or os.getpid() != self._pid:
            return
        for link in links.values():
            link.fail(ConnectionResetError("the cache was closed"))
        # one turn, so that the transports let go of their sockets before the loop can end
        await asyncio.sleep(0)
