"""What a decorated function is to a type checker: its own signature, kept, with helpers.

At run time a wrapper is a plain function with these attributes; these classes are never
instantiated. mypy has one gap: it binds a staticmethod called through an instance as if it were
a method; call it through its class.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from .core.entry import Missing
from .core.ops import Flushed
from .functions import CacheInfo

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")
K = TypeVar("K")
V = TypeVar("V")
K_contra = TypeVar("K_contra", contravariant=True)
V_contra = TypeVar("V_contra", contravariant=True)
F = TypeVar("F", bound=Callable[..., Any])


class _OfClass(Protocol[P, R_co]):
    """A function looked up on its class: a method that is given its self, or a classmethod
    that has its cls already. Not every checker can tell the two apart by their types."""

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    @overload
    def __call__(
        self: _OfClass[Concatenate[Any, Q], R], *args: Q.args, **kwargs: Q.kwargs
    ) -> R: ...


# -- cached -------------------------------------------------------------------------------


class _Helpers(Protocol[P, R_co]):
    __name__: str
    __qualname__: str
    __wrapped__: Callable[..., Any]

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """The text key of a call; TypeError for a call that has none."""
        ...

    def cache_info(self) -> CacheInfo: ...

    def cache_clear(self) -> None:
        """Drop this function's results in this process; with a far tier invalidate them by
        tags or ``clear()`` instead: another process's copies stay."""


class _PlainHelpers(_Helpers[P, R_co], Protocol[P, R_co]):
    def peek(self, *args: P.args, **kwargs: P.kwargs) -> R_co | Missing:
        """What is cached for a call, or ``cachekit.MISSING``; loads nothing."""
        ...

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Load now and keep the result, whatever is cached."""
        ...

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Forget a call's result: once this returned, no caller gets an older one."""

    def uncached(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """The function itself."""
        ...


class _AsyncHelpers(_Helpers[P, R_co], Protocol[P, R_co]):
    def peek(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co | Missing]: ...

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]: ...

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, None]: ...

    def uncached(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]: ...


class CachedOfClass(_PlainHelpers[P, R_co], _OfClass[P, R_co], Protocol[P, R_co]):
    """``Class.method``, decorated."""


class AsyncCachedOfClass(
    _AsyncHelpers[P, R_co], _OfClass[P, Coroutine[Any, Any, R_co]], Protocol[P, R_co]
):
    """``Class.method``, a decorated ``async def``."""


class Cached(_PlainHelpers[P, R_co], Protocol[P, R_co]):  # type: ignore[misc]  # R_co only comes out
    """A decorated ``def``."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...

    @overload
    def __get__(self, instance: None, owner: Any, /) -> CachedOfClass[P, R_co]: ...
    @overload
    def __get__(
        self: Cached[Concatenate[S, Q], R], instance: S, owner: Any, /
    ) -> Callable[Q, R]: ...
    @overload
    def __get__(
        self: Cached[Concatenate[S, Q], R], instance: Any, owner: S, /
    ) -> Callable[Q, R]: ...
    @overload
    def __get__(self, instance: Any, owner: Any, /) -> Callable[P, R_co]: ...


class AsyncCached(_AsyncHelpers[P, R_co], Protocol[P, R_co]):  # type: ignore[misc]  # R_co only comes out
    """A decorated ``async def``: helpers that do something are awaitable."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]: ...

    @overload
    def __get__(self, instance: None, owner: Any, /) -> AsyncCachedOfClass[P, R_co]: ...
    @overload
    def __get__(
        self: AsyncCached[Concatenate[S, Q], R], instance: S, owner: Any, /
    ) -> Callable[Q, Coroutine[Any, Any, R]]: ...
    @overload
    def __get__(
        self: AsyncCached[Concatenate[S, Q], R], instance: Any, owner: S, /
    ) -> Callable[Q, Coroutine[Any, Any, R]]: ...
    @overload
    def __get__(self, instance: Any, owner: Any, /) -> Callable[P, Coroutine[Any, Any, R_co]]: ...


class Decorator(Protocol):
    """``@cache.cached(...)``: one decorator for every kind of callable."""

    @overload
    def __call__(self, fn: classmethod[S, P, R], /) -> classmethod[S, P, R]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]  # a staticmethod is also a function
        self, fn: staticmethod[P, R], /
    ) -> staticmethod[P, R]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]  # a coroutine function is also a function
        self, fn: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncCached[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Cached[P, R]: ...


# -- cached_many --------------------------------------------------------------------------


class CachedMany(Protocol[P, R_co]):
    """A decorated loader of many."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...

    @overload
    def __get__(self, instance: None, owner: Any, /) -> CachedMany[P, R_co]: ...
    @overload
    def __get__(
        self: CachedMany[Concatenate[S, Q], R], instance: S, owner: Any, /
    ) -> Callable[Q, R]: ...

    def peek(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """What is cached of the items; loads nothing."""
        ...

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None: ...

    def uncached(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


class AsyncCachedMany(Protocol[P, R_co]):
    """A decorated ``async def`` loader of many."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]: ...

    @overload
    def __get__(self, instance: None, owner: Any, /) -> AsyncCachedMany[P, R_co]: ...
    @overload
    def __get__(
        self: AsyncCachedMany[Concatenate[S, Q], R], instance: S, owner: Any, /
    ) -> Callable[Q, Coroutine[Any, Any, R]]: ...

    def peek(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]: ...

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, None]: ...

    def uncached(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]: ...


class ManyDecorator(Protocol):
    """``@cache.cached_many(...)``."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a coroutine function is also a function
        self, fn: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncCachedMany[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> CachedMany[P, R]: ...


# -- write_back, invalidates --------------------------------------------------------------


class WrittenBack(Protocol[K_contra, V_contra]):
    """A decorated batch writer: called with one id and its value, it logs the write."""

    def __call__(self, id: K_contra, value: V_contra) -> None: ...

    def put_many(self, values: Mapping[Any, V_contra]) -> Any: ...

    def flush(self, timeout: float | None = None) -> Flushed: ...

    def close(self, timeout: float = ...) -> Flushed: ...


class AsyncWrittenBack(Protocol[K_contra, V_contra]):
    """A decorated ``async def`` batch writer."""

    def __call__(self, id: K_contra, value: V_contra) -> Coroutine[Any, Any, None]: ...

    def put_many(self, values: Mapping[Any, V_contra]) -> Coroutine[Any, Any, Any]: ...

    def flush(self, timeout: float | None = None) -> Coroutine[Any, Any, Flushed]: ...

    def close(self, timeout: float = ...) -> Coroutine[Any, Any, Flushed]: ...


class WriteBackDecorator(Protocol):
    """``@cache.write_back(...)``."""

    @overload
    def __call__(
        self, fn: Callable[[dict[K, V]], Coroutine[Any, Any, Any]], /
    ) -> AsyncWrittenBack[K, V]: ...
    @overload
    def __call__(self, fn: Callable[[dict[K, V]], Any], /) -> WrittenBack[K, V]: ...


class SameSignature(Protocol):
    """A decorator that changes nothing about a function's type."""

    def __call__(self, fn: F, /) -> F: ...
