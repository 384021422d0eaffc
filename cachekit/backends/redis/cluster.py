"""Calls to a Redis Cluster: the map of hash slots, and what to do about MOVED and ASK.

A node that is lost costs its own slots only: calls to the others neither wait for it nor for a
new map, which is asked for beside them.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from bisect import bisect_right
from collections.abc import Awaitable, Callable, Iterable, Sequence

from redis.crc import key_slot

from ...core.threads import Errand, begin
from ...runtime import drive
from .blocking import BlockingWire
from .health import LONGEST, SHORTEST, Health
from .routes import Call, Found, checked, is_lost, values_of
from .wire import (
    Address,
    Command,
    ErrorReply,
    InPart,
    NodeDown,
    NodeReplies,
    NotTried,
    ProtocolViolation,
    Replies,
    Reply,
    Wire,
    remaining,
)

HOPS = 5
COPIES = 8  # of a record: wherever the nodes part the slots, most lie apart
PAUSE = 0.01  # seconds
SLOTS = 16384
RELEARN = frozenset({"MOVED", "CLUSTERDOWN", "READONLY", "MASTERDOWN", "LOADING"})

STEADY = 4 * LONGEST  # seconds without need after which the pauses begin anew
REFRESH = 2.0  # seconds for one question for the map, half of what is left for each node

Flight = Errand[Exception | None] | asyncio.Task[Exception | None]


class SlotMap:
    """Which master serves a slot: sorted ranges, and ``moved``, what MOVED said since."""

    __slots__ = ("_first", "moved", "ranges")

    def __init__(self, ranges: Iterable[tuple[int, int, Address]]) -> None:
        self.ranges = sorted(ranges)
        self._first = [first for first, _, _ in self.ranges]
        self.moved: dict[int, Address] = {}

    @classmethod
    def told(cls, reply: Reply, by: Address) -> SlotMap:
        """From the reply to CLUSTER SLOTS; raises whatever is wrong with it."""
        if isinstance(reply, ErrorReply):
            raise reply
        ranges = []
        for first, last, master, *_ in reply:
            host = (master[0] or b"").decode()
            address = Address(by.host if host in ("", "?") else host, int(master[1]))
            ranges.append((int(first), int(last), address))
        if not ranges:
            raise ConnectionError(f"{by} knows no slots")
        return cls(ranges)

    def owner(self, slot: int) -> Address | None:
        if self.moved and (target := self.moved.get(slot)) is not None:
            return target
        i = bisect_right(self._first, slot) - 1
        if i < 0:
            return None
        _, last, master = self.ranges[i]
        return master if slot <= last else None

    @property
    def masters(self) -> list[Address]:
        return list(dict.fromkeys([*(m for _, _, m in self.ranges), *self.moved.values()]))


class Charts:
    """The map of the slots, and the one flight that asks for it: a short daemon thread or a
    task, which no call waits for once there is a map."""

    def __init__(self, wire: Wire, seeds: Sequence[Address], health: Health) -> None:
        self.map: SlotMap | None = None
        self._wire = wire
        self._threads = isinstance(wire, BlockingWire)
        self._seeds = list(seeds)
        self._health = health
        self._flight: Flight | None = None
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._turn = 0
        self._pause = self._next = 0.0
        self._closed = False

    async def first(self, until: float) -> SlotMap:
        """The map, once there is one; raises why the cluster did not tell it by ``until``."""
        while (known := self.map) is None:
            flight, mine = self._fly(until)
            left = remaining(until)
            if isinstance(flight, asyncio.Task):
                await asyncio.wait({flight}, timeout=left)
            else:
                flight.wait(left)
            if not flight.done():
                raise TimeoutError("no node told the cluster's slots before the call's deadline")
            if flight.cancelled():
                raise ConnectionError("the cache was closed")
            problem = flight.result()
            if problem is not None and mine:
                raise problem
        return known

    def refresh(self) -> None:
        """Have the map asked for anew, unless that is under way or was of no use just now."""
        if (now := time.monotonic()) >= self._next:
            self._fly(now + REFRESH)

    def _fly(self, until: float) -> tuple[Flight, bool]:
        """The flight under way, or a new one; and whether it is new."""
        if os.getpid() != self._pid:  # the parent's flight does not end here
            self._lock, self._flight, self._pid = threading.Lock(), None, os.getpid()
        with self._lock:
            flight = self._flight
            too_soon = self.map is not None and time.monotonic() < self._next
            if flight is None or (flight.done() and not too_soon):
                self._flight = flight = self._launch(until)
                return flight, True
            return flight, False

    def _launch(self, until: float) -> Flight:
        name = "cachekit-cluster-slots"
        if not self._threads:
            return asyncio.get_running_loop().create_task(self._learn(until), name=name)
        flight = Errand[Exception | None]()

        def run() -> None:
            flight.run(lambda: drive(self._learn(until)))
            if self._closed:  # what it opened meanwhile
                drive(self._wire.close())

        if not begin(threading.Thread(target=run, name=name, daemon=True)):
            run()
        return flight

    async def _learn(self, until: float) -> Exception | None:
        """Ask one node after the other; answers why there is no map, if so."""
        problem: Exception | None = None
        for node in self._tellers():
            if self._closed:
                break
            try:
                share = time.monotonic() + remaining(until) / 2
                [reply] = await self._wire.call(node, [("CLUSTER", "SLOTS")], share)
                learned = SlotMap.told(reply, node)
            except Exception as error:
                problem = error
                continue
            if is_new := self.map is None or learned.ranges != self.map.ranges:
                self.map = learned
                self._health.keep(learned.masters)
            self._plan(is_new)
            return None
        self._plan(False)
        return problem or ConnectionError("the cache was closed")

    def _tellers(self) -> list[Address]:
        """All known nodes, those that are down last. Who told nothing new is not asked first
        again: it may itself be cut off from the others."""
        nodes = list(dict.fromkeys([*(self.map.masters if self.map else []), *self._seeds]))
        turn = self._turn % len(nodes)
        return sorted(nodes[turn:] + nodes[:turn], key=self._health.__contains__)

    def _plan(self, is_new: bool) -> None:
        now = time.monotonic()
        anew = is_new or now > self._next + STEADY
        self._pause = SHORTEST if anew else min(2 * self._pause, LONGEST)
        self._turn += not is_new
        self._next = now + self._pause

    async def close(self) -> None:
        self._closed = True
        flight = self._flight
        if isinstance(flight, asyncio.Task) and flight.get_loop() is asyncio.get_running_loop():
            flight.cancel()
            await asyncio.wait({flight})


class ClusterRoute:
    """Sends each call to the master of its slot, the masters of one ``send`` in parallel.

    Redirections are followed within the deadline: a redirected command was not executed. A
    failure is raised, or put in place, when the other nodes of the same ``send`` have had their
    part."""

    def __init__(
        self, wire: Wire, seeds: Sequence[Address], sleep: Callable[[float], Awaitable[None]]
    ) -> None:
        self._wire = wire
        self._sleep = sleep
        self._health = Health()
        self._charts = Charts(wire, seeds, self._health)
        self._copies: dict[bytes, list[bytes]] = {}

    async def send(self, calls: Sequence[Call], until: float) -> NodeReplies:
        replies = await self.send_each(calls, until)
        for reply in replies:
            if isinstance(reply, NodeDown):
                raise reply.__cause__ or reply
        return replies

    async def send_each(self, calls: Sequence[Call], until: float) -> NodeReplies:
        replies = NodeReplies(len(calls))
        todo: list[tuple[int, Address | None]] = [(i, None) for i in range(len(calls))]
        for hop in range(HOPS):
            todo = await self._pass(calls, todo, replies, until)
            if not todo:
                break
            if hop:  # redirected twice: the nodes do not agree yet
                await self._sleep(min(PAUSE * hop, remaining(until)))
        lost = [reply for reply in replies if isinstance(reply, NodeDown)]
        if lost and len(lost) == len(calls):
            raise lost[0].__cause__ or lost[0]
        return replies

    async def _pass(
        self,
        calls: Sequence[Call],
        todo: Sequence[tuple[int, Address | None]],
        replies: NodeReplies,
        until: float,
    ) -> list[tuple[int, Address | None]]:
        """One try of what is left to do; answers what was redirected, and where to."""
        slots = self._charts.map or await self._charts.first(until)
        batches: dict[Address, list[Command]] = {}
        places: dict[Address, list[int]] = {}  # for each command: its call, or -1
        for i, target in todo:
            key, command = calls[i]
            owner = target or slots.owner(key_slot(key))
            if owner is None:
                self._charts.refresh()
                replies[i] = NodeDown("no node of the cluster serves this key's slot")
                continue
            batch, place = batches.setdefault(owner, []), places.setdefault(owner, [])
            if target is not None:
                batch.append(("ASKING",))
                place.append(-1)
            batch.append(command)
            place.append(i)
        again: list[tuple[int, Address | None]] = []
        for address, result in (await self._ask(batches, until)).items():
            if isinstance(result, Exception):
                self._charts.refresh()
                for i in places[address]:
                    if i >= 0:
                        replies[i] = _lost(address, result)
                continue
            for i, reply in zip(places[address], result, strict=True):
                if i < 0:
                    continue
                replies[i] = reply
                replies.runs[i] = result.run
                if isinstance(reply, ErrorReply):
                    again.extend(self._redirect(i, reply, address))
        return again

    async def _ask(
        self, batches: dict[Address, list[Command]], until: float
    ) -> dict[Address, Replies | Exception]:
        """What the nodes answered; those that are down were not asked."""
        health, began = self._health, time.monotonic()
        asked = [batch for batch in batches.items() if health.admits(batch[0], began)]
        results = await self._wire.call_many(asked, until)
        answers: dict[Address, Replies | Exception] = {}
        for (node, _), result in zip(asked, results, strict=True):
            answers[node] = result
            if not isinstance(result, Exception):
                health.answered(node)
            elif isinstance(result, OSError) and not isinstance(result, NotTried):
                health.failed(node, began)
        for node in batches.keys() - answers.keys():
            answers[node] = NodeDown(f"{node} failed lately and is not asked just now")
        return answers

    def _redirect(
        self, i: int, reply: ErrorReply, sender: Address
    ) -> list[tuple[int, Address | None]]:
        charts = self._charts
        if reply.code in RELEARN:
            charts.refresh()
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
        if charts.map is not None:
            charts.map.moved[int(slot)] = address
        return [(i, None)]

    async def fetch(self, keys: Sequence[bytes], until: float) -> Found:
        groups: dict[int, list[int]] = {}
        for i, key in enumerate(keys):
            groups.setdefault(key_slot(key), []).append(i)
        spread = list(groups.values())
        calls: list[Call] = [(keys[g[0]], (b"MGET", *[keys[i] for i in g])) for g in spread]
        values: list[Reply] = [None] * len(keys)
        runs = [b""] * len(keys)
        singly: list[int] = []
        lost: dict[int, Exception] = {}
        replies = await self.send_each(calls, until)
        for group, reply, run in zip(spread, replies, replies.runs, strict=True):
            if isinstance(reply, ErrorReply) and reply.code == "TRYAGAIN":
                # The slot is on the move, and its keys lie in two places: only a command of
                # one key is sent on to where the key is.
                singly += group
                continue
            if is_lost(reply):
                lost.update(dict.fromkeys(group, reply))
                continue
            for i, value in zip(group, values_of(reply, len(group)), strict=True):
                values[i], runs[i] = value, run
        if singly:
            replies = await self.send([(keys[i], (b"MGET", keys[i])) for i in singly], until)
            for i, reply, run in zip(singly, replies, replies.runs, strict=True):
                values[i], runs[i] = values_of(reply, 1)[0], run
        if lost:
            first = next(iter(lost.values()))
            raise InPart(values, runs, lost.keys(), first) if len(lost) < len(keys) else first
        return values, runs

    async def delete(self, keys: Sequence[bytes], until: float) -> None:
        # one by one, for the same reason
        checked(await self.send_each([(key, (b"UNLINK", key)) for key in keys], until))

    def copies(self, name: bytes) -> list[bytes]:
        found = self._copies.get(name)
        if found is None:
            found = self._copies[name] = [_copy(name, i) for i in range(COPIES)]
        return found

    async def close(self) -> None:
        await self._charts.close()
        await self._wire.close()


def _lost(node: Address, error: Exception) -> NodeDown:
    if isinstance(error, NodeDown):
        return error
    lost = NodeDown(f"{node} failed with {type(error).__name__}: {error}")
    lost.__cause__ = error
    return lost


def _copy(name: bytes, i: int) -> bytes:
    """The name of the ``i``-th copy: one whose slot is in the ``i``-th of COPIES equal ranges."""
    head, _, tail = name.partition(b"}")
    turn = 0
    while True:
        copy = b"%b:@%d.%d}%b" % (head, i, turn, tail)
        if key_slot(copy) * COPIES // SLOTS == i:
            return copy
        turn += 1
