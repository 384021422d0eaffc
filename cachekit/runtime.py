"""Where time, randomness, threads and event loops enter: everything above is one code path.

The slow road (miss, fill, write, invalidate) is written once as ``async def`` and awaits only
what a :class:`World` and the stores opened in it give. In the thread world those parts block
in place and never suspend, so :func:`drive` finishes the coroutine with one ``send(None)``; in
the asyncio world the same coroutine is awaited.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import os
import random
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from .core.deadline import Deadline
from .core.eventcount import Flag
from .core.flights import Flight, FlightTable
from .core.outcome import Outcome
from .core.threads import begin
from .errors import ConfigurationError

T = TypeVar("T")

POOL_THREADS = 16
BACKGROUND_LIMIT = 64


def drive(coro: Coroutine[Any, Any, T]) -> T:
    """Finish a coroutine that never suspends; used for every plain call.

    Raises RuntimeError if it does suspend: an async-only part reached the thread world."""
    try:
        coro.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]  # StopIteration.value is Any
    coro.close()
    raise RuntimeError("an async-only part was reached from a plain call")


class ThreadWorld:
    """Plain calls from any thread. Its verbs are coroutine functions that never suspend."""

    name = "threads"

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.flights = FlightTable()
        self.opened: dict[Any, Any] = {}  # what was opened in this world, by its owner
        self.ended = False

    def deadline(self, seconds: float) -> Deadline:
        return Deadline(seconds, self.runtime.clock)

    async def sleep(self, seconds: float) -> None:
        self.runtime.sleep(seconds)

    async def run(self, fn: Callable[..., Any], *args: Any) -> Any:
        return fn(*args)

    async def aside(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Call a function that may block for long."""
        return fn(*args)

    async def call(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Outcome:
        """Call the user's plain function. A coroutine function can not be called from here."""
        try:
            result = fn(*args, **kwargs)
        except Exception as error:
            return Outcome(error=error)
        if inspect.iscoroutine(result):
            result.close()
            return Outcome(
                error=ConfigurationError(
                    "an async function was called from the plain face; use the .aio face"
                )
            )
        return Outcome(result)

    async def bounded(
        self, load: Callable[[Any], Awaitable[Outcome]], timeout: float | None
    ) -> Outcome | None:
        """Run a load for at most ``timeout`` seconds; None when it took longer. With a timeout
        it runs in a thread of the cache's, in a copy of the caller's context."""
        if timeout is None:
            return await load(self)
        context = contextvars.copy_context()
        landed: list[Outcome] = []
        done = Flag()

        def work() -> None:
            try:
                landed.append(context.run(drive, _once(load, self)))
            except BaseException as error:  # belongs to whoever waits
                landed.append(Outcome(error=error))
            finally:
                done.set()

        # A thread of its own: loads that hang must not use up a pool that others need.
        if not begin(threading.Thread(target=work, name="cachekit-load", daemon=True)):
            return await load(self)
        return landed[0] if done.wait(timeout) else None

    async def join(self, flight: Flight, timeout: float | None) -> bool:
        """Wait for a flight to land; False when the timeout (seconds) passed first."""
        landed = Flag()
        return flight.on_landing(landed.set) or landed.wait(timeout)

    def spawn(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> bool:
        """Run in the background; False when the bound is reached or the process is ending."""
        return self.runtime.background(lambda: drive(work()))


class AsyncioWorld:
    """One event loop. Bound to it at its first use; dropped with it."""

    name = "asyncio"

    def __init__(self, runtime: Runtime, loop: asyncio.AbstractEventLoop) -> None:
        self.runtime = runtime
        self.loop = weakref.ref(loop)
        self.flights = FlightTable()
        self.opened: dict[Any, Any] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._staying: set[asyncio.Task[None]] = set()

    @property
    def ended(self) -> bool:
        loop = self.loop()
        return loop is None or loop.is_closed()

    def deadline(self, seconds: float) -> Deadline:
        return Deadline(seconds, self.runtime.clock)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def run(self, fn: Callable[..., Any], *args: Any) -> Any:
        return await self._in(self.runtime.pool(), fn, *args)

    async def aside(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Call a function that may block for long: in the loop's own pool of threads, so that
        the backends' pool stays free."""
        return await self._in(None, contextvars.copy_context().run, fn, *args)

    async def _in(self, pool: ThreadPoolExecutor | None, fn: Callable[..., Any], *args: Any) -> Any:
        try:
            ran = asyncio.get_running_loop().run_in_executor(pool, fn, *args)
        except RuntimeError:  # interpreter shutdown: no thread takes anything any more
            return fn(*args)
        return await ran

    async def call(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Outcome:
        """Call the user's function, awaiting what it returns if that is awaitable."""
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
        """Run a load for at most ``timeout`` seconds; None when it took longer."""
        if timeout is None:
            return await load(self)
        try:
            async with asyncio.timeout(timeout) as scope:
                return await load(self)
        except TimeoutError:
            if scope.expired():
                return None
            raise

    async def join(self, flight: Flight, timeout: float | None) -> bool:
        loop = asyncio.get_running_loop()
        landed: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not landed.done():
                landed.set_result(None)

        def wake_from_anywhere() -> None:
            try:
                loop.call_soon_threadsafe(wake)
            except RuntimeError:  # the loop closed: nobody waits any more
                return

        if flight.on_landing(wake_from_anywhere):
            return True
        try:
            # Not wait_for: before 3.12 it swallows a cancellation that meets the landing.
            async with asyncio.timeout(timeout):
                await landed
        except TimeoutError:
            return False
        return True

    def spawn(
        self, work: Callable[[], Coroutine[Any, Any, None]], name: str, *, bounded: bool = True
    ) -> bool:
        """Run as a task. Not ``bounded``: one that stays, is not counted with the others, and has
        nothing of the context in which it happened to be begun."""
        if bounded and len(self._tasks) >= BACKGROUND_LIMIT:
            return False
        kept = self._tasks if bounded else self._staying
        context = None if bounded else contextvars.Context()
        loop = asyncio.get_running_loop()
        task = loop.create_task(work(), name=f"cachekit:{name}", context=context)
        kept.add(task)
        task.add_done_callback(kept.discard)
        return True

    async def settle(self, timeout: float) -> None:
        """Wait for the background tasks this loop still owes; cancel those that take longer."""
        current = asyncio.current_task()
        tasks = [t for t in self._tasks | self._staying if t is not current]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=timeout)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)


async def _once(load: Callable[[Any], Awaitable[Outcome]], world: ThreadWorld) -> Outcome:
    return await load(world)


AnyWorld = ThreadWorld | AsyncioWorld


class Runtime:
    """One cache's clocks, randomness, worlds and background threads.

    ``clock`` is monotonic seconds, ``wall`` Unix seconds, ``token`` 16 random bytes. All can be
    replaced (tests move a manual clock). Safe across fork: the child starts with no pool and no
    worlds of the parent's; objects that own sockets register ``on_fork``.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
        token: Callable[[], bytes] | None = None,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self.clock = clock
        self.wall = wall
        self.sleep = sleep
        self.token = token or (lambda: os.urandom(16))
        self.uniform = uniform
        self.threads = ThreadWorld(self)
        self._taken = False
        self.once = threading.Lock()  # for whatever is started at its first use
        self._loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncioWorld] = (
            weakref.WeakKeyDictionary()
        )
        self._worlds: tuple[AnyWorld, ...] = (self.threads,)
        self._pool: ThreadPoolExecutor | None = None
        # Weak: one that an interrupt kept from its beginning is not counted for ever.
        self._running: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self._lock = threading.RLock()  # a finaliser or signal handler may come back here
        self._forked: list[weakref.WeakMethod[Callable[[], None]]] = []
        _runtimes.add(self)

    def take(self) -> None:
        """Make it one cache's. Raises ConfigurationError if it is another's: loads are shared by
        key, and two caches may mean different things by one."""
        if self._taken:
            raise ConfigurationError("a runtime belongs to one cache; give each its own")
        self._taken = True

    def asyncio(self) -> AsyncioWorld:
        """The world of the running loop."""
        loop = asyncio.get_running_loop()
        world = self._loops.get(loop)
        if world is None:
            with self._lock:
                world = self._loops.setdefault(loop, AsyncioWorld(self, loop))
                self._let_go()
        return world

    def worlds(self) -> Sequence[AnyWorld]:
        """Waits for no lock: whoever asks may hold others."""
        worlds = self._worlds
        ended = len(worlds) > 1 and any(world.ended for world in worlds)
        if ended and self._lock.acquire(blocking=False):
            try:
                self._let_go()
            finally:
                self._lock.release()
        return self._worlds

    def in_flight(self, ident: Hashable) -> bool:
        """Whether a load of a key may be on its way, in any world. Takes no lock."""
        if ident in self.threads.flights:
            return True
        worlds = self._worlds
        return len(worlds) > 1 and any(ident in world.flights for world in worlds)

    def _let_go(self) -> None:
        # What was opened in a loop refers to it: one that ended must be let go by hand.
        for ended in [loop for loop in self._loops if loop.is_closed()]:
            self._loops.pop(ended, None)
        self._worlds = (self.threads, *self._loops.values())

    def pool(self) -> ThreadPoolExecutor:
        pool = self._pool
        if pool is None:
            with self._lock:
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="cachekit")
                pool = self._pool
        return pool

    def background(self, work: Callable[[], None]) -> bool:
        """Run in a daemon thread; False when too many run already or the process is ending."""

        def run() -> None:
            try:
                work()
            finally:
                self._running.discard(threading.current_thread())

        # A daemon of its own: background work must never hold up the interpreter's exit.
        thread = threading.Thread(target=run, name="cachekit-background", daemon=True)
        with self._lock:
            if len(self._running) >= BACKGROUND_LIMIT:
                return False
            self._running.add(thread)
        return begin(thread, lambda: self._running.discard(thread))

    def on_fork(self, reset: Callable[[], None]) -> None:
        """Call ``reset``, a method whose object this does not keep alive, in a forked child,
        before anything else of this cache runs there."""
        self._forked.append(weakref.WeakMethod(reset))

    def close(self) -> None:
        """End the pool after its running work. Twice is fine; the runtime can be used again."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=False)

    def _after_fork(self) -> None:
        self._lock, self.once = threading.RLock(), threading.Lock()
        self._pool, self._running = None, weakref.WeakSet()
        self.threads.flights = FlightTable()
        self.threads.opened = {}  # the parent's sockets are the parent's
        self._loops, self._worlds = weakref.WeakKeyDictionary(), (self.threads,)
        for found in [held() for held in self._forked]:
            if found is not None:
                found()


_runtimes: weakref.WeakSet[Runtime] = weakref.WeakSet()


def _child() -> None:
    for runtime in list(_runtimes):
        runtime._after_fork()


os.register_at_fork(after_in_child=_child)
