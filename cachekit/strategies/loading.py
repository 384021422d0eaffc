"""Loads: one for all who ask meanwhile, its lease prolonged, its value kept where allowed."""

from __future__ import annotations

from ..coherence import Coherence
from ..core.entry import MISSING, Entry
from ..core.flights import Flight, closes_circle, led
from ..core.near import Near
from ..core.outcome import Outcome
from ..errors import LoadTimeoutError, ReentryError
from ..invalidation import Invalidator
from ..observe import Meter
from ..packing import Right
from ..runtime import AnyWorld, Runtime
from ..tiers import Far
from .filling import Filler
from .job import Job
from .renewal import Keeper


class Loader:
    """Flights and loads of one cache, whoever asks for them."""

    def __init__(
        self,
        runtime: Runtime,
        near: Near,
        far: Far | None,
        invalidator: Invalidator,
        meter: Meter,
        *,
        coherence: Coherence,
        strict: bool,
    ) -> None:
        self.runtime = runtime
        self.near = near
        self.far = far
        self.invalidator = invalidator
        self.meter = meter
        self.strict = strict
        self.keeper = Keeper(runtime, far, meter) if far is not None else None
        self.filler = Filler(runtime, near, far, meter, coherence=coherence, strict=strict)

    async def join(self, world: AnyWorld, job: Job, flight: Flight) -> Outcome | None:
        """Wait for another caller's load; None when it ended without a result for us."""
        mine = tuple(f for f in led.get() if not f.landed)
        if flight in mine:
            return Outcome(
                error=ReentryError(
                    f"{job.recipe.name}: the load of {job.place.ident!r} asks for its own key"
                )
            )
        flight.joined += 1
        early = not flight.loading
        job.recipe.tally.misses += 1
        # Announce the wait, then look for a circle: of two that close one, at least one sees it.
        for own in mine:
            own.waits_for.append(flight)
        try:
            if mine and closes_circle(flight):
                return await self.load(world, job)
            self.meter.count("waits")
            started = self.runtime.clock()
            landed = await world.join(flight, job.recipe.policy.load_timeout)
            self.meter.time("wait", self.runtime.clock() - started)
            if not landed:
                return Outcome(error=self.too_slow(job))
        finally:
            for own in mine:
                own.waits_for.remove(flight)
        if flight.handed or not (flight.certain or early):
            return None
        return Outcome(flight.value, flight.error)

    def hit(self, entry: Entry) -> Outcome:
        entry.uses += 1.0
        return Outcome(entry.value)

    def guard(self, flight: Flight, job: Job) -> None:
        """Keep a load from being kept if it begins while a writer is at work: the near tier knows
        that writer's block only until it ends, and this load may end later."""
        tags = None if job.recipe.discovery is not None else job.tags
        if self.near.writers.blocked(job.place.ident) or self.near.tag_clock.blocked(tags):
            flight.detached = True

    async def load_and_fill(
        self,
        world: AnyWorld,
        job: Job,
        flight: Flight,
        seq: int,
        right: Right | None,
        *,
        local: bool = False,
    ) -> Outcome:
        started = self.runtime.clock()
        self.guard(flight, job)
        flight.loading = True
        try:
            if right is not None and self.keeper is not None:
                self.keeper.hold(job.place.text or "", right, job.recipe.policy)
            outcome = await self.load(world, job)
        except BaseException:
            # Cancelled: whoever takes over must not wait for this lease to end.
            self.filler.give_back_behind(world, job.place, right)
            raise
        finally:
            if right is not None and self.keeper is not None:
                self.keeper.let_go(right)
        if outcome.error is not None:
            if right is not None:
                await self.filler.give_back(world, job.place, right)
            flight.land(error=outcome.error)
            return outcome
        certain = await self.filler.fill(
            world,
            job,
            outcome.value,
            self.runtime.clock() - started,
            flight,
            seq,
            right,
            local=local,
        )
        if outcome.value is MISSING:
            flight.hand_on()  # a batch loader had nothing: whoever joined asks his own loader
        else:
            flight.land(outcome.value, certain=certain and self.filler.coherence.shares)
        return outcome

    async def load(self, world: AnyWorld, job: Job) -> Outcome:
        """Call the loader; its error is the outcome, cancellation passes through."""
        tally = job.recipe.tally
        tally.loads += 1
        tally.misses += 1
        started = self.runtime.clock()
        outcome = await world.bounded(job.load, job.recipe.policy.load_timeout)
        if outcome is None:
            outcome = Outcome(error=self.too_slow(job))
        if outcome.error is not None:
            tally.errors += 1
            return outcome
        self.meter.time("load", self.runtime.clock() - started)
        kind = type(outcome.value)
        if hasattr(kind, "__await__") or hasattr(kind, "__next__"):
            return Outcome(
                error=TypeError(
                    f"{job.recipe.name}: the result is a {kind.__name__}, which can be used "
                    "only once; return a list, or decorate an async def"
                )
            )
        return outcome

    def too_slow(self, job: Job) -> LoadTimeoutError:
        return LoadTimeoutError(
            f"{job.recipe.name}: the load of {job.place.ident!r} took longer than "
            f"{job.recipe.policy.load_timeout} s"
        )

    def take_over(self, world: AnyWorld, flight: Flight) -> None:
        """Detach the loads of its key in all worlds, and board it in this one."""
        for each in self.runtime.worlds():
            each.flights.detach(flight.ident)
        while world.flights.board(flight) is not flight:
            world.flights.detach(flight.ident)
