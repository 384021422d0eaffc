"""Single puts into a log of another class, and into a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from direct_shelf import LONG, Source, close_all, shelf

from cachekit.logs.sqlite import SQLiteLog
from cachekit.protocols import OpKind, Record


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    close_all()


class Counted(SQLiteLog):
    """One that looks at every append."""

    seen = 0

    async def append(self, *args: Any) -> list[int | None]:
        Counted.seen += 1
        return await super().append(*args)


class Wrapped:
    """Answers to any name, as a proxy does."""

    def __init__(self, log: SQLiteLog) -> None:
        self._log = log
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.asked.append(name)
        return getattr(self._log, name)


def test_no_append_of_another_class_is_passed_by(tmp_path: Path) -> None:
    Counted.seen = 0
    source = Source()
    counted = Counted(tmp_path / "a", "books")
    first = shelf(source, log=counted, name="books")
    first.put(1, "new")
    assert Counted.seen == 1
    wrapped = Wrapped(SQLiteLog(tmp_path / "b", "books"))
    second = shelf(source, log=wrapped, name="books")
    second.put(2, "new")
    assert "append" in wrapped.asked
    assert first.flush(LONG).applied == second.flush(LONG).applied == 1
    assert source.rows == {1: "new", 2: "new"}


def test_a_short_append_to_a_file_is_as_good_as_a_long_one(tmp_path: Path) -> None:
    source = Source(r1="old")
    strategy = shelf(source, log=f"sqlite:///{tmp_path}/log")
    other = shelf(source, log=f"sqlite:///{tmp_path}/log", worker=False)
    assert [strategy.get(1), other.get(1)] == ["old", "old"]
    for n in range(5):  # the first opens the file, and takes the long road
        strategy.put(1, n)
        assert [strategy.get(1), other.get(1)] == [n, n]
    assert strategy.depth() == 5
    log = strategy._log
    assert isinstance(log, SQLiteLog)
    for _ in range(100):
        version = log.append_now(Record("page:1", OpKind.PUT, b""))
        if version is not None:
            break
        strategy.put(1, "long")  # after another step on the file one append takes the long road
    assert version == strategy.depth()
    strategy.close(0)
    other.close(0)
