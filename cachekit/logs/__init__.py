"""Write-back logs: where an operation lives between ``put`` and the source."""

from __future__ import annotations

from urllib.parse import unquote

from ..errors import ConfigurationError
from ..protocols import Bounds, Log

__all__ = ["open_log"]

_REDIS = ("redis", "rediss", "unix", "redis+cluster", "redis+sentinel")


def open_log(
    url: str, queue: str, *, namespace: str = "", level: str | None = None, bounds: Bounds
) -> Log:
    """The log of one queue. Does no I/O. ``sqlite:///orders.log`` (relative to the working
    directory; four slashes = absolute) or a Redis URL.

    Raises ConfigurationError for anything else."""
    scheme, separator, _ = url.partition("://")
    if separator and scheme == "sqlite":
        from .sqlite import SQLiteLog

        where = url.partition("://")[2].partition("?")[0]
        path = unquote(where[1:])
        if not where.startswith("/") or not path or path.endswith("/"):
            raise ConfigurationError("this log's URL names no file: write sqlite:///orders.log")
        return SQLiteLog(path, queue, namespace=namespace, level=level, bounds=bounds)
    if separator and scheme in _REDIS:
        from ..backends.redis import RedisBackend

        backend = RedisBackend(url, namespace=namespace)
        if backend.log is None:
            raise ConfigurationError("this Redis has no log")
        return backend.log(queue, level=level, bounds=bounds)
    raise ConfigurationError(
        'no such log; write log="sqlite:///orders.log", log="redis://...", or log="memory" (what '
        "is not yet written is then lost if the process dies)"
    )
