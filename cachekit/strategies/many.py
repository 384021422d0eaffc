"""Many keys at once: one far read, one call of the loader for all that miss."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from .. import pending_reads
from ..core.deadline import Deadline
from ..core.entry import MISSING, Verdict
from ..core.flights import Flight, led
from ..core.outcome import Outcome
from ..core.place import Place
from ..core.policy import Span
from ..errors import BackendError
from ..packing import Found, Right
from ..runtime import AnyWorld
from ..tiers import Far
from .filling import Ready
from .job import Job, Recipe, nonce_life
from .reader import Reader

# Loads these positions; the outcome's value is {position: value}, absent ones left out.
LoadMany = Callable[[AnyWorld, Sequence[int]], Awaitable[Outcome]]


async def peek_many(
    reader: Reader,
    world: AnyWorld,
    recipe: Recipe,
    places: Sequence[Place],
    tags: Sequence[tuple[str, ...]],
) -> list[Any]:
    """What is cached now, loading nothing; MISSING where nothing is. Far hits fill near.

    Raises BackendError only in strict mode."""
    found: list[Any] = []
    # A near copy beyond its trusted time is no answer where the far tier can be asked.
    enough = (Verdict.FRESH, Verdict.STALE) if reader.far is None else (Verdict.FRESH,)
    for place in places:
        verdict, entry = reader.near.find(place)
        if entry is not None and verdict in enough:
            entry.uses += 1.0
            found.append(entry.value)
        else:
            found.append(MISSING)
    missing = [i for i, value in enumerate(found) if value is MISSING]
    far = reader.far
    if far is None or not missing:
        return found
    seq = reader.near.seq
    # A flight of each key lets an invalidation between far read and near fill be seen.
    watches: dict[int, Flight] = {}
    try:
        for i in missing:
            mine = watches[i] = Flight(places[i].ident, watch=True)
            if world.flights.board(mine) is not mine:
                del watches[i]
        answers = await _look(
            reader,
            world,
            far,
            [places[i].text or "" for i in missing],
            [tags[i] for i in missing],
            recipe,
            far.deadline(world),
        )
        for i, answer in zip(missing, answers, strict=True):
            if answer is not None and answer.readable:
                found[i] = answer.value
                reader.meter.count("far_hits")
                if answer.verdict is Verdict.FRESH and i in watches:
                    span = Span(answer.fresh, answer.kept)
                    reader.filler.keep_near(
                        places[i],
                        answer.value,
                        span,
                        answer.tags,
                        seq,
                        watches[i],
                        grace=recipe.policy.grace,
                        asked=answer.asked,
                    )
    except BackendError:
        if reader.strict:
            raise
    finally:
        for flight in watches.values():
            world.flights.end(flight)
    return found


async def _look(
    reader: Reader,
    world: AnyWorld,
    far: Far,
    keys: Sequence[str],
    tags: Sequence[Sequence[str]],
    recipe: Recipe,
    deadline: Deadline,
) -> Sequence[Found | None]:
    """Keys of the far tier, after the invalidations that are pending for them. None for those
    that lie where nobody answers; raises where that is so of all, or of any in strict mode."""

    async def ask(some: Sequence[int]) -> Sequence[Found | None]:
        found, why = await far.read_parts(
            world, [keys[i] for i in some], [tags[i] for i in some], recipe.codec, deadline
        )
        if why is not None and reader.strict:
            raise why
        return found

    return await pending_reads.read(
        reader.invalidator, world, keys, tags, ask, deadline, whole=reader.strict
    )


async def read_many(
    reader: Reader,
    world: AnyWorld,
    recipe: Recipe,
    places: Sequence[Place],
    tags: Sequence[tuple[str, ...]],
    load: LoadMany,
) -> list[Outcome]:
    """One outcome per place; MISSING where the loader gave nothing. Equal places load once.

    Where another process holds a key's lease this does not wait: it loads without filling."""
    batch = _Batch(reader, world, recipe, places, tags, load)
    await batch.run()
    return [batch.outcomes[place.ident] for place in places]


class _Batch:
    def __init__(
        self,
        reader: Reader,
        world: AnyWorld,
        recipe: Recipe,
        places: Sequence[Place],
        tags: Sequence[tuple[str, ...]],
        load: LoadMany,
    ) -> None:
        self.reader = reader
        self.world = world
        self.recipe = recipe
        self.load = load
        # In the caller's order: the loader sees it.
        self.first: dict[Any, int] = {}
        for i, place in enumerate(places):
            self.first.setdefault(place.ident, i)
        self.jobs = {
            ident: Job(recipe, places[i], self._loader_of(i), tags[i])
            for ident, i in self.first.items()
        }
        self.outcomes: dict[Any, Outcome] = {}
        self.rights: dict[Any, Right | None] = {}
        self.away: set[Any] = set()  # those that the far tier could not be asked for

    def _loader_of(self, position: int) -> Callable[[AnyWorld], Awaitable[Outcome]]:
        async def load_one(world: AnyWorld) -> Outcome:
            outcome = await self.load(world, [position])
            if outcome.error is not None:
                return outcome
            return Outcome(outcome.value.get(position, MISSING))

        return load_one

    async def run(self) -> None:
        reader, world = self.reader, self.world
        lead: dict[Any, Flight] = {}
        others: list[tuple[Any, Flight | None]] = []
        try:
            try:
                self._board(lead, others)
                if lead:
                    token = led.set((*led.get(), *lead.values()))
                    try:
                        await self._lead(lead)
                    finally:
                        led.reset(token)
            finally:
                self._end(lead)
        finally:
            for flight in lead.values():
                world.flights.end(flight)
        # Own flights have landed: waiting for others now can close no circle through them.
        for ident, other in others:
            job = self.jobs[ident]
            outcome = None
            if other is not None and not other.behind:
                outcome = await reader.join(world, job, other)
            self.outcomes[ident] = outcome or await reader.read(world, job)

    def _board(self, lead: dict[Any, Flight], others: list[tuple[Any, Flight | None]]) -> None:
        """What is here is served; the rest is led by this batch, or others' to be joined."""
        reader, world = self.reader, self.world
        for ident, job in self.jobs.items():
            verdict, entry = reader.near.find(job.place)
            if entry is not None and verdict is Verdict.FRESH:
                entry.uses += 1.0
                self.outcomes[ident] = Outcome(entry.value)
                continue
            if entry is not None and verdict is Verdict.STALE and reader.far is None:
                others.append((ident, None))  # served and refreshed, one by one
                continue
            mine = lead[ident] = Flight(ident)
            flight = world.flights.board(mine)
            if flight is not mine:
                del lead[ident]
                others.append((ident, flight))

    def _end(self, lead: dict[Any, Flight]) -> None:
        for ident, flight in lead.items():
            late = not flight.landed
            self.world.flights.end(flight)
            if late:
                # Cancelled: neither callers nor leases must wait for this batch.
                place = self.jobs[ident].place
                self.reader.filler.give_back_behind(self.world, place, self.rights.get(ident))

    async def _lead(self, lead: dict[Any, Flight]) -> None:
        reader, far = self.reader, self.reader.far
        seq = reader.near.seq
        local = far is None
        for ident, flight in lead.items():
            if local and self.recipe.discovery is None:
                flight.tags = self.jobs[ident].tags
            flight.loading = not reader.filler.coherence.shares
        if far is not None:
            try:
                self.rights = await self._ask(far, lead, seq)
            except BackendError as error:
                if reader.strict:
                    for ident, flight in lead.items():
                        flight.land(error=error)
                        self.outcomes[ident] = Outcome(error=error)
                    return
                local = True
        open_ = [ident for ident in lead if ident not in self.outcomes]
        if open_:
            await self._load(open_, lead, seq, local)

    async def _ask(self, far: Far, lead: dict[Any, Flight], seq: int) -> dict[Any, Right | None]:
        reader, world, recipe = self.reader, self.world, self.recipe
        idents = list(lead)
        jobs = [self.jobs[ident] for ident in idents]
        tags = [job.tags for job in jobs]
        keys = [job.place.text or "" for job in jobs]
        deadline = far.deadline(world)
        founds = await _look(reader, world, far, keys, tags, recipe, deadline)
        missing: list[tuple[Any, str, Found, tuple[str, ...]]] = []
        for ident, job, key, found in zip(idents, jobs, keys, founds, strict=True):
            if found is None:
                self.away.add(ident)
            elif found.readable:
                self.outcomes[ident] = reader.serve(world, job, lead[ident], seq, found)
            else:
                missing.append((ident, key, found, job.tags))
        if not missing:
            return {}
        if recipe.discovery is not None and missing:
            remembered = await recipe.discovery.recall_many(
                world, far, [(key, tags) for _, key, _, tags in missing], deadline
            )
            missing = [
                (ident, key, found, (*tags, *more))
                for (ident, key, found, tags), more in zip(missing, remembered, strict=True)
            ]
        answers = await far.acquire_many(
            world,
            [m[1:] for m in missing],
            recipe.policy.lease,
            nonce_life(recipe.policy),
            deadline,
        )
        return {
            ident: answer if isinstance(answer, Right) else None
            for (ident, *_), answer in zip(missing, answers, strict=True)
        }

    async def _load(
        self,
        open_: Sequence[Any],
        lead: dict[Any, Flight],
        seq: int,
        local: bool,
    ) -> None:
        reader, world, tally = self.reader, self.world, self.recipe.tally
        positions = [self.first[ident] for ident in open_]
        for ident in open_:
            reader.guard(lead[ident], self.jobs[ident])
            lead[ident].loading = True
        started = reader.runtime.clock()
        tally.loads += 1
        tally.misses += len(open_)
        held = [(i, right) for i in open_ if (right := self.rights.get(i)) is not None]
        try:
            if reader.keeper is not None:
                for ident, right in held:
                    key = self.jobs[ident].place.text or ""
                    reader.keeper.hold(key, right, self.recipe.policy)
            outcome = await world.bounded(
                lambda w: self.load(w, positions), self.recipe.policy.load_timeout
            )
        finally:
            if reader.keeper is not None:
                for _, right in held:
                    reader.keeper.let_go(right)
        cost = reader.runtime.clock() - started
        if outcome is None:
            outcome = Outcome(error=reader.too_slow(self.jobs[open_[0]]))
        if outcome.error is not None:
            tally.errors += 1
            for ident in open_:
                right = self.rights.get(ident)
                if right is not None:
                    await reader.filler.give_back(world, self.jobs[ident].place, right)
                lead[ident].land(error=outcome.error)
                self.outcomes[ident] = outcome
            return
        ready: dict[Any, Ready] = {}
        certain: dict[Any, bool] = {}
        for ident, position in zip(open_, positions, strict=True):
            value = outcome.value.get(position, MISSING)
            job, right, flight = self.jobs[ident], self.rights.get(ident), lead[ident]
            self.outcomes[ident] = Outcome(value)
            answer = await reader.filler.prepare(
                world, job, value, cost, flight, seq, right, local=local or ident in self.away
            )
            if isinstance(answer, bool):
                certain[ident] = answer
            else:
                ready[ident] = answer
        stored = await reader.filler.store(world, list(ready.values()))
        certain.update(zip(ready, stored, strict=True))
        for ident in open_:
            value = self.outcomes[ident].value
            if value is MISSING:
                lead[ident].hand_on()  # whoever joined asks his own loader
            else:
                sure = certain[ident] and reader.filler.coherence.shares
                lead[ident].land(value, certain=sure)
