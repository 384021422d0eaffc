"""The one write path: source first, cache second, and nothing old can come back in between.

Textbooks write "cache, then database" for write-through. Then a failed database write leaves a
value in the cache that never was in the source, and two racing writers can leave the cache with
one value and the source with the other. So here a writer first *blocks* the key (nobody can
fill), writes the source, and fills only if it was alone all the time (protocols, section 1).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from ..core.near import Near
from ..core.outcome import Outcome
from ..core.place import Place
from ..core.policy import Span
from ..errors import BackendError
from ..invalidation import Invalidator
from ..observe import Meter
from ..packing import Right
from ..runtime import AnyWorld, Runtime
from ..tiers import Far
from .filling import Filler
from .job import Recipe

# PEP 249: "an unexpected disconnect occurs, ... a transaction could not be processed": such an
# error says nothing about whether the write landed. Known by name, whatever the driver.
_UNKNOWN_BY_NAME = frozenset({"OperationalError", "InterfaceError"})

Action = Callable[[AnyWorld], Awaitable[Outcome]]


class Target(NamedTuple):
    """One key of a write: its place, and the value and tags to fill it with (if any)."""

    place: Place
    value: Any = None
    tags: tuple[str, ...] = ()


class Written(NamedTuple):
    """What a write did. ``result`` is what the source's function returned; ``pending`` says that
    the far tier could not be told yet: it is queued, and other processes may still see the old
    value until it is back."""

    result: Any = None
    pending: bool = False


def outcome_unknown(error: BaseException) -> bool:
    """Whether a source's error leaves open if the write took place (or will, later)."""
    return isinstance(error, (TimeoutError, ConnectionError)) or any(
        cls.__name__ in _UNKNOWN_BY_NAME for cls in type(error).__mro__
    )


class Writer:
    """Writes to the source of one cache's strategies."""

    def __init__(
        self,
        runtime: Runtime,
        near: Near,
        far: Far | None,
        invalidator: Invalidator,
        filler: Filler,
        meter: Meter,
        *,
        strict: bool,
    ) -> None:
        self.runtime = runtime
        self.near = near
        self.far = far
        self.invalidator = invalidator
        self.filler = filler
        self.meter = meter
        self.strict = strict

    async def around(
        self,
        world: AnyWorld,
        recipe: Recipe,
        targets: Sequence[Target],
        action: Action,
        *,
        fill: bool,
        drop: Sequence[str] = (),
    ) -> Outcome:
        """Block the keys, write the source, then fill them (``fill``) or leave them empty;
        ``drop`` are tags to invalidate afterwards. The outcome's value is a :class:`Written`.

        Source said no: the keys end empty. Outcome unknown (timeout, lost connection,
        cancellation): the blocks stay and expire after ``policy.write_lease``, so that a write
        that lands late can not leave the older value behind. Far tier away before the write:
        strict raises and the source is not touched; else the source is written and the
        invalidation is queued."""
        places = [target.place for target in targets]
        writer = self.runtime.token()
        lease = recipe.policy.write_lease
        self.near.seize(places, writer, lease)
        self._detach(places)
        seq, asked = self.near.seq, self.runtime.clock()
        far, rights = self.far, None
        if far is not None:
            try:
                rights = await self._seize(world, far, recipe, targets, writer, fill=fill)
            except BackendError as error:
                if self.strict:
                    self._leave(places, writer)
                    return Outcome(error=error)
        outcome = await action(world)
        try:
            return await self._finish(
                world, recipe, targets, outcome, rights, writer, seq, asked, fill=fill, drop=drop
            )
        except BaseException:
            # Cancelled after the source was called: nothing older may stay anywhere.
            self.invalidator.owe(places, drop)
            raise

    async def _finish(
        self,
        world: AnyWorld,
        recipe: Recipe,
        targets: Sequence[Target],
        outcome: Outcome,
        rights: dict[Any, Right | None] | None,
        writer: bytes,
        seq: int,
        asked: float,
        *,
        fill: bool,
        drop: Sequence[str],
    ) -> Outcome:
        places = [target.place for target in targets]
        keys = [place.text for place in places if place.text is not None]
        far = self.far
        if outcome.error is not None:
            if not outcome_unknown(outcome.error):
                await self._end(world, far, keys, writer)
                self._leave(places, writer)
            if drop:
                await self._drop(world, drop)
            return outcome
        pending = False
        if far is None:
            if fill:
                for target in targets:
                    self._keep(recipe, target, seq, writer)
        elif rights is None:
            self.invalidator.postpone([("key", key) for key in keys])
            pending = True
        elif fill:
            for target in targets:
                right = rights.get(target.place.ident)
                await self._commit(world, far, recipe, target, right, writer, seq, asked=asked)
        else:
            await self._end(world, far, keys, writer)
        self._leave(places, writer)
        if drop:
            pending = await self._drop(world, drop) or pending
        return Outcome(Written(outcome.value, pending))

    async def then_void(
        self,
        world: AnyWorld,
        places: Sequence[Place],
        action: Action,
        *,
        lease: float,
        drop: Sequence[str] = (),
    ) -> Outcome:
        """Write the source, then invalidate: one trip less than :meth:`around`. A process killed
        between the two leaves the old value until its ttl. Invalidates also after an error; an
        unknown outcome leaves a block for ``lease`` seconds."""
        try:
            outcome = await action(world)
        except GeneratorExit:
            raise
        except BaseException:
            # Cancelled or interrupted; to block first costs at most the far tier's budget.
            await self._block(world, places, lease)
            raise
        if outcome.error is not None and outcome_unknown(outcome.error):
            await self._block(world, places, lease)
        before = len(self.invalidator.pending)
        self.invalidator.detach(places, drop)
        try:
            await self.invalidator.tell(
                world, [p.text for p in places if p.text is not None], drop, replay=True
            )
        except BaseException:
            self.invalidator.owe(places, drop)
            raise
        self.invalidator.detach(places, drop)
        if outcome.error is not None:
            return outcome
        return Outcome(Written(outcome.value, len(self.invalidator.pending) > before))

    async def _block(self, world: AnyWorld, places: Sequence[Place], lease: float) -> None:
        """Nobody fills these keys for ``lease`` seconds: a write of theirs may still land."""
        writer = self.runtime.token()
        self.near.seize(places, writer, lease)
        self._detach(places)
        keys = [place.text for place in places if place.text is not None]
        if self.far is None or not keys:
            return
        try:
            await self.far.seize(world, keys, writer, lease, self.far.deadline(world))
        except BackendError:
            self.invalidator.postpone([("key", key) for key in keys])

    async def _seize(
        self,
        world: AnyWorld,
        far: Far,
        recipe: Recipe,
        targets: Sequence[Target],
        writer: bytes,
        *,
        fill: bool,
    ) -> dict[Any, Right | None]:
        deadline = far.deadline(world)
        keys = [t.place.text or "" for t in targets]
        await far.seize(world, keys, writer, recipe.policy.write_lease, deadline)
        rights: dict[Any, Right | None] = {}
        if fill:
            for target, key in zip(targets, keys, strict=True):
                # Before the source is written: nonces read later would hide an invalidation.
                rights[target.place.ident] = await far.nonces(
                    world, key, target.tags, writer, None, deadline
                )
        return rights

    async def _commit(
        self,
        world: AnyWorld,
        far: Far,
        recipe: Recipe,
        target: Target,
        right: Right | None,
        writer: bytes,
        seq: int,
        *,
        asked: float,
    ) -> None:
        place, key = target.place, target.place.text or ""
        span = self.filler.span(recipe.policy, target.value, 0.0, recipe.name)
        data = None
        if span is not None and right is not None:
            data = self.filler.encode(
                far, place, target.value, recipe.codec, span, 0.0, right, recipe.name
            )
        if span is None or right is None or data is None:
            await self._end(world, far, [key], writer)
            return
        try:
            kept = await far.commit(world, key, right, data, span, far.deadline(world))
        except BackendError:
            return  # the block stands until it expires
        if kept:
            self._keep(recipe, target, seq, writer, asked=asked)
        else:
            self.meter.count("fills_refused")

    def _keep(
        self,
        recipe: Recipe,
        target: Target,
        seq: int,
        writer: bytes,
        *,
        asked: float | None = None,
    ) -> None:
        span: Span | None = self.filler.span(recipe.policy, target.value, 0.0, recipe.name)
        if span is not None:
            self.filler.keep_near(
                target.place, target.value, span, target.tags, seq, None, writer, asked=asked
            )

    async def _end(
        self, world: AnyWorld, far: Far | None, keys: Sequence[str], writer: bytes
    ) -> None:
        if far is None or not keys:
            return
        try:
            await far.end(world, keys, writer, far.deadline(world))
        except BackendError:
            return  # the block expires by itself

    async def _drop(self, world: AnyWorld, tags: Sequence[str]) -> bool:
        """Invalidate tags, queued where the far tier is away; says whether it is pending."""
        before = len(self.invalidator.pending)
        self.invalidator.detach((), tags)
        await self.invalidator.tell(world, (), tags, replay=True)
        self.invalidator.detach((), tags)
        return len(self.invalidator.pending) > before

    def _detach(self, places: Sequence[Place]) -> None:
        for world in self.runtime.worlds():
            for place in places:
                world.flights.detach(place.ident)

    def _leave(self, places: Sequence[Place], writer: bytes) -> None:
        # Loads that began while the source was being written may have read the old value.
        self._detach(places)
        self.near.end(places, writer)
