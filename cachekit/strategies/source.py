"""The user's side of a strategy: the functions that read and write the system of record."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.ops import OpKind
from ..core.outcome import Outcome
from ..errors import ConfigurationError
from ..runtime import AnyWorld, ThreadWorld, drive

Fn = Callable[..., Any] | None


@dataclass(frozen=True, slots=True)
class Source:
    """``load(id) -> value | None``, ``load_many(ids) -> {id: value}``, ``store(id, value)``,
    ``store_many({id: value})``, ``delete(id)``, ``delete_many(ids)``; plain or async. What is
    not given is made of what is."""

    load: Fn = None
    load_many: Fn = None
    store: Fn = None
    store_many: Fn = None
    delete: Fn = None
    delete_many: Fn = None

    @property
    def is_async(self) -> bool:
        """Whether any of the functions is a coroutine function."""
        fns = (
            self.load,
            self.load_many,
            self.store,
            self.store_many,
            self.delete,
            self.delete_many,
        )
        return any(is_async(fn) for fn in fns if fn is not None)

    def lacks(self, kind: OpKind) -> Outcome | None:
        """The error of a write that no function was given for."""
        if kind is OpKind.PUT:
            return _lacks("store") if self.store is None and self.store_many is None else None
        return _lacks("delete") if self.delete is None and self.delete_many is None else None

    async def loaded(self, world: AnyWorld, id: Any) -> Outcome:
        """One value; None where the source has nothing."""
        if self.load is not None:
            return await call(world, self.load, id)
        if self.load_many is None:
            return _lacks("load")
        outcome = await call(world, self.load_many, [id])
        return outcome if outcome.error is not None else Outcome(outcome.value.get(id))

    async def loaded_many(self, world: AnyWorld, ids: Sequence[Any]) -> Outcome:
        """{id: value} of those the source has."""
        if self.load_many is not None:
            outcome = await call(world, self.load_many, list(ids))
            if outcome.error is None and not isinstance(outcome.value, Mapping):
                return Outcome(
                    error=TypeError(
                        "load_many must return a mapping {id: value}, got "
                        f"{type(outcome.value).__name__}"
                    )
                )
            return outcome
        found = {}
        for id in ids:
            outcome = await self.loaded(world, id)
            if outcome.error is not None:
                return outcome
            if outcome.value is not None:
                found[id] = outcome.value
        return Outcome(found)

    async def stored(self, world: AnyWorld, id: Any, value: Any) -> Outcome:
        if self.store is not None:
            return await call(world, self.store, id, value)
        if self.store_many is not None:
            return await call(world, self.store_many, {id: value})
        return _lacks("store")

    async def stored_many(self, world: AnyWorld, values: Mapping[Any, Any]) -> Outcome:
        """Writes all; without ``store_many`` one by one, and an error leaves the rest unwritten."""
        if self.store_many is not None:
            return await call(world, self.store_many, dict(values))
        for id, value in values.items():
            outcome = await self.stored(world, id, value)
            if outcome.error is not None:
                return outcome
        return Outcome()

    async def deleted(self, world: AnyWorld, id: Any) -> Outcome:
        if self.delete is not None:
            return await call(world, self.delete, id)
        if self.delete_many is not None:
            return await call(world, self.delete_many, [id])
        return _lacks("delete")

    async def deleted_many(self, world: AnyWorld, ids: Sequence[Any]) -> Outcome:
        if self.delete_many is not None:
            return await call(world, self.delete_many, list(ids))
        for id in ids:
            outcome = await self.deleted(world, id)
            if outcome.error is not None:
                return outcome
        return Outcome()


def is_async(fn: Callable[..., Any]) -> bool:
    """Whether calling ``fn`` gives a coroutine, partials and callable objects included."""
    while hasattr(fn, "func"):
        fn = fn.func
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(
        getattr(fn, "__call__", None)  # noqa: B004  # the method itself is wanted
    )


async def call(world: AnyWorld, fn: Callable[..., Any], *args: Any) -> Outcome:
    """Call a source function. A plain one called from an event loop goes to a thread, so that
    a driver that blocks does not block the loop."""
    if isinstance(world, ThreadWorld) or is_async(fn):
        return await world.call(fn, args, {})
    threads = world.runtime.threads
    outcome: Outcome = await world.aside(lambda: drive(_plain(threads, fn, args)))
    if outcome.error is None and inspect.isawaitable(outcome.value):
        awaited = outcome.value
        return await world.call(lambda: awaited, (), {})
    return outcome


async def _plain(threads: ThreadWorld, fn: Callable[..., Any], args: tuple[Any, ...]) -> Outcome:
    try:
        return Outcome(fn(*args))
    except Exception as error:
        return Outcome(error=error)


def _lacks(what: str) -> Outcome:
    return Outcome(error=ConfigurationError(f"this strategy was given no {what}= function"))
