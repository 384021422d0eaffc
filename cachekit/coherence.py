"""How this process's near tier follows the invalidations of others: push, or a bound in seconds.

While the backend's bus has joined, near copies are kept for their whole life and go when a note
names them. Before that, and after notes may have been missed, a copy is trusted for ``bound``
seconds, counted from when the far tier was asked for it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from .core.entry import INF
from .core.policy import Span
from .invalidation import Invalidator
from .observe import Meter
from .protocols import Bus, Note
from .runtime import Runtime
from .tiers import Far


class Coherence:
    """The trust in near copies of one cache. ``bus`` None: by ``bound`` alone (0 = keep none)."""

    def __init__(
        self,
        runtime: Runtime,
        far: Far | None,
        invalidator: Invalidator,
        meter: Meter,
        *,
        bound: float,
        bus: Bus | None,
    ) -> None:
        self.runtime = runtime
        self.far = far
        self.invalidator = invalidator
        self.meter = meter
        self.bound = bound
        self.bus = bus
        self._since = INF  # copies asked for since then are told of: the bus joined
        self._stop: Callable[[], None] | None = None
        self._closed = False

    @property
    def state(self) -> str:
        """ "embedded", "strict", "bound", "push", or "push lost" while by the bound instead."""
        if self.far is None:
            return "embedded"
        if self.bus is None:
            return "bound" if self.bound > 0 else "strict"
        return "push" if self._since != INF else "push lost"

    @property
    def shares(self) -> bool:
        """Whether one far read may serve all who ask while it runs: not under strict, where who
        comes later asks for himself."""
        return self.far is None or self.bound > 0

    def span(self, span: Span, grace: float, asked: float, told: bool = True) -> Span | None:
        """How long a near copy is kept; None = it is not. ``asked``: monotonic seconds at which
        the far tier was asked for it; ``grace``: for so long beyond its life it may be served, as
        long as the bus tells of it, while the far tier is away. Not ``told``: the far tier was
        away, so no writer's block could refuse it, and no note need come when that writer ends."""
        if self.far is None:
            return span
        if self.bus is not None:
            self._listen()
            if told and asked > self._since:
                return Span(span.fresh, min(span.kept, span.fresh + grace))
        trust = min(span.fresh, self.bound - (self.runtime.clock() - asked))
        # Not beyond it, even in grace: it may have been invalidated, and nobody can tell.
        return Span(trust, trust) if trust > 0 else None

    def _listen(self) -> None:
        """Begin to listen, once: no cache that keeps nothing near starts a thread."""
        if self._stop is not None or self._closed or self.bus is None:
            return
        with self.runtime.once:
            if self._stop is not None or self._closed:
                return
            self._stop = _nothing
        # Not under the lock: a bus may join at once, and observers of that may use this cache.
        stop = self._stop = self.bus.listen(_Ears(self))
        # A cache that was dropped without close() must not be held by its bus.
        weakref.finalize(self, stop)
        if self._closed:
            stop()

    # -- what the bus tells ---------------------------------------------------------------

    def joined(self) -> None:
        self._since = self.runtime.clock()
        self.meter.event("bus_joined")

    def lost(self) -> None:
        # In this order: a fill that still saw the bus joined is refused by what comes after.
        self._since = INF
        self.invalidator.forget_near()
        self.meter.event("bus_lost")

    def heard(self, notes: Sequence[Note]) -> None:
        mine = self.far.senders if self.far is not None else ()
        others = [note for note in notes if note.sender not in mine]
        if others:
            self.invalidator.hear(others)
            self.meter.count("bus_notes", len(others))

    def lag(self, seconds: float) -> None:
        self.meter.time("bus_lag", seconds)

    def foreign(self, count: int) -> None:
        self.meter.count("bus_foreign", count)

    # -- life -----------------------------------------------------------------------------

    def close(self) -> None:
        self._closed = True
        stop, self._stop = self._stop, None
        if stop is not None:
            stop()
        self._since = INF

    def reset_after_fork(self) -> None:
        """The thread that listened is the parent's; the near tier begins empty."""
        self._stop = None
        self._since = INF


def _nothing() -> None:
    """In place of a stop while listening begins."""


class _Ears:
    """What a bus holds of a cache: nothing that keeps it alive."""

    def __init__(self, coherence: Coherence) -> None:
        self._of = weakref.ref(coherence)

    def _tell(self, what: str, *args: Any) -> None:
        coherence = self._of()
        if coherence is not None:
            getattr(coherence, what)(*args)

    def joined(self) -> None:
        self._tell("joined")

    def heard(self, notes: Sequence[Note]) -> None:
        self._tell("heard", notes)

    def lost(self) -> None:
        self._tell("lost")

    def lag(self, seconds: float) -> None:
        self._tell("lag", seconds)

    def foreign(self, count: int) -> None:
        self._tell("foreign", count)
