"""Never stale at rest: who may fill a key, as a state machine without a clock of its own.

A *spot* is anything that is read and written as one: an item's key, a partition's query results,
a table. Rules, per spot:

- A write moves the epoch when it begins and when it ends. A read takes the epoch before it is
  sent, and may fill only if the epoch still stands and no write is in flight.
- A write's end opens the *settle window*: replicas may still answer with what was before, so a
  read inside it must be strongly consistent, or may not fill.
- A write fills at its end only if it was alone from its beginning to its end, and began outside
  every hold: one that was lost before may have landed after it was applied.
- A write of unknown outcome (timeout, reset, 5xx, cancellation) may still land. It *holds* the
  spot: nothing is filled until the hold ends.

State lives only while a write is in flight, a window is open or a read is under way, so its size
is that of the traffic; beyond ``max_spots`` the windows are merged into one over everything.
Calls must be serialized by the owner's lock.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from enum import Enum
from typing import Final

MAX_SPOTS: Final = 100_000
LOOK: Final = 1.0  # seconds between looks for writes that were dropped


class Outcome(Enum):
    """How a write ended."""

    APPLIED = "applied"
    REFUSED = "refused"  # certainly not applied
    UNKNOWN = "unknown"  # it may have been applied, or may be later


class Spot:
    __slots__ = ("epoch", "hold_until", "name", "readers", "settle_until", "writers")

    def __init__(self, name: Hashable) -> None:
        self.name = name
        self.epoch = 0
        self.writers = 0
        self.readers = 0
        self.settle_until = 0.0
        self.hold_until = 0.0

    def is_idle(self, now: float) -> bool:
        quiet = not self.writers and not self.readers
        return quiet and now >= self.settle_until and now >= self.hold_until


class Look:
    """One read under way. ``strong``: it must be strongly consistent to fill; ``held``: it may
    not fill at all. Ends with :meth:`Protocol.leave`."""

    __slots__ = ("at", "epochs", "held", "spots", "strong")

    def __init__(self, spots: list[Spot], at: float, *, strong: bool, held: bool) -> None:
        self.spots = spots
        self.at = at  # when it began
        self.epochs = [spot.epoch for spot in spots]
        self.strong = strong
        self.held = held


class Write:
    """One write under way. Ends with :meth:`Protocol.end`. ``watched``: spots that it does not
    change, but whose writers could have changed the same.

    One that is dropped without its end, because a signal handler raised, is found to be so by a
    later step of the protocol, and ends as of unknown outcome."""

    __slots__ = (
        "__weakref__", "alone", "at", "ended", "epochs", "held", "spots", "watched",
        "watched_epochs",
    )  # fmt: skip

    def __init__(self) -> None:
        self.spots: list[Spot] = []  # emptied at its end
        self.watched: list[Spot] = []
        self.ended = False

    def started(self, now: float) -> None:
        """All its spots are taken."""
        self.at = now
        self.watched_epochs = [spot.epoch for spot in self.watched]
        self.alone = [spot.writers == 1 and now >= spot.hold_until for spot in self.spots]
        self.held = any(now < spot.hold_until for spot in self.watched)
        self.epochs = [spot.epoch for spot in self.spots]


class Protocol:
    """The spots of one cache. ``settle`` and ``hold`` are seconds, ``clock`` monotonic ones."""

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        settle: float,
        hold: float,
        max_spots: int = MAX_SPOTS,
    ) -> None:
        self._clock = clock
        self.settle = settle
        self.hold = hold
        self.max_spots = max_spots
        self.merged = 0  # how often windows were merged
        self._spots: dict[Hashable, Spot] = {}
        self._under_way: list[tuple[weakref.ref[Write], list[Spot], list[Spot]]] = []
        self._look_again = 0.0  # for those that were dropped
        self._all = Spot(None)
        self._sweep_at = 1024

    def __len__(self) -> int:
        return len(self._spots)

    # -- reads ---------------------------------------------------------------------------

    def look(self, names: Iterable[Hashable]) -> Look:
        """A read begins: of every spot that its answer depends on."""
        now = self._clock()
        self._end_dropped(now)
        spots = [self._all, *map(self._spot, names)]
        for spot in spots:
            spot.readers += 1
        return Look(
            spots,
            now,
            strong=any(now < spot.settle_until for spot in spots),
            held=any(now < spot.hold_until or spot.writers for spot in spots),
        )

    def may_fill(self, look: Look, *, was_strong: bool) -> bool:
        """Whether what the read brought may be kept now."""
        if look.held or (look.strong and not was_strong):
            return False
        now = self._clock()
        return all(
            spot.epoch == epoch and not spot.writers and now >= spot.hold_until
            for spot, epoch in zip(look.spots, look.epochs, strict=True)
        )

    def leave(self, look: Look) -> None:
        """The read is over."""
        for spot in look.spots:
            spot.readers -= 1
        look.spots = []
        look.epochs = []
        look.held = True

    # -- writes --------------------------------------------------------------------------

    def begin(self, names: Iterable[Hashable], watch: Iterable[Hashable] = ()) -> Write:
        """A write begins; what is kept of the spots must be evicted together with this."""
        write = self._begun()
        for spot in [self._spot(name) for name in names]:
            self._write(write, spot)
        for spot in [self._all, *map(self._spot, watch)]:
            spot.readers += 1
            write.watched.append(spot)
        write.started(self._clock())
        return write

    def begin_all(self) -> Write:
        """A write that may change anything."""
        write = self._begun()
        self._write(write, self._all)
        write.started(self._clock())
        return write

    def _write(self, write: Write, spot: Spot) -> None:
        # No handler runs between counting and noting it, here and in ``_over``.
        spot.epoch += 1
        spot.writers += 1
        write.spots.append(spot)

    def end(self, write: Write, outcomes: Outcome | Sequence[Outcome]) -> list[bool]:
        """The write is over: one outcome for all spots, or one for each in order. Tells for each
        spot whether its new state, if known, may be kept. A second call changes nothing."""
        if write.ended:
            return [False] * len(write.epochs)
        write.ended = True
        now = self._clock()
        undisturbed = not write.held and all(
            spot.epoch == epoch and not spot.writers and now >= spot.hold_until
            for spot, epoch in zip(write.watched, write.watched_epochs, strict=True)
        )
        each = [outcomes] * len(write.spots) if isinstance(outcomes, Outcome) else list(outcomes)
        fills = [
            undisturbed
            and outcome is Outcome.APPLIED
            and alone
            and spot.writers == 1
            and spot.epoch == epoch
            and now >= spot.hold_until
            for spot, epoch, alone, outcome in zip(
                write.spots, write.epochs, write.alone, each, strict=True
            )
        ]
        self._over(write.spots, write.watched, each, now)
        return fills

    def _over(
        self, spots: list[Spot], watched: list[Spot], outcomes: list[Outcome], now: float
    ) -> None:
        """Let go of the spots, from the last to the first."""
        while watched:
            watched[-1].readers -= 1
            watched.pop()
        while spots:
            spot, outcome = spots[-1], outcomes[len(spots) - 1]
            spot.epoch += 1
            if outcome is not Outcome.REFUSED:
                spot.settle_until = max(spot.settle_until, now + self.settle)
            if outcome is Outcome.UNKNOWN:
                spot.hold_until = max(spot.hold_until, now + self.hold)
                # What lands at the very end of the hold must settle too.
                spot.settle_until = max(spot.settle_until, spot.hold_until + self.settle)
            spot.writers -= 1
            spots.pop()

    def _begun(self) -> Write:
        self._end_dropped(self._clock())
        write = Write()
        self._under_way.append((weakref.ref(write), write.spots, write.watched))
        return write

    def _end_dropped(self, now: float) -> None:
        """Now and then: a finaliser would swallow what the next handler raises."""
        if now < self._look_again:
            return
        self._look_again = now + LOOK
        for ref, spots, watched in self._under_way:
            if ref() is None:
                self._over(spots, watched, [Outcome.UNKNOWN] * len(spots), now)
        self._under_way = [each for each in self._under_way if each[1] or each[2]]

    def spread(self, source: Hashable, target: Hashable) -> None:
        """What was written to ``source`` may have been to ``target``: it moves, and its windows
        are at least as long."""
        one, other = self._spot(source), self._spot(target)
        other.epoch += 1
        other.settle_until = max(other.settle_until, one.settle_until)
        other.hold_until = max(other.hold_until, one.hold_until)

    def disturb_all(self) -> None:
        """Something was changed by others, now: no read under way fills, replicas settle."""
        self._all.epoch += 1
        self._all.settle_until = max(self._all.settle_until, self._clock() + self.settle)

    # -- size ----------------------------------------------------------------------------

    def _spot(self, name: Hashable) -> Spot:
        spot = self._spots.get(name)
        if spot is None:
            if len(self._spots) >= self._sweep_at:
                self._sweep()
            spot = self._spots[name] = Spot(name)
        return spot

    def _sweep(self) -> None:
        now = self._clock()
        self._spots = {n: s for n, s in self._spots.items() if not s.is_idle(now)}
        if len(self._spots) > self.max_spots:
            self._merge()
        self._sweep_at = 2 * len(self._spots) + 1024

    def _merge(self) -> None:
        """Too many windows at once: one over everything, as long as the longest of them."""
        self.merged += 1
        whole = self._all
        for spot in self._spots.values():
            whole.settle_until = max(whole.settle_until, spot.settle_until)
            whole.hold_until = max(whole.hold_until, spot.hold_until)
        busy = {n: s for n, s in self._spots.items() if s.writers or s.readers}
        self._spots = busy
