"""Public means of testing: the backend contract, private servers, a clock moved by hand.

``BackendContract`` needs pytest and is loaded on first use; the rest does not.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from .clock import ManualClock
from .servers import MemcachedServer, RedisServer, ServerFailed, ServerMissing

if TYPE_CHECKING:
    from .contract import BackendContract

__all__ = [
    "BackendContract",
    "ManualClock",
    "MemcachedServer",
    "RedisServer",
    "ServerFailed",
    "ServerMissing",
]

_REWRITTEN = ("records", "slots", "batches", "nonces", "tags", "buses", "races", "contract")


def __getattr__(name: str) -> Any:
    if name != "BackendContract":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if "pytest" in sys.modules:  # a failed assert of the suite then shows both sides
        wanted = [f"{__name__}.{part}" for part in _REWRITTEN]
        sys.modules["pytest"].register_assert_rewrite(
            *(part for part in wanted if part not in sys.modules)
        )
    from .contract import BackendContract

    return BackendContract
