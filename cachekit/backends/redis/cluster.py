"""Calls to a Redis Cluster: the map of hash slots, and what to do about MOVED and ASK."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence

from redis.crc import key_slot

from .routes import Call, Found, checked, values_of
from .wire import Address, Command, ErrorReply, ProtocolViolation, Replies, Reply, Wire, remaining

HOPS = 5
PAUSE = 0.01  # seconds
RELEARN = frozenset({"MOVED", "CLUSTERDOWN", "READONLY", "MASTERDOWN", "LOADING"})


class NodeReplies(Replies):
    """Replies of several nodes, each with a run of its own."""

    __slots__ = ("runs",)

    def __init__(self, count: int) -> None:
        super().__init__([None] * count)
        self.run = b""
        self.runs = [b""] * count

    def run_of(self, i: int) -> bytes:
        return self.runs[i]


class ClusterRoute:
    """Sends each call to the master of its slot, the masters of one ``send`` in parallel.

    Redirections are followed within the deadline: a redirected command was not executed."""

    def __init__(
        self,
        wire: Wire,
        seeds: Sequence[Address],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._wire = wire
        self._seeds = list(seeds)
        self._sleep = sleep
        self._owners: dict[int, Address] = {}
        self._stale = True

    async def send(self, calls: Sequence[Call], until: float) -> NodeReplies:
        replies = NodeReplies(len(calls))
        todo: list[tuple[int, Address | None]] = [(i, None) for i in range(len(calls))]
        for hop in range(HOPS):
            if self._stale:
                await self._learn(until)
            todo = await self._pass(calls, todo, replies, until)
            if not todo:
                break
            if hop:  # redirected twice: the nodes do not agree yet
                await self._sleep(min(PAUSE * hop, remaining(until)))
        return replies

    async def _pass(
        self,
        calls: Sequence[Call],
        todo: Sequence[tuple[int, Address | None]],
        replies: NodeReplies,
        until: float,
    ) -> list[tuple[int, Address | None]]:
        """One try of what is left to do; answers what was redirected, and where to."""
        batches: dict[Address, list[Command]] = {}
        places: dict[Address, list[int]] = {}  # for each command: its call, or -1
        for i, target in todo:
            key, command = calls[i]
            owner = target or self._owner(key)
            if target is not None:
                batches.setdefault(owner, []).append(("ASKING",))
                places.setdefault(owner, []).append(-1)
            batches.setdefault(owner, []).append(command)
            places.setdefault(owner, []).append(i)
        again: list[tuple[int, Address | None]] = []
        failure: Exception | None = None
        results = await self._wire.call_many(list(batches.items()), until)
        for address, result in zip(batches, results, strict=True):
            if isinstance(result, Exception):
                self._stale = True
                failure = failure or result
                continue
            for i, reply in zip(places[address], result, strict=True):
                if i < 0:
                    continue
                replies[i] = reply
                replies.runs[i] = result.run
                if isinstance(reply, ErrorReply):
                    again.extend(self._redirect(i, reply, address))
        if failure is not None:
            raise failure
        return again

    def _redirect(
        self, i: int, reply: ErrorReply, sender: Address
    ) -> list[tuple[int, Address | None]]:
        if reply.code in RELEARN:
            self._stale = True
        if reply.code not in ("MOVED", "ASK"):
            return []
        try:
            _, slot, target = str(reply).split(" ")[:3]
            host, _, port = target.rpartition(":")
            address = Address(host.strip("[]") or sender.host, int(port))
        except ValueError as error:
            raise ProtocolViolation("a redirection without an address") from error
        if reply.code == "ASK":
            return [(i, address)]
        self._owners[int(slot)] = address
        return [(i, None)]

    def _owner(self, key: bytes) -> Address:
        owner = self._owners.get(key_slot(key))
        if owner is None:
            self._stale = True
            raise ConnectionError("no node of the cluster serves this key's slot")
        return owner

    async def _learn(self, until: float) -> None:
        problem: Exception | None = None
        for node in dict.fromkeys([*self._owners.values(), *self._seeds]):
            share = time.monotonic() + remaining(until) / 2
            try:
                [reply] = await self._wire.call(node, [("CLUSTER", "SLOTS")], share)
                if isinstance(reply, ErrorReply):
                    raise reply
                owners = {}
                for first, last, master, *_ in reply:
                    host = (master[0] or b"").decode()
                    address = Address(node.host if host in ("", "?") else host, master[1])
                    owners.update(dict.fromkeys(range(first, last + 1), address))
                if not owners:
                    raise ConnectionError(f"{node} knows no slots")
            except Exception as error:
                problem = error
                continue
            self._owners = owners
            self._stale = False
            return
        raise problem or ConnectionError("no node of the cluster was given")

    async def fetch(self, keys: Sequence[bytes], until: float) -> Found:
        groups: dict[int, list[int]] = {}
        for i, key in enumerate(keys):
            groups.setdefault(key_slot(key), []).append(i)
        spread = list(groups.values())
        calls: list[Call] = [(keys[g[0]], (b"MGET", *[keys[i] for i in g])) for g in spread]
        values: list[Reply] = [None] * len(keys)
        runs = [b""] * len(keys)
        singly: list[int] = []
        replies = await self.send(calls, until)
        for group, reply, run in zip(spread, replies, replies.runs, strict=True):
            if isinstance(reply, ErrorReply) and reply.code == "TRYAGAIN":
                # The slot is on the move, and its keys lie in two places: only a command of
                # one key is sent on to where the key is.
                singly += group
                continue
            for i, value in zip(group, values_of(reply, len(group)), strict=True):
                values[i], runs[i] = value, run
        if singly:
            replies = await self.send([(keys[i], (b"MGET", keys[i])) for i in singly], until)
            for i, reply, run in zip(singly, replies, replies.runs, strict=True):
                values[i], runs[i] = values_of(reply, 1)[0], run
        return values, runs

    async def delete(self, keys: Sequence[bytes], until: float) -> None:
        # one by one, for the same reason
        checked(await self.send([(key, (b"UNLINK", key)) for key in keys], until))

    async def close(self) -> None:
        await self._wire.close()
