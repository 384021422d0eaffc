"""The two worlds, driving, background work, the coarse clock, fork."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

import cachekit
from cachekit import runtime as runtime_module
from cachekit.core.flights import Flight
from cachekit.core.outcome import Outcome
from cachekit.errors import LoadTimeoutError
from cachekit.runtime import BACKGROUND_LIMIT, Runtime, drive
from cachekit.testing import ManualClock
from cachekit.ticker import Ticker

WAIT = 10.0


async def _gives(value: Any) -> Any:
    return value


def test_driving_gives_the_value_and_passes_errors() -> None:
    async def fails() -> None:
        raise LookupError("x")

    assert drive(_gives(5)) == 5
    with pytest.raises(LookupError):
        drive(fails())


def test_what_suspends_can_not_be_driven_and_is_closed() -> None:
    ended = []

    async def suspends() -> None:
        try:
            await asyncio.sleep(0)
        finally:
            ended.append(True)

    with pytest.raises(RuntimeError, match="async-only"):
        drive(suspends())
    assert ended == [True]


def test_a_load_with_a_timeout_runs_in_the_callers_context() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")
    load = cachekit.Cache().cached(load_timeout=WAIT)(lambda: variable.get())
    variable.set("mine")
    assert load() == "mine"


def test_a_load_that_hangs_is_given_up_and_its_late_value_is_not_kept() -> None:
    cache, gate, ended = cachekit.Cache(), threading.Event(), threading.Event()
    values = iter(["late", "prompt"])

    @cache.cached(load_timeout=0.05)
    def load(x: int) -> str:
        value = next(values)
        if value == "late":
            gate.wait(WAIT)
            ended.set()
        return value

    with pytest.raises(LoadTimeoutError, match=r"load.* took longer than 0.05 s"):
        load(1)
    gate.set()
    ended.wait(WAIT)
    assert load(1) == "prompt"
    assert load(1) == "prompt"


def test_a_waiter_waits_no_longer_than_the_load_timeout() -> None:
    cache = cachekit.Cache()
    load = cache.cached(load_timeout=0.05)(lambda: "v")
    flights = cache.parts.runtime.threads.flights
    flight = flights.board(Flight(load.key()))
    with pytest.raises(LoadTimeoutError):
        load()
    flights.leave(flight)

    async def main() -> None:
        async_load = cache.cached(load_timeout=0.05, name="a")(_none)
        table = cache.parts.runtime.asyncio().flights
        table.board(Flight(async_load.key()))
        with pytest.raises(LoadTimeoutError):
            await async_load()

    asyncio.run(main())


async def _none() -> None:
    return None


def test_a_users_own_timeout_error_is_not_taken_for_ours() -> None:
    def fails() -> None:
        raise TimeoutError("the driver's")

    async def fails_too() -> None:
        raise TimeoutError("the driver's")

    cache = cachekit.Cache()
    with pytest.raises(TimeoutError, match="the driver's"):
        cache.cached(load_timeout=WAIT)(fails)()
    with pytest.raises(TimeoutError, match="the driver's"):
        asyncio.run(cache.cached(load_timeout=WAIT)(fails_too)())


def test_background_work_is_bounded() -> None:
    runtime, gate, done = Runtime(), threading.Event(), []

    def work() -> None:
        gate.wait(WAIT)
        done.append(1)

    accepted = [runtime.background(work) for _ in range(BACKGROUND_LIMIT + 5)]
    assert accepted.count(True) == BACKGROUND_LIMIT
    gate.set()
    _until(lambda: len(done) == BACKGROUND_LIMIT and not runtime._running)
    assert runtime.background(lambda: done.append(2))
    _until(lambda: done[-1] == 2)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_work_that_fails_frees_its_place() -> None:
    runtime = Runtime()

    def fails() -> None:
        raise LookupError

    for _ in range(BACKGROUND_LIMIT):
        assert runtime.background(fails)
    _until(lambda: not runtime._running)
    assert runtime.background(lambda: None)


def test_background_tasks_of_a_loop_are_bounded_and_settled() -> None:
    async def main() -> None:
        world, gate, done = Runtime().asyncio(), asyncio.Event(), []

        async def work() -> None:
            await gate.wait()
            done.append(1)

        accepted = [world.spawn(work, "test") for _ in range(BACKGROUND_LIMIT + 5)]
        assert accepted.count(True) == BACKGROUND_LIMIT
        gate.set()
        await world.settle(WAIT)
        assert len(done) == BACKGROUND_LIMIT
        gate.clear()
        world.spawn(work, "hangs")
        await asyncio.sleep(0)
        await world.settle(0.01)  # what takes longer is cancelled
        assert len(done) == BACKGROUND_LIMIT
        assert not world._tasks

    asyncio.run(main())


def test_each_loop_has_a_world_of_its_own_that_goes_with_it() -> None:
    runtime = Runtime()

    async def world() -> int:
        assert runtime.asyncio() is runtime.asyncio()
        assert len(runtime.worlds()) >= 2
        return id(runtime.asyncio())

    for _ in range(50):
        asyncio.run(world())
    gc.collect()
    assert len(runtime.worlds()) == 1


def test_a_manual_clock_moves_deadlines() -> None:
    clock = ManualClock()
    deadline = Runtime(clock=clock).threads.deadline(2.0)
    assert (deadline.left(), deadline.passed()) == (2.0, False)
    clock.advance(2.0)
    assert (deadline.left(), deadline.passed()) == (0.0, True)
    clock.advance(1.0)
    assert deadline.left() == 0.0
    with pytest.raises(ValueError, match="back"):
        clock.advance(-1)


# -- the coarse clock --------------------------------------------------------------------


def test_the_coarse_clock_stands_at_infinity_until_it_is_started() -> None:
    ticker = Ticker(Runtime())
    assert ticker.now == float("inf")
    ticker.start()
    try:
        assert ticker.now < float("inf")
        names = [t.name for t in threading.enumerate()]
        ticker.start()
        assert [t.name for t in threading.enumerate()].count("cachekit-ticker") == names.count(
            "cachekit-ticker"
        )
    finally:
        ticker.stop()
    _until(lambda: ticker.now == float("inf"))


def test_with_the_coarse_clock_a_function_hits_and_expires() -> None:
    cache, loads = cachekit.Cache(clock="coarse"), []

    @cache.cached(ttl="30ms")
    def load() -> int:
        loads.append(1)
        return len(loads)

    try:
        assert [load(), load()] == [1, 1]
        _until(lambda: load() > 1)
    finally:
        cache.close()


def _until(condition: Callable[[], Any]) -> None:
    pause = threading.Event()
    for _ in range(2_000):
        if condition():
            return
        pause.wait(0.005)
    raise AssertionError("it never came to be")


# -- fork --------------------------------------------------------------------------------


def _in_child(work: Callable[[], Any], seconds: int = 5) -> int:
    """Exit status of a forked child that runs ``work`` and has some seconds for it."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(seconds)
            status = 0 if work() else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("clock", ["precise", "coarse"])
def test_a_forked_child_hits_loads_and_refreshes_on_its_own(clock: Any) -> None:
    cache = cachekit.Cache(clock=clock)
    loads: list[int] = []

    @cache.cached(ttl=60)
    def load(x: int) -> int:
        loads.append(x)
        return x

    load(1)
    cache.parts.runtime.background(lambda: None)

    def child() -> bool:
        if clock == "coarse" and cache.parts.clock.now != float("inf"):
            return False  # its ticker did not come along: nothing may look fresh for ever
        ok = [load(1), load(2), load(1), load(2)] == [1, 2, 1, 2]
        # At most one load a key of the child's own: the second reads were hits.
        ok = ok and loads.count(1) <= 2 and loads.count(2) == 1 and load.cache_info().hits >= 2
        done = threading.Event()
        return ok and cache.parts.runtime.background(done.set) and done.wait(3)

    assert _in_child(child) == 0
    cache.close()


def test_a_load_under_way_in_the_parent_does_not_hold_up_the_child() -> None:
    cache, gate, entered = cachekit.Cache(), threading.Event(), threading.Event()

    @cache.cached
    def load(x: int) -> str:
        if threading.current_thread() is not threading.main_thread():
            entered.set()
            gate.wait(WAIT)
        return "v"

    thread = threading.Thread(target=load, args=(1,))
    thread.start()
    entered.wait(WAIT)
    assert _in_child(lambda: load(1) == "v") == 0
    gate.set()
    thread.join()


def test_a_fill_under_way_in_the_parent_does_not_lock_the_child_out() -> None:
    cache, gate, entered = cachekit.Cache(), threading.Event(), threading.Event()
    load = cache.cached(lambda x: x)

    def hold() -> None:
        with cache.parts.near.section:
            entered.set()
            gate.wait(WAIT)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(WAIT)
    try:
        assert _in_child(lambda: load(1) == 1, seconds=1) == 0
    finally:
        gate.set()
        thread.join()


def test_registered_objects_are_told_in_the_child_only() -> None:
    told: list[int] = []

    class Owner:
        def reset(self) -> None:
            told.append(1)

    runtime, owner, dropped = Runtime(), Owner(), Owner()
    runtime.on_fork(owner.reset)
    runtime.on_fork(dropped.reset)
    del dropped  # the runtime does not keep it
    assert _in_child(lambda: told == [1] and runtime._pool is None) == 0
    assert told == []


def test_an_interpreter_that_can_start_no_thread_loads_in_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(runtime_module.threading.Thread, "start", refuse)
    world = Runtime().threads

    async def load(world: Any) -> Outcome:
        return Outcome("v")

    assert drive(world.bounded(load, 1.0)) == Outcome("v")
    assert not world.spawn(lambda: _none(), "test")
