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
from .intent import Intent, outcome_unknown
from .job import Recipe, nonce_life

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
        intent = self.intent([t.place for t in targets], drop, recipe.policy.write_lease)
        seq, asked = self.near.seq, self.runtime.clock()
        rights: dict[Any, Right | None] = {}
        try:
            await intent.enter(world)
            if fill and self.far is not None:
                rights = await self._rights(world, self.far, recipe, targets, intent.writer)
        except BackendError as error:
            if self.strict:
                await intent.leave(world)
                return Outcome(error=error)
        except BaseException:
            intent.leave_behind(world)
            raise
        try:
            outcome = await action(world)
        except BaseException:
            self._leave_open(intent)
            raise
        try:
            return await self._finish(
                world, recipe, targets, outcome, intent, rights, seq, asked, fill=fill
            )
        except BaseException:
            # Cancelled after the source was called: nothing older may stay anywhere.
            intent.owe()
            raise

    def intent(self, places: Sequence[Place], tags: Sequence[str], lease: float) -> Intent:
        """Blocks for a write of ``places`` that makes ``tags`` outdated."""
        return Intent(
            self.runtime, self.near, self.far, self.invalidator, places, tuple(tags), lease
        )

    async def _finish(
        self,
        world: AnyWorld,
        recipe: Recipe,
        targets: Sequence[Target],
        outcome: Outcome,
        intent: Intent,
        rights: dict[Any, Right | None],
        seq: int,
        asked: float,
        *,
        fill: bool,
    ) -> Outcome:
        if outcome.error is not None:
            if outcome_unknown(outcome.error):
                self._leave_open(intent)
            else:
                await intent.leave(world)
            return outcome
        far, left = self.far, intent.keys
        if fill and far is None:
            for target in targets:
                self._keep(recipe, target, seq, intent.writer)
        elif fill and far is not None and intent.told:
            left = []
            for target in targets:
                right = rights.get(target.place.ident)
                if not await self._commit(
                    world, far, recipe, target, right, intent.writer, seq, asked=asked
                ):
                    left.append(target.place.text or "")
        told = await intent.leave(world, left)
        return Outcome(Written(outcome.value, not told))

    def _leave_open(self, intent: Intent) -> None:
        """The outcome is unknown: the blocks stay, where there are any, until their lease ends."""
        self.invalidator.detach(intent.places, intent.tags)
        if not intent.told:
            intent.owe()

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
            await self.block(world, places, drop, lease)
            raise
        if outcome.error is not None and outcome_unknown(outcome.error):
            await self.block(world, places, drop, lease)
        self.invalidator.detach(places, drop)
        try:
            told = await self.invalidator.tell(
                world, [p.text for p in places if p.text is not None], drop, replay=True
            )
        except BaseException:
            self.invalidator.owe(places, drop)
            raise
        self.invalidator.detach(places, drop)
        if outcome.error is not None:
            return outcome
        return Outcome(Written(outcome.value, not told))

    async def block(
        self, world: AnyWorld, places: Sequence[Place], tags: Sequence[str], lease: float
    ) -> None:
        """Nobody fills these for ``lease`` seconds: a write of theirs may still land."""
        intent = self.intent(places, tags, lease)
        try:
            await intent.enter(world)
        except BackendError:
            intent.owe()
        except BaseException:
            intent.owe()
            raise

    async def _rights(
        self,
        world: AnyWorld,
        far: Far,
        recipe: Recipe,
        targets: Sequence[Target],
        writer: bytes,
    ) -> dict[Any, Right | None]:
        """Before the source is written: nonces read later would hide an invalidation."""
        deadline, life = far.deadline(world), nonce_life(recipe.policy)
        return {
            target.place.ident: await far.nonces(
                world, target.place.text or "", target.tags, writer, life, deadline
            )
            for target in targets
        }

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
    ) -> bool:
        """Fill over the own block; False where that is not possible and the block must be ended."""
        place, key = target.place, target.place.text or ""
        span = self.filler.span(recipe.policy, target.value, 0.0, recipe.name)
        data = None
        if span is not None and right is not None:
            data = self.filler.encode(
                far,
                place,
                target.value,
                recipe.codec,
                span,
                0.0,
                right,
                recipe.name,
                self.filler.row_version(recipe, target.value),
            )
        if span is None or right is None or data is None:
            return False
        try:
            kept = await far.commit(world, key, right, data, span, far.deadline(world))
        except BackendError:
            return False
        if kept:
            self._keep(recipe, target, seq, writer, asked=asked)
        else:
            self.meter.count("fills_refused")
        return True

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
