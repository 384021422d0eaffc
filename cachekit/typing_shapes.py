"""What a decorated function is to a type checker: its own signature, kept, with helpers.

At run time a wrapper is a plain function with these attributes; these classes are never
instantiated.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from .functions import CacheInfo

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")
F = TypeVar("F", bound=Callable[..., Any])


class _Looks(Protocol[P, R_co]):
    """Helpers that only look, plain on both kinds of function."""

    __name__: str
    __qualname__: str
    __wrapped__: Callable[..., Any]

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """The text key of a call; TypeError for a call that has none."""

    def cache_info(self) -> CacheInfo: ...


class Cached(_Looks[P, R_co], Protocol[P, R_co]):
    """A decorated ``def``."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...

    @overload
    def __get__(self, instance: None, owner: Any, /) -> Cached[P, R_co]: ...
    @overload
    def __get__(
        self: Cached[Concatenate[S, Q], R], instance: S, owner: Any, /
    ) -> Callable[Q, R]: ...

    def peek(self, *args: P.args, **kwargs: P.kwargs) -> R_co | Any:
        """What is cached for a call, or ``cachekit.MISSING``; loads nothing."""

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Load now and keep the result, whatever is cached."""

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Forget a call's result: once this returned, no caller gets an older one."""

    def uncached(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """The function itself."""

    def cache_clear(self) -> None:
        """Drop this function's results in this process; with a far tier invalidate them by
        tags or ``clear()`` instead: another process's copies stay."""


class AsyncCached(_Looks[P, R_co], Protocol[P, R_co]):
    """A decorated ``async def``: helpers that do something are awaitable."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]: ...

    @overload
    def __get__(self, instance: None, owner: Any, /) -> AsyncCached[P, R_co]: ...
    @overload
    def __get__(
        self: AsyncCached[Concatenate[S, Q], R], instance: S, owner: Any, /
    ) -> Callable[Q, Coroutine[Any, Any, R]]: ...

    def peek(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co | Any]: ...

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]: ...

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, None]: ...

    def uncached(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]: ...

    def cache_clear(self) -> None: ...


class Decorator(Protocol):
    """``@cache.cached(...)``: one decorator for every kind of callable."""

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a coroutine function is also a function
        self, fn: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncCached[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R], /) -> Cached[P, R]: ...
    @overload
    def __call__(self, fn: classmethod[S, P, R], /) -> classmethod[S, P, R]: ...
    @overload
    def __call__(self, fn: staticmethod[P, R], /) -> staticmethod[P, R]: ...


class SameSignature(Protocol):
    """A decorator that changes nothing about a function's type."""

    def __call__(self, fn: F, /) -> F: ...
