"""A cache with a scheduler that is turned by hand, and times as a person reads them."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import cachekit
from cachekit.errors import InvalidationFailed
from cachekit.runtime import Runtime
from cachekit.schedules import Scheduler
from cachekit.testing.clock import ManualClock

BERLIN = ZoneInfo("Europe/Berlin")
T0 = datetime(2026, 6, 1, 10, 0, 0, 500_000, tzinfo=UTC).timestamp()


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def utc(moment: int) -> str:
    return datetime.fromtimestamp(moment / 1000, UTC).strftime("%m-%d %H:%M:%S")


def row(plan: Any, start: str, count: int) -> list[str]:
    """The next planned times, as the wall clock of UTC shows them."""
    now, found = ms(start), []
    for _ in range(count):
        now = plan.after(now)
        found.append(utc(now))
    return found


def invalidate_by(cache: cachekit.Cache) -> Callable[[list[str], list[str], bool], None]:
    def invalidate(keys: list[str], tags: list[str], everything: bool) -> None:
        if everything:
            cache.clear()
        if keys or tags:
            cache.invalidate(keys=keys, tags=tags)

    return invalidate


class Stage:
    """An embedded cache whose time stands still, and a scheduler that is turned by hand."""

    def __init__(self, url: str | None = None, **options: Any) -> None:
        self.wall = T0
        self.clock = ManualClock()
        self.planned: list[int] = []
        self.cache = cachekit.Cache(
            url,
            observers=[self._observe],
            runtime=Runtime(
                wall=lambda: self.wall,
                clock=self.clock if url is None else time.monotonic,
                uniform=lambda: 0.5,
            ),
            **options,
        )
        self.fired: list[tuple[list[str], list[str], bool]] = []
        self.failing = 0
        self.scheduler = Scheduler(self.cache.parts, self.invalidate, thread=False)

    def invalidate(self, keys: list[str], tags: list[str], everything: bool) -> None:
        if self.failing:
            self.failing -= 1
            raise InvalidationFailed("the far tier is away")
        invalidate_by(self.cache)(keys, tags, everything)
        self.fired.append((keys, tags, everything))

    def _observe(self, event: str, fields: dict[str, Any]) -> None:
        if event == "schedule_fired":
            self.planned.append(int(fields["planned"] * 1000))

    def turn(self, seconds: float = 0.0) -> int:
        """Let time pass at once; gives how many firings that made."""
        before = len(self.fired)
        self.wall += seconds
        if seconds > 0:
            self.clock.advance(seconds)
        self.pause = self.scheduler.run_due()
        return len(self.fired) - before


def wait_until(reached: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.01)
