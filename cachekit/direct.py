"""Keys without a function: get, set, get_or_set, touch, invalidate, for both faces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .core import keys as keytext
from .core.entry import INF, MISSING, Missing, Verdict
from .core.flights import Flight
from .core.outcome import Outcome
from .core.place import Place
from .core.policy import Policy, Span, Ttl
from .errors import BackendError, CodecError
from .packing import Right
from .protocols import SlotState
from .runtime import AnyWorld
from .strategies.job import Job, Recipe
from .strategies.many import peek_many, read_many
from .strategies.parts import Parts
from .strategies.source import call
from .tiers import Far

SET_LEASES = 4.0  # budgets of a call that the block of a set() may outlive a dead process


class Direct:
    """The verbs on text keys, once for both worlds."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.table = parts.table(
            "", ("key",), lambda values: str(values[0]), explicit=True, carries=lambda tag: True
        )
        self.recipe = Recipe("cache", parts.policy, parts.codec, self.table.tally)

    def place(self, key: str) -> Place:
        """The place of a text key, wherever a function or strategy keeps it."""
        text = keytext.check_text(key, "a key")
        known = self.parts.near.by_text(text)
        if known is not None:
            return known
        function = self.parts.tables.get(text.partition("(")[0])
        if function is not None and function.parse is not None:
            parsed = function.parse(text)
            if parsed is not None:
                return parsed
        return self.table.place((text,))

    async def get_many(self, world: AnyWorld, asked: Iterable[str]) -> dict[str, Any]:
        keys = listed(asked, "keys")
        places = [self.place(key) for key in keys]
        if self.parts.off:
            return {}
        found = await peek_many(self.parts.reader, world, self.recipe, places, [()] * len(places))
        self.table.tally.misses += sum(1 for value in found if value is MISSING)
        return {k: v for k, v in zip(keys, found, strict=True) if v is not MISSING}

    async def set(
        self, world: AnyWorld, key: str, value: Any, ttl: Ttl | Missing, tags: Iterable[str]
    ) -> bool:
        parts = self.parts
        place = self.place(key)
        labels = self.labels(tags)
        policy = self._with(ttl)
        span = policy.spans(value, 0.0, parts.runtime.uniform)
        if span is None or parts.off:
            await parts.invalidator.invalidate(world, [place])
            return False
        # Detaches running loads, and lets an invalidation before the near fill be seen.
        flight = Flight(place.ident)
        kept = False
        try:
            try:
                parts.reader.take_over(world, flight)
                kept = await self._put(world, place, value, span, labels, flight)
                return kept
            except CodecError:
                parts.meter.event("refused_values", function=self.recipe.name)
                # The old value is outdated all the same.
                await parts.invalidator.invalidate(world, [place])
                raise
            finally:
                if not kept:
                    parts.near.kill([place])
                world.flights.end(flight)
        finally:
            world.flights.end(flight)

    async def _put(
        self,
        world: AnyWorld,
        place: Place,
        value: Any,
        span: Span,
        labels: tuple[str, ...],
        flight: Flight,
    ) -> bool:
        parts, key = self.parts, place.text or ""
        seq, far, asked = parts.near.seq, parts.far, parts.runtime.clock()
        flight.tags = labels
        if far is not None:
            try:
                if not await self._commit(world, far, key, value, span, labels):
                    return False
            except BackendError:
                if parts.reader.strict:
                    raise
                # Whatever lies there is older than this value.
                parts.invalidator.postpone([("key", key)])
                return False
            # Kept where it counts; the near copy is a matter of speed.
            if not parts.reader.filler.keep_near(
                place, value, span, labels, seq, flight, asked=asked
            ):
                parts.near.kill([place])
            return True
        return parts.reader.filler.keep_near(place, value, span, labels, seq, flight)

    async def _commit(
        self,
        world: AnyWorld,
        far: Far,
        key: str,
        value: Any,
        span: Span,
        labels: tuple[str, ...],
    ) -> bool:
        """Store as a writer does, under a block of its own: a step of this that lands late, after
        its caller got no answer, can then not undo an invalidation that came since."""
        parts, deadline = self.parts, far.deadline(world)
        writer = parts.runtime.token()
        life = None if span.kept == INF else span.kept
        await far.seize(world, [key], writer, SET_LEASES * far.timeout, deadline)
        right = await far.nonces(world, key, labels, writer, life, deadline)
        try:
            if right is not None:
                data = far.packer.pack(key, value, parts.codec, span, 0.0, right)
                return await far.commit(world, key, right, data, span, deadline)
        except CodecError:
            await far.end(world, [key], writer, deadline)
            raise
        await far.end(world, [key], writer, deadline)
        return False

    async def get_or_set(
        self,
        world: AnyWorld,
        key: str,
        load: Callable[[], Any],
        policy: Policy,
        tags: Iterable[str],
    ) -> Outcome:
        if self.parts.off:
            return await call(world, load)
        recipe = Recipe("get_or_set", policy, self.parts.codec, self.table.tally)
        place = self.place(key)
        job = Job(recipe, place, lambda w: call(w, load), self.labels(tags))
        if self.parts.coarse:
            self.parts.clock.start()
        return await self.parts.reader.read(world, job)

    async def get_or_set_many(
        self,
        world: AnyWorld,
        asked: Iterable[str],
        load: Callable[[list[str]], Any],
        policy: Policy,
        tags: Iterable[str],
    ) -> Outcome:
        keys = listed(asked, "keys")
        if self.parts.off:
            return await call(world, load, keys)
        recipe = Recipe("get_or_set_many", policy, self.parts.codec, self.table.tally)
        labels = self.labels(tags)

        async def load_many(world: AnyWorld, positions: Sequence[int]) -> Outcome:
            outcome = await call(world, load, [keys[i] for i in positions])
            if outcome.error is not None:
                return outcome
            found = outcome.value
            if not isinstance(found, Mapping):
                return Outcome(
                    error=TypeError(
                        "get_or_set_many: load must return a mapping {key: value}, got "
                        f"{type(found).__name__}"
                    )
                )
            return Outcome({i: found[keys[i]] for i in positions if keys[i] in found})

        places = [self.place(key) for key in keys]
        outcomes = await read_many(
            self.parts.reader, world, recipe, places, [labels] * len(places), load_many
        )
        answer = {}
        for key, outcome in zip(keys, outcomes, strict=True):
            if outcome.error is not None:
                return outcome
            if outcome.value is not MISSING:
                answer[key] = outcome.value
        return Outcome(answer)

    async def touch(self, world: AnyWorld, key: str, ttl: Ttl | Missing) -> bool:
        """Read and write again under the refresh lease, so that a racing invalidation wins."""
        parts = self.parts
        place = self.place(key)
        policy = self._with(ttl)
        verdict, entry = parts.near.find(place)
        far = parts.far
        if far is None:
            if entry is None or verdict is Verdict.MISS:
                return False
            span = policy.spans(entry.value, 0.0, parts.runtime.uniform)
            if span is None:
                await parts.invalidator.invalidate(world, [place])
                return True
            return parts.near.touch(place, span)
        try:
            deadline = far.deadline(world)
            (found,) = await far.read(world, [key], [()], parts.codec, deadline)
            if not found.readable:
                return False
            span = policy.spans(found.value, 0.0, parts.runtime.uniform)
            if span is None:
                await parts.invalidator.invalidate(world, [place])
                return True
            right = await far.acquire(
                world, key, found, found.tags, policy.lease, True, None, deadline
            )
            if not isinstance(right, Right):
                return False
            # What was read before may be gone by now: read again, under the token.
            (now,) = await far.read(world, [key], [()], parts.codec, deadline)
            if not (
                now.readable
                and now.state is SlotState.REFRESHING
                and now.stamp == found.stamp
                and now.space is not None
            ):
                await far.release(world, key, right.token, deadline)
                return False
            nonces = {tag: nonce for tag in now.tags if (nonce := now.nonces[tag]) is not None}
            right = Right(right.token, now.space, nonces, now.row)
            data = far.packer.pack(key, now.value, parts.codec, span, 0.0, right, now.row)
            kept = await far.fill(world, key, right, data, span, deadline)
            parts.near.kill([place])  # its own copy has the old ttl
            return kept
        except BackendError:
            if parts.reader.strict:
                raise
            return False

    async def invalidate(self, world: AnyWorld, keys: Iterable[str], tags: Iterable[str]) -> None:
        places = [self.place(key) for key in listed(keys, "keys")]
        await self.parts.invalidator.invalidate(world, places, self.labels(tags))

    async def emit(self, world: AnyWorld, event: Any) -> list[str]:
        """Invalidate what an event makes outdated, here and by the maps of other processes."""
        events = self.parts.events
        tags = events.tags_of(event)
        if tags:
            await self.invalidate(world, (), tags)
        await events.share(world, event, tags)
        return tags

    def _with(self, ttl: Ttl | Missing) -> Policy:
        """The cache's policy, with this ttl if one was given."""
        policy = self.parts.policy
        return policy if isinstance(ttl, Missing) else policy.but(ttl=Policy.make(ttl=ttl).ttl)

    def labels(self, tags: Iterable[str]) -> tuple[str, ...]:
        given = listed(tags, "tags")
        return tuple(dict.fromkeys(keytext.tag_name(tag) for tag in given))


def listed(given: Iterable[str], what: str) -> list[str]:
    if isinstance(given, str):
        raise TypeError(f"{what} must be a list of str, got one str")
    return list(given)
