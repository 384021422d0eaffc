"""The application that the processes of these tests run: one cache, one write-back strategy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fault_sources import Doom, source_of
from naive_logs import NAIVE, Wrapped

from cachekit import Cache, WriteBack
from cachekit.backends.redis import RedisBackend
from cachekit.core.deadline import Deadline
from cachekit.logs import open_log
from cachekit.protocols import Bounds, Log, Record
from cachekit.runtime import AnyWorld

NAME = "items"


class DoomedLog(Wrapped):
    """A log whose process can die before it accepts, or before the caller knows; and so with what
    is to leave it."""

    POINTS = ("appending", "appended", "settling", "settled")

    def __init__(self, log: Log, runtime: Any, doom: Doom) -> None:
        super().__init__(log, runtime)
        self._doom = doom

    async def append(
        self, world: AnyWorld, records: Sequence[Record], deadline: Deadline
    ) -> list[int | None]:
        self._doom.reach("appending")
        versions = await self._log.append(world, records, deadline)
        self._doom.reach("appended")
        return versions

    async def settle(self, *args: Any) -> bool:
        self._doom.reach("settling")
        right = await self._log.settle(*args)
        self._doom.reach("settled")
        return right


class App:
    """``given``: ``log`` (URL), ``level``, ``cache`` (URL or None), ``source``, ``batch``,
    ``delay``, ``lease``, ``worker``, ``naive``, ``namespace``, ``parts``,
    ``point`` (where to die) and ``most`` (``max_pending``)."""

    def __init__(self, given: dict[str, Any], doom: Doom, sink: Any = None) -> None:
        self.source = source_of(given["source"])
        namespace = given.get("namespace", "faults")
        self.cache = Cache(given.get("cache"), namespace=namespace)
        spec: Any = given["log"]
        level = given.get("level")
        runtime = self.cache.parts.runtime
        naive, parts = given.get("naive"), given.get("parts")
        most = given.get("most", 10_000)
        bounds = Bounds(most)
        if parts:
            spec = RedisBackend(spec, namespace=namespace).log(
                NAME, level=level, parts=parts, bounds=bounds
            )
        elif naive or given.get("point") in DoomedLog.POINTS:
            spec = open_log(spec, NAME, namespace=namespace, level=level, bounds=bounds)
        if naive:
            spec = NAIVE[naive](spec, runtime)
        if given.get("point") in DoomedLog.POINTS:
            spec = DoomedLog(spec, runtime, doom)
        self.strategy = WriteBack(
            self.cache,
            key="row:{id}",
            name=NAME,
            log=spec,
            level=level if isinstance(spec, str) else None,
            load=self.source.load,
            sink=sink or self.source.sink(doom),
            batch=given["batch"],
            delay=given["delay"],
            lease=given["lease"],
            worker=given.get("worker", True),
            **({"max_pending": most} if isinstance(spec, str) else {}),
        )
