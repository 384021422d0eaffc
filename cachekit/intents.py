"""``write_intent``: the block of a write that the user makes himself, in his own transaction."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Self

from .direct import Direct, listed
from .errors import BackendError
from .runtime import AnyWorld, drive
from .strategies.intent import Intent, outcome_unknown
from .strategies.parts import Parts


class _Held:
    """One use of ``write_intent``. ``pending`` is true afterwards if the far tier could not be
    told that it ended: that is queued, and other processes may still see the old value."""

    def __init__(
        self,
        parts: Parts,
        direct: Direct,
        keys: Iterable[str],
        tags: Iterable[str],
        ttl: float,
    ) -> None:
        self._parts = parts
        places = [direct.place(key) for key in listed(keys, "keys")]
        self._intent: Intent = parts.writer.intent(places, direct.labels(tags), ttl)
        self.pending = False

    async def _enter(self, world: AnyWorld) -> None:
        try:
            await self._intent.enter(world)
        except BackendError:
            if self._parts.writer.strict:
                await self._intent.leave(world)
                raise
        except BaseException:
            self._intent.leave_behind(world)
            raise

    async def _leave(self, world: AnyWorld, error: BaseException | None) -> None:
        if error is not None and outcome_unknown(error):
            # Whether it was committed is not known: the blocks stay for their ttl.
            self._intent.owe()
            self.pending = True
            return
        try:
            self.pending = not await self._intent.leave(world)
        except BaseException:
            self._intent.owe()
            raise


class WriteIntent(_Held):
    """A context manager for plain code."""

    def __enter__(self) -> Self:
        drive(self._enter(self._parts.runtime.threads))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        drive(self._leave(self._parts.runtime.threads, error))


class AsyncWriteIntent(_Held):
    """The same for ``async with``."""

    async def __aenter__(self) -> Self:
        await self._enter(self._parts.runtime.asyncio())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._leave(self._parts.runtime.asyncio(), error)
