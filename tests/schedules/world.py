"""A world whose every step is chosen: coroutines that suspend where threads would race.

The slow road of cachekit is coroutines that await only what a world and its stores give. Here
those give a hand-made suspension, so that a :class:`Scheduler` decides which actor moves next: no
thread, no event loop, and a seed replays a schedule exactly.
"""

from __future__ import annotations

import contextvars
import random
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

from cachekit.core.outcome import Outcome
from cachekit.errors import BackendError
from cachekit.runtime import Runtime, ThreadWorld

INFINITE = float("inf")
EPOCH = 1_700_000_000.0


class Wait:
    """Why an actor can not move: until ``ready()`` or, at ``wake``, until the clock is there."""

    __slots__ = ("label", "ready", "wake")

    def __init__(self, label: str, ready: Callable[[], bool], wake: float = INFINITE) -> None:
        self.label = label
        self.ready = ready
        self.wake = wake


@types.coroutine
def step(label: str) -> Generator[Any, None, None]:
    """A place where anything else may happen first."""
    yield label


@types.coroutine
def wait(
    label: str, ready: Callable[[], bool], wake: float = INFINITE
) -> Generator[Any, None, None]:
    """Suspend until ``ready()`` holds or the clock reaches ``wake``."""
    yield Wait(label, ready, wake)


class Actor:
    """A coroutine in its own context. ``play`` is the write it is at, for the oracle."""

    __slots__ = (
        "at",
        "background",
        "cancelled",
        "context",
        "coro",
        "done",
        "faults",
        "joined",
        "name",
        "play",
        "process",
        "waiting",
        "world",
    )

    def __init__(
        self,
        name: str,
        process: Any,
        coro: Coroutine[Any, Any, Any],
        *,
        background: bool = False,
        context: contextvars.Context | None = None,
    ) -> None:
        self.name = name
        self.process = process
        self.coro = coro
        self.background = background
        self.context = contextvars.Context() if context is None else context
        self.done = False
        self.cancelled = False
        self.faults: list[str] = []
        self.play: Any = None
        self.waiting: Wait | None = None
        self.world: Any = None  # where its calls of an async face run
        self.at = ""
        self.joined = False


class Stuck(AssertionError):
    """No actor can move, or they move for ever."""


class Scheduler:
    """Moves one actor at a time. ``clock`` stands still but for :meth:`advance`."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.rng = random.Random()
        self.actors: list[Actor] = []
        self.current: Actor | None = None
        self.trace: list[tuple[str, str]] = []
        self.steps = 0
        self.calm = False  # nothing befalls anybody: one who is alone need not wait
        self.on_end: Callable[[Actor, BaseException | None], None] = lambda actor, error: None

    def clock(self) -> float:
        return self.now

    def uniform(self) -> float:
        return self.rng.random()

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def start(self, actor: Actor) -> Actor:
        self.actors.append(actor)
        return actor

    @property
    def alone(self) -> bool:
        """Whether a suspension could change nothing."""
        return self.calm and len(self.actors) == 1

    def movable(self) -> list[Actor]:
        now = self.now
        return [
            actor
            for actor in self.actors
            if (at := actor.waiting) is None or now >= at.wake or at.ready()
        ]

    def move(self, actor: Actor, error: BaseException | None = None) -> None:
        """One step of one actor; ``error`` is thrown into it instead."""
        self.current = actor
        self.steps += 1
        coro = actor.coro
        ended: BaseException | None = None
        try:
            if error is None:
                asked = actor.context.run(coro.send, None)
            else:
                asked = actor.context.run(coro.throw, error)
        except StopIteration:
            actor.done = True
        except BaseException as raised:
            actor.done = True
            ended = raised
        else:
            waits = isinstance(asked, Wait)
            actor.waiting = asked if waits else None
            actor.at = asked.label if waits else asked
            self.trace.append((actor.name, actor.at))
        finally:
            self.current = None
        if actor.done:
            self.actors.remove(actor)
            self.trace.append((actor.name, "." if ended is None else f"! {ended!r}"))
            self.on_end(actor, ended)

    def wake_next(self) -> bool:
        """Let time pass until the first sleeper wakes; False if nobody sleeps."""
        wakes = [a.waiting.wake for a in self.actors if a.waiting is not None]
        soonest = min(wakes, default=INFINITE)
        if soonest == INFINITE:
            return False
        self.trace.append(("time", f"-> {soonest - self.now:+.3f}"))
        self.now = max(self.now, soonest)
        return True


class ScheduledWorld(ThreadWorld):
    """Plain calls whose waiting is a suspension."""

    def __init__(self, runtime: ScheduledRuntime, label: str) -> None:
        super().__init__(runtime)
        self.label = label
        self.scheduler = runtime.scheduler
        self.process = runtime.process

    async def sleep(self, seconds: float) -> None:
        await wait("sleep", lambda: False, self.scheduler.now + seconds)

    async def aside(self, fn: Callable[..., Any], *args: Any) -> Any:
        await step("aside")
        return fn(*args)

    async def call(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Outcome:
        """A source function here is a coroutine function: it too suspends."""
        try:
            result = fn(*args, **kwargs)
            if hasattr(type(result), "__await__"):
                result = await result
        except Exception as error:
            return Outcome(error=error)
        return Outcome(result)

    async def bounded(
        self, load: Callable[[Any], Awaitable[Outcome]], timeout: float | None
    ) -> Outcome | None:
        if timeout is None:
            return await load(self)
        landed: list[Outcome] = []

        async def work() -> None:
            landed.append(await load(self))

        self._start(work(), "load", contextvars.copy_context())
        end = self.scheduler.now + timeout
        while not landed and self.scheduler.now < end:
            await wait("bounded", lambda: bool(landed), end)
        return landed[0] if landed else None

    async def join(self, flight: Any, timeout: float | None) -> bool:
        scheduler, counts = self.scheduler, self.process.counts
        counts["joined"] += 1
        if scheduler.current is not None:
            scheduler.current.joined = True
        end = INFINITE if timeout is None else scheduler.now + timeout
        early = not flight.loading
        while not flight.landed and scheduler.now < end:
            await wait(f"join {flight.ident}", lambda: flight.landed, end)
        if flight.landed and not flight.handed and not flight.certain:
            counts["early joiner of an uncertain flight" if early else "join refused"] += 1
        return bool(flight.landed)

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> bool:
        # A thread starts with an empty context, a task with its parent's.
        copied = contextvars.copy_context() if self.label == "b" else contextvars.Context()
        self._start(work(), name.split(" ")[0], copied)
        self.process.counts[name.split(" ")[0] + " behind"] += 1
        return True

    def _start(self, coro: Coroutine[Any, Any, Any], name: str, ctx: contextvars.Context) -> None:
        by = self.scheduler.current
        name = f"{by.name if by is not None else self.process.name}/{name}"
        self.scheduler.start(Actor(name, self.process, coro, background=True, context=ctx))


class ScheduledRuntime(Runtime):
    """Two worlds over one clock that stands; ``process`` has counts, name, offset and token()."""

    def __init__(self, scheduler: Scheduler, process: Any) -> None:
        self.scheduler = scheduler
        self.process = process
        super().__init__(
            clock=scheduler.clock,
            wall=lambda: scheduler.now + EPOCH + process.offset,
            sleep=lambda seconds: None,
            token=process.token,
            uniform=scheduler.uniform,
        )
        self.threads = ScheduledWorld(self, "a")
        self.other = ScheduledWorld(self, "b")

    def worlds(self) -> list[Any]:
        return [self.threads, self.other]

    def asyncio(self) -> Any:
        """The async faces run in the world of whoever calls them."""
        actor = self.scheduler.current
        return self.other if actor is None or actor.world is None else actor.world

    def background(self, work: Callable[[], None]) -> bool:
        """The replay of pending invalidations, as an actor: its own loop blocks a thread."""
        invalidator = getattr(work, "__self__", None)
        if getattr(work, "__name__", "") != "_replay":
            return False
        self.threads._start(_replay(invalidator, self.threads), "replay", contextvars.Context())
        return True


def renew_in_steps(keeper: Any, world: ScheduledWorld) -> None:
    """Have leases renewed by an actor: a keeper's own thread would wait in real time.

    What ``Keeper.renew`` and ``Keeper._renew_one`` do, with a suspension at each far call."""

    async def renew() -> None:
        try:
            while keeper._held and not keeper._closed:
                await world.sleep(keeper.pause)
                now = world.scheduler.now
                for held in [h for h in list(keeper._held.values()) if h.due <= now]:
                    await renew_one(held, now)
        finally:
            keeper._running = False

    async def renew_one(held: Any, now: float) -> None:
        if now >= held.end:
            keeper._held.pop(held.token, None)
            return
        far = keeper.far
        try:
            kept = await far.renew(world, held.key, held.token, held.lease, far.deadline(world))
        except BackendError:
            held.due = now + held.lease / 8
            return
        world.process.counts["lease renewed" if kept else "lease renewal refused"] += 1
        if kept:
            held.due = now + held.lease / 2
        else:
            keeper._held.pop(held.token, None)

    def start() -> None:
        keeper._running = True
        world._start(renew(), "leases", contextvars.Context())

    keeper._start = start


async def _replay(invalidator: Any, world: ScheduledWorld) -> None:
    """What ``Invalidator._replay`` does, with a suspension at each wait and far call."""
    pause = 0.1
    try:
        while len(invalidator.pending) and not invalidator._closed.is_set:
            await world.sleep(pause)
            try:
                invalidator.pending.sync()
                await invalidator.settle(world, events=True)
                world.process.counts["replayed"] += 1
            except BackendError:
                pause = min(pause * 2, 1.0)
    finally:
        invalidator._replaying.release()
    if len(invalidator.pending) and not invalidator._closed.is_set:
        invalidator.postpone(())
