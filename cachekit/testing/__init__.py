"""Public means of testing: the backend contract, private servers, a clock moved by hand.

``BackendContract`` and ``LogContract`` need pytest and are loaded on first use; the rest does not.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from .clock import ManualClock
from .postgresql import PostgreSQLServer
from .servers import MemcachedServer, RedisServer, ServerFailed, ServerMissing

if TYPE_CHECKING:
    from .contract import BackendContract
    from .logs import LogContract

__all__ = [
    "BackendContract",
    "LogContract",
    "ManualClock",
    "MemcachedServer",
    "PostgreSQLServer",
    "RedisServer",
    "ServerFailed",
    "ServerMissing",
]

_REWRITTEN = {
    "BackendContract": (
        "records", "slots", "batches", "nonces", "tags", "buses", "races", "contract",
    ),
    "LogContract": (
        "log_lab", "log_model", "log_queue", "log_views", "log_owner", "log_letters", "log_races",
        "logs",
    ),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _REWRITTEN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    parts = [f"{__name__}.{part}" for part in _REWRITTEN[name]]
    if "pytest" in sys.modules:  # a failed assert of the suite then shows both sides
        sys.modules["pytest"].register_assert_rewrite(
            *(part for part in parts if part not in sys.modules)
        )
    return getattr(importlib.import_module(parts[-1]), name)
