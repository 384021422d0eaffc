"""Scheduled invalidation: at planned times, once for all processes that share a far tier.

Planned times are whole milliseconds of Unix time that every process computes alike. Where there
is a far tier a planned time is claimed there before it is carried out, by the token of a slot of
its own: the winner invalidates and leaves a marker, a dead winner's lease ends and another takes
over. So a planned time is carried out at least once, and once as a rule. Clocks of one fleet are
expected to agree: one that is ahead fires early for all.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable
from datetime import datetime, time, tzinfo
from hashlib import blake2b
from typing import Any

from ..core import envelope as wire
from ..core.entry import Verdict
from ..core.eventcount import EventCount
from ..core.keys import check_text, physical, tag_name
from ..core.policy import Duration, Span
from ..core.threads import begin
from ..errors import BackendError, ConfigurationError
from ..packing import Found, Right
from ..protocols import SlotState
from ..runtime import drive
from ..strategies.parts import Parts
from ..tiers import Far
from .plans import Cron, Daily, Every, Plan, local, zone_of

__all__ = ["Schedule", "Scheduler"]

Names = Iterable[str] | Callable[[], Iterable[str]]
Asked = tuple[list[str], list[str], bool]

CLAIM_LEASE = 10.0
# How long a planned time is known as carried out: longer than clocks differ. A short period would
# leave a marker each time, so those live an hour.
MARKER_TTL = 86400.0
MARKER_TTL_LEAST = 3600.0
LOOK_AGAIN = 1.0  # while another process holds the claim
LOOK_ANYWAY = 30.0  # so that a clock that was set is noticed
RETRY_FIRST, RETRY_MOST = 0.5, 10.0
MARK_PAUSES = (0.0, 0.1, 0.5)
AFTER_FORK = 0.1
MOST_RANGES = 64
_ABSENT = Found(Verdict.MISS, SlotState.NOTHING)


# -- what --------------------------------------------------------------------------------


def _named(names: Names, what: str, check: Callable[[str], str]) -> tuple[Names, str]:
    """The names as they are kept, and their text for a default name ("" for none)."""
    if callable(names):
        called = f"{getattr(names, '__module__', '')}.{getattr(names, '__qualname__', '<')}"
        return names, f"{what}={called}()"
    if isinstance(names, str):
        raise TypeError(f"{what}: expected a list of str or a function, got one str")
    fixed = tuple(names)
    for name in fixed:
        check(name)
    return fixed, f"{what}={','.join(fixed)}" if fixed else ""


class Schedule:
    """One planned invalidation; made by :meth:`Scheduler.add`. Safe for threads."""

    def __init__(
        self, scheduler: Scheduler, name: str, plan: Plan, ask: Callable[[], Asked]
    ) -> None:
        self.name = name
        self.cancelled = False
        self._scheduler = scheduler
        self._plan = plan
        self._ask = ask
        self._planned = plan.after(scheduler._now())
        self._due: int | None = None  # a planned time that came and is not carried out yet
        self._failures = 0
        self._not_before = 0.0  # monotonic seconds
        self._fired: list[tuple[int, int]] = []  # runs of planned times carried out

    @property
    def next(self) -> datetime | None:
        """The next planned time, in the schedule's zone; None once cancelled."""
        return None if self.cancelled else local(self._planned, self._plan.zone)

    def cancel(self) -> None:
        """No firing begins after this; one that runs ends. Twice is fine."""
        self.cancelled = True
        self._scheduler._forget(self)

    def __repr__(self) -> str:
        return f"Schedule({self.name!r}, next={self.next})"

    def _look(self, now: int) -> None:
        """Take over the clock's reading: what has come, and what is next."""
        plan = self._plan
        if self._due is not None and self._due > now:  # the clock was set back
            self._due = None
        if now >= self._planned:
            came = plan.latest(now, self._planned)
            while (run := self._run(came)) is not None:
                came = plan.latest(run[0] - 1, self._planned)
            if came != self._due:
                self._due, self._failures, self._not_before = came, 0, 0.0
        upcoming = plan.after(now)
        while (run := self._run(upcoming)) is not None:
            upcoming = plan.after(run[1])
        self._planned = upcoming

    def _run(self, ms: int) -> tuple[int, int] | None:
        return next((run for run in self._fired if run[0] <= ms <= run[1]), None)

    def _done(self) -> None:
        due, self._due = self._due, None
        if due is None:
            return
        if self._fired and self._plan.after(self._fired[-1][1]) == due:
            self._fired[-1] = (self._fired[-1][0], due)
        else:
            self._fired = [*self._fired, (due, due)][-MOST_RANGES:]


class Scheduler:
    """The schedules of one cache, carried out by one daemon thread from the first :meth:`add` on.

    ``invalidate(keys, tags, everything)`` carries out one; what it raises is counted
    ("schedule_failed") and tried again, at growing intervals, until the next planned time. With
    ``thread=False`` somebody else calls :meth:`run_due`. A forked child of a process whose
    thread ran starts its own.
    """

    def __init__(
        self,
        parts: Parts,
        invalidate: Callable[[list[str], list[str], bool], None],
        *,
        thread: bool = True,
    ) -> None:
        self._parts = parts
        self._invalidate = invalidate
        self._threaded = thread
        self._schedules: dict[str, Schedule] = {}
        self._lock = threading.RLock()
        self._changed = EventCount()
        self._thread: threading.Thread | None = None
        self._closed = False
        parts.runtime.on_fork(self._after_fork)
        weakref.finalize(self, self._changed.advance)  # its thread may end at once

    def add(
        self,
        *,
        keys: Names = (),
        tags: Names = (),
        everything: bool = False,
        every: Duration | None = None,
        at: str | time | None = None,
        cron: str | None = None,
        tz: str | tzinfo | None = None,
        name: str | None = None,
    ) -> Schedule:
        """Invalidate keys, tags or the whole namespace at planned times: exactly one of ``every``
        (at least 0.1 s, counted from 1970 UTC), ``at`` (daily) and ``cron`` (needs the extra
        ``schedule``), the last two in ``tz`` (default UTC).

        ``keys`` and ``tags``: texts, or a function called at each firing, in the winner's process
        only; one that takes longer than 10 s may run in two. ``name`` tells the schedule from
        others in every process of the fleet; by default it says what is done when. Times that
        passed while the process slept or the far tier was away count as one.

        Raises ConfigurationError naming the option."""
        try:
            plan = self._plan(every, at, cron, tz)
            kept, key_text = _named(keys, "keys", lambda key: check_text(key, "keys"))
            labels, tag_text = _named(tags, "tags", tag_name)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(f"schedule: {error}") from None
        does = " ".join(filter(None, (key_text, tag_text, "everything" if everything else "")))
        if not does:
            raise ConfigurationError("schedule: give keys=, tags= or everything=True")
        if name is None:
            local_one = any(
                "<" in t for n, t in ((kept, key_text), (labels, tag_text)) if callable(n)
            )
            if local_one and self._parts.far is not None:
                raise ConfigurationError(
                    "schedule: give name=; a local function's name may not be the same elsewhere"
                )
            name = _short(f"{plan.text}: {does}")
        elif not isinstance(name, str) or not name:
            raise ConfigurationError("schedule: name: expected a str that is not empty")
        schedule = Schedule(
            self, name, plan, lambda: (_listed(kept), _listed(labels), bool(everything))
        )
        with self._lock:
            if self._closed:
                raise ConfigurationError("schedule: this cache is closed")
            if name in self._schedules:
                raise ConfigurationError(f"schedule: name: there is a schedule {name!r} already")
            self._schedules = {**self._schedules, name: schedule}
            self._changed.advance()
            self._start(0.0)
        return schedule

    def close(self, timeout: float = 2.0) -> None:
        """End the thread, waiting at most ``timeout`` seconds for a firing. Twice is fine."""
        with self._lock:
            self._closed = True
            self._changed.advance()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    def run_due(self) -> float:
        """Carry out what has come; gives the seconds until the next look, at most 30."""
        pause = LOOK_ANYWAY
        for schedule in list(self._schedules.values()):
            if not self._closed and not schedule.cancelled:
                pause = min(pause, self._attend(schedule))
        return pause

    # -- one firing -----------------------------------------------------------------------

    def _attend(self, schedule: Schedule) -> float:
        clock = self._parts.runtime.clock
        schedule._look(self._now())
        if schedule._due is not None and clock() >= schedule._not_before:
            self._fire(schedule, schedule._due)
        until = max(0.0, (schedule._planned - self._now()) / 1000)
        if schedule._due is not None:
            until = min(until, max(0.0, schedule._not_before - clock()))
        return until

    def _fire(self, schedule: Schedule, due: int) -> None:
        runtime, meter, far = self._parts.runtime, self._parts.meter, self._parts.far
        key, right = f"~fire:{schedule.name}:{due}", None
        try:
            if far is not None:
                claim = drive(self._claim(far, key))
                if claim is SlotState.ENTRY or claim is SlotState.REFRESHING:
                    schedule._done()
                    return
                if not isinstance(claim, Right):
                    pause = LOOK_AGAIN * (0.75 + runtime.uniform() / 2)
                    schedule._not_before = runtime.clock() + pause
                    return
                right = claim
            self._invalidate(*schedule._ask())
        except Exception as error:
            meter.event("schedule_failed", schedule=schedule.name, error=type(error).__name__)
            meter.warn_once(
                f"schedule {schedule.name}",
                "schedule %r failed: %s; it is tried again",
                schedule.name,
                type(error).__name__,
            )
            pause = min(RETRY_FIRST * 2**schedule._failures, RETRY_MOST)
            schedule._failures = min(schedule._failures + 1, 10)
            schedule._not_before = runtime.clock() + pause * (0.75 + runtime.uniform() / 2)
            if far is not None and right is not None:
                far.give_back_behind(runtime.threads, [(key, right.token)])
            return
        schedule._done()
        meter.event("schedule_fired", schedule=schedule.name, planned=due / 1000)
        if far is not None and right is not None:
            # Ten periods: to the next planned time and then some.
            apart = (schedule._plan.after(due) - due) / 1000
            self._mark(far, key, right, min(MARKER_TTL, max(MARKER_TTL_LEAST, 10 * apart)))

    async def _claim(self, far: Far, key: str) -> Right | SlotState:
        world = self._parts.runtime.threads
        return await far.acquire(
            world, key, _ABSENT, (), CLAIM_LEASE, False, MARKER_TTL, far.deadline(world)
        )

    def _mark(self, far: Far, key: str, right: Right, ttl: float) -> None:
        """Leave word that the planned time is carried out. Only that an entry stands there is
        looked at, so that ``clear()`` does not undo it."""
        runtime = self._parts.runtime
        marker = wire.Envelope(
            payload=b"",
            mark=self._parts.codec.mark,
            created=int(runtime.wall() * 1000),
            ttl=int(ttl * 1000),
            space=right.space,
        )
        data, span = wire.pack(marker, physical(key)), Span(ttl, ttl)
        world = runtime.threads
        for pause in MARK_PAUSES:
            if pause:
                runtime.sleep(pause)
            try:
                drive(far.fill(world, key, right, data, span, far.deadline(world)))
                return
            except BackendError:
                continue  # without it another process fires once more, when the claim ends

    # -- the thread -----------------------------------------------------------------------

    def _start(self, pause: float) -> None:
        """Start the thread unless it runs; the lock is held, or this is a forked child."""
        if not self._threaded or (self._thread is not None and self._thread.is_alive()):
            return
        self._thread = threading.Thread(
            target=_turn,
            args=(weakref.ref(self), self._changed, pause),
            name="cachekit-schedules",
            daemon=True,
        )
        if not begin(self._thread):
            self._thread = None

    def _after_fork(self) -> None:
        ran, self._thread = self._thread is not None, None
        self._lock = threading.RLock()  # the parent may have held it
        self._changed = EventCount()
        weakref.finalize(self, self._changed.advance)
        if ran and self._schedules and not self._closed:
            # The pause lets the other parts of the cache finish with the fork.
            self._start(AFTER_FORK)

    def _forget(self, schedule: Schedule) -> None:
        with self._lock:
            if self._schedules.get(schedule.name) is schedule:
                kept = {k: v for k, v in self._schedules.items() if k != schedule.name}
                self._schedules = kept

    def _now(self) -> int:
        return int(self._parts.runtime.wall() * 1000)

    @staticmethod
    def _plan(every: Any, at: Any, cron: Any, tz: Any) -> Plan:
        given = [n for n, v in (("every", every), ("at", at), ("cron", cron)) if v is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of every, at and cron, not {given or 'none'}")
        if every is not None:
            if tz is not None:
                raise ValueError("tz: goes with at and cron only")
            return Every(every)
        return Daily(at, zone_of(tz)) if at is not None else Cron(cron, zone_of(tz))


def _turn(owner: weakref.ref[Scheduler], changed: EventCount, pause: float) -> None:
    """The thread. While it waits it does not hold the scheduler, so that one that was dropped
    can go."""
    changed.wait(changed.now, pause)
    while True:
        seen = changed.now
        scheduler = owner()
        if scheduler is None or scheduler._closed:
            return
        pause = scheduler.run_due()
        del scheduler
        changed.wait(seen, pause)


def _listed(names: Names) -> list[str]:
    found = names() if callable(names) else names
    if isinstance(found, str):
        raise TypeError("a schedule's function must give a list of str, not one str")
    return list(found)


def _short(text: str) -> str:
    if len(text) <= 100:
        return text
    return f"{text[:80]}... {blake2b(text.encode(), digest_size=8).hexdigest()}"
