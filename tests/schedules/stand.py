"""One set of processes over one backend, on which many schedules are played."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from typing import Any

import actors
from backends import Faults, SteppedBackend, SteppedSlots
from grounds import GROUNDS, NAMESPACE
from play import Play, discover
from world import EPOCH, ScheduledRuntime, Scheduler, renew_in_steps

from cachekit import Cache, RefreshAhead
from cachekit.core.outcome import Outcome
from cachekit.errors import BackendError
from cachekit.runtime import drive

SCHEDULES_PER_STAND = 3000


class Process:
    """One cache as one process has it. ``offset``: its wall clock's error in seconds."""

    def __init__(self, stand: Stand, name: str) -> None:
        self.stand = stand
        self.name = name
        self.scheduler = stand.scheduler
        self.counts = stand.counts
        self.faults = Faults()
        self.fault_tick = 0
        self.offset = 0.0
        self.dead = False
        self.token = stand.token
        self.runtime = ScheduledRuntime(stand.scheduler, self)
        backend = None
        if stand.ground.name != "embedded":
            backend = SteppedBackend(stand.ground, self)
        self.cache = Cache(
            runtime=self.runtime,
            backend=backend,
            namespace=NAMESPACE,
            timeout=3.0,
            breaker_failures=10**9,
            **stand.options,
        )
        self.cache.on(actors.Event, lambda event: event.tags)
        self.direct = self.cache._direct
        keeper = self.cache.parts.reader.keeper
        if keeper is not None:
            renew_in_steps(keeper, self.runtime.threads)
        self._strategies: dict[Any, Any] = {}

    def owes(self) -> bool:
        return len(self.cache.parts.invalidator.pending) > 0

    def strategy(self, kind: Any, tagging: str, grace: bool, *, drops: bool = False) -> Any:
        wanted = (kind, tagging, grace, drops)
        known = self._strategies.get(wanted)
        if known is None:
            source = self.stand.source
            tags: Any = {"declared": ["all", "g:{id}"], "discovered": discover}.get(tagging, ())
            if kind is RefreshAhead and not grace:
                options: dict[str, Any] = {"early": 0.25}
            else:
                options = {}
            known = self._strategies[wanted] = kind(
                self.cache,
                key="k:{id}",
                tags=tags,
                invalidates=("all",) if drops else (),
                load=source.load,
                load_many=source.load_many,
                store=source.store,
                delete=source.delete,
                ttl=actors.TTL,
                grace=32.0 if grace else 0.0,
                lease=actors.LEASE,
                wait=0.5 if grace else 0.125,
                write_lease=actors.WRITE_LEASE,
                **options,
            )
        return known

    async def intend(self, world: Any, keys: list[str], tags: list[str], write: Any) -> Outcome:
        """As ``cache.write_intent`` does it, with the source written inside."""
        held = self.cache.write_intent(keys=keys, tags=tags, ttl=actors.WRITE_LEASE)
        try:
            await held._enter(world)
        except BackendError as error:
            return Outcome(error=error)
        try:
            await write()
        except BaseException as error:
            await held._leave(world, error)
            if isinstance(error, asyncio.CancelledError):
                raise
            return Outcome(error=error)
        await held._leave(world, None)
        return Outcome(held)

    def rest(self) -> None:
        """Begin the next schedule with nothing cached here."""
        self.faults.away, self.faults.lost, self.faults.over = False, 0.0, False
        self.fault_tick, self.offset = 0, 0.0
        near = self.cache.parts.near
        self.counts["near fill refused"] += near.refused
        near.refused = 0
        near.clear()

    def close(self) -> None:
        self.faults.over = True
        coherence = getattr(self.cache.parts, "coherence", None)
        if coherence is not None:
            coherence.close()
        for world in self.runtime.worlds():
            for store in world.opened.values():
                drive(store.close())
            world.opened.clear()


class _Source:
    """The functions of strategies that live longer than a schedule: those of the present one."""

    def __init__(self) -> None:
        self.play: Any = None

    async def load(self, id: str) -> Any:
        return await self.play.source.load(id)

    async def load_many(self, ids: list[str]) -> Any:
        return await self.play.source.load_many(ids)

    async def store(self, id: str, value: Any) -> None:
        await self.play.source.store(id, value)

    async def delete(self, id: str) -> None:
        await self.play.source.delete(id)


class Stand:
    """Processes that are used for many schedules. ``slots_class`` may be a weakened one;
    ``bias`` fixes some of what else is drawn: ``tagging``, ``faults`` and their ``rate``."""

    def __init__(
        self,
        ground: str,
        options: dict[str, Any],
        counts: Counter[str] | None = None,
        *,
        slots_class: Any = SteppedSlots,
        bias: dict[str, Any] | None = None,
    ) -> None:
        self.scheduler = Scheduler()
        self.counts: Counter[str] = Counter() if counts is None else counts
        self.ground = GROUNDS[ground](self.scheduler.clock, lambda: self.scheduler.now + EPOCH)
        self.options = options
        self.strict = bool(options.get("strict"))
        self.slots_class = slots_class
        self.bias = bias or {}
        self.source = _Source()
        self.oracle: Any = None
        self._prefix, self._tokens = os.urandom(8), 0
        self.played = 0
        coherence = options.get("coherence")
        self.near = 0.0 if coherence in (None, "strict") else 1.0
        self.bound = 0.0 if isinstance(coherence, str) or ground == "embedded" else coherence
        self.processes = [self.process(i) for i in range(1 if ground == "embedded" else 3)]

    def token(self) -> bytes:
        self._tokens += 1
        return self._prefix + self._tokens.to_bytes(8, "big")

    def process(self, number: int) -> Process:
        made = Process(self, f"P{number}")
        coherence = getattr(made.cache.parts, "coherence", None)
        if coherence is not None and getattr(coherence, "bus", None) is not None:
            coherence._listen()
            self.scheduler.advance(2.0)  # copies from before it joined have ended
        return made

    def play(self, seed: int) -> Play:
        """One schedule; raises AssertionError with what went wrong."""
        self.played += 1
        play = Play(self, seed)
        self.source.play, self.oracle = play, play.oracle
        try:
            play.run()
        finally:
            play.clean()
        return play

    def close(self) -> None:
        for process in self.processes:
            process.close()
        self.ground.close()
