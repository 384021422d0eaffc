"""The one read path: near tier, flight, far tier, lease, load, fill, land (design, section 5.1).

Written once for both worlds. Nothing here raises a cache error unless ``strict``; what the
loader raises is an :class:`Outcome`.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..coherence import Coherence
from ..core.deadline import Deadline
from ..core.entry import MISSING, Entry, Verdict
from ..core.flights import Flight, closes_circle, led
from ..core.near import Near
from ..core.outcome import Outcome
from ..core.place import Place
from ..core.policy import Span
from ..errors import BackendError, LoadTimeoutError, ReentryError
from ..invalidation import Invalidator
from ..observe import Meter
from ..packing import Found, Right
from ..protocols import SlotState
from ..runtime import AnyWorld, Runtime
from ..tiers import Far
from .filling import Filler
from .job import Job, nonce_life
from .renewal import Keeper

TRIES = 4
POLL_FIRST = 0.01
POLL_MOST = 0.25
BACK_OFF = 1.0


class Reader:
    """Reads through the tiers of one cache."""

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

    # -- one key --------------------------------------------------------------------------

    async def read(self, world: AnyWorld, job: Job) -> Outcome:
        """The value of one key, from wherever it is freshest at least cost."""
        verdict, entry = self.near.find(job.place)
        if entry is not None and verdict is Verdict.FRESH:
            return self._hit(entry)
        if entry is not None and verdict is Verdict.STALE and self.far is None:
            job.recipe.tally.stale += 1
            value = entry.value
            self._refresh_behind(world, job)
            return Outcome(value)
        for _ in range(TRIES):
            flight, leads = world.flights.board(job.place.ident)
            if leads:
                return await self._lead(world, job, flight)
            outcome = None
            if flight.behind:
                stale = entry if verdict is Verdict.STALE else None
                outcome = await self._meanwhile(world, job, stale)
            outcome = outcome or await self.join(world, job, flight)
            if outcome is not None:
                return outcome
        return await self._load(world, job)

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
        if len(self.invalidator.pending):
            await self.invalidator.settle(world)
        (found,) = await far.read(world, [key], [tags], job.recipe.codec, deadline)
        return found

    def _hit(self, entry: Entry) -> Outcome:
        entry.uses += 1.0
        return Outcome(entry.value)

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
                return await self._load(world, job)
            if not await world.join(flight, job.recipe.policy.load_timeout):
                return Outcome(error=self.too_slow(job))
        finally:
            for own in mine:
                own.waits_for.remove(flight)
        if flight.handed or not (flight.certain or early):
            return None
        return Outcome(flight.value, flight.error)

    async def _lead(self, world: AnyWorld, job: Job, flight: Flight) -> Outcome:
        token = led.set((*led.get(), flight))
        outcome: Outcome | None = None
        try:
            outcome = await self._obtain(world, job, flight)
            return outcome
        finally:
            led.reset(token)
            world.flights.leave(flight)
            if not flight.landed:
                # Cancelled, or the fill was refused: whoever waits starts anew.
                flight.hand_on()

    async def _obtain(self, world: AnyWorld, job: Job, flight: Flight) -> Outcome:
        # Another flight may have landed between the look and the boarding.
        verdict, entry = self.near.find(job.place)
        if entry is not None and verdict is Verdict.FRESH:
            outcome = self._hit(entry)
            flight.land(outcome.value)
            return outcome
        stale = entry if verdict is Verdict.STALE else None
        seq = self.near.seq
        far, key = self.far, job.place.text
        if far is None or key is None:
            if job.recipe.discovery is None:
                flight.tags = job.tags
            return await self._load_and_fill(world, job, flight, seq, None, local=True)
        # The far entry may carry tags that this job does not know: any tag detaches it.
        flight.loading = not self.filler.coherence.shares
        try:
            found, right = await self._ask(world, far, key, job)
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
            return await self._load_and_fill(world, job, flight, seq, None, local=True)
        if found is not None and found.readable:
            return self.serve(world, job, flight, seq, found)
        return await self._load_and_fill(world, job, flight, seq, right)

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
        self, world: AnyWorld, far: Far, key: str, job: Job
    ) -> tuple[Found | None, Right | None]:
        """Read the far tier; on a miss get the right to load and fill, or wait for who has it.

        Gives what was found, or the right, or neither: to load without the right to fill."""
        recipe, policy, tags = job.recipe, job.recipe.policy, job.tags
        deadline = far.deadline(world)
        give_up = self.runtime.clock() + policy.wait
        pause = POLL_FIRST
        while True:
            found = await self._look(world, far, key, job, tags, deadline)
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
                await world.sleep(pause * (0.5 + self.runtime.uniform()))
                pause = min(pause * 1.6, POLL_MOST)
            deadline = far.deadline(world)

    async def _load_and_fill(
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
        flight.loading = True
        try:
            if right is not None and self.keeper is not None:
                self.keeper.hold(job.place.text or "", right, job.recipe.policy)
            outcome = await self._load(world, job)
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

    async def _load(self, world: AnyWorld, job: Job) -> Outcome:
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

    def take_over(self, world: AnyWorld, place: Place) -> Flight:
        """Detach the loads of a key in all worlds and lead a new flight of it in this one."""
        for each in self.runtime.worlds():
            each.flights.detach(place.ident)
        while True:
            flight, leads = world.flights.board(place.ident)
            if leads:
                return flight
            world.flights.detach(place.ident)

    # -- refresh --------------------------------------------------------------------------

    async def refresh(self, world: AnyWorld, job: Job) -> Outcome:
        """Load now, whatever is cached, and fill. Who asks meanwhile joins nothing older."""
        flight = self.take_over(world, job.place)
        token = led.set((*led.get(), flight))
        try:
            return await self._renew(world, job, flight, keep=False)
        finally:
            led.reset(token)
            world.flights.leave(flight)
            if not flight.landed:
                flight.hand_on()

    def _refresh_behind(self, world: AnyWorld, job: Job) -> None:
        """Start one background load of a key that is being served stale, unless one runs."""
        flight, leads = world.flights.board(job.place.ident, behind=True)
        if not leads:
            return

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
                world.flights.leave(flight)
                if not flight.landed:
                    flight.hand_on()

        if not world.spawn(work, f"refresh {job.recipe.name}"):
            self.meter.count("refreshes_skipped")
            world.flights.leave(flight)
            flight.hand_on()

    async def _renew(self, world: AnyWorld, job: Job, flight: Flight, *, keep: bool) -> Outcome:
        seq = self.near.seq
        far, key, recipe = self.far, job.place.text, job.recipe
        if far is None or key is None:
            if recipe.discovery is None:
                flight.tags = job.tags
            return await self._load_and_fill(world, job, flight, seq, None, local=True)
        tags = job.tags
        try:
            deadline = far.deadline(world)
            if recipe.discovery is not None:
                tags = (*tags, *await recipe.discovery.recall(world, far, key, deadline, tags))
            found = await self._look(world, far, key, job, tags, deadline)
            if keep and found.verdict is Verdict.FRESH:  # another process was quicker
                return self.serve(world, job, flight, seq, found)
            answer = await far.acquire(
                world,
                key,
                found,
                tags,
                recipe.policy.lease,
                keep and found.readable,
                nonce_life(recipe.policy),
                deadline,
            )
        except BackendError as error:
            if self.strict:
                return Outcome(error=error)
            return await self._load_and_fill(world, job, flight, seq, None, local=True)
        if isinstance(answer, Right):
            return await self._load_and_fill(world, job, flight, seq, answer)
        if keep:
            return Outcome()  # another process refreshes
        return await self._load_and_fill(world, job, flight, seq, None)
