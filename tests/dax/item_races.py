"""Random schedules of reads and writes of one item over lagging replicas, on a manual clock.

A strong read answers with what was last applied, an eventual one with what stood at any moment of
the last ``LAG`` seconds. The cache is one cell, driven by the protocol as the engine drives it.
Whenever nobody writes and nothing can land any more, the cell must be empty or right.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from cachekit.dax.protocol import Outcome, Protocol
from cachekit.testing.clock import ManualClock

LAG = 1.0
HOLD = 2.0
NAMES = ("item",)


class Naive(Protocol):
    """Keeps whatever it is given."""

    def may_fill(self, look: object, *, was_strong: bool) -> bool:
        return True

    def end(self, write: object, outcomes: object) -> list[bool]:
        fills = super().end(write, outcomes)  # type: ignore[arg-type]  # passed on
        return [outcomes is Outcome.APPLIED for _ in fills]


class NoWriters(Protocol):
    """Does not see that another write is in flight: the last to end fills."""

    def end(self, write: object, outcomes: object) -> list[bool]:
        fills = super().end(write, outcomes)  # type: ignore[arg-type]  # passed on
        return [outcomes is Outcome.APPLIED for _ in fills]


def whole(clock: ManualClock) -> Protocol:
    return Protocol(clock, settle=LAG, hold=HOLD)


def naive(clock: ManualClock) -> Protocol:
    return Naive(clock, settle=0.0, hold=0.0)


def epoch_only(clock: ManualClock) -> Protocol:
    return Protocol(clock, settle=0.0, hold=HOLD)


def no_hold(clock: ManualClock) -> Protocol:
    return Protocol(clock, settle=LAG, hold=0.0)


def any_writer_fills(clock: ManualClock) -> Protocol:
    return NoWriters(clock, settle=LAG, hold=HOLD)


@dataclass
class Table:
    """The source: what was applied when, and what may still land."""

    clock: ManualClock
    history: list[tuple[float, int]] = field(default_factory=lambda: [(0.0, 0)])
    versions: int = 0
    landing: list[tuple[float, int]] = field(default_factory=list)

    def apply(self, value: int) -> None:
        self.history.append((self.clock(), value))

    def settle_landings(self) -> None:
        """Called whenever time has passed: each lands at its own moment."""
        for at, value in sorted(each for each in self.landing if each[0] <= self.clock()):
            self.landing.remove((at, value))
            self.history.append((at, value))

    def read(self, strong: bool, draw: random.Random) -> int:
        if strong:
            return self.history[-1][1]
        seen = self.clock() - draw.random() * LAG
        return next(value for at, value in reversed(self.history) if at <= seen)


class Schedule:
    """One run: ``actors`` reads and writes, interleaved at random. ``stale`` counts moments of
    rest at which the cell was wrong, ``fills`` what was kept."""

    def __init__(
        self, seed: int, make: Callable[[ManualClock], Protocol], *, lost_replies: bool
    ) -> None:
        self.draw = random.Random(seed)
        self.clock = ManualClock(10.0)
        self.protocol = make(self.clock)
        self.table = Table(self.clock)
        self.lost_replies = lost_replies
        self.cell: int | None = None
        self.writing = 0
        self.stale = 0
        self.fills = 0

    def play(self) -> None:
        draw = self.draw
        actors: list[Iterator[None]] = []
        for _ in range(draw.randint(2, 6)):
            actors.append(self.reader() if draw.random() < 0.6 else self.writer())
        while actors:
            actor = draw.choice(actors)
            if next(actor, self) is self:
                actors.remove(actor)
            if draw.random() < 0.5:
                self.clock.advance(draw.random() * draw.choice((0.1, 1.0, 6.0)))
            self.table.settle_landings()
            self.look()
        while self.table.landing:
            self.clock.advance(0.5)
            self.table.settle_landings()
        self.clock.advance(LAG)
        self.look()

    def look(self) -> None:
        at_rest = not self.writing and not self.table.landing
        if at_rest and self.cell is not None and self.cell != self.table.history[-1][1]:
            self.stale += 1

    def reader(self) -> Iterator[None]:
        if self.cell is not None:
            return
        look = self.protocol.look(NAMES)
        strong = look.strong or self.draw.random() < 0.1
        yield
        value = self.table.read(strong, self.draw)
        yield
        if self.protocol.may_fill(look, was_strong=strong):
            self.cell = value
            self.fills += 1
        self.protocol.leave(look)

    def writer(self) -> Iterator[None]:
        write = self.protocol.begin(NAMES)
        self.cell = None
        self.writing += 1
        yield
        self.table.versions += 1
        value = self.table.versions
        kinds = ("known", "lost") if self.lost_replies else ("known", "known")
        kind = self.draw.choice((*kinds, "known", "evict", "refused"))
        if kind == "lost":
            # The caller gives up first; then it lands before the hold ends, or never.
            if self.draw.random() < 0.8:
                at = self.clock() + self.draw.random() * (HOLD - 0.2)
                self.table.landing.append((at, value))
        elif kind != "refused":
            self.table.apply(value)
        yield
        outcome = {"lost": Outcome.UNKNOWN, "refused": Outcome.REFUSED}.get(kind, Outcome.APPLIED)
        may = self.protocol.end(write, outcome)[0]
        self.writing -= 1
        if may and kind == "known":
            self.cell = value
            self.fills += 1


def stale_schedules(
    make: Callable[[ManualClock], Protocol], seeds: range, *, lost_replies: bool = False
) -> tuple[int, int]:
    """How many schedules were stale at rest, and how many values were kept in all."""
    wrong = fills = 0
    for seed in seeds:
        schedule = Schedule(seed, make, lost_replies=lost_replies)
        schedule.play()
        wrong += bool(schedule.stale)
        fills += schedule.fills
    return wrong, fills
