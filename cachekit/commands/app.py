"""An application's cache by name, ``module:attribute``, and the write-back strategies in it."""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from ..cache import Cache
from ..errors import CacheKitError, ConfigurationError
from ..protocols import Log
from ..strategies.drain import Drain
from ..strategies.write_back import WriteBack


def load(spec: str) -> Cache:
    """Import ``module:attribute`` (the attribute may have dots), also from the working directory.
    The attribute is a cache, or a function without arguments that gives one.

    Raises ConfigurationError that says which of it failed, and where."""
    name, _, path = spec.partition(":")
    if not name or not path:
        raise ConfigurationError(f"--app {spec}: write module:attribute, as in shop.app:cache")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    found: Any = _imported(name, spec)
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ConfigurationError(f"--app {spec}: {name} has no {path!r}") from None
    if callable(found) and not isinstance(found, Cache):
        found = _called(found, spec)
    if not isinstance(found, Cache):
        raise ConfigurationError(
            f"--app {spec}: expected a cachekit.Cache or a function that gives one, "
            f"got {type(found).__name__}"
        )
    return found


def _imported(name: str, spec: str) -> Any:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise ConfigurationError(f"--app {spec}: there is no module {error.name}") from None
        raise _broken(spec, "importing it", error) from error
    except Exception as error:
        raise _broken(spec, "importing it", error) from error


def _called(make: Any, spec: str) -> Any:
    try:
        made = make()
    except Exception as error:
        raise _broken(spec, "calling it", error) from error
    if inspect.iscoroutine(made):
        made.close()
        raise ConfigurationError(f"--app {spec}: give a plain function, this one is async")
    return made


def _broken(spec: str, what: str, error: Exception) -> ConfigurationError:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return ConfigurationError(f"--app {spec}: {what} raised {type(error).__name__}: {error}{where}")


def durable(cache: Cache, spec: str, queues: Sequence[str] = ()) -> list[WriteBack]:
    """The cache's write-back strategies with a durable log, or those of them that are named, by
    their own name or that of the queue in a log made by hand.

    Raises ConfigurationError where there is none."""
    all_ = [one for one in cache.parts.closers if isinstance(one, WriteBack)]
    if not all_:
        raise ConfigurationError(f"--app {spec}: this cache has no write-back strategy")
    names = [_names(one) for one in all_]
    unknown = [name for name in queues if not any(name in each for each in names)]
    if unknown:
        raise ConfigurationError(unknown_queue(unknown[0], [one for each in names for one in each]))
    asked = set(queues)
    chosen = [
        one for one, each in zip(all_, names, strict=True) if not asked or asked.intersection(each)
    ]
    kept = [one for one in chosen if isinstance(one.log, Drain)]
    if not kept:
        raise ConfigurationError(
            f"--app {spec}: {', '.join(one.name for one in chosen)}: the log is in memory, which "
            'no other process can read; give log="sqlite:///orders.log" or log="redis://..."'
        )
    return kept


def _names(strategy: WriteBack) -> list[str]:
    queue = getattr(strategy.log, "log", None)
    return list(dict.fromkeys([strategy.name, getattr(queue, "queue", strategy.name)]))


def log_of(strategy: WriteBack) -> Log:
    """The log of a strategy that has a durable one."""
    queue = strategy.log
    assert isinstance(queue, Drain)
    return queue.log


def unknown_queue(name: str, known: Sequence[str]) -> str:
    there = ", ".join(dict.fromkeys(known)) or "none"
    return f"there is no queue {name!r}; known: {there}"


@contextmanager
def at_rest(cache: Cache) -> Iterator[None]:
    """A cache that is only looked at: inside, its workers take nothing, and it leaves without
    waiting for what is in its logs."""
    strategies = [one for one in cache.parts.closers if isinstance(one, WriteBack)]
    for strategy in strategies:
        strategy.rest(0.0)
    try:
        yield
    finally:
        leave(cache)


def leave(cache: Cache) -> bool:
    """Close a cache without waiting for what is in its logs; False if one could not be asked."""
    try:
        cache.close(0.0)
    except CacheKitError:
        return False
    return True
