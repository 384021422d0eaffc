"""Which server a command goes to: one server, or the master a Sentinel names.

A call is the key that decides where it goes, and the command. ``cluster`` and ``driver`` have
the other two routes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from .wire import (
    CLOSING_CODES,
    Address,
    Command,
    ErrorReply,
    NodeDown,
    NotMaster,
    ProtocolViolation,
    Replies,
    Reply,
    Wire,
    remaining,
)

Call = tuple[bytes, Command]
Found = tuple[list[Reply], bytes | list[bytes]]  # values, and the run of all or of each


def values_of(reply: Reply, count: int) -> list[Reply]:
    """The values an MGET of ``count`` keys found; raises what it got instead."""
    if isinstance(reply, list) and len(reply) == count:
        return reply
    if isinstance(reply, ErrorReply):
        raise reply
    raise ProtocolViolation("no answer to MGET")


def checked(replies: Replies) -> Replies:
    """The replies if there is no error among them; else raises the first."""
    for reply in replies:
        if isinstance(reply, (ErrorReply, NodeDown)):
            raise reply
    return replies


def is_lost(reply: Reply) -> bool:
    """Whether a reply tells that its node can not serve now, which says nothing of others."""
    return isinstance(reply, NodeDown) or (isinstance(reply, ErrorReply) and reply.unavailable)


class Route(Protocol):
    """Carries calls within ``until`` (``time.monotonic()``); error replies come back in place."""

    async def send(self, calls: Sequence[Call], until: float) -> Replies: ...

    async def send_each(self, calls: Sequence[Call], until: float) -> Replies:
        """The same, with a NodeDown in place of the replies of nodes that are lost, as long as
        another answered."""

    async def fetch(self, keys: Sequence[bytes], until: float) -> Found:
        """The values of the keys, None where there is none or it is no string; and which run
        each comes from, one for all where they come from one server. Raises InPart where some
        nodes answered and others did not."""

    async def delete(self, keys: Sequence[bytes], until: float) -> None: ...

    def copies(self, name: bytes) -> Sequence[bytes]:
        """Where copies of a record are kept, so that it can be read while its node is lost."""

    async def close(self) -> None: ...


class OneServer:
    """What is the same for all routes where one server has every key."""

    async def send(self, calls: Sequence[Call], until: float) -> Replies:
        raise NotImplementedError

    async def send_each(self, calls: Sequence[Call], until: float) -> Replies:
        return await self.send(calls, until)

    def copies(self, name: bytes) -> Sequence[bytes]:
        return ()

    async def fetch(self, keys: Sequence[bytes], until: float) -> Found:
        replies = await self.send([(keys[0], (b"MGET", *keys))], until)
        return values_of(replies[0], len(keys)), replies.run

    async def delete(self, keys: Sequence[bytes], until: float) -> None:
        checked(await self.send([(keys[0], (b"UNLINK", *keys))], until))


class SingleRoute(OneServer):
    """One server, always the same."""

    def __init__(self, wire: Wire, address: Address) -> None:
        self._wire = wire
        self._address = address

    async def send(self, calls: Sequence[Call], until: float) -> Replies:
        return await self._wire.call(self._address, [command for _, command in calls], until)

    async def fetch(self, keys: Sequence[bytes], until: float) -> Found:
        replies = await self._wire.call(self._address, ((b"MGET", *keys),), until)
        return values_of(replies[0], len(keys)), replies.run

    async def close(self) -> None:
        await self._wire.close()


class SentinelRoute(OneServer):
    """The master of one service; asked again after any failure.

    Every new connection checks by ROLE that it leads to a master, since a demoted one would
    answer reads from what it had."""

    def __init__(
        self, wire: Wire, sentinel_wire: Wire, sentinels: Sequence[Address], service: str
    ) -> None:
        self._wire = wire
        self._sentinel_wire = sentinel_wire
        self._sentinels = list(sentinels)
        self._service = service
        self._master: Address | None = None

    async def send(self, calls: Sequence[Call], until: float) -> Replies:
        commands = [command for _, command in calls]
        known = self._master
        if known is not None:
            try:
                return await self._on(known, commands, until)
            except (NotMaster, ConnectionRefusedError):
                pass  # nothing was sent: ask who is the master now
        return await self._on(await self._find(until), commands, until)

    async def _on(self, master: Address, commands: Sequence[Command], until: float) -> Replies:
        try:
            replies = await self._wire.call(master, commands, until)
        except Exception:
            self._master = None
            raise
        if any(isinstance(r, ErrorReply) and r.code in CLOSING_CODES for r in replies):
            self._master = None
        return replies

    async def _find(self, until: float) -> Address:
        problem: Exception | None = None
        question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
        for sentinel in list(self._sentinels):
            # A silent sentinel may not eat the time of those after it.
            share = time.monotonic() + remaining(until) / 2
            try:
                [reply] = await self._sentinel_wire.call(sentinel, [question], share)
                if isinstance(reply, ErrorReply):
                    raise reply
                if reply is None:
                    raise ConnectionError(f"{sentinel} knows no master of this service")
                if not isinstance(reply, list) or len(reply) != 2:
                    raise ProtocolViolation("no answer to SENTINEL GET-MASTER-ADDR-BY-NAME")
                master = Address(reply[0].decode(), int(reply[1]))
            except Exception as error:
                problem = error
                continue
            self._sentinels.sort(key=lambda known: known != sentinel)
            self._master = master
            return master
        raise problem or ConnectionError("no sentinel was given")

    async def close(self) -> None:
        await self._wire.close()
        await self._sentinel_wire.close()
