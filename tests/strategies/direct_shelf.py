"""A source that can be made to wait, and write-back strategies over it that take short puts."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Any

from cachekit import Cache, WriteBack
from cachekit.protocols import Op, OpKind

LONG = 15.0


class Source:
    """Rows; ``hold`` keeps loads and batches waiting until it is set."""

    def __init__(self, **rows: Any) -> None:
        self.rows: dict[Any, Any] = {int(name[1:]): value for name, value in rows.items()}
        self.loads: list[Any] = []
        self.batches = 0
        self.loading, self.writing = threading.Event(), threading.Event()
        self.let_load, self.let_write = threading.Event(), threading.Event()
        self.let_load.set()
        self.let_write.set()

    def load(self, id: Any) -> Any:
        value = self.rows.get(id)
        self.loads.append(id)
        self.loading.set()
        assert self.let_load.wait(LONG)
        return value

    def write_many(self, ops: Sequence[Op]) -> None:
        self.batches += 1
        self.writing.set()
        assert self.let_write.wait(LONG)
        for op in ops:
            if op.kind is OpKind.PUT:
                self.rows[op.id] = op.value
            else:
                self.rows.pop(op.id, None)


def shelf(source: Source, cache: Cache | None = None, **options: Any) -> WriteBack:
    given = {"log": "memory", "delay": 3600, "key": "page:{id}", **options}
    made = WriteBack(
        Cache() if cache is None else cache, load=source.load, sink=source.write_many, **given
    )
    MADE.append(weakref.ref(made))
    return made


MADE: list[weakref.ref[WriteBack]] = []


def close_all() -> None:
    while MADE:
        if (strategy := MADE.pop()()) is not None:
            strategy.close(1)
