"""Exceptions out of signal handlers while a thread waits for others: each comes out as itself, and
what was waited for works on."""

from __future__ import annotations

import ast
import asyncio
import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cachekit
from cachekit import runtime
from cachekit.backends import sqlite_gate
from cachekit.backends.pool import Pool, Right
from cachekit.backends.redis.blocking import BlockingWire
from cachekit.backends.redis.blocking import Pool as RedisPool
from cachekit.backends.redis.resolve import resolve
from cachekit.backends.redis.wire import Address, Login
from cachekit.backends.sqlite_gate import _Gate
from cachekit.core import threads
from cachekit.core.deadline import Deadline
from cachekit.core.ops import OpKind
from cachekit.logs.memory import MemoryLog
from cachekit.runtime import Runtime
from cachekit.testing.interrupts import Interrupted, interrupt_after
from cachekit.testing.servers import RedisServer

PACKAGE = Path(cachekit.__file__).parent
PLACES = (str(PACKAGE), threading.__file__)
THREADS = threads.__file__
LONG = 10.0
SHORT = 0.01


def at_every_place(work: Callable[[], object], works_on: Callable[[], object]) -> None:
    """``works_on`` is called by another thread, which must come to its end."""
    for steps in range(1, 2000):
        broken = interrupt_after(steps, work, within=PLACES)
        ended: list[object] = []
        thread = threading.Thread(target=lambda done=ended: done.append(works_on()), daemon=True)
        thread.start()
        thread.join(LONG)
        assert ended, f"after {steps} places"
        if not broken:
            assert steps > 6
            return
    raise AssertionError("it never ended")


def full_log() -> MemoryLog:
    log = MemoryLog(time.monotonic, 1, "lane")
    with log.lock:
        assert log.append_now(OpKind.PUT, "k", 1) is not None
        assert log.append_now(OpKind.PUT, "other", 1) is None
    return log


def test_a_wait_for_room_in_a_memory_log() -> None:
    log = full_log()
    at_every_place(lambda: log.wait_for_room(SHORT), lambda: (log.wake(), log.due_in(9, 9)))
    assert not log._changed._waiting


def test_a_wait_for_what_is_flushed() -> None:
    log = full_log()
    marks = (1,)
    at_every_place(lambda: log.wait_until_done(marks, SHORT), lambda: (log.wake(), log.busy))


def test_a_wait_for_work() -> None:
    log = full_log()
    at_every_place(lambda: log.wait_for_work(9, LONG, SHORT), lambda: (log.wake(), log.attended))
    assert len(log._idle) < 3  # one may stay where the interrupted thread took itself out


def test_a_flush_wakes_up_when_it_is_done_and_not_before() -> None:
    log = full_log()
    world = Runtime().threads
    waited: list[float] = []

    def wait() -> None:
        began = time.monotonic()
        log.wait_until_done((1,), LONG)
        waited.append(time.monotonic() - began)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    time.sleep(0.05)
    log.wake()
    time.sleep(0.05)
    assert not waited
    asyncio.run(log.ack(world, log.take(9)))
    thread.join(LONG)
    assert waited
    assert waited[0] < LONG / 2


class Link:
    """A connection that is always ready."""


def link_pool() -> Pool[Link]:
    return Pool(
        lambda deadline: Link(), lambda link: None, limit=1, ready=lambda link, deadline: True
    )


def test_a_wait_for_a_connection() -> None:
    pool = link_pool()
    held, go = threading.Event(), threading.Event()

    def hold(link: Link) -> None:
        held.set()
        go.wait(6 * LONG)

    holder = threading.Thread(
        target=lambda: pool.use(Deadline(LONG, time.monotonic), hold), daemon=True
    )
    holder.start()
    assert held.wait(LONG)

    def use(seconds: float) -> None:
        with pytest.raises((TimeoutError, Interrupted)) as told:
            pool.use(Deadline(seconds, time.monotonic), lambda link: None)
        if told.type is Interrupted:
            raise told.value

    at_every_place(lambda: use(SHORT), lambda: use(SHORT))
    go.set()
    holder.join(LONG)
    pool.use(Deadline(LONG, time.monotonic), lambda link: None)


def test_a_wait_for_a_connection_to_redis() -> None:
    pool = RedisPool(Address("127.0.0.1", 1), Login(max_connections=1))
    held = pool.reserve(time.monotonic() + LONG)  # in use by another

    def take(seconds: float) -> None:
        with pytest.raises((TimeoutError, Interrupted)) as told:
            pool.take(time.monotonic() + seconds)
        if told.type is Interrupted:
            raise told.value

    at_every_place(lambda: take(SHORT), lambda: take(SHORT))
    assert isinstance(held, Right)
    pool.forget(held)
    assert isinstance(pool.reserve(time.monotonic() + LONG), Right)


def test_no_place_of_a_pool_is_lost_with_what_was_broken_off() -> None:
    """Neither one to be opened nor one that was open."""
    pool, now = link_pool(), time.monotonic
    for warm in (False, True):
        for steps in range(1, 500):
            if not warm:
                pool.close_idle()
            broken = interrupt_after(
                steps, lambda: pool.use(Deadline(LONG, now), lambda link: None)
            )
            gc.collect()
            assert len(pool._alive) <= 1
            assert pool.use(Deadline(SHORT, now), lambda link: type(link)) is Link
            if not broken:
                assert steps > 4
                break


def test_no_place_of_a_pool_of_redis_is_lost_with_what_was_broken_off(
    redis_server: RedisServer,
) -> None:
    address = Address("127.0.0.1", redis_server.port)
    wire = BlockingWire(Login(max_connections=1))
    drive = runtime.drive

    def ask() -> None:
        until = time.monotonic() + LONG
        assert drive(wire.call(address, [("ECHO", "1")], until)) == [b"1"]

    def ask_two() -> None:
        until = time.monotonic() + LONG
        [found] = drive(wire.call_many([(address, [("ECHO", "1")])], until))
        assert found == [b"1"]

    for work in (ask, ask_two):
        for cold in (True, False):
            for steps in range(1, 5000, 3):
                if cold:
                    wire._pool(address).close()
                    wire._pools.clear()
                broken = interrupt_after(steps, work, within=str(PACKAGE / "backends"))
                gc.collect()
                ask()
                if not broken:
                    assert steps > 20
                    break


def test_a_name_is_resolved_after_an_attempt_that_was_broken_off() -> None:
    address = Address("localhost", 80)
    at_every_place(
        lambda: resolve(address, time.monotonic() + LONG),
        lambda: resolve(address, time.monotonic() + LONG / 2),
    )


def test_background_work_that_never_began_takes_no_place() -> None:
    runtime = Runtime()

    def settled() -> bool:
        end = time.monotonic() + LONG
        while runtime._running and time.monotonic() < end:
            time.sleep(0.001)
        return not runtime._running

    for steps in range(1, 1000):
        broken = interrupt_after(
            steps, lambda: runtime.background(lambda: None), within=(threading.__file__, THREADS)
        )
        assert settled(), f"after {steps} places"
        if not broken:
            assert steps > 20
            return
    raise AssertionError("it never ended")


def test_a_gate_that_a_fork_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_gate, "DRAIN", 0.1)  # one that can not leave is waited for
    gate = _Gate()

    def through() -> None:
        with gate:
            pass

    def fork() -> None:
        gate.before_fork()
        gate.in_parent()

    at_every_place(through, fork)


def test_no_part_of_the_package_waits_in_a_way_that_an_interrupt_can_spoil() -> None:
    """What the callers' threads pass must have no Condition in it, and an Event is one."""
    spoilt = {"Condition", "Event", "Semaphore", "BoundedSemaphore", "Barrier"}
    found: list[Any] = []
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] in ("testing", "bench"):
            continue
        found += [
            f"{path.name}:{node.lineno}"
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute)
            and node.attr in spoilt
            and isinstance(node.value, ast.Name)
            and node.value.id == "threading"
        ]
    assert not found
