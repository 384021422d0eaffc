"""Options of ``install``, validated at birth; the two presets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from ..core.policy import optional_seconds, seconds
from ..errors import ConfigurationError

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", re.IGNORECASE)
_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
INVALIDATIONS: Final = ("partition", "table", "none")


@dataclass(frozen=True, slots=True)
class TableSettings:
    """What may differ from table to table. Times are seconds; 0 = do not keep, None = no expiry.

    - ``item_ttl``, ``query_ttl``: life of an item and of a page of Query or Scan.
    - ``negative_ttl``: life of "there is no such item".
    - ``query_invalidation``: which pages a write drops: those of its ``"partition"`` (and all of
      global indexes and scans), all of the ``"table"``, or ``"none"``.
    - ``fill_from_strong``: keep what strongly consistent reads bring.
    - ``read_strongly``: reads inside the settle window are sent strongly consistent, and kept.
    - ``return_images``: UpdateItem asks for the new item where the caller asked for nothing.
    """

    item_ttl: float | None = 300.0
    query_ttl: float | None = 300.0
    negative_ttl: float | None = 30.0
    query_invalidation: str = "partition"
    fill_from_strong: bool = True
    read_strongly: bool = True
    return_images: bool = True


PRESETS: Final = {
    "coherent": TableSettings(),
    "dax": TableSettings(
        negative_ttl=300.0,
        query_invalidation="none",
        fill_from_strong=False,
        read_strongly=False,
        return_images=False,
    ),
}
_NAMES: Final = tuple(TableSettings.__dataclass_fields__)


@dataclass(frozen=True, slots=True)
class Settings:
    """Options of one handle.

    - ``max_bytes``: bound of memory, about.
    - ``settle``: how long after a write replicas may still answer with what was before it.
    - ``quarantine``: how long after a write of unknown outcome it may still land.
    - ``flight_wait``: how long a read waits for another's request for the same item.
    """

    preset: str = "coherent"
    common: TableSettings = field(default_factory=TableSettings)
    tables: Mapping[str, TableSettings | None] = field(default_factory=dict)
    max_bytes: int = 256 << 20
    settle: float = 2.0
    quarantine: float = 60.0
    flight_wait: float = 5.0

    def of(self, table: str) -> TableSettings | None:
        """The settings of a table; None: it is not cached."""
        return self.tables.get(table, self.common)

    @classmethod
    def make(
        cls,
        *,
        preset: str = "coherent",
        max_bytes: int | str = "256MB",
        settle: Any = 2.0,
        quarantine: Any = 60.0,
        flight_wait: Any = 5.0,
        tables: Mapping[str, Mapping[str, Any] | None] | None = None,
        **common: Any,
    ) -> Settings:
        """Build from what a user types. Raises ConfigurationError, TypeError or ValueError."""
        if preset not in PRESETS:
            raise ConfigurationError(
                f"preset: {preset!r} is not known; choose {' or '.join(sorted(PRESETS))}"
            )
        base = _table(PRESETS[preset], common, "")
        each = {
            name: None if options is None else _table(base, options, f"tables[{name!r}].")
            for name, options in (tables or {}).items()
        }
        return cls(
            preset=preset,
            common=base,
            tables=each,
            max_bytes=_bytes(max_bytes),
            settle=seconds(settle, "settle"),
            quarantine=seconds(quarantine, "quarantine"),
            flight_wait=seconds(flight_wait, "flight_wait"),
        )


def _table(base: TableSettings, options: Mapping[str, Any], where: str) -> TableSettings:
    cooked: dict[str, Any] = {}
    for name, value in options.items():
        if name not in _NAMES:
            raise ConfigurationError(
                f"{where}{name} is not an option; there are {', '.join(_NAMES)}"
            )
        if name.endswith("_ttl"):
            cooked[name] = optional_seconds(value, where + name)
        elif name == "query_invalidation":
            if value not in INVALIDATIONS:
                raise ConfigurationError(f"{where}{name}: choose one of {', '.join(INVALIDATIONS)}")
            cooked[name] = value
        elif not isinstance(value, bool):
            raise TypeError(f"{where}{name}: expected True or False, got {value!r}")
        else:
            cooked[name] = value
    return replace(base, **cooked)


def _bytes(size: int | str) -> int:
    if isinstance(size, str):
        found = _SIZE.fullmatch(size.strip())
        if found is None:
            raise ValueError(f'max_bytes: {size!r} is not a size; write e.g. "256MB"')
        return max(1, int(float(found[1]) * _UNITS[found[2].upper()]))
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"max_bytes: expected a positive number of bytes, got {size!r}")
    return size
