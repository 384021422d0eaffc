"""Event sources: what tells a cache that its source changed.

A feed is attached to a cache with ``cache.follow(feed)``; each is imported by its own name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["Feed"]


class Feed(Protocol):
    """Anything that invalidates of itself once attached."""

    def attach(self, cache: Any) -> Callable[[], None]:
        """Begin; gives the function that ends it (twice is fine)."""
