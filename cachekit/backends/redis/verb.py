"""One verb's span of time, and the one place where its failures become ours."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

from ...core.deadline import Deadline
from ...errors import (
    BackendError,
    BackendRefused,
    BackendTimeout,
    BackendUnavailable,
    CacheKitError,
    PartUnavailable,
)
from .wire import ErrorReply, NodeDown

NAME = "redis"


class NodeLost(PartUnavailable):
    """Some nodes did their part, others can not be reached: ``keys`` and ``tags`` of the call that
    lie on the latter. Of a read, ``part`` is what the former answered: a block and no nonces in
    place of what is not known."""

    def __init__(
        self,
        operation: str,
        cause: Exception,
        *,
        keys: Iterable[str] = (),
        tags: Iterable[str] = (),
        part: Any = None,
    ) -> None:
        self.keys = frozenset(keys)
        self.tags = frozenset(tags)
        self.part = part
        super().__init__(
            f"redis: {operation} of {len(self.keys)} keys and {len(self.tags)} tags failed: "
            f"{cause}",
            backend=NAME,
            operation=operation,
        )


def translate(error: Exception, operation: str, keys: Sequence[str] = ()) -> BackendError:
    """The child of BackendError that says what ``error`` means for the caller."""
    key = keys[0] if len(keys) == 1 else None
    what = f"redis: {operation}" + (f" of {key!r}" if key else "")
    kind: type[BackendError] = BackendUnavailable
    how = f"failed: {type(error).__name__}: {error}"
    if isinstance(error, TimeoutError):
        kind, how = BackendTimeout, f"did not end in time: {error}"
    elif isinstance(error, NodeDown):
        kind = PartUnavailable
    elif isinstance(error, ErrorReply) and error.unavailable:
        how = f"failed, the server is not ready: {error}"
    elif isinstance(error, ErrorReply):
        kind, how = BackendRefused, f"was refused: {error}"
    return kind(f"{what} {how}", backend=NAME, operation=operation, key=key)


class Verb:
    """Around a verb's body; ``until`` is its end in ``time.monotonic()``."""

    __slots__ = ("_keys", "_operation", "until")

    def __init__(self, operation: str, deadline: Deadline, keys: Sequence[str] = ()) -> None:
        self._operation = operation
        self._keys = keys
        # Sockets know real time only; the deadline's clock may be one moved by hand.
        self.until = time.monotonic() + deadline.left()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, CacheKitError):
            raise translate(error, self._operation, self._keys) from error
