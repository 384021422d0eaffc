"""cachekit: caching strategies between an application and its system of record.

>>> import cachekit
>>> cache = cachekit.Cache()
>>> @cache.cached(ttl="10m")
... def square(n: int) -> int:
...     return n * n
>>> square(3)
9
"""

from . import errors
from .aio import AsyncCache
from .cache import Cache
from .core.entry import MISSING
from .core.ops import Flushed
from .core.policy import Policy, Retrying
from .errors import CacheKitError, InvalidationFailed, QueueFull, ReentryError
from .repository import AsyncRepository, Repository
from .settings import Settings
from .signals import install_signal_handlers
from .statistics import Stats
from .strategies import (
    AsyncStrategy,
    CacheAside,
    ReadThrough,
    RefreshAhead,
    Strategy,
    WriteAround,
    WriteBack,
    WriteThrough,
    Written,
)
from .version import __version__

__all__ = [
    "MISSING",
    "AsyncCache",
    "AsyncRepository",
    "AsyncStrategy",
    "Cache",
    "CacheAside",
    "CacheKitError",
    "Flushed",
    "InvalidationFailed",
    "Policy",
    "QueueFull",
    "ReadThrough",
    "ReentryError",
    "RefreshAhead",
    "Repository",
    "Retrying",
    "Settings",
    "Stats",
    "Strategy",
    "WriteAround",
    "WriteBack",
    "WriteThrough",
    "Written",
    "__version__",
    "errors",
    "install_signal_handlers",
]
