"""Every exception cachekit raises, in one tree.

A user's own exception (from a loader, a writer, a sink) is never wrapped: it
passes through unchanged. Messages carry key, backend and operation, never a
password, a payload or a secret.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any


class CacheKitError(Exception):
    """Root of the tree."""


class ConfigurationError(CacheKitError):
    """The parts can not be put together as asked; raised at wiring or decoration."""


class MissingDependencyError(ConfigurationError):
    """A client library is not installed; the message has the exact pip line."""


class KeyEncodingError(CacheKitError, TypeError):
    """An argument has no stable text form; names the parameter and the remedy."""


class ReentryError(CacheKitError):
    """A loader asked for the very key it is loading, directly or through a child task."""


class LoadTimeoutError(CacheKitError, TimeoutError):
    """A load did not end within the policy's hard limit."""


class CodecError(CacheKitError):
    """A value can not be encoded exactly, or bytes can not be decoded; names the remedy."""


class BackendError(CacheKitError):
    """A backend failed. Reaches the caller only with ``strict=True`` and from write verbs.

    Attributes: ``backend`` (its name), ``operation`` (the verb), ``key`` (or None).
    """

    def __init__(
        self, message: str, *, backend: str = "", operation: str = "", key: str | None = None
    ) -> None:
        super().__init__(message)
        self.backend = backend
        self.operation = operation
        self.key = key


class BackendTimeout(BackendError, TimeoutError):
    """The call's deadline passed before the backend answered."""


class BackendUnavailable(BackendError):
    """The backend can not be reached, or its breaker is open."""


class PartUnavailable(BackendUnavailable):
    """A part of the backend (a node of a cluster) can not be reached; others may well be.

    ``keys`` and ``tags`` of the call that lie there, where the backend can say: the rest of an
    invalidation was carried out then, and ``part`` is the answer to the rest of a read."""

    keys: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()
    part: Any = None


class BackendRefused(BackendError):
    """The backend answered with an error (OOM, READONLY, too large, no permission, ...)."""


class InvalidationFailed(BackendError):
    """An invalidation could not be carried out: other readers may still see the old value."""


class QueueFull(CacheKitError):
    """The write-back log stayed at its bound for the whole time a put may block.

    ``accepted``: ids of the same call that were taken before, and will be written."""

    def __init__(
        self, message: str, *, accepted: Sequence[Any] = (), keys: Collection[str] = ()
    ) -> None:
        super().__init__(message)
        self.accepted = list(accepted)
        self.keys = frozenset(keys)  # text keys of those


class WriteBackClosed(CacheKitError):
    """A put or delete reached a write-back strategy after its close; it was not accepted."""


class FencedOut(CacheKitError):
    """The source has seen a newer owner's batch: this one is refused. Nothing of it was applied,
    but for what the sink says it writes apart."""
