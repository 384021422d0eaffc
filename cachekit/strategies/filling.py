"""What happens with a loaded value: far tier under the lease, then near tier, or nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core.flights import Flight
from ..core.near import Near
from ..core.place import Place
from ..core.policy import Policy, Span
from ..errors import BackendError, CodecError
from ..observe import Meter
from ..packing import Right
from ..protocols import Codec
from ..runtime import AnyWorld, Runtime
from ..tiers import Far

if TYPE_CHECKING:
    from .reader import Job


class Filler:
    """Fills the tiers of one cache. ``bound``: how many seconds a near copy of a shared entry is
    trusted (None = its whole life)."""

    def __init__(
        self,
        runtime: Runtime,
        near: Near,
        far: Far | None,
        meter: Meter,
        *,
        bound: float | None,
        strict: bool,
    ) -> None:
        self.runtime = runtime
        self.near = near
        self.far = far
        self.meter = meter
        self.bound = bound
        self.strict = strict

    def span(self, policy: Policy, value: Any, cost: float, name: str) -> Span | None:
        """How long to keep a value; None = not at all. A ttl function that fails keeps nothing:
        the value still reaches the caller."""
        try:
            return policy.spans(value, cost, self.runtime.uniform)
        except Exception as error:
            self.meter.event("ttl_errors", function=name, error=type(error).__name__)
            self.meter.warn_once(
                f"ttl {name}", "%s: its ttl function failed, nothing is cached: %r", name, error
            )
            return None

    def keep_near(
        self,
        place: Place,
        value: Any,
        span: Span,
        tags: tuple[str, ...],
        seq: int,
        flight: Flight | None,
        writer: object | None = None,
    ) -> bool:
        bound = self.bound
        if self.far is not None and bound is not None:
            if bound <= 0:
                return False
            span = Span(min(span.fresh, bound), span.kept)
        return self.near.store(place, value, span, tags=tags, seq=seq, flight=flight, writer=writer)

    def encode(
        self,
        far: Far,
        place: Place,
        value: Any,
        codec: Codec,
        span: Span,
        cost: float,
        right: Right,
        name: str,
    ) -> bytes | None:
        """The entry's bytes; None for a value that can not be stored exactly (counted)."""
        try:
            return far.packer.pack(place.text or "", value, codec, span, cost, right)
        except CodecError as error:
            self.meter.event("refused_values", function=name)
            self.meter.warn_once(f"codec {name}", "%s: not cached: %s", name, error)
        except Exception as error:
            self.meter.event("refused_values", function=name)
            self.meter.warn_once(f"codec {name}", "%s: not cached: %r", name, error)
        return None

    async def fill(
        self,
        world: AnyWorld,
        job: Job,
        value: Any,
        cost: float,
        flight: Flight,
        seq: int,
        right: Right | None,
        tags: tuple[str, ...],
        *,
        local: bool,
    ) -> bool:
        """Keep a loaded value where that is allowed.

        False: an invalidation elsewhere may have passed this load by, so callers that joined
        after it began must not take its value. ``local``: there is no far tier, or it is away,
        and this process's own generations decide."""
        recipe, place = job.recipe, job.place
        span = self.span(recipe.policy, value, cost, recipe.name)
        discovered: tuple[str, ...] = ()
        if recipe.discovery is not None and span is not None:
            try:
                discovered = tuple(dict.fromkeys(recipe.discovery.tags_of(value)))
            except Exception as error:
                self.meter.event("tag_errors", function=recipe.name)
                self.meter.warn_once(
                    f"tags {recipe.name}", "%s: its tags failed, not cached: %r", recipe.name, error
                )
                span = None
        if span is None:
            if right is not None:
                await self.give_back(world, place, right)
            return True
        own = tuple(dict.fromkeys((*job.tags, *discovered)))
        if local:
            self.keep_near(place, value, span, own, seq, flight)
            return True
        if right is None or self.far is None or place.text is None:
            return False
        far, key = self.far, place.text
        unknown = [tag for tag in own if tag not in right.nonces]
        if unknown:
            if recipe.discovery is not None:
                await recipe.discovery.remember(
                    world, far, key, own, span.kept + 60.0 if span.kept < 1e9 else None
                )
            await self.give_back(world, place, right)
            return False
        right = right._replace(nonces={tag: right.nonces[tag] for tag in own})
        data = self.encode(far, place, value, recipe.codec, span, cost, right, recipe.name)
        if data is None:
            await self.give_back(world, place, right)
            return False
        deadline = far.deadline(world)
        try:
            if not await far.fill(world, key, right, data, span, deadline):
                self.meter.count("fills_refused")
                return False
            if flight.joined and not await far.holds(world, key, right, deadline):
                return False
        except BackendError:
            return not flight.detached
        self.keep_near(place, value, span, own, seq, flight)
        return True

    def give_back_behind(self, world: AnyWorld, place: Place, right: Right | None) -> None:
        """The same in the background, for a caller that is being cancelled."""
        if right is not None:
            world.spawn(lambda: self.give_back(world, place, right), "give back a lease")

    async def give_back(self, world: AnyWorld, place: Place, right: Right) -> None:
        """Release the lease without a value."""
        far = self.far
        if far is None or place.text is None:
            return
        try:
            await far.release(world, place.text, right.token, far.deadline(world))
        except BackendError:
            return  # it ends by itself
