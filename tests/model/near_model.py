"""The near tier: two processes, their flights, and a bus whose notes are as slow as can be.

Each process has one near entry, at most one flight in its table, and hears the other's
invalidations when the bus delivers them. An invalidation or save counts in its own process once
it returned, elsewhere once it returned *and* its note was delivered; from then on nothing older
may be read from the near tier. Who joins a flight while it loads, or at any time under
``strict``, must get nothing older than any invalidation, wherever, that returned before he came.
Copies that are trusted for a bounded time only are taken as not kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import near_actors

AWAY, CONFIRMED, JOINED, EARLY, CUT, LOSING = range(6)


class Flight(NamedTuple):
    """One load, by its leader. ``asked``: the bus had joined when the far tier was asked, or, of
    a loaded value, when its load began."""

    asked: bool = False
    loading: bool = False
    filled: bool = False
    landed: bool = False
    certain: bool = False
    detached: bool = False
    joined: bool = False
    version: int = 0


class World(NamedTuple):
    slot: Any
    tag: Any
    src: int
    near: tuple[Any, ...]  # per process: the version kept, or None
    block: tuple[Any, ...]  # per process: (writers, contested) or None
    table: tuple[Any, ...]  # per process: who leads the flight of the key
    bus: tuple[int, ...]  # per process
    queue: tuple[tuple[int, ...], ...]  # per process: who invalidated, oldest first
    hearing: tuple[Any, ...]  # per process: the note that is being carried out
    missed: tuple[frozenset[int], ...]  # per process: told before it was subscribed
    heard: tuple[frozenset[int], ...]
    told: frozenset[int]  # whose invalidation the far tier has carried out
    flights: tuple[Any, ...]  # per actor
    returned: tuple[int, ...]  # per actor: the version it made the oldest; 0 before
    cuts: int = 0

    def floor(self, process: int) -> int:
        return max((self.returned[i] for i in self.heard[process]), default=0)

    def at(self, field: str, index: int, value: Any) -> World:
        """With one element of one field changed."""
        old = getattr(self, field)
        return self._replace(**{field: (*old[:index], value, *old[index + 1 :])})

    def detach(self, process: int) -> World:
        leader = self.table[process]
        if leader is None:
            return self
        flight = self.flights[leader]._replace(detached=True)
        return self.at("flights", leader, flight).at("table", process, None)

    def kill(self, process: int) -> World:
        block = self.block[process]
        world = self if block is None else self.at("block", process, (block[0], True))
        return world.at("near", process, None)

    def tell(self, me: int, process: int) -> World:
        """The far tier did it and sent a note, in one step."""
        world = self._replace(told=self.told | {me})
        for other, state in enumerate(self.bus):
            if other != process and state in (CONFIRMED, JOINED):
                world = world.at("queue", other, (*world.queue[other], me))
        return world

    def hears(self, process: int, ids: Any) -> World:
        return self.at("heard", process, self.heard[process] | set(ids))


class Near:
    """``cast``: (kind, process) pairs. ``by_tag``: the entry has a tag, and that is what is
    invalidated; ``bus``: the process that listens late, and is cut ``cuts`` times, or None: all
    have joined, for good; ``strict``: no near copies."""

    def __init__(
        self,
        *cast: tuple[str, int],
        by_tag: bool = False,
        bus: int | None = None,
        cuts: int = 0,
        strict: bool = False,
        broken: str = "",
    ) -> None:
        self.cast = cast
        self.names = [f"{kind}{i}@{process}" for i, (kind, process) in enumerate(cast, 1)]
        self.by_tag = by_tag
        self.bus, self.cuts = bus, cuts
        self.strict = strict
        self.broken = broken

    def first(self) -> tuple[World, tuple[Any, ...]]:
        count, nobody = len(self.cast), frozenset[int]()
        world = World(
            slot=None,
            tag=(1, 1) if self.by_tag else None,
            src=0,
            near=(None, None),
            block=(None, None),
            table=(None, None),
            bus=tuple(AWAY if process == self.bus else JOINED for process in (0, 1)),
            queue=((), ()),
            hearing=(None, None),
            missed=(nobody, nobody),
            heard=(nobody, nobody),
            told=nobody,
            flights=(None,) * count,
            returned=(0,) * count,
        )
        return world, tuple(near_actors.FIRST[kind] for kind, _ in self.cast)

    def steps(self, state: tuple[World, tuple[Any, ...]]) -> Iterator[tuple[str, Any]]:
        world, actors = state
        for me, (kind, process) in enumerate(self.cast):
            play = near_actors.PLAYS[kind]
            for label, after, now in play(self, world, actors[me], me, process):
                changed = (*actors[:me], now, *actors[me + 1 :])
                yield f"{self.names[me]} {label}", (after, changed)
        for process in (0, 1):
            for label, after in self.listen(world, process):
                yield f"(bus@{process} {label})", (after, actors)
        if world.slot is not None and world.slot[0] in "TE":
            yield "(slot ends)", (world._replace(slot=None), actors)

    def listen(self, w: World, p: int) -> Iterator[tuple[str, World]]:
        flights_first = self.broken != "a note detaches flights first"
        if w.hearing[p] is not None:
            after = w.kill(p) if flights_first else w.detach(p)
            yield "carried the note out", after.at("hearing", p, None).hears(p, (w.hearing[p],))
        elif w.queue[p]:
            after = w.detach(p) if flights_first else w.kill(p)
            note, *rest = w.queue[p]
            yield "hears a note", after.at("queue", p, tuple(rest)).at("hearing", p, note)
        if p == self.bus:
            yield from self.join(w, p)

    def join(self, w: World, p: int) -> Iterator[tuple[str, World]]:
        state = w.bus[p]
        if state == AWAY:
            if self.broken == "joined after the subscription is confirmed":
                yield "joins", w.at("bus", p, EARLY).hears(p, w.told)
            else:
                yield "is subscribed", w.at("bus", p, CONFIRMED).at("missed", p, w.told)
        elif state == CONFIRMED:
            yield "joins", w.at("bus", p, JOINED).hears(p, w.missed[p])
        elif state == EARLY:
            # What was told since it joined should have arrived.
            yield "is subscribed", w.at("bus", p, JOINED).hears(p, w.told)
        elif state == JOINED and w.cuts < self.cuts and w.hearing[p] is None:
            yield "is cut", w.at("bus", p, CUT).at("queue", p, ())._replace(cuts=w.cuts + 1)
        elif state == CUT and self.broken == "trust ends before the near tier is emptied":
            yield "empties the near tier", w.detach(p).kill(p).at("bus", p, LOSING)
        elif state == CUT:
            yield "trusts no more", w.at("bus", p, LOSING)
        elif state == LOSING:
            after = w
            if self.broken not in (
                "trust ends before the near tier is emptied",
                "a lost bus empties the near tier",
            ):
                after = w.detach(p).kill(p)
            yield "is lost", after.at("bus", p, AWAY)

    def trusts(self, w: World, p: int, asked: bool) -> bool:
        """Whether a copy may be kept until a note names it."""
        trusting = (JOINED, EARLY, CUT)
        if self.broken == "trust ends before the near tier is emptied":
            trusting = (*trusting, LOSING)
        asked = asked or self.broken == "copies asked for before joining are not kept"
        return not self.strict and w.bus[p] in trusting and asked

    # -- what must hold -------------------------------------------------------------------

    def wrong(self, state: tuple[World, tuple[Any, ...]]) -> str:
        world, actors = state
        for process in (0, 1):
            kept, floor = world.near[process], world.floor(process)
            if kept is not None and kept < floor:
                return f"process {process} has version {kept} near, {floor} is the oldest allowed"
        for me, actor in enumerate(actors):
            if actor[0] == "served too old":
                return f"{self.names[me]} was given a version older than when it began"
        slot = world.slot
        readable = slot is not None and slot[0] == "E" and slots_hold(self, world)
        if readable and slot[2][0] < max(world.returned):
            return f"version {slot[2][0]} can be read from the far tier"
        return ""

    def done(self, state: tuple[World, tuple[Any, ...]]) -> bool:
        return all(actor[0] == "done" for actor in state[1])

    def goal(self, state: tuple[World, tuple[Any, ...]]) -> bool:
        """Some process keeps the newest version near (or, strict, the far tier has it)."""
        world, _ = state
        newest = world.src == max(world.returned) > 0
        kept = world.src in world.near
        if self.strict and world.slot is not None and world.slot[0] == "E":
            kept = world.slot[2][0] == world.src
        return newest and kept


def slots_hold(model: Near, world: World) -> bool:
    """Whether the far entry's tag still has the nonce that it was stored with."""
    return not model.by_tag or (world.tag is not None and world.slot[2][1] == world.tag)
