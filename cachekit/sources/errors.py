"""What a source says beside its driver's own errors."""

from __future__ import annotations

from typing import Any

from ..errors import CacheKitError


class Unsettled(CacheKitError, ConnectionError):
    """Nobody knows whether a write took place, or will: the answer was lost, or the service failed.
    The cache keeps nothing of its keys for ``write_lease``."""


class Throttled(CacheKitError, ConnectionError):
    """A request, or the rest of one, was not let through for the whole ``patience``. Of a write to
    several records a part may have been done."""


class VersionConflict(ValueError):
    """A record was not saved, because the one that is stored is not its predecessor.

    A ValueError, of this record: no outage, after which the same could be tried again."""

    def __init__(self, table: str, id: Any, version: int) -> None:
        super().__init__(
            f"{table}: {id!r} was not saved with version {version}: another writer was there "
            "first; load it again"
        )
        self.table = table
        self.id = id
        self.version = version

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.table, self.id, self.version)
