"""Processes on one bus: each tells the others what it writes, and follows what they tell.

The far tier is the carrier only: what is told are names of keys that nobody stores
(:mod:`~cachekit.dax.notes`), voided, so that the bus of any backend brings them, in order and with
word of what it may have missed. Told before a write is sent and before it returns. What could not
be told is queued and replayed by the cache's own invalidator; a write never fails for it.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, cast

from ..coherence import Coherence
from ..core.entry import INF
from ..core.notes import Note, NoteKind
from ..core.policy import Span
from ..errors import BackendError, ConfigurationError
from ..invalidation import Invalidator
from ..observe import Meter
from ..runtime import AnyWorld, Runtime, drive
from . import notes
from .notes import Reader, Told
from .others import Others
from .protocol import Outcome
from .values import Key

Names = Sequence[tuple[bytes, Key | None]]  # tables and keys; None: the whole table

_KINDS = {
    Outcome.APPLIED: notes.APPLIED,
    Outcome.REFUSED: notes.REFUSED,
    Outcome.UNKNOWN: notes.UNKNOWN,
}
# The handles of this process by cache; each tuple is replaced, never changed.
_fleets: weakref.WeakKeyDictionary[Any, tuple[weakref.ref[Fleet], ...]] = (
    weakref.WeakKeyDictionary()
)
_enlisting = threading.Lock()


def _after_fork() -> None:
    global _enlisting
    _enlisting = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


class _Ties(Coherence):
    """What is trusted while the bus has joined, and when it has not: as of any near copy."""

    @property
    def since(self) -> float:
        """When the bus was joined; inf while it is not."""
        return self._since

    def listen(self) -> None:
        self._listen()

    def joined(self) -> None:
        cast(Fleet, self.invalidator).others.disturb()
        super().joined()


class Mark:
    """A write that the others were told of. ``told``: they were."""

    __slots__ = ("mark", "names", "told")

    def __init__(self, mark: bytes, names: Names) -> None:
        self.mark = mark
        self.names = names
        self.told = True


class Fleet:
    """One handle's place on the bus of a cache. Listens from the first use of a table on, in the
    bus's own thread."""

    def __init__(self, cache: Any, others: Others, runtime: Runtime, meter: Meter) -> None:
        """Raises ConfigurationError where the cache can not carry names between processes."""
        parts = getattr(cache, "parts", None)
        if parts is None:
            raise ConfigurationError("cache: expected a cachekit.Cache")
        bus = parts.coherence.bus
        if parts.far is None or bus is None:
            raise ConfigurationError(
                "cache: its processes hear nothing of each other; give one with a far tier and a"
                ' bus, e.g. Cache("redis://..."), without a coherence= of its own'
            )
        if bus.coarse or getattr(bus, "tells_changes", False):
            raise ConfigurationError(
                "cache: its bus brings no names of keys that are not stored; use Redis with its"
                " usual bus, or SQLite"
            )
        self.others = others
        self.meter = meter
        self.parts = parts
        self._runtime = runtime
        self._reader = Reader()
        self._reading = threading.Lock()
        self.alive: dict[bytes, Any] = {}  # by table: who is told that its stream is read
        # It uses of its invalidator what Fleet has: forget_near and hear.
        self._ties = _Ties(
            parts.runtime, parts.far, cast(Invalidator, self), meter,
            bound=parts.coherence.bound, bus=bus,
        )  # fmt: skip
        self._process = os.urandom(6)
        self._counted = itertools.count(1)  # taken by one step, from any thread
        self._cache = weakref.ref(cache)
        self._enlist(True)
        runtime.on_fork(self._after_fork)

    @property
    def state(self) -> str:
        """ "push", or "push lost" while the bus is not joined."""
        return self._ties.state

    def most(self, asked: float) -> float:
        """For how many seconds what was asked for then may be kept.

        Who joins has not heard which writes are under way, or may still land. So what is asked
        for within ``patience`` after that is not kept beyond it."""
        span = self._ties.span(Span(INF, INF), 0.0, asked)
        if span is None:
            return 0.0
        since = self._ties.since
        known = since + self.others.patience
        if since == INF or asked > known:
            return span.kept
        return min(span.kept, known - self._runtime.clock())

    def listen(self) -> None:
        """Begin to listen, once: what is asked for before is kept for a moment only."""
        self._ties.listen()

    def close(self) -> None:
        self._enlist(False)
        self._ties.close()

    def _enlist(self, on: bool) -> None:
        cache = self._cache()
        if cache is None:
            return
        with _enlisting:
            others = [ref for ref in _fleets.get(cache, ()) if ref() not in (None, self)]
            _fleets[cache] = (*others, weakref.ref(self)) if on else tuple(others)

    def _after_fork(self) -> None:
        self._reading = threading.Lock()
        self._reader = Reader()
        self._process = os.urandom(6)
        self._ties.reset_after_fork()

    # -- hearing -------------------------------------------------------------------------

    def hear(self, heard: Sequence[Note]) -> None:
        """What other processes told."""
        told: list[Told] = []
        with self._reading:
            for note in heard:
                if note.kind is NoteKind.SPACE:
                    told.append(Told(notes.APPLIED, notes.EVERYTHING))
                elif note.kind is NoteKind.KEY:
                    found = self._reader.read(note.name)
                    if found is not None:
                        told.append(found)
            missed = self._reader.missed()
        if missed:
            self.others.lost()
        self._follow(told)

    def _follow(self, told: Sequence[Told]) -> None:
        writes = [each for each in told if each.kind != notes.ALIVE]
        if writes:
            self.meter.count("others_told", len(writes))
            self.others.hear(writes)
        for each in told:  # after what was told before it: then this process has followed it
            if each.kind == notes.ALIVE and each.table in self.alive:
                self.alive[each.table](notes.lag_of(each.mark))

    def forget_near(self) -> None:
        """The bus may have missed something."""
        with self._reading:
            self._reader = Reader()
        self.others.lost()
        self.meter.count("bus_flushes")

    # -- telling -------------------------------------------------------------------------

    def mark(self, names: Names) -> Mark:
        """For a write that is to be told of."""
        return Mark(self._process + next(self._counted).to_bytes(6, "big"), names)

    async def begin(self, world: AnyWorld, mark: Mark) -> None:
        """Tell that a write begins: it may be sent when this returned."""
        told = [Told(notes.BEGIN, table, key, mark.mark) for table, key in mark.names]
        mark.told = await self._tell(world, told)
        if not mark.told:  # lest nobody hears of it at all, should this process die
            # Told while it may be under way still: they hold it, as if nobody knew its outcome.
            self._owe(self._unsure(mark))

    def _unsure(self, mark: Mark) -> list[Told]:
        """Of this write alone: another of the same item may be unknown for good."""
        return [Told(notes.UNKNOWN, table, key, mark.mark) for table, key in mark.names]

    async def end(self, world: AnyWorld, mark: Mark, outcome: Outcome) -> None:
        """Tell how it ended."""
        if not mark.told:
            told = _later(mark.names, outcome)
            unsure = notes.names_of(self._unsure(mark))
            self.parts.invalidator.withdraw([("key", name) for name in unsure])
        else:
            told = [Told(_KINDS[outcome], t, key, mark.mark) for t, key in mark.names]
        if not await self._tell(world, told):
            self._owe(told)

    def end_behind(self, mark: Mark, outcome: Outcome) -> None:
        """The same in the background: for a caller that is being cancelled."""
        told = [Told(_KINDS[outcome], t, key, mark.mark) for t, key in mark.names]
        self._tell_here(told)
        self._owe(told)

    async def written(
        self, world: AnyWorld, names: Names, outcome: Outcome = Outcome.APPLIED
    ) -> None:
        """Tell of what was written by whoever."""
        told = _later(names, outcome)
        if not await self._tell(world, told):
            self._owe(told)

    def owe_everything(self) -> None:
        """What was written can not be told: all of it may have been."""
        told = [Told(notes.UNKNOWN, notes.EVERYTHING)]
        self._tell_here(told)
        self._owe(told)

    def relay(self, told: Sequence[Told], *, certain: bool = True) -> bool:
        """From the thread that reads a stream: what it told. Not ``certain``: who
        gets False tells it again."""
        done = drive(self._tell(self._runtime.threads, told))
        if not done and certain:
            self._owe(told)
        return done

    async def _tell(self, world: AnyWorld, told: Sequence[Told]) -> bool:
        self._tell_here(told)
        if self._is_closed():
            self.meter.count("bus_untold", len(told))
            return False
        parts = self.parts
        runtime: Runtime = parts.runtime
        there = runtime.threads if world.name == "threads" else runtime.asyncio()
        try:
            await parts.far.void(there, notes.names_of(told), parts.far.deadline(there))
        except BackendError as error:
            self.meter.count("bus_untold", len(told))
            self.meter.warn_once(
                "dax bus",
                "cachekit.dax: other processes can not be told of writes (%s); they are told"
                " once the far tier answers, until then they may serve what was before",
                type(error).__name__,
            )
            return False
        return True

    def _tell_here(self, told: Sequence[Told]) -> None:
        """Other handles of this process on the same cache, which do not hear its own notes."""
        cache = self._cache()
        for ref in () if cache is None else _fleets.get(cache, ()):
            fleet = ref()
            if fleet is not None and fleet is not self:
                fleet._follow(told)

    def _is_closed(self) -> bool:
        """Whether the cache was closed before this handle was taken off: nobody can be told."""
        cache = self._cache()
        return cache is None or getattr(cache, "_closed", False)

    def _owe(self, told: Iterable[Told]) -> None:
        if self._is_closed():
            return
        self.parts.invalidator.postpone([("key", name) for name in notes.names_of(told)])


def _later(names: Names, outcome: Outcome) -> list[Told]:
    """As told when it does not matter how often: the same names for the same item."""
    return [Told(_KINDS[outcome], table, key) for table, key in names]
