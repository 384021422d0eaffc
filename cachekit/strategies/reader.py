"""The one read path: near tier, flight, far tier, lease, load, fill, land (design, section 5.1).

Written once for both worlds. Nothing here raises a cache error unless ``strict``; what the
loader raises is an :class:`Outcome`.
"""

from __future__ import annotations

from collections.abc import Sequence

from .. import pending_reads
from ..core.deadline import Deadline
from ..core.entry import Entry, Verdict
from ..core.flights import Flight, led
from ..core.outcome import Outcome
from ..core.place import Place
from ..core.policy import Span
from ..errors import BackendError
from ..packing import Found, Right
from ..protocols import SlotState
from ..runtime import AnyWorld
from ..tiers import Far
from .job import Job, nonce_life
from .loading import Loader

TRIES = 4
POLL_FIRST = 0.01
POLL_MOST = 0.25
BACK_OFF = 1.0


class Reader(Loader):
    """Reads through the tiers of one cache."""

    # -- one key --------------------------------------------------------------------------

    async def read(self, world: AnyWorld, job: Job) -> Outcome:
        """The value of one key, from wherever it is freshest at least cost."""
        verdict, entry = self.near.find(job.place)
        if entry is not None and verdict is Verdict.FRESH:
            return self.hit(entry)
        if entry is not None and verdict is Verdict.STALE and self.far is None:
            job.recipe.tally.stale += 1
            value = entry.value
            self._refresh_behind(world, job)
            return Outcome(value)
        for _ in range(TRIES):
            seen = None
            if not self.filler.coherence.shares:
                alone, seen = await self._alone(world, job)
                if alone is not None:
                    return alone
            mine = Flight(job.place.ident)
            try:
                flight = world.flights.board(mine)
                if flight is mine:
                    return await self._lead(world, job, mine, seen)
            finally:
                world.flights.end(mine)
            outcome = None
            if flight.behind:
                stale = entry if verdict is Verdict.STALE else None
                outcome = await self._meanwhile(world, job, stale)
            outcome = outcome or await self.join(world, job, flight)
            if outcome is not None:
                return outcome
        return await self.load(world, job)

    async def _alone(self, world: AnyWorld, job: Job) -> tuple[Outcome | None, Found | None]:
        """A look at the far tier that is shared with nobody: the outcome, None where there is
        nothing to serve; and what was seen, None where it is away."""
        far, key = self.far, job.place.text
        if far is None or key is None:
            return None, None
        try:
            found = await self._look(world, far, key, job, job.tags, far.deadline(world))
        except BackendError as error:
            return (Outcome(error=error) if self.strict else None), None
        if not found.readable:
            return None, found
        self.meter.count("far_hits")
        if found.verdict is Verdict.STALE:
            job.recipe.tally.stale += 1
            self._refresh_behind(world, job)
        return Outcome(found.value), found

    async def _meanwhile(self, world: AnyWorld, job: Job, stale: Entry | None) -> Outcome | None:
        """What is served while a refresh of the key runs: the far tier's value, or where that is
        away a near one in grace; None if there is none any more."""
        far, key = self.far, job.place.text
        if far is None or key is None:
            return None
        try:
            found = await self._look(world, far, key, job, job.tags, far.deadline(world))
        except BackendError as error:
            if self.strict:
                return Outcome(error=error)
            return None if stale is None else Outcome(stale.value)
        if not found.readable:
            return None
        self.meter.count("far_hits")
        job.recipe.tally.stale += 1
        return Outcome(found.value)

    async def _look(
        self, world: AnyWorld, far: Far, key: str, job: Job, tags: Sequence[str], deadline: Deadline
    ) -> Found:
        """One key of the far tier, after the invalidations that are still pending."""
        codec = job.recipe.codec
        if not self.invalidator.due():
            (found,) = await far.read(world, [key], [tags], codec, deadline)
            return found

        async def ask(_: Sequence[int]) -> Sequence[Found]:
            return await far.read(world, [key], [tags], codec, deadline)

        (after,) = await pending_reads.read(self.invalidator, world, [key], [tags], ask, deadline)
        assert after is not None  # or it raised
        return after

    async def _lead(self, world: AnyWorld, job: Job, flight: Flight, seen: Found | None) -> Outcome:
        token = led.set((*led.get(), flight))
        outcome: Outcome | None = None
        try:
            outcome = await self._obtain(world, job, flight, seen)
            return outcome
        finally:
            led.reset(token)
            world.flights.end(flight)  # cancelled, or the fill was refused: who waits starts anew

    async def _obtain(
        self, world: AnyWorld, job: Job, flight: Flight, seen: Found | None
    ) -> Outcome:
        # Another flight may have landed between the look and the boarding.
        verdict, entry = self.near.find(job.place)
        if entry is not None and verdict is Verdict.FRESH:
            outcome = self.hit(entry)
            flight.land(outcome.value)
            return outcome
        stale = entry if verdict is Verdict.STALE else None
        seq = self.near.seq
        far, key = self.far, job.place.text
        if far is None or key is None:
            if job.recipe.discovery is None:
                flight.tags = job.tags
            return await self.load_and_fill(world, job, flight, seq, None, local=True)
        # The far entry may carry tags that this job does not know: any tag detaches it.
        flight.loading = not self.filler.coherence.shares
        try:
            found, right = await self._ask(world, far, key, job, seen)
        except BackendError as error:
            if self.strict:
                flight.land(error=error)
                return Outcome(error=error)
            if stale is not None:
                job.recipe.tally.stale += 1
                value = stale.value
                flight.land(value)
                world.flights.leave(flight)
                self._refresh_behind(world, job)
                return Outcome(value)
            # Far tier away: this process's own generations decide (protocols, section 3).
            return await self.load_and_fill(world, job, flight, seq, None, local=True)
        if found is not None and found.readable:
            return self.serve(world, job, flight, seq, found)
        return await self.load_and_fill(world, job, flight, seq, right)

    def serve(self, world: AnyWorld, job: Job, flight: Flight, seq: int, found: Found) -> Outcome:
        self.meter.count("far_hits")
        if found.verdict is Verdict.FRESH:
            span = Span(found.fresh, found.kept)
            self.filler.keep_near(
                job.place,
                found.value,
                span,
                found.tags,
                seq,
                flight,
                grace=job.recipe.policy.grace,
                asked=found.asked,
            )
        flight.land(found.value, certain=self.filler.coherence.shares)
        world.flights.leave(flight)
        if found.verdict is Verdict.STALE:
            job.recipe.tally.stale += 1
            self._refresh_behind(world, job)
        return Outcome(found.value)

    async def _ask(
        self, world: AnyWorld, far: Far, key: str, job: Job, seen: Found | None
    ) -> tuple[Found | None, Right | None]:
        """Read the far tier, unless it was ``seen`` just now; on a miss get the right to load and
        fill, or wait for who has it.

        Gives what was found, or the right, or neither: to load without the right to fill."""
        recipe, policy, tags = job.recipe, job.recipe.policy, job.tags
        deadline = far.deadline(world)
        give_up = self.runtime.clock() + policy.wait
        pause = POLL_FIRST
        while True:
            found = seen or await self._look(world, far, key, job, tags, deadline)
            seen = None
            if found.readable:
                return found, None
            if recipe.discovery is not None and tags is job.tags:
                tags = (*tags, *await recipe.discovery.recall(world, far, key, deadline, tags))
                if tags != job.tags:
                    continue  # their nonces are read with the slot, before the load
            answer = await far.acquire(
                world, key, found, tags, policy.lease, False, nonce_life(policy), deadline
            )
            if isinstance(answer, Right):
                return None, answer
            if answer is SlotState.BLOCK or self.runtime.clock() >= give_up:
                return None, None
            if answer in (SlotState.TOKEN, SlotState.NOTHING):
                # Another process loads: poll with growing, jittered pauses.
                nap = pause * (0.5 + self.runtime.uniform())
                if pause == POLL_FIRST:
                    self.meter.count("waits")
                await world.sleep(nap)
                self.meter.time("wait", nap)
                pause = min(pause * 1.6, POLL_MOST)
            deadline = far.deadline(world)

    # -- refresh --------------------------------------------------------------------------

    async def refresh(self, world: AnyWorld, job: Job) -> Outcome:
        """Load now, and keep that in place of whatever is cached anywhere: an invalidation of the
        key, and a load. Who asks meanwhile joins nothing older."""
        flight = Flight(job.place.ident)
        try:
            self.take_over(world, flight)
            self.near.kill([job.place])
            token = led.set((*led.get(), flight))
            try:
                return await self._renew(world, job, flight, keep=False)
            finally:
                led.reset(token)
                world.flights.end(flight)
        finally:
            world.flights.end(flight)

    def _disown(self, place: Place, flight: Flight) -> None:
        """No copy of a key stays in this process, and no flight keeps what it reads but this."""
        for each in self.runtime.worlds():
            each.flights.detach(place.ident, but=flight)
        self.near.kill([place])

    def _refresh_behind(self, world: AnyWorld, job: Job) -> None:
        """Start one background load of a key that is being served stale, unless one runs."""
        flight = Flight(job.place.ident, behind=True)

        async def work() -> None:
            token = led.set((flight,))
            try:
                outcome = await self._renew(world, job, flight, keep=True)
                if outcome.error is not None:
                    self.meter.event("refresh_failed", function=job.recipe.name)
                    if self.far is None:  # else the near copy may be older than the far one
                        self.near.postpone(job.place, BACK_OFF)
            finally:
                led.reset(token)
                world.flights.end(flight)

        begun = False
        try:
            if world.flights.board(flight) is not flight:
                return
            begun = world.spawn(work, f"refresh {job.recipe.name}")
            if not begun:
                self.meter.count("refreshes_skipped")
        finally:
            if not begun:
                world.flights.end(flight)

    async def _renew(self, world: AnyWorld, job: Job, flight: Flight, *, keep: bool) -> Outcome:
        seq = self.near.seq
        far, key, recipe = self.far, job.place.text, job.recipe
        if far is None or key is None:
            if recipe.discovery is None:
                flight.tags = job.tags
            return await self.load_and_fill(world, job, flight, seq, None, local=True)
        tags = job.tags
        try:
            deadline = far.deadline(world)
            if not keep:
                try:
                    # Whatever stands, or is being loaded elsewhere, is older than this call.
                    await far.void(world, [key], deadline)
                finally:
                    # Whoever read it until then, since this flight was detached, is too.
                    self._disown(job.place, flight)
            if recipe.discovery is not None:
                tags = (*tags, *await recipe.discovery.recall(world, far, key, deadline, tags))
            found = await self._look(world, far, key, job, tags, deadline)
            if keep and found.verdict is Verdict.FRESH:  # another process was quicker
                return self.serve(world, job, flight, seq, found)
            life, lease = nonce_life(recipe.policy), recipe.policy.lease
            answer = await far.acquire(
                world, key, found, tags, lease, keep and found.readable, life, deadline
            )
        except BackendError as error:
            if self.strict:
                return Outcome(error=error)
            if not keep:
                self.invalidator.postpone([("key", key)])
            return await self.load_and_fill(world, job, flight, seq, None, local=True)
        if isinstance(answer, Right):
            return await self.load_and_fill(world, job, flight, seq, answer)
        if keep:
            return Outcome()  # another process refreshes
        return await self.load_and_fill(world, job, flight, seq, None)
