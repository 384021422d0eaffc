"""Another strategy over the same rows, in the same process: what it loaded before a batch was
written is not what anybody reads after."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cachekit import Cache, ReadThrough, WriteBack

LONG = 20.0


class Shop:
    """Rows, with a load that can be held after it has read."""

    def __init__(self, log: str) -> None:
        self.rows: dict[int, str] = {1: "old"}
        self.read = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self.cache = Cache()
        self.back = WriteBack(
            self.cache,
            key="row:{id}",
            load=self.rows.get,
            store_many=self._store,
            log=log,
            delay=3600,
        )
        self.beside = ReadThrough(self.cache, key="row:{id}", load=self._load, name="beside")

    def _store(self, values: Mapping[int, str]) -> None:
        self.rows.update(values)

    def _load(self, id: int) -> Any:
        row = self.rows.get(id)
        self.read.set()
        assert self.go_on.wait(LONG)
        return row


@pytest.fixture(params=["memory", "sqlite"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    log = "memory" if request.param == "memory" else f"sqlite:///{tmp_path}/rows.log"
    shop = Shop(log)
    yield shop
    shop.go_on.set()
    shop.back.close(LONG)
    shop.cache.close()


def test_what_was_loaded_while_a_put_waited_is_gone_when_it_is_written(shop: Shop) -> None:
    shop.back.put(1, "new")
    assert shop.beside.get(1) == "old"
    assert shop.back.flush(LONG).complete
    assert shop.beside.get(1) == "new"
    assert shop.back.get(1) == "new"


def test_a_load_that_spans_the_writing_is_not_kept(shop: Shop) -> None:
    shop.back.put(1, "new")
    shop.go_on.clear()
    seen: list[Any] = []
    loader = threading.Thread(target=lambda: seen.append(shop.beside.get(1)))
    loader.start()
    assert shop.read.wait(LONG)
    assert shop.back.flush(LONG).complete
    shop.go_on.set()
    loader.join(LONG)
    assert seen == ["old"]  # it began before
    assert shop.beside.get(1) == "new"
    assert shop.back.get(1) == "new"
