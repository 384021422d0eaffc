"""One backend behind a breaker and a budget: what every use of the far tier goes through."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from .core.breaker import Breaker, BreakerState
from .core.deadline import Deadline
from .errors import BackendError, BackendRefused, BackendUnavailable, PartUnavailable
from .observe import Meter
from .protocols import Backend, Store
from .runtime import AnyWorld, Runtime

T = TypeVar("T")


class Guard:
    """A backend's stores, opened once a world. ``timeout`` is the budget of one call in seconds,
    pool wait, connect and reply included."""

    def __init__(
        self,
        backend: Backend,
        runtime: Runtime,
        meter: Meter,
        *,
        timeout: float,
        breaker: Breaker,
    ) -> None:
        self.backend = backend
        self.runtime = runtime
        self.meter = meter
        self.timeout = timeout
        self.breaker = breaker

    def deadline(self, world: AnyWorld) -> Deadline:
        return world.deadline(self.timeout)

    def store(self, world: AnyWorld) -> Store:
        """This backend as opened in a world; it goes with the world (and its event loop)."""
        store: Store | None = world.opened.get(self)
        if store is None:
            store = world.opened.setdefault(self, self.backend.open(world))
            if hasattr(store, "on_refused"):
                store.on_refused = self._bus_refused
        return store

    @property
    def senders(self) -> set[bytes]:
        """This cache's own stores, as the bus names them."""
        opened = [world.opened.get(self) for world in self.runtime.worlds()]
        return {getattr(store, "sender", b"") for store in opened if store is not None}

    async def close(self, world: AnyWorld) -> None:
        store: Store | None = world.opened.pop(self, None)
        if store is not None:
            await store.close()
        stream: Any = getattr(self.backend, "stream", None)
        if hasattr(stream, "close"):
            await stream.close(world)

    def _bus_refused(self) -> None:
        """The user may invalidate, but not publish: near tiers elsewhere hear nothing of us."""
        self.meter.event("bus_refused")
        self.meter.warn_once(
            "bus refused",
            "%s: the user may not publish; near tiers of other processes keep what was "
            "invalidated here. Grant the channel, or give every process coherence=<seconds>",
            self.backend.name,
        )

    def _settle(self, operation: str, started: float, how: str) -> None:
        """What an error means: the breaker's verdict, the counts, the time it took."""
        breaker, was = self.breaker, self.breaker.opened
        if how == "failed":
            breaker.failure()
        elif how == "in part":
            breaker.abandon()  # says nothing about the rest
        else:
            breaker.success()
        self.meter.event("backend_errors", operation=operation)
        self.meter.time(f"{operation} failed", self.runtime.clock() - started)
        if breaker.opened > was:
            self.meter.event("breaker_opened")

    async def _use(
        self,
        world: AnyWorld,
        operation: str,
        deadline: Deadline,
        call: Callable[[Store], Awaitable[T]],
    ) -> T:
        """One backend call behind the breaker; whatever a driver raises becomes BackendError."""
        breaker = self.breaker
        if not breaker.allow():
            raise BackendUnavailable(
                f"{self.backend.name}: not asked, its breaker is open",
                backend=self.backend.name,
                operation=operation,
            )
        started = self.runtime.clock()
        try:
            result = await call(self.store(world))
        except BackendRefused:
            self._settle(operation, started, "answered")
            raise
        except PartUnavailable:
            self._settle(operation, started, "in part")
            raise
        except BackendError:
            self._settle(operation, started, "failed")
            raise
        except Exception as error:
            self._settle(operation, started, "failed")
            raise BackendError(
                f"{self.backend.name}: {operation} failed with {type(error).__name__}",
                backend=self.backend.name,
                operation=operation,
            ) from error
        except BaseException:
            breaker.abandon()
            raise
        if breaker.state is not BreakerState.CLOSED:
            self.meter.event("breaker_closed")
        breaker.success()
        self.meter.time(operation, self.runtime.clock() - started)
        return result
