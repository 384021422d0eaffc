"""One set of processes over one backend, on which many schedules are played."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import Counter
from typing import Any

import actors
from backends import Faults, SteppedBackend, SteppedSlots
from decorated import TAGS, Faces
from grounds import GROUNDS
from play import Play
from world import EPOCH, ScheduledRuntime, Scheduler, renew_in_steps

from cachekit import Cache, RefreshAhead
from cachekit.core.deadline import Deadline
from cachekit.core.outcome import Outcome
from cachekit.errors import BackendError
from cachekit.runtime import drive

SCHEDULES_PER_STAND = 10_000
MOST_NEAR = 500
MARKER = "marker:"
PATIENCE = 15.0  # real seconds for what another thread does at once


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
            timeout=3.0,
            breaker_failures=10**9,
            policy={"write_lease": actors.WRITE_LEASE},
            **stand.options,
        )
        self.cache.on(actors.Event, lambda event: event.tags)
        self.direct = self.cache._direct
        self.heard = 0  # the newest marker that the bus told of
        keeper = self.cache.parts.reader.keeper
        if keeper is not None:
            renew_in_steps(keeper, self.runtime.threads)
        self._strategies: dict[Any, Any] = {}
        self._faces: dict[Any, Faces] = {}

    def owes(self) -> bool:
        return len(self.cache.parts.invalidator.pending) > 0

    def strategy(self, kind: Any, tagging: str, grace: bool, *, drops: bool = False) -> Any:
        wanted = (kind, tagging, grace, drops)
        known = self._strategies.get(wanted)
        if known is None:
            source = self.stand.source
            options: dict[str, Any] = {}
            if kind is RefreshAhead:
                options["early"] = 0.25
            if grace:
                options["row_version"] = source.row_version
            known = self._strategies[wanted] = kind(
                self.cache,
                key="k:{id}",
                tags=TAGS[tagging],
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

    def faces(self, tagging: str, grace: bool, drops: bool) -> Faces:
        wanted = (tagging, grace, drops)
        known = self._faces.get(wanted)
        if known is None:
            known = self._faces[wanted] = Faces(self, tagging, grace, drops)
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
        """Begin the next schedule as if anew: its keys are others."""
        self.faults.away, self.faults.lost, self.faults.over = False, 0.0, False
        self.fault_tick, self.offset = 0, 0.0
        near = self.cache.parts.near
        self.counts["near fill refused"] += near.refused
        near.refused = 0
        if near.live > MOST_NEAR:
            near.clear()  # no other schedule has the same keys: only so that it does not grow
        self.dead = False
        # What was under way has been closed; where it had not begun, nothing undid its start.
        for world in self.runtime.worlds():
            world.flights.detach_all()
        invalidator, keeper = self.cache.parts.invalidator, self.cache.parts.reader.keeper
        invalidator.pending.done(invalidator.pending.take())
        invalidator._replaying = threading.Lock()
        if keeper is not None:
            keeper._held.clear()
            keeper._running = False

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

    def row_version(self, value: Any) -> Any:
        """The source's own count of the landings of a row, as its version column would hold."""
        id = value[1].rpartition(".")[0]
        return self.play.registers[self.play.source.key(id)].newest(value)


class Stand:
    """Processes that are used for many schedules. ``slots_class`` may be a weakened one.

    ``bias`` fixes some of what else is drawn: ``tagging``, ``plays``, ``faults`` and their
    ``rate``, ``grace``, ``keys``, ``silent`` (writes whose outcome is unknown). ``restarts``: the
    server is killed once in each schedule; ``trust``: what it remembers then counts."""

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
        self.ground.trust = self.bias.get("trust", False)
        self.spare: list[Process] = []  # crashed in an earlier schedule; their caches serve again
        # Notes of the real buses come in their own threads, and in their own time.
        self._marking = Process(self, "marker") if self._by_bus() else None
        self._marked = 0
        self.processes = [self.process(i) for i in range(1 if ground == "embedded" else 3)]

    def _by_bus(self) -> bool:
        return self.options.get("coherence") == "push" and self.ground.name != "memory"

    def token(self) -> bytes:
        self._tokens += 1
        return self._prefix + self._tokens.to_bytes(8, "big")

    def process(self, number: int) -> Process:
        if self.spare:
            made = self.spare.pop()
            made.name = f"P{number}"
            return made
        made = Process(self, f"P{number}")
        coherence = made.cache.parts.coherence
        if coherence.bus is not None:
            self._follow(made, coherence)
            coherence._listen()
            end = time.monotonic() + PATIENCE
            while coherence.state != "push":
                assert time.monotonic() < end, "the bus never joined"
                time.sleep(0.001)
            self.scheduler.advance(2.0)  # copies from before it joined have ended
        return made

    def _follow(self, process: Process, coherence: Any) -> None:
        """Learn which markers a process has heard, and when its bus was cut."""
        hear, lose = coherence.heard, coherence.lost

        def heard(notes: Any) -> None:
            hear(notes)
            for note in notes:
                if note.name.startswith(MARKER):
                    process.heard = max(process.heard, int(note.name[len(MARKER) :]))

        def lost() -> None:
            lose()
            if self.oracle is not None:
                process.fault_tick = self.oracle.next()

        coherence.heard, coherence.lost = heard, lost

    def heard_by_all(self) -> None:
        """Wait, in real time, until every process has heard what was told by now."""
        marking = self._marking
        if marking is None:
            return
        self._marked += 1
        mark, end = self._marked, time.monotonic() + PATIENCE
        asked = 0.0
        while any(process.heard < mark for process in self.processes):
            now = time.monotonic()
            assert now < end, "a note was never heard"
            if now > asked + 0.5:  # one that is cut misses it, and joins again
                asked = now
                store = marking.cache.parts.far.store(marking.runtime.threads)
                deadline = Deadline(PATIENCE, time.monotonic)
                drive(store._inner.slots.void([f"{MARKER}{mark}"], deadline))
            time.sleep(0.0002)

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
        marking = [] if self._marking is None else [self._marking]
        for process in [*self.processes, *self.spare, *marking]:
            process.close()
        self.ground.close()
