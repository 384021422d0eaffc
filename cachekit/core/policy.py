"""When and how long: frozen settings, validated at birth."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final

Duration = float | int | str | timedelta
Ttl = Duration | None | Callable[[Any], "Duration | None"]

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")
FOREVER: Final = math.inf


def seconds(value: Duration, what: str = "duration") -> float:
    """A duration in seconds, from a number of seconds, a timedelta or text like "1h30m".

    Raises TypeError or ValueError, naming ``what``, for anything else, negative, NaN or inf.
    """
    if isinstance(value, timedelta):
        result = value.total_seconds()
    elif isinstance(value, str):
        text = value.strip().replace(" ", "")
        parts = _PART.findall(text)
        if not parts or "".join(number + unit for number, unit in parts) != text:
            raise ValueError(
                f'{what}: {value!r} is not a duration; write e.g. "250ms", "10m" or "1h30m"'
            )
        result = sum(float(number) * _UNITS[unit] for number, unit in parts)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            result = float(value)
        except OverflowError:
            result = math.inf
    else:
        raise TypeError(
            f"{what}: expected seconds, a timedelta or text like '10m', got {type(value).__name__}"
        )
    if math.isnan(result) or math.isinf(result):
        raise ValueError(f"{what}: {value!r} is not a finite duration; use None for no expiry")
    if result < 0:
        raise ValueError(f"{what}: {value!r} is negative; use 0 to not store, None for no expiry")
    return result


def optional_seconds(value: Duration | None, what: str) -> float | None:
    return None if value is None else seconds(value, what)


def fraction(value: float | None, what: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise ValueError(f"{what}: expected a fraction between 0 and 1, got {value!r}")
    return float(value)


@dataclass(frozen=True, slots=True)
class Policy:
    """How one kind of value is kept. Durations are seconds once built (see :meth:`make`).

    - ``ttl``: life of a value; None = no expiry, 0 = do not store; or a function of the value.
    - ``grace``: how long beyond the ttl a value may still be served while it is refreshed or
      while the source fails.
    - ``early``: refresh in the background once this fraction of the ttl has passed.
    - ``beta``: XFetch early refresh (Vattani, Chierichetti, Lowenstein, VLDB 2015): the value is
      taken as due ``cost * beta * -ln(u)`` seconds before its ttl ends, ``u`` drawn once a fill.
    - ``jitter``: the ttl is shortened by up to this fraction, so that a fleet does not expire
      at one instant.
    - ``negative_ttl``: life of a loaded None; None = as any value, 0 = do not store it.
    - ``lease``: how long one loader alone may fill a key; then others may load too.
    - ``wait``: how long a caller waits for another process's load before it loads itself
      (without the right to fill).
    - ``load_timeout``: no caller waits for a load longer than this; then LoadTimeoutError.
    - ``row_version``: the source's version of a row, as an int, from a value: a load that is
      older than what still stands in the cache (a lagging replica) is then not stored. Beside
      the lease, never in its place: an emptied slot has no version to compare with.
    - ``write_lease``: how long a writer's block stands if the writer dies; at least the
      source's own deadline for a write.
    """

    ttl: float | Callable[[Any], Duration | None] | None = None
    grace: float = 0.0
    early: float | None = None
    beta: float | None = None
    jitter: float = 0.0
    negative_ttl: float | None = None
    lease: float = 10.0
    wait: float = 10.0
    load_timeout: float | None = None
    write_lease: float = 30.0
    row_version: Callable[[Any], int | None] | None = None

    @classmethod
    def make(cls, *, ttl: Ttl = None, **options: Any) -> Policy:
        """Build from what a user types; raises TypeError or ValueError naming the option."""
        known = {f: f for f in cls.__dataclass_fields__}
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise TypeError(f"unknown option {unknown[0]!r}; known: {', '.join(sorted(known))}")
        cooked: dict[str, Any] = {"ttl": ttl if callable(ttl) else optional_seconds(ttl, "ttl")}
        for name, value in options.items():
            if name in ("early", "jitter"):
                cooked[name] = (
                    fraction(value, name) if value else (0.0 if name == "jitter" else None)
                )
            elif name == "beta":
                number = isinstance(value, (int, float)) and not isinstance(value, bool)
                if value is not None and not (number and 0 < value < math.inf):
                    raise ValueError(f"beta: expected a positive number, got {value!r}")
                cooked[name] = value
            elif name == "row_version":
                if value is not None and not callable(value):
                    raise TypeError("row_version: expected a function of the value")
                cooked[name] = value
            elif name in ("negative_ttl", "load_timeout"):
                cooked[name] = optional_seconds(value, name)
            else:
                cooked[name] = seconds(value, name)
        for name in ("lease", "write_lease"):
            if cooked.get(name, 1.0) <= 0:
                raise ValueError(f"{name}: must be more than 0")
        return cls(**cooked)

    def but(self, **options: Any) -> Policy:
        """This policy with some options replaced (already in seconds)."""
        return replace(self, **options)

    def changed(self, **options: Any) -> Policy:
        """This policy with options as a user types them."""
        made = Policy.make(**options)
        return self.but(**{name: getattr(made, name) for name in options})

    def ttl_of(self, value: Any) -> float | None:
        """The ttl of one value in seconds: 0 = do not store, None = no expiry."""
        if value is None and self.negative_ttl is not None:
            return self.negative_ttl
        ttl = self.ttl
        if callable(ttl):
            return optional_seconds(ttl(value), "ttl")
        return ttl

    @property
    def steady(self) -> bool:
        """Whether all values but None are kept for the same time."""
        return not (callable(self.ttl) or self.jitter or self.beta)

    def spans(self, value: Any, cost: float, draw: Callable[[], float]) -> Span | None:
        """How long a value loaded now is fresh and kept; None = do not store.

        ``cost`` is the load's duration in seconds, ``draw`` a uniform number in [0, 1)."""
        ttl = self.ttl_of(value)
        if ttl is None:
            return _NO_END
        if ttl <= 0:
            return None
        if self.jitter:
            ttl *= 1.0 - self.jitter * draw()
        fresh = ttl
        if self.early is not None:
            fresh = ttl * self.early
        elif self.beta is not None:
            fresh = max(0.0, ttl + cost * self.beta * math.log(1.0 - draw()))
        return Span(fresh, ttl + self.grace)


@dataclass(frozen=True, slots=True)
class Span:
    """``fresh``: seconds until due for refresh; ``kept``: seconds until it may not be served."""

    fresh: float
    kept: float


_NO_END: Final = Span(FOREVER, FOREVER)


@dataclass(frozen=True, slots=True)
class Batching:
    """Write-back: how operations become batches and how many may wait.

    ``size`` operations or ``delay`` seconds, whichever comes first; at most ``max_pending``
    operations wait (then a put blocks up to ``block`` seconds and raises QueueFull); at most
    ``rate`` batches a second (None = no limit)."""

    size: int = 100
    delay: float = 0.2
    max_pending: int = 10_000
    block: float = 5.0
    rate: float | None = None

    def __post_init__(self) -> None:
        if self.size < 1 or self.max_pending < 1:
            raise ValueError("batch and max_pending must be at least 1")
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise ValueError(f"rate: expected batches a second above 0, got {self.rate!r}")


@dataclass(frozen=True, slots=True)
class Retrying:
    """Write-back: a failing batch is tried ``attempts`` times in all, with exponential back-off
    and full jitter between ``base`` and ``cap`` seconds; then it is halved to find the row."""

    attempts: int = 5
    base: float = 0.05
    cap: float = 5.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.base < 0 or self.cap < self.base:
            raise ValueError("retry: attempts >= 1 and 0 <= base <= cap")
