"""Options of ``install``, validated at birth; the two presets."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from ..core.policy import optional_seconds, seconds
from ..errors import ConfigurationError
from .endpoint_link import EndpointSettings

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
class StreamSettings:
    """How a table's change stream is followed.

    - ``poll``: seconds between looks at a shard, at least 0.2; each is a read request.
    - ``max_lag``: seconds that changes may be untold; beyond, nothing of the table is kept.
    - ``connect(service)``: makes the boto3 client of "dynamodb" or "dynamodbstreams" that reads;
      None: of the credentials, endpoint and region of the client that asked first.
    """

    poll: float = 0.5
    max_lag: float = 10.0
    connect: Callable[[str], Any] | None = None

    @classmethod
    def make(cls, where: str, options: Mapping[str, Any]) -> StreamSettings:
        unknown = sorted(set(options) - set(cls.__dataclass_fields__))
        if unknown:
            raise ConfigurationError(
                f"{where}.{unknown[0]} is not an option; there are poll, max_lag, connect"
            )
        connect = options.get("connect")
        if connect is not None and not callable(connect):
            raise TypeError(f"{where}.connect: expected a function, got {connect!r}")
        poll = seconds(options.get("poll", 0.5), f"{where}.poll")
        max_lag = seconds(options.get("max_lag", 10.0), f"{where}.max_lag")
        if poll < 0.2 or max_lag < 2 * poll:
            raise ConfigurationError(
                f"{where}: poll must be at least 0.2 seconds, max_lag at least twice that"
            )
        return cls(poll, max_lag, connect)


@dataclass(frozen=True, slots=True)
class Settings:
    """Options of one handle.

    - ``max_bytes``: bound of memory, about.
    - ``settle``: how long after a write replicas may still answer with what was before it.
    - ``quarantine``: how long after a write of unknown outcome it may still land.
    - ``flight_wait``: how long a read waits for another's request for the same item.
    - ``cache``: a :class:`cachekit.Cache` whose bus tells the processes of each other's writes.
    - ``streams``: the tables whose change streams are followed; one setting for all, or by name.
    - ``endpoint``: a DAX cluster that is asked instead of DynamoDB.
    """

    preset: str = "coherent"
    common: TableSettings = field(default_factory=TableSettings)
    tables: Mapping[str, TableSettings | None] = field(default_factory=dict)
    max_bytes: int = 256 << 20
    settle: float = 2.0
    quarantine: float = 60.0
    flight_wait: float = 5.0
    cache: Any = None
    streams: Mapping[str, StreamSettings] | StreamSettings | None = None
    endpoint: EndpointSettings | None = None

    def stream_of(self, table: str) -> StreamSettings | None:
        """How the table's own stream is followed; None: it is not."""
        if isinstance(self.streams, Mapping):
            return self.streams.get(table)
        return self.streams

    def of(self, table: str) -> TableSettings | None:
        """The settings of a table; None: it is not cached."""
        return self.tables.get(table, self.common)

    def may_be_outdated(self, table: str) -> bool:
        """Whether pages of a table may be as old as their ttl: no write is to drop them."""
        found = self.of(table)
        return found is None or found.query_invalidation == "none"

    @classmethod
    def make(
        cls,
        *,
        preset: str = "coherent",
        max_bytes: int | str = "256MB",
        settle: Any = 2.0,
        quarantine: Any = 60.0,
        flight_wait: Any = 5.0,
        cache: Any = None,
        streams: bool | Mapping[str, Mapping[str, Any] | bool] | None = None,
        endpoint: str | Mapping[str, Any] | None = None,
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
            cache=cache,
            streams=_streams(streams),
            endpoint=None if endpoint is None else EndpointSettings.make(endpoint),
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


def _streams(given: Any) -> Mapping[str, StreamSettings] | StreamSettings | None:
    if given is None or given is False:
        return None
    if given is True:
        return StreamSettings()
    if not isinstance(given, Mapping):
        raise TypeError(
            'streams: expected True or options per table ({"users": {}}), got'
            f" {type(given).__name__}"
        )
    return {
        name: StreamSettings.make(f"streams[{name!r}]", {} if options is True else options)
        for name, options in given.items()
        if options not in (None, False)
    }


def _bytes(size: int | str) -> int:
    if isinstance(size, str):
        found = _SIZE.fullmatch(size.strip())
        if found is None:
            raise ValueError(f'max_bytes: {size!r} is not a size; write e.g. "256MB"')
        return max(1, int(float(found[1]) * _UNITS[found[2].upper()]))
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"max_bytes: expected a positive number of bytes, got {size!r}")
    return size
