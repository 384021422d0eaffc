"""The far tier: readers, writers, invalidators and misfortune around one key with one tag.

The source's versions count up. ``floor`` is the newest version that an invalidation or a save
which returned has made the oldest allowed; a write of unknown outcome raises it as it lands. A
state is wrong when an entry older than that can be read: a read that begins then would get it.

What is taken for granted, and must be: the source decides a write before its block's ttl ends, if
the writer does not learn the outcome (protocols, section 1), and the server's memory is not lost
in that time. A block may end early under a writer that will learn the outcome.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import far_actors

Actors = tuple[Any, ...]


class World(NamedTuple):
    """``disk`` is a snapshot of what the server holds; ``known``: the key's tags are remembered."""

    slot: Any = None
    tag: Any = None
    space: Any = None
    run: int = 1
    tag_run: int = 1
    src: int = 0
    floor: int = 0
    known: bool = False
    disk: Any = None
    restarts: int = 0

    def read_space(self, broken: str) -> Any:
        space = self.space
        if space is None or (space[0] != self.run and broken != "space nonces carry the run"):
            return None
        return space

    def read_tag(self, broken: str) -> Any:
        tag = self.tag
        if tag is None or tag[0] == "B":
            return None
        if tag[0] != self.tag_run and broken not in NO_RUN_ON_TAGS:
            return None
        return tag


NO_RUN_ON_TAGS = ("tag nonces carry the run", "space nonces carry the run")


class Far:
    """One configuration. ``cast`` names the actors (``far_actors.CAST``).

    ``tags``, ``spaces``: entries are bound to nonces; ``misfortune``: slots and nonces are evicted
    or expire at any time; ``flush``: the server may forget everything; ``restart``: it may come
    back, once, with what a snapshot held; ``nodes``: tags lie on another node, which restarts
    alone."""

    def __init__(
        self,
        *cast: str,
        tags: bool = False,
        spaces: bool = False,
        misfortune: bool = True,
        flush: bool = False,
        restart: bool = False,
        nodes: bool = False,
        broken: str = "",
    ) -> None:
        self.cast = [far_actors.CAST[name] for name in cast]
        self.names = [f"{name}{number}" for number, name in enumerate(cast, 1)]
        self.tags, self.spaces = tags, spaces
        self.misfortune, self.flush = misfortune, flush
        self.restart, self.nodes = restart, nodes
        self.broken = broken

    def first(self) -> tuple[World, Actors]:
        return World(), tuple(first for _, first in self.cast)

    def steps(self, state: tuple[World, Actors]) -> Iterator[tuple[str, Any]]:
        world, actors = state
        for me, actor in enumerate(actors):
            play = self.cast[me][0]
            for label, after, now in play(self, world, actor, me):
                changed = (*actors[:me], now, *actors[me + 1 :])
                yield f"{self.names[me]} {label}", (after, changed)
        yield from self.bad_luck(world, actors)

    def bad_luck(self, world: World, actors: Actors) -> Iterator[tuple[str, Any]]:
        slot, tag = world.slot, world.tag
        if self.misfortune and slot is not None:
            if slot[0] == "B":
                if not pending(actors, slot[1]):
                    yield "(block ends)", (world._replace(slot=None), lapse(actors, slot[1]))
            else:
                yield "(slot ends)", (world._replace(slot=None), actors)
            if slot[0] == "R":
                entry = ("E", slot[1], slot[2])
                yield "(refresh lease ends)", (world._replace(slot=entry), actors)
        if self.misfortune and tag is not None:
            if tag[0] != "B":
                yield "(tag's nonce evicted)", (world._replace(tag=None), actors)
            elif not pending(actors, tag[1]):
                yield "(tag's block ends)", (world._replace(tag=None), lapse(actors, tag[1]))
        if self.misfortune and world.space is not None:
            yield "(namespace's nonce evicted)", (world._replace(space=None), actors)
        if self.misfortune and world.known:
            yield "(remembered tags evicted)", (world._replace(known=False), actors)
        everyone = tuple(range(len(actors)))
        if self.flush and not pending(actors, everyone):
            empty = world._replace(slot=None, tag=None, space=None, known=False)
            yield "(flush)", (empty, lapse(actors, everyone))
        yield from self.restarts(world, actors, everyone)

    def restarts(
        self, world: World, actors: Actors, everyone: tuple[int, ...]
    ) -> Iterator[tuple[str, Any]]:
        if not self.restart or world.restarts:
            return
        if world.disk is None:
            disk = (world.slot, world.tag, world.space)
            yield "(snapshot)", (world._replace(disk=disk), actors)
        elif not pending(actors, everyone):
            slot, tag, space = world.disk
            back = world._replace(tag=tag, tag_run=2, restarts=1, disk=())
            if not self.nodes:
                back = back._replace(slot=slot, space=space, run=2)
            yield "(restart with the snapshot)", (back, lapse(actors, everyone))

    # -- what must hold -------------------------------------------------------------------

    def readable(self, world: World) -> bool:
        slot = world.slot
        if slot is None or slot[0] not in "ER":
            return False
        _, space, tag = slot[2]
        if self.spaces and (space is None or space != world.read_space(self.broken)):
            return False
        return not self.tags or (tag is not None and tag == world.read_tag(self.broken))

    def wrong(self, state: tuple[World, Actors]) -> str:
        world, actors = state
        if self.readable(world) and world.slot[2][0] < world.floor:
            return f"version {world.slot[2][0]} can be read, {world.floor} is the oldest allowed"
        for me, actor in enumerate(actors):
            if actor[0] == "served too old":
                return f"{self.names[me]} was given a version older than when it began"
        return ""

    def done(self, state: tuple[World, Actors]) -> bool:
        return all(actor[0] in far_actors.AT_REST for actor in state[1])

    def goal(self, state: tuple[World, Actors]) -> bool:
        """The newest version is served, and it was written by somebody here."""
        world, _ = state
        return self.readable(world) and world.slot[2][0] == world.src == world.floor > 0


def pending(actors: Actors, ids: Iterable[int]) -> bool:
    """Whether one of these writers' writes may land without its writer hearing of it."""
    return any(actors[i][0] == "late" for i in ids)


def lapse(actors: Actors, ids: Iterable[int]) -> Actors:
    """The actors once their blocks are gone: those that have yet to write learn the outcome."""
    changed = list(actors)
    for i in ids:
        actor = changed[i]
        if actor[0] in far_actors.BEFORE_SOURCE:
            changed[i] = (*actor[:-1], True)
    return tuple(changed)
