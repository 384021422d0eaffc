"""When: planned times as whole milliseconds of Unix time, which every process computes alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, time, timedelta, tzinfo
from importlib import import_module
from typing import Any, Protocol
from zoneinfo import ZoneInfo

from ..core.keys import check_text
from ..core.policy import Duration, seconds
from ..errors import MissingDependencyError

SHORTEST_MS = 100
_DAY = 86_400_000
# How far to look back for the last time of a cron expression; leap days are 8 years apart at most.
_BACK = (60_000, 3_600_000, 26 * 3_600_000, 32 * _DAY, 367 * _DAY, 9 * 366 * _DAY)


class Plan(Protocol):
    """Planned times in ms of Unix time. ``text`` is the same in every process."""

    text: str
    zone: tzinfo

    def after(self, ms: int) -> int:
        """The first planned time later than ``ms``."""

    def latest(self, ms: int, known: int) -> int:
        """The last planned time not later than ``ms``; ``known`` is an earlier one."""


class Every:
    """Multiples of a period, counted from 1970-01-01 UTC."""

    zone: tzinfo = UTC

    def __init__(self, period: Duration) -> None:
        self.period = round(seconds(period, "every") * 1000)
        if self.period < SHORTEST_MS:
            raise ValueError(f"every: must be at least {SHORTEST_MS / 1000} seconds")
        self.text = f"every {self.period / 1000:g}s"

    def after(self, ms: int) -> int:
        return (ms // self.period + 1) * self.period

    def latest(self, ms: int, known: int) -> int:
        return ms // self.period * self.period


class Daily:
    """A time of day in a zone. A time that a day lacks is the first moment after the gap; one
    that comes twice counts the first time."""

    def __init__(self, at: str | time, zone: tzinfo) -> None:
        try:
            moment = time.fromisoformat(at) if isinstance(at, str) else at
        except ValueError as error:
            raise ValueError(f"at: {at!r}: {error}") from None
        if not isinstance(moment, time):
            raise TypeError(f'at: expected "HH:MM" or datetime.time, got {type(at).__name__}')
        if moment.tzinfo is not None:
            raise ValueError("at: give the zone as tz=, not within the time")
        self.moment = moment.replace(fold=0)
        self.zone = zone
        self.text = f"at {moment.isoformat()} {zone}"

    def after(self, ms: int) -> int:
        return next(t for t in self._days(ms, range(-2, 4)) if t > ms)

    def latest(self, ms: int, known: int) -> int:
        return next(t for t in self._days(ms, range(3, -4, -1)) if t <= ms)

    def _days(self, ms: int, offsets: Iterable[int]) -> Iterable[int]:
        today = local(ms, self.zone).date()
        return (self._on(datetime.combine(today + timedelta(d), self.moment)) for d in offsets)

    def _on(self, wanted: datetime) -> int:
        first = wanted.replace(tzinfo=self.zone)
        instant = first.astimezone(UTC)
        if instant.astimezone(self.zone).replace(tzinfo=None) == wanted:
            return unix_ms(instant)
        # In a gap: the offset changes between the two readings that PEP 495 gives.
        before, after = unix_ms(first.replace(fold=1).astimezone(UTC)), unix_ms(instant)
        offset = local(before, self.zone).utcoffset()
        while after - before > 1:
            middle = (before + after) // 2
            if local(middle, self.zone).utcoffset() == offset:
                before = middle
            else:
                after = middle
        return after


class Cron:
    """A cron expression as Debian's cron reads it, daylight saving included."""

    def __init__(self, expression: str, zone: tzinfo) -> None:
        try:
            module: Any = import_module("cronsim")
        except ImportError:
            raise MissingDependencyError(
                "cron= needs cronsim: pip install 'cachekit-strategies[schedule]'"
            ) from None
        self._simulate = module.CronSim
        self.expression = " ".join(check_text(expression, "cron").split())
        self.zone = zone
        self.text = f"cron {self.expression} {zone}"
        try:
            self.after(0)
        except module.CronSimError as error:
            raise ValueError(f"cron: {expression!r}: {error}") from None

    def after(self, ms: int) -> int:
        for found in self._times(ms):
            return found
        raise ValueError(f"cron: {self.expression!r} never comes")

    def latest(self, ms: int, known: int) -> int:
        for back in _BACK:
            last = None
            for found in self._times(max(known - 1, ms - back)):
                if found > ms:
                    break
                last = found
            if last is not None:
                return last
        return known

    def _times(self, ms: int) -> Iterator[int]:
        """Planned times later than ``ms``, in order."""
        for moment in self._simulate(self.expression, local(ms, self.zone)):
            # Around a change of the offset it may give one twice, or begin too early.
            if (found := unix_ms(moment)) > ms:
                ms = found
                yield found


def local(ms: int, zone: tzinfo) -> datetime:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)).astimezone(zone)


def unix_ms(moment: datetime) -> int:
    return (moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def zone_of(tz: str | tzinfo | None) -> tzinfo:
    if tz is None:
        return UTC
    if isinstance(tz, tzinfo):
        return tz
    if not isinstance(tz, str):
        raise TypeError(f"tz: expected a zone's name or a tzinfo, got {type(tz).__name__}")
    if tz.upper() == "UTC":
        return UTC
    try:
        return ZoneInfo(tz)
    except (KeyError, ValueError, OSError):
        raise ValueError(
            f"tz: no zone {tz!r} (where the system has no zones: pip install tzdata)"
        ) from None
