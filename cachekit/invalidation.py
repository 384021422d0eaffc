"""Invalidation: keys, tags, namespaces and domain events end here, in one order.

Far tier first, then this process's near tier; running flights are detached before and after, so
that whoever arrives once an invalidation has returned starts a load of their own (protocols,
section 3).
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress

from .core.deadline import Deadline
from .core.eventcount import Flag
from .core.keys import physical
from .core.near import Near
from .core.notes import Note, NoteKind
from .core.place import Place
from .errors import BackendError, InvalidationFailed, PartUnavailable
from .observe import Meter, log
from .pending import SPACE, Name, Pending
from .protocols import Stream
from .runtime import AnyWorld, Runtime, drive
from .tiers import Far

LAST_TRY = 1.5
PART = 200  # keys or tags that are replayed in one step
Told = tuple[Sequence[Name], BackendError | None]  # what could not be told, and why


class Invalidator:
    """One cache's invalidations. ``replay``: queue what fails instead of raising."""

    def __init__(
        self,
        runtime: Runtime,
        near: Near,
        far: Far | None,
        meter: Meter,
        *,
        replay: bool,
        replay_log: str | None = None,
        stream: Stream | None = None,
    ) -> None:
        self.runtime = runtime
        self.near = near
        self.far = far
        self.meter = meter
        self.replay = replay
        self.pending = Pending(meter, replay_log)
        self.stream = stream
        self._closed = Flag()
        self._replaying = threading.Lock()

    async def invalidate(
        self,
        world: AnyWorld,
        places: Sequence[Place] = (),
        tags: Sequence[str] = (),
        *,
        replay: bool | None = None,
    ) -> None:
        """Keys and tags: once this returned, no read gives a value whose load began before.

        Raises InvalidationFailed when the far tier could not be told (unless queued; ``replay``
        in place of what the cache does)."""
        self.meter.count("invalidations", len(places) + len(tags))
        self.detach(places, tags)
        try:
            keys = [p.text for p in places if p.text is not None]
            await self.tell(world, keys, tags, replay=replay)
        finally:
            self.detach(places, tags)

    def detach(self, places: Sequence[Place], tags: Sequence[str]) -> None:
        """This process: flights lose the right to fill, near entries go."""
        self.detach_flights(places, tags)
        if places:
            self.near.kill(places)
        if tags:
            self.near.kill_tags(tags)

    def detach_flights(self, places: Sequence[Place], tags: Sequence[str]) -> None:
        """What is being loaded or read will not be kept, nor given to later callers."""
        for world in self.runtime.worlds():
            for place in places:
                world.flights.detach(place.ident)
            if tags:
                world.flights.detach_tagged(tags)

    def outdate(self, idents: Sequence[Hashable]) -> None:
        """The source has something newer, and so do near copies: what is being loaded, read or
        written by others now is not kept."""
        for world in self.runtime.worlds():
            for ident in idents if len(world.flights) else ():
                world.flights.detach(ident)
        self.near.writers.contest_each(idents)

    def hear(self, notes: Sequence[Note]) -> None:
        """What another process invalidated: this one follows."""
        for note in notes:
            if note.kind is NoteKind.KEY:
                for world in self.runtime.worlds():
                    world.flights.detach(note.name)
                self.near.kill_named(note.name)
            elif note.kind is NoteKind.TAG:
                self.detach((), (note.name,))
            else:
                self.forget_near()

    async def clear(self, world: AnyWorld) -> None:
        """The whole namespace, in O(1) on the far tier."""
        self.meter.count("clears")
        self.forget_near()
        try:
            if self.far is not None:
                await self._attempt(world, SPACE)
        finally:
            self.forget_near()

    def forget_near(self) -> None:
        """Drop this process's near copies; what is being loaded or read will not be kept."""
        for world in self.runtime.worlds():
            world.flights.detach_all()
        self.near.clear()

    async def tell(
        self,
        world: AnyWorld,
        keys: Sequence[str],
        tags: Sequence[str],
        *,
        replay: bool | None = None,
    ) -> bool:
        """The far tier's part of an invalidation; False if some of it could not be told and is
        queued: that alone, where a part of the far tier took the rest."""
        far = self.far
        if far is None or not (keys or tags):
            return True
        self.due((), ())
        named: list[list[Name]] = [[("key", k) for k in keys], [("tag", t) for t in tags]]
        untold, why = await self._carry_out_all(
            world, [names for names in named if names], far.deadline(world)
        )
        return why is None or self._failed(untold, why, self.replay if replay is None else replay)

    async def append(self, world: AnyWorld, payload: bytes) -> None:
        """An event for the maps of other processes: fails, or waits, as an invalidation does."""
        if self.far is not None and self.stream is not None:
            await self._attempt(world, ("event", payload))

    async def _attempt(self, world: AnyWorld, name: Name) -> None:
        untold, why = await self._carry_out(world, [name], None)
        if why is not None:
            self._failed(untold, why, self.replay)

    def _failed(self, names: Sequence[Name], error: BackendError, replay: bool) -> bool:
        """Queue what could not be told, or raise: False then, and never True."""
        self.meter.event("invalidations_failed", count=len(names))
        if replay:
            self.postpone(names)
            return False
        what = ", ".join(kind if kind == "event" else f"{kind} {n!r}" for kind, n in names[:3])
        raise InvalidationFailed(
            f"could not invalidate {what}: {error}; other processes may still see the old "
            'value. Try again, or use Cache(invalidation="replay")',
            backend=error.backend,
            operation="invalidate",
        ) from error

    def due(self, keys: Iterable[str] | None = None, tags: Iterable[str] = ()) -> bool:
        """Whether anything must be replayed before these keys and tags are read from the far tier
        (None: before anything is). The tags of an entry that is found are the reader's to look
        at: ``Pending.owed``, and ``settled`` from before the read."""
        if self.pending.load():
            self.postpone(())  # what another process left behind
        if keys is None or not self.pending.blocking:
            return self.pending.blocking
        return bool(self.pending.owed(keys, tags))

    def postpone_clear(self) -> None:
        """Invalidate the namespace in the background; until then all counts as missing here."""
        if self.far is not None:
            self.postpone([SPACE])

    def postpone(self, names: Sequence[Name]) -> None:
        """Queue for replay; a background thread replays until nothing is pending."""
        self.pending.add(names)
        if self._replaying.acquire(blocking=False):
            began = False
            try:
                began = self.runtime.background(self._replay)
            finally:
                if not began:
                    self._rest()

    def _rest(self) -> None:
        with suppress(RuntimeError):  # it was interrupted, and its thread ran all the same
            self._replaying.release()

    def withdraw(self, names: Iterable[Name]) -> None:
        """Queued names of keys that are not to be told any more, as far as they were not yet."""
        owed = self.pending.owed([name for _, name in names], ())
        owed.pop(SPACE, None)
        self.pending.done(owed)

    def owe(self, places: Sequence[Place], tags: Sequence[str]) -> None:
        """Make an invalidation certain for a caller that is being cancelled: this process now,
        the far tier in the background."""
        self.detach(places, tags)
        names = [("key", p.text) for p in places if p.text is not None]
        names += [("tag", tag) for tag in tags]
        if self.far is not None and names:
            self.postpone(names)

    def _replay(self) -> None:
        try:
            wait = 0.1
            while self._at_work() and not self._closed.wait(wait):
                left = len(self.pending)
                try:
                    self.pending.sync()
                    drive(self.settle(self.runtime.threads, events=True))
                except BackendError:
                    wait = 0.1 if len(self.pending) < left else min(wait * 2, 1.0)
                except Exception:  # ours, and a defect: the rest must still be told
                    log.exception("replaying invalidations failed; it is tried again")
                    wait = 1.0
        finally:
            self._rest()
        if self._at_work() and not self._closed.is_set:
            self.postpone(())  # it came after the last look and took this thread for at work

    def _at_work(self) -> bool:
        return len(self.pending) > 0 or self.pending.lagging

    def reset_after_fork(self) -> None:
        """The child replays what was pending by itself, at its next call."""
        self.pending.reset_after_fork()
        self._replaying = threading.Lock()

    def close(self, timeout: float = LAST_TRY) -> int:
        """Stop replaying, after trying for at most ``timeout`` seconds: long enough for a breaker
        to let a probe through. Says how many invalidations never reached the far tier."""
        self._closed.set()
        end = self.runtime.clock() + min(timeout, LAST_TRY)
        self.pending.sync()
        while len(self.pending):
            try:
                drive(self.settle(self.runtime.threads, events=True))
            except BackendError:
                if self.runtime.clock() >= end:
                    self.meter.event("invalidations_lost", count=len(self.pending))
                    break
                self.runtime.sleep(0.05)
        self.pending.sync()
        left = len(self.pending)
        self.pending.close()
        return left

    async def settle(
        self,
        world: AnyWorld,
        deadline: Deadline | None = None,
        *,
        keys: Iterable[str] | None = None,
        tags: Iterable[str] = (),
        events: bool = False,
    ) -> None:
        """Carry out what is pending for these keys and tags (None: all that is), part by part.

        What one part of the far tier can not take does not stop the rest; raises BackendError at
        the end if anything is left. Within ``deadline`` in all, or with a budget of its own for
        each part. ``events`` too: those can wait, since no read of this process depends on them."""
        if self.far is None:
            return
        taken = self.pending.take() if keys is None else self.pending.owed(keys, tags)
        _, why = await self._carry_out_all(world, _parts(taken, events), deadline, taken)
        if why is not None:
            raise why

    async def _carry_out_all(
        self,
        world: AnyWorld,
        parts: Iterable[Sequence[Name]],
        deadline: Deadline | None,
        taken: Mapping[Name, int] | None = None,
    ) -> Told:
        """The parts one after the other; ``taken``: they are pending, and done with where told."""
        left: list[Name] = []
        first: BackendError | None = None
        for part in parts:
            if part[0][0] == "event" and left and left[-1][0] == "event":
                untold: Sequence[Name] = part  # others hear them in their order
            elif first is not None and deadline is not None and deadline.passed():
                untold = part
            else:
                untold, why = await self._carry_out(world, part, deadline)
                first = first or why
            left += untold
            if taken is not None and len(untold) < len(part):
                kept = set(untold)
                told = {name: taken[name] for name in part if name not in kept}
                self.pending.done(told)
                self.meter.count("invalidations_replayed", len(told))
        return left, first

    async def _carry_out(
        self, world: AnyWorld, part: Sequence[Name], deadline: Deadline | None
    ) -> Told:
        """Tell the far tier of names of one kind."""
        far, kind = self.far, part[0][0]
        assert far is not None
        until = deadline or far.deadline(world)
        try:
            if kind == "space":
                await far.drop_space(world, until)
            elif kind == "key":
                await far.void(world, [name for _, name in part], until)
            elif kind == "tag":
                await far.drop_tags(world, [name for _, name in part], until)
            elif self.stream is not None:
                await far.append(world, self.stream, part[0][1], until)
        except BackendError as error:
            return _untold(part, error), error
        return (), None


def _untold(part: Sequence[Name], error: BackendError) -> Sequence[Name]:
    """All of a part, unless the error names those that lie where nobody answers: all others were
    told then."""
    if isinstance(error, PartUnavailable):
        lost = [
            (kind, name)
            for kind, name in part
            if (kind == "key" and physical(name) in error.keys)
            or (kind == "tag" and name in error.tags)
        ]
        return lost or part
    return part


def _parts(names: Iterable[Name], events: bool) -> Iterator[list[Name]]:
    """What is carried out, and done with, together."""
    kinds: dict[str, list[Name]] = {"space": [], "key": [], "tag": [], "event": []}
    for name in names:
        kinds[name[0]].append(name)
    for kind in ("space", "key", "tag"):
        found = kinds[kind]
        for i in range(0, len(found), PART):
            yield found[i : i + PART]
    if events:
        yield from ([name] for name in kinds["event"])
