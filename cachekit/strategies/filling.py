"""What happens with a loaded value: far tier under the lease, then near tier, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..coherence import Coherence
from ..core.entry import INF, MISSING
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
from .discovery import MAX_TAGS

if TYPE_CHECKING:
    from .job import Job, Recipe


REMEMBER_LONGER = 60.0


class Ready(NamedTuple):
    """A loaded value, encoded and allowed to be filled."""

    place: Place
    key: str
    value: Any
    span: Span
    tags: tuple[str, ...]
    seq: int
    flight: Flight
    right: Right
    data: bytes
    grace: float
    asked: float  # when its nonces were read at the latest: as the load began


class Filler:
    """Fills the tiers of one cache."""

    def __init__(
        self,
        runtime: Runtime,
        near: Near,
        far: Far | None,
        meter: Meter,
        *,
        coherence: Coherence,
        strict: bool,
    ) -> None:
        self.runtime = runtime
        self.near = near
        self.far = far
        self.meter = meter
        self.coherence = coherence
        self.strict = strict
        # Whether a key has an unwritten value: newer than whatever was loaded.
        self.dirty: list[Callable[[Hashable], bool]] = []

    def span(self, policy: Policy, value: Any, cost: float, name: str) -> Span | None:
        """How long to keep a value; None = not at all. A ttl function that fails keeps nothing:
        the value still reaches the caller."""
        try:
            return policy.spans(value, cost, self.runtime.uniform)
        except Exception as error:
            self.meter.event("ttl_errors", function=name, error=type(error).__name__)
            self.meter.warn_once(
                f"ttl {name}",
                "%s: its ttl function failed with %s: nothing is cached",
                name,
                type(error).__name__,
            )
            return None

    def row_version(self, recipe: Recipe, value: Any) -> int | None:
        """The source's own version of a row, where the user said how to tell."""
        tell = recipe.policy.row_version
        if tell is None or value is None:
            return None
        try:
            version = tell(value)
        except Exception as error:
            self.meter.event("row_version_errors", function=recipe.name, error=type(error).__name__)
            return None
        return version if isinstance(version, int) and abs(version) < 2**63 else None

    def keep_near(
        self,
        place: Place,
        value: Any,
        span: Span,
        tags: tuple[str, ...],
        seq: int,
        flight: Flight | None,
        writer: object | None = None,
        *,
        grace: float = 0.0,
        asked: float | None = None,
        told: bool = True,
    ) -> bool:
        """Fill the near tier. ``asked``: when the far tier was asked for this value, or for the
        nonces it is stored with (None: it was not): since then others may have invalidated it."""
        near_span = self.coherence.span(span, grace, -INF if asked is None else asked, told)
        if near_span is None or any(is_dirty(place.ident) for is_dirty in self.dirty):
            return False
        return self.near.store(
            place, value, near_span, tags=tags, seq=seq, flight=flight, writer=writer
        )

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
        version: int | None = None,
    ) -> bytes | None:
        """The entry's bytes; None for a value that can not be stored exactly (counted)."""
        try:
            return far.packer.pack(place.text or "", value, codec, span, cost, right, version)
        except CodecError as error:
            self.meter.event("refused_values", function=name)
            self.meter.warn_once(f"codec {name}", "%s: not cached: %s", name, error)
        except Exception as error:
            self.meter.event("refused_values", function=name)
            self.meter.warn_once(
                f"codec {name}", "%s: not cached: its codec raised %s", name, type(error).__name__
            )
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
        *,
        local: bool,
    ) -> bool:
        """Keep a loaded value where that is allowed.

        False: an invalidation elsewhere may have passed this load by, so callers that joined
        after it began must not take its value. ``local``: there is no far tier, or it is away,
        and this process's own generations decide."""
        ready = await self.prepare(world, job, value, cost, flight, seq, right, local=local)
        if isinstance(ready, bool):
            return ready
        return (await self.store(world, [ready]))[0]

    async def prepare(
        self,
        world: AnyWorld,
        job: Job,
        value: Any,
        cost: float,
        flight: Flight,
        seq: int,
        right: Right | None,
        *,
        local: bool,
    ) -> Ready | bool:
        """All of :meth:`fill` but the far tier's part; the answer if there is none."""
        recipe, place = job.recipe, job.place
        if value is MISSING:  # a batch loader left it out: nothing to keep
            if right is not None:
                await self.give_back(world, place, right)
            return right is not None or local
        span = self.span(recipe.policy, value, cost, recipe.name)
        tags = job.tags
        if recipe.discovery is not None and span is not None:
            found = self._discovered(recipe, value)
            if found is None:
                span = None
            else:
                tags = tuple(dict.fromkeys((*tags, *found)))
        if span is None:
            if right is not None:
                await self.give_back(world, place, right)
            return True
        asked, grace = self.runtime.clock() - cost, recipe.policy.grace
        if local:
            self.keep_near(
                place, value, span, tags, seq, flight, grace=grace, asked=asked, told=False
            )
            return True
        far, key = self.far, place.text
        if right is None or far is None or key is None:
            return False
        if any(tag not in right.nonces for tag in tags):
            # Their nonces were not read before the load: next time they are.
            if len(tags) > MAX_TAGS:
                self.meter.event("tag_errors", function=recipe.name)
                self.meter.warn_once(
                    f"tags {recipe.name}",
                    "%s: a result with more than %d tags is not cached",
                    recipe.name,
                    MAX_TAGS,
                )
            elif recipe.discovery is not None:
                life = span.kept + REMEMBER_LONGER if span.kept < INF else None
                await recipe.discovery.remember(world, far, key, tags, life)
            await self.give_back(world, place, right)
            return False
        right = right._replace(nonces={tag: right.nonces[tag] for tag in tags})
        version = self.row_version(recipe, value)
        data = None
        if version is None or right.row is None or version >= right.row:
            data = self.encode(
                far, place, value, recipe.codec, span, cost, right, recipe.name, version
            )
        else:
            self.meter.count("fills_older")  # a lagging replica: what is there is newer
        if data is None:
            await self.give_back(world, place, right)
            return False
        return Ready(place, key, value, span, tags, seq, flight, right, data, grace, asked)

    async def store(self, world: AnyWorld, ready: Sequence[Ready]) -> list[bool]:
        """Fill the far tier, then the near one; False where a fill was refused."""
        far = self.far
        if far is None or not ready:
            return []
        deadline = far.deadline(world)
        try:
            if len(ready) == 1:
                (r,) = ready
                kept = [await far.fill(world, r.key, r.right, r.data, r.span, deadline)]
            else:
                kept = await far.fill_many(
                    world, [(r.key, r.right, r.data, r.span) for r in ready], deadline
                )
            for i, r in enumerate(ready):
                # Who joined after the load began also needs the tags to have stood still.
                if kept[i] and r.flight.joined:
                    kept[i] = await far.holds(world, r.key, r.right, deadline)
        except BackendError:
            # Filled or not, the replies are lost; a token that still stands must go.
            far.give_back_behind(world, [(r.key, r.right.token) for r in ready])
            return [not r.flight.detached and self.coherence.shares for r in ready]
        except BaseException:
            far.give_back_behind(world, [(r.key, r.right.token) for r in ready])
            raise
        for r, well in zip(ready, kept, strict=True):
            if well:
                self.keep_near(
                    r.place, r.value, r.span, r.tags, r.seq, r.flight, grace=r.grace, asked=r.asked
                )
            else:
                self.meter.count("fills_refused")
        return kept

    def _discovered(self, recipe: Recipe, value: Any) -> Sequence[str] | None:
        """The tags of a result; None if the user's function for them failed."""
        assert recipe.discovery is not None
        try:
            return recipe.discovery.tags_of(value)
        except Exception as error:
            self.meter.event("tag_errors", function=recipe.name)
            self.meter.warn_once(
                f"tags {recipe.name}",
                "%s: its tags failed with %s: not cached",
                recipe.name,
                type(error).__name__,
            )
            return None

    def give_back_behind(self, world: AnyWorld, place: Place, right: Right | None) -> None:
        """The same in the background, for a caller that is being cancelled."""
        if right is not None and self.far is not None and place.text is not None:
            self.far.give_back_behind(world, [(place.text, right.token)])

    async def give_back(self, world: AnyWorld, place: Place, right: Right) -> None:
        """Release the lease without a value."""
        far = self.far
        if far is None or place.text is None:
            return
        try:
            await far.release(world, place.text, right.token, far.deadline(world))
        except BackendError:
            far.give_back_behind(world, [(place.text, right.token)])
