"""How reads and writes go through cache and source: one class per strategy, all exchangeable."""

from .aio import AsyncStrategy
from .base import Strategy
from .cache_aside import CacheAside
from .read_through import ReadThrough
from .refresh_ahead import RefreshAhead
from .write_around import WriteAround
from .write_back import WriteBack
from .write_through import WriteThrough
from .writer import Written

__all__ = [
    "AsyncStrategy",
    "CacheAside",
    "ReadThrough",
    "RefreshAhead",
    "Strategy",
    "WriteAround",
    "WriteBack",
    "WriteThrough",
    "Written",
]
