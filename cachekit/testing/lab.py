"""Where a contract test runs: one world, its stores, tokens, time and rivals."""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
import os
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Literal, TypeVar

import pytest

from ..core.deadline import Deadline
from ..protocols import TOKEN_BYTES, Backend, Slot, Slots, Store
from ..runtime import AnyWorld, Runtime, drive
from .clock import ManualClock

T = TypeVar("T")
Job = Coroutine[Any, Any, Any]

BUDGET = 10.0  # seconds: far above what a healthy backend needs for one verb

_serial = itertools.count(1)


class Suite:
    """What a backend's test class says about the backend. Subclass ``BackendContract``."""

    ttl_granularity: float = 0.0
    """Seconds to which the backend rounds ttls and leases up; 1.0 for whole seconds."""

    max_value: int = 1024 * 1024 - 4096
    """The largest value, in bytes, that the suite stores."""

    exact: bool = True
    """False: a race may cost an entry or a grant (a miss), never freshness."""

    manual_time: bool = False
    """True: the backend was given ``self.clock`` and the suite moves that instead of waiting."""

    clock: ManualClock

    def make_backend(self, namespace: str) -> Backend:
        """A backend on this namespace. Two of one namespace share data where it is ``shared``."""
        raise NotImplementedError(f"{type(self).__name__} must define make_backend")


class Lab:
    """One test's surroundings in one world. Its stores are closed when the test ends."""

    def __init__(self, suite: Suite, world: AnyWorld, runtime: Runtime) -> None:
        self.suite = suite
        self.world = world
        self.runtime = runtime
        self.namespace = f"t{os.getpid()}n{next(_serial)}"
        self._backends: dict[str, Backend] = {}
        self._stores: list[Store] = []

    def backend(self, namespace: str | None = None) -> Backend:
        """The backend of a namespace, made once a test (by default on one of its own)."""
        namespace = self.namespace if namespace is None else namespace
        if namespace not in self._backends:
            self._backends[namespace] = self.suite.make_backend(namespace)
        return self._backends[namespace]

    def open(self, namespace: str | None = None) -> Store:
        return self.adopt(self.backend(namespace).open(self.world))

    def adopt(self, store: Store) -> Store:
        """Have the store closed with the test."""
        self._stores.append(store)
        return store

    def deadline(self, seconds: float = BUDGET) -> Deadline:
        return self.world.deadline(seconds)

    def token(self) -> bytes:
        """A token, stamp, writer id or nonce that never was: no two in one process are alike."""
        return (next(_serial) * 2**64 + os.getpid()).to_bytes(TOKEN_BYTES, "big")

    async def advance(self, seconds: float) -> None:
        if self.suite.manual_time:
            self.suite.clock.advance(seconds)
        else:
            await self.world.sleep(seconds)

    async def slot(self, slots: Slots, key: str) -> Slot:
        return (await slots.read([key], [], self.deadline())).slots[0]

    async def together(self, *jobs: Job) -> list[Any]:
        """Run the coroutines at once, each in a thread or task; their results in order.

        They are let go together, so that they race. The first error is raised."""
        if self.world.name == "threads":
            return _in_threads(jobs)
        return await asyncio.gather(*jobs)

    async def close(self) -> None:
        while self._stores:
            await self._stores.pop().close()


def _in_threads(jobs: tuple[Job, ...]) -> list[Any]:
    barrier = threading.Barrier(len(jobs))
    results: list[Any] = [None] * len(jobs)
    errors: list[BaseException] = []

    def run(index: int, job: Job) -> None:
        try:
            barrier.wait(BUDGET)
            results[index] = drive(job)
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=run, args=pair, name=f"contract-{pair[0]}", daemon=True)
        for pair in enumerate(jobs)
    ]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # steps of Python code then interleave, not only waits
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(3 * BUDGET)
    finally:
        sys.setswitchinterval(interval)
    if any(thread.is_alive() for thread in threads):
        raise AssertionError("a verb outlived its deadline: its thread still runs")
    if errors:
        raise errors[0]
    return results


Body = Callable[..., Awaitable[None]]


def in_both_worlds(body: Body) -> Callable[..., None]:
    """Make of an ``async def test(self, lab, ...)`` one test for each world.

    More arguments come from ``pytest.mark.parametrize`` above this decorator."""

    def test(self: Suite, world: Literal["threads", "asyncio"], **given: Any) -> None:
        self.clock = ManualClock()
        runtime = Runtime()

        async def run() -> None:
            lab = Lab(self, runtime.threads if world == "threads" else runtime.asyncio(), runtime)
            try:
                await body(self, lab, **given)
            finally:
                await lab.close()

        try:
            if world == "threads":
                drive(run())
            else:
                asyncio.run(run())
        finally:
            runtime.close()

    own = [p.replace(annotation=Any) for p in inspect.signature(body).parameters.values()][2:]
    first = list(inspect.signature(test).parameters.values())[:2]
    functools.update_wrapper(test, body)
    del test.__wrapped__  # type: ignore[attr-defined]  # pytest would ask for a fixture `lab`
    test.__signature__ = inspect.Signature([*first, *own])  # type: ignore[attr-defined]  # as above
    marked: Callable[..., None] = pytest.mark.parametrize("world", ["threads", "asyncio"])(test)
    return marked
