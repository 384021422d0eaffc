"""A single put that only appends: reads see it at once; near copies come later and are right."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from direct_shelf import LONG, Source, close_all, shelf

from cachekit import Cache, ReadThrough, WriteBack, WriteThrough
from cachekit.errors import QueueFull
from cachekit.protocols import Op


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    close_all()


def appended(strategy: WriteBack) -> bool:
    """Whether a put takes the short road here."""
    return strategy._direct


@pytest.mark.parametrize("copies", ["no near copy", "a near copy"])
def test_what_was_put_is_read_at_once_by_every_face(copies: str) -> None:
    source, cache = Source(r1="old"), Cache()
    strategy = shelf(source, cache)
    assert appended(strategy)
    reader = ReadThrough(cache, key="page:{id}", load=source.load, name="another")
    if copies == "a near copy":
        assert strategy.get(1) == "old"
    strategy.put(1, "new")
    asked = len(source.loads)
    assert strategy.get(1) == "new"
    assert strategy.get_many([1]) == {1: "new"}
    strategy.put(1, "newer")
    assert strategy.get(1) == "newer"
    if copies == "a near copy":
        assert cache.get("page:1") == "newer"
        assert reader.get(1) == "newer"
    assert len(source.loads) == asked
    assert strategy.flush(LONG).applied == 1
    assert source.rows == {1: "newer"}


@pytest.mark.parametrize("form", ["page:{id}", "50 % of {id}", "~{id}", "seite/ä:{id}", "{id}"])
@pytest.mark.parametrize(
    "id", [7, -7, "seven", "7", 10**18, 10**180, pytest.param(10**5000, id="huge")]
)
@pytest.mark.parametrize("more", ["", "x" * 170])
def test_a_key_of_any_form_is_the_same_for_every_face(form: str, id: int | str, more: str) -> None:
    source = Source()
    source.rows[id] = "old"  # type: ignore[index]
    strategy = shelf(source, key=form + more)
    assert appended(strategy)
    strategy.put(id, "new")
    assert strategy.get(id) == "new"
    assert strategy.get_many([id]) == {id: "new"}
    assert source.loads == []
    assert strategy.flush(LONG).applied == 1
    assert strategy.get(id) == "new"
    assert source.loads == []  # its near copy is where reads look


def test_what_was_put_is_kept_near_when_the_source_has_it() -> None:
    source = Source()
    strategy = shelf(source)
    for n in range(20):
        strategy.put(n, n * n)
    assert strategy.flush(LONG).applied == 20
    assert [strategy.get(n) for n in range(20)] == [n * n for n in range(20)]
    assert source.loads == []


def test_a_load_that_is_under_way_neither_answers_later_reads_nor_is_kept() -> None:
    source = Source(r1="old")
    strategy = shelf(source)
    source.let_load.clear()
    seen: list[Any] = []
    reader = threading.Thread(target=lambda: seen.append(strategy.get(1)))
    reader.start()
    assert source.loading.wait(LONG)
    strategy.put(1, "new")
    assert strategy.get(1) == "new"
    source.let_load.set()
    reader.join(LONG)
    assert seen == ["old"]  # it began before the put
    assert strategy.get(1) == "new"
    assert strategy.flush(LONG).complete
    assert strategy.get(1) == "new"


def test_a_put_while_the_one_before_is_with_the_source_is_what_reads_see() -> None:
    source = Source()
    strategy = shelf(source, batch=1)
    source.let_write.clear()
    strategy.put(1, "first")
    assert source.writing.wait(LONG)
    assert strategy.get(1) == "first"
    strategy.put(1, "second")
    assert strategy.get(1) == "second"
    source.let_write.set()
    assert strategy.flush(LONG).complete
    assert (strategy.get(1), source.rows[1]) == ("second", "second")
    assert source.loads == []


class Pause:
    """A place where a thread waits until it is let go."""

    def __init__(self) -> None:
        self.reached, self.go = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.go.wait(LONG)


def test_a_load_about_to_be_kept_when_the_put_comes_is_not_kept() -> None:
    source, cache, pause = Source(r1="old"), Cache(), Pause()
    strategy = shelf(source, cache)
    # Asked last, when the strategy has said that nothing of the key waits.
    cache.parts.reader.filler.dirty.append(lambda ident: pause() or False)
    reader = threading.Thread(target=strategy.get, args=(1,))
    reader.start()
    assert pause.reached.wait(LONG)
    strategy.put(1, "new")
    pause.go.set()
    reader.join(LONG)
    assert strategy.get(1) == "new"


def test_a_put_between_the_taking_of_the_one_before_and_its_near_copy_wins() -> None:
    source, pause = Source(), Pause()
    strategy = shelf(source, batch=1)
    keep = strategy._flusher._taken
    assert keep is not None

    def late(ops: Sequence[Op]) -> None:
        pause()
        keep(ops)

    strategy._flusher._taken = late
    source.let_write.clear()
    strategy.put(1, "first")
    assert pause.reached.wait(LONG)
    strategy.put(1, "second")
    pause.go.set()
    assert source.writing.wait(LONG)
    assert strategy.get(1) == "second"
    source.let_write.set()
    assert strategy.flush(LONG).complete
    assert (strategy.get(1), source.rows) == ("second", {1: "second"})


def test_an_invalidation_of_what_waits_costs_a_load_and_nothing_else() -> None:
    source = Source(r1="old")
    strategy = shelf(source)
    strategy.put(1, "new")
    strategy.invalidate(1)
    assert strategy.get(1) == "new"
    source.let_write.clear()
    strategy.log.hurry_all()
    assert source.writing.wait(LONG)
    strategy.invalidate(1)  # after the worker made its near copy
    source.let_write.set()
    assert strategy.flush(LONG).complete
    source.rows[1] = "by another"
    strategy.invalidate(1)
    assert strategy.get(1) == "by another"


def test_a_delete_after_a_put_leaves_no_near_copy() -> None:
    source = Source(r1="old")
    strategy = shelf(source)
    strategy.put(1, "new")
    strategy.delete(1)
    assert strategy.get(1) is None
    assert strategy.flush(LONG).complete
    assert (strategy.get(1), source.rows) == (None, {})


def test_the_bound_holds_and_a_closed_strategy_takes_nothing() -> None:
    source = Source()
    source.let_write.clear()
    strategy = shelf(source, max_pending=3, block=0.05, batch=1)
    for n in range(3):
        strategy.put(n, n)
    with pytest.raises(QueueFull):
        strategy.put(3, 3)
    strategy.put(2, "again")  # of a key that waits: no new room
    source.let_write.set()
    assert strategy.close().complete
    with pytest.raises(Exception, match="closed"):
        strategy.put(4, 4)
    assert source.rows == {0: 0, 1: 1, 2: "again"}


def test_a_strategy_that_is_dropped_writes_what_it_took() -> None:
    source = Source()
    source.let_write.clear()

    def use() -> None:
        strategy = shelf(source, batch=1)
        strategy.put(1, "new")
        assert source.writing.wait(LONG)
        strategy.put(2, "newer")

    use()
    source.let_write.set()
    until = time.monotonic() + LONG
    while source.rows != {1: "new", 2: "newer"}:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_many_threads_put_and_read_one_key() -> None:
    source = Source()
    strategy = shelf(source, batch=1, delay=0)
    wrong: list[tuple[int, int]] = []

    def work(key: int) -> None:
        for n in range(400):
            strategy.put(key, n)
            if (found := strategy.get(key)) != n:
                wrong.append((n, found))

    threads = [threading.Thread(target=work, args=(key,)) for key in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert not wrong
    assert strategy.flush(LONG).complete
    assert source.rows == dict.fromkeys(range(4), 399)
    assert [strategy.get(key) for key in range(4)] == [399] * 4


TENANT: ContextVar[str] = ContextVar("TENANT", default="public")


def test_a_key_that_depends_on_its_caller_keeps_the_value_there() -> None:
    source = Source()
    strategy = shelf(source, key=lambda id: f"{TENANT.get()}:{id}")
    token = TENANT.set("acme")
    strategy.put(1, "secret")
    assert strategy.flush(LONG).complete
    TENANT.reset(token)
    source.rows.clear()
    assert strategy.get(1) is None


@pytest.mark.parametrize("log", ["memory", "sqlite"])
def test_an_id_that_no_mapping_takes_is_refused_at_the_put(log: str, tmp_path: Path) -> None:
    if log == "sqlite":
        log = f"sqlite:///{tmp_path}/log"
    source = Source()
    strategy = shelf(source, log=log, key=lambda id: f"page:{id}", name="pages")
    with pytest.raises(TypeError):
        strategy.put([1], "value")
    strategy.put((1,), "value")
    assert strategy.flush(LONG).applied == 1
    assert source.rows == {(1,): "value"}


def test_a_writer_of_another_strategy_that_ends_later_keeps_no_older_value() -> None:
    source, cache = Source(), Cache()
    begun, go = threading.Event(), threading.Event()

    def store(id: int, value: str) -> None:
        source.rows[id] = value
        begun.set()
        assert go.wait(LONG)

    strategy = shelf(source, cache)
    through = WriteThrough(cache, key="page:{id}", load=source.load, store=store, name="through")
    writer = threading.Thread(target=through.put, args=(1, "older"))
    writer.start()
    assert begun.wait(LONG)
    strategy.put(1, "newer")
    assert strategy.flush(LONG).applied == 1
    go.set()
    writer.join(LONG)
    assert [strategy.get(1), through.get(1), source.rows[1]] == ["newer"] * 3


def test_a_writer_that_began_after_the_put_keeps_no_older_value_either() -> None:
    source, cache = Source(), Cache()
    begun, go = threading.Event(), threading.Event()

    def store(id: int, value: str) -> None:
        source.rows[id] = value
        begun.set()
        assert go.wait(LONG)

    strategy = shelf(source, cache)
    through = WriteThrough(cache, key="page:{id}", load=source.load, store=store, name="through")
    strategy.put(1, "put first, written last")
    writer = threading.Thread(target=through.put, args=(1, "in between"))
    writer.start()
    assert begun.wait(LONG)
    assert strategy.flush(LONG).applied == 1
    go.set()
    writer.join(LONG)
    assert through.get(1) == strategy.get(1) == source.rows[1] == "put first, written last"


def test_the_first_look_into_a_file_drops_near_copies_from_before_it(tmp_path: Path) -> None:
    source, cache = Source(r1="old"), Cache()
    reader = ReadThrough(cache, key="page:{id}", load=source.load, name="reader")
    assert reader.get(1) == "old"
    strategy = shelf(source, cache, log=f"sqlite:///{tmp_path}/log")
    strategy.put(1, "new")
    assert strategy.flush(LONG).complete
    assert strategy.get(1) == "new"


class Interrupt(BaseException):
    """Out of a signal handler."""


def test_a_put_that_was_interrupted_leaves_no_older_copy_and_a_queue_that_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, cache = Source(r1="old"), Cache()
    strategy = shelf(source, cache)
    assert strategy.get(1) == "old"
    near = cache.parts.near

    def interrupted(*args: Any, **options: Any) -> bool:
        raise Interrupt

    with monkeypatch.context() as patch:
        patch.setattr(near, "store", interrupted)
        with pytest.raises(Interrupt):
            strategy.put(1, "new")
    assert strategy.get(1) == "new"
    with monkeypatch.context() as patch:
        patch.setattr("cachekit.core.buffer.Op", interrupted)
        with pytest.raises(Interrupt):
            strategy.put(2, "lost")
    strategy.put(2, "kept")
    assert strategy.flush(LONG).complete
    assert source.rows == {1: "new", 2: "kept"}
