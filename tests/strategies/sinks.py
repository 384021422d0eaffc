"""A sink that counts, refuses, fails and waits as it is told, and write-back over it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stage import Gate, Stage
from tenacity import wait_none

from cachekit import Cache, WriteBack


class Sink:
    """Takes batches; ``refuses`` raise for a row, ``names`` them by key, ``down`` fails all."""

    def __init__(self) -> None:
        self.rows: dict[Any, Any] = {}
        self.batches: list[dict[Any, Any]] = []
        self.refuses: set[Any] = set()
        self.names = False
        self.down: BaseException | None = None
        self.gate: Gate | None = None

    def write(self, values: Mapping[Any, Any]) -> dict[Any, ValueError] | None:
        self.batches.append(dict(values))
        gate, self.gate = self.gate, None
        if gate is not None:
            gate.wait_at()
        if self.down is not None:
            raise self.down
        bad = self.refuses & set(values)
        if bad and not self.names:
            raise ValueError(f"constraint violated by {sorted(bad)}")
        self.rows.update({id: value for id, value in values.items() if id not in bad})
        return {id: ValueError(f"row {id} refused") for id in bad} if bad else None


def over(stage: Stage, sink: Sink, cache: Cache | None = None, **options: Any) -> WriteBack:
    return WriteBack(
        cache if cache is not None else stage.open(),
        key="row:{id}",
        store_many=stage.source(sink.write),
        **{"log": "memory", "delay": 3600, "wait_between": wait_none(), **options},
    )
