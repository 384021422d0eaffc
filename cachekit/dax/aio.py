"""asyncio's side of botocore: aiobotocore's clients, and aioboto3's resources and Tables.

Their methods end in a ``_make_api_call`` that is a coroutine function, and the engine is written
as coroutines: what differs is the class in front, and who may wait for whom.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from ..core.flights import Flight
from ..core.outcome import Outcome
from ..runtime import AsyncioWorld, Runtime, ThreadWorld
from .sent import sending


class _OnLoop(ThreadWorld):
    """Plain calls in a thread whose event loop they stop: there they wait for nobody, because
    whom they would wait for may be a task of this loop."""

    async def join(self, flight: Flight, timeout: float | None) -> bool:
        return flight.landed


class Worlds:
    """In which world plain calls are made: that of the threads, but where a loop of tasks that
    use the same cache is stopped by them."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._on_loop = _OnLoop(runtime)

    def plain(self) -> ThreadWorld:
        runtime = self._runtime
        worlds = runtime.worlds()
        if len(worlds) > 1:
            loop = asyncio._get_running_loop()
            if loop is not None and any(
                isinstance(world, AsyncioWorld) and world.loop() is loop for world in worlds
            ):
                return self._on_loop
        return runtime.threads


def send_by(forward: Callable[[str, Any], Awaitable[Any]]) -> Callable[[str, Any], Any]:
    """aiobotocore's own call as what the engine sends with."""

    async def send(operation: str, params: Any) -> Outcome:
        sent = sending.get()
        try:
            return Outcome(await forward(operation, params))
        except Exception as error:
            return Outcome(error=error)
        except BaseException:
            # Cancelled: whatever shields itself behind us may still send it, so it can not be told
            # any more that this write was not even serialized.
            if sent is not None and sent.request is None:
                sent.request = {}
            raise

    return send


def client_mixin(call: Callable[..., Awaitable[Any]]) -> type:
    """The class in front of a client's own. ``call(client, operation, params, forward)``."""

    class DaxAioClient:
        _cachekit_dax = True

        async def _make_api_call(self, operation_name: str, api_params: Any) -> Any:
            return await call(self, operation_name, api_params, super()._make_api_call)  # type: ignore[misc]  # of the class behind

    return DaxAioClient


class _Recorder:
    """Stands in for a client: records what a generated method asks of it."""

    def __init__(self) -> None:
        self.asked: Any = None

    async def _make_api_call(self, operation: str, params: Any) -> None:
        self.asked = (operation, params)


def passes_through(get_item: Any) -> bool:
    """Whether a generated ``get_item`` still makes its request by ``_make_api_call``."""
    recorder = _Recorder()
    try:
        called = get_item(recorder, TableName="t")
        if not inspect.iscoroutine(called):
            return False
        try:
            called.send(None)
        except StopIteration:
            pass
        finally:
            called.close()
    except Exception:
        return False
    return bool(recorder.asked == ("GetItem", {"TableName": "t"}))


def with_hits(get_item: Any, hit: Callable[[Any, dict[str, Any]], Any]) -> Any:
    """A Table's ``get_item`` that looks first."""

    async def get_item_or_hit(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not args:
            found = hit(self, kwargs)
            if found is not None:
                return found
        return await get_item(self, *args, **kwargs)

    get_item_or_hit.__name__ = "get_item"
    get_item_or_hit.__doc__ = getattr(get_item, "__doc__", None)
    return get_item_or_hit
