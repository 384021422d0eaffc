"""Plausible mistakes, each put into the real code for a while: the checker must see every one.

Each is what a simpler design does, and each has a counterexample; what never failed here would
mean that the checker looks away.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

from backends import SteppedSlots

from cachekit.coherence import Coherence
from cachekit.core.flights import Flight
from cachekit.core.near import Near
from cachekit.core.policy import Span
from cachekit.direct import Direct
from cachekit.errors import BackendError
from cachekit.invalidation import Invalidator
from cachekit.packing import Right
from cachekit.strategies.filling import Filler
from cachekit.strategies.loading import Loader
from cachekit.strategies.reader import Reader
from cachekit.strategies.writer import Writer
from cachekit.tiers import Far


@contextmanager
def replaced(owner: Any, name: str, new: Any) -> Iterator[None]:
    old = owner.__dict__[name]
    setattr(owner, name, new)
    try:
        yield
    finally:
        setattr(owner, name, old)


class Plain(SteppedSlots):
    """Nothing weakened."""


class DeletesInsteadOfBlocking(SteppedSlots):
    """A writer deletes the key before and after it writes the source, and stores what it wrote."""

    async def seize(self, keys: Any, writer: bytes, lease: float, deadline: Any) -> None:
        await self.void(keys, deadline)

    async def end(self, keys: Any, writer: bytes, deadline: Any) -> None:
        await self.void(keys, deadline)

    async def commit(self, key: str, writer: bytes, data: bytes, ttl: Any, deadline: Any) -> Any:
        return await self.put(key, writer, data, ttl, deadline)


class FillsWithoutToken(SteppedSlots):
    """A loader stores its value whatever happened meanwhile."""

    async def fill(self, key: str, token: bytes, data: bytes, ttl: Any, deadline: Any) -> Any:
        return await self.put(key, token, data, ttl, deadline)


class CountsTags(SteppedSlots):
    """A tag's nonce is a counter that begins at one, wherever it is missing."""

    async def nonces(self, keys: Any, tags: Any, fresh: Any, ttl: Any, deadline: Any) -> Any:
        spaces = await super().nonces(keys, [], fresh, ttl, deadline)
        first = (1).to_bytes(16, "big")
        counted = await super().nonces([], tags, lambda: first, ttl, deadline)
        return spaces._replace(tags=counted.tags)

    async def drop_tags(self, tags: Any, deadline: Any) -> None:
        for tag in tags:
            (old,) = (await self.inner.read([], [tag], deadline)).nonces
            await super().drop_tags([tag], deadline)
            if old is not None and not deadline.passed():
                new = (int.from_bytes(old, "big") + 1).to_bytes(16, "big")
                await self.inner.nonces([], [tag], lambda new=new: new, None, deadline)


@contextmanager
def nonces_after_the_load() -> Iterator[None]:
    """The loader reads the nonces when it stores, not before it loads."""
    prepare = Filler.prepare

    async def late(self: Any, world: Any, job: Any, value: Any, *given: Any, **more: Any) -> Any:
        *rest, right = given
        key = job.place.text
        if right is not None and self.far is not None and key is not None:
            deadline = self.far.deadline(world)
            with suppress(BackendError):
                again = await self.far.nonces(world, key, job.tags, right.token, None, deadline)
                right = right if again is None else again
        return await prepare(self, world, job, value, *rest, right, **more)

    with replaced(Filler, "prepare", late):
        yield


@contextmanager
def nonces_after_the_write() -> Iterator[None]:
    """The writer reads the nonces when it stores, not before it writes the source."""
    commit = Writer._commit

    async def late(
        self: Any,
        world: Any,
        far: Any,
        recipe: Any,
        target: Any,
        right: Any,
        *rest: Any,
        **more: Any,
    ) -> Any:
        key = target.place.text or ""
        with suppress(BackendError):
            right = await far.nonces(world, key, target.tags, rest[0], None, far.deadline(world))
        return await commit(self, world, far, recipe, target, right, *rest, **more)

    with replaced(Writer, "_commit", late):
        yield


@contextmanager
def near_without_generations() -> Iterator[None]:
    """The near tier stores whatever it is given."""
    store = Near.store

    def careless(self: Any, place: Any, value: Any, span: Any, **given: Any) -> bool:
        given.update(flight=None, seq=self.seq)
        return store(self, place, value, span, **given)

    with replaced(Near, "store", careless):
        yield


@contextmanager
def joiners_take_anything() -> Iterator[None]:
    """Whoever waited for a load takes its value, however late he came."""
    land = Flight.land

    def always(self: Any, value: Any = None, error: Any = None, *, certain: bool = True) -> None:
        land(self, value, error)

    with replaced(Flight, "land", always):
        yield


@contextmanager
def flights_survive_invalidation() -> Iterator[None]:
    """An invalidation leaves the loads alone that are under way."""
    with replaced(Invalidator, "detach_flights", lambda self, places, tags: None):
        yield


@contextmanager
def touch_trusts_its_first_read() -> Iterator[None]:
    """A touch stores what it read before it had the right to."""

    async def touch(self: Any, world: Any, key: str, ttl: Any) -> bool:
        far, codec = self.parts.far, self.parts.codec
        policy = self._with(ttl)
        with suppress(BackendError):
            deadline = far.deadline(world)
            (found,) = await far.read(world, [key], [()], codec, deadline)
            if not found.readable:
                return False
            right = await far.acquire(
                world, key, found, found.tags, policy.lease, True, None, deadline
            )
            if isinstance(right, Right):
                span = policy.spans(found.value, 0.0, lambda: 0.5)
                data = far.packer.pack(key, found.value, codec, span, 0.0, right)
                return bool(await far.fill(world, key, right, data, span, deadline))
        return False

    with replaced(Direct, "touch", touch):
        yield


@contextmanager
def unseen_loads_are_kept() -> Iterator[None]:
    """What was loaded while the far tier was away counts as told of by the bus."""
    span = Coherence.span

    def trusting(self: Any, it: Any, grace: float, asked: float, told: bool = True) -> Any:
        return span(self, it, grace, asked)

    with replaced(Coherence, "span", trusting):
        yield


@contextmanager
def nothing_is_owed() -> Iterator[None]:
    """A write that was interrupted, or could not tell of itself, leaves it at that."""
    with replaced(Invalidator, "owe", lambda self, places, tags: self.detach(places, tags)):
        yield


@contextmanager
def refreshes_leave_older_loads() -> Iterator[None]:
    """A forced refresh loads beside another's load, and leaves it the right to fill."""
    refresh, void = Reader.refresh, Far.void
    refreshing: ContextVar[bool] = ContextVar("refreshing", default=False)

    async def polite(self: Any, world: Any, job: Any) -> Any:
        token = refreshing.set(True)
        try:
            return await refresh(self, world, job)
        finally:
            refreshing.reset(token)

    async def unless_refreshing(self: Any, *given: Any) -> None:
        if not refreshing.get():
            await void(self, *given)

    with replaced(Reader, "refresh", polite), replaced(Far, "void", unless_refreshing):
        yield


@contextmanager
def loads_forget_how_they_began() -> Iterator[None]:
    """A load is kept if no block stands at its end, whatever stood when it began."""
    with replaced(Loader, "guard", lambda self, flight, job: None):
        yield


@contextmanager
def grace_beyond_the_bound() -> Iterator[None]:
    """A near copy that is trusted for a bound is served in grace when that is over."""
    span = Coherence.span

    def kind(self: Any, it: Any, grace: float, asked: float, told: bool = True) -> Any:
        found = span(self, it, grace, asked, told)
        return found if found is None else Span(found.fresh, found.fresh + grace)

    with replaced(Coherence, "span", kind):
        yield


@contextmanager
def nothing() -> Iterator[None]:
    yield


TAGGED = {"tagging": "declared", "plays": ("tell tag",), "rate": 0.0}
WRITTEN = {"tagging": "declared", "plays": ("tell tag", "put"), "rate": 0.0}
EVICTED = {"tagging": "declared", "plays": ("tell tag",), "faults": ("evict",), "rate": 0.1}
LOADED = {"tagging": "none", "plays": ("tell key",), "rate": 0.0, "keys": 1}

TOUCHED = {"plays": ("touch", "tell key", "tell tag"), "rate": 0.0}
AWAY = {"plays": ("put", "tell key"), "faults": ("away",), "rate": 0.1}
CANCELLED = {"plays": ("put",), "faults": ("cancel", "away"), "rate": 0.1, "keys": 1}

REFRESHED = {"tagging": "none", "plays": ("refresh", "call refresh", "bare"), "rate": 0.0}
BEYOND = {"plays": ("tell key",), "faults": ("away", "time"), "rate": 0.15, "grace": True}
LATE = {
    "tagging": "none",
    "plays": ("put",),
    "faults": ("time",),
    "rate": 0.15,
    "keys": 1,
    "silent": 0.5,
}
OLDER = {"tagging": "none", "plays": ("key", "tell key"), "rate": 0.0, "trust": True}

# name -> (backend whose schedules shall see it, slots, what is replaced in the code, where to look)
NAIVE: dict[str, tuple[str, type[SteppedSlots], Any, dict[str, Any]]] = {
    "nonces after the load": ("far", Plain, nonces_after_the_load, TAGGED),
    "nonces after the write": ("far", Plain, nonces_after_the_write, WRITTEN),
    "delete instead of block": ("memory", DeletesInsteadOfBlocking, nothing, {}),
    "fill without token": ("far", FillsWithoutToken, nothing, LOADED),
    "tags counted": ("far", CountsTags, nothing, EVICTED),
    "near without generations": ("tiered", Plain, near_without_generations, {}),
    "joiners take anything": ("far", Plain, joiners_take_anything, LOADED),
    "touch trusts its first read": ("far", Plain, touch_trusts_its_first_read, TOUCHED),
    "unseen loads are kept": ("push", Plain, unseen_loads_are_kept, AWAY),
    "nothing is owed": ("far", Plain, nothing_is_owed, CANCELLED),
    "refreshes leave older loads": ("far", Plain, refreshes_leave_older_loads, REFRESHED),
    "loads forget how they began": ("embedded", Plain, loads_forget_how_they_began, LATE),
    "grace beyond the bound": ("bound", Plain, grace_beyond_the_bound, BEYOND),
    "run ids ignored": ("redis restarts", Plain, nothing, OLDER),
    "flights survive": ("embedded", Plain, flights_survive_invalidation, {}),
}
