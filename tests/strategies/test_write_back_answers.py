"""What a sink answers and raises: nothing that was not written is taken for written, no row is
parked for what is not its fault, and what the source says is told."""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from durable_books import LONG, Ledger, Shelf, count, wait_for

from cachekit import QueueFull, Retrying
from cachekit.errors import (
    BackendUnavailable,
    CodecError,
    ConfigurationError,
    KeyEncodingError,
    WriteBackClosed,
)
from cachekit.protocols import Op

ROWS = {1: "a", 2: "b", 3: "c"}


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    with Shelf(tmp_path) as shelf:
        yield shelf


class Sink(Ledger):
    """Says and raises what it is told to; writes where it is told nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.says: Callable[[Sequence[Op]], Any] | None = None
        self.calls = 0

    def write_many(self, ops: Sequence[Op]) -> Any:
        self.calls += 1
        return super().write_many(ops) if self.says is None else self.says(ops)


def _generator(ops: Sequence[Op]) -> Iterator[Op]:
    yield from ops


async def _async_generator(ops: Sequence[Op]) -> AsyncIterator[Op]:
    for op in ops:
        yield op


async def _coroutine() -> None:
    return None


class _Awaitable:
    def __await__(self) -> Iterator[None]:
        yield


def _future(ops: Sequence[Op]) -> Any:
    loop = asyncio.new_event_loop()
    loop.close()
    return loop.create_future()


NOT_YET: dict[str, Callable[[Sequence[Op]], Any]] = {
    "generator": _generator,
    "async generator": _async_generator,
    "future": _future,
    "awaitable": lambda ops: _Awaitable(),
    "coroutine": lambda ops: _coroutine(),
    "keys for ids": lambda ops: {op.key: ValueError("no") for op in ops},
    "texts for ids": lambda ops: {str(op.id): ValueError("no") for op in ops},
    "one id too many": lambda ops: {ops[0].id: ValueError("no"), "foreign": ValueError("no")},
}


@pytest.mark.parametrize("says", NOT_YET.values(), ids=NOT_YET)
def test_an_answer_that_is_none_means_that_nothing_is_written_yet(
    shelf: Shelf, says: Callable[[Sequence[Op]], Any], caplog: pytest.LogCaptureFixture
) -> None:
    sink = Sink()
    sink.says = says
    book = shelf.book(sink.write_many, delay=0.01)
    book.put_many(ROWS)
    wait_for(lambda: sink.calls >= 3)
    flushed = book.flush(0.1)
    assert (flushed.applied, flushed.parked, flushed.left) == (0, 0, 3)
    assert flushed.errors[0].startswith("ConfigurationError: ")
    told = [each for each in caplog.records if "takes no batches" in each.getMessage()]
    assert len(told) == 1
    assert "ConfigurationError" in told[0].getMessage()
    sink.says = None
    flushed = book.flush(LONG)
    assert (flushed.complete, flushed.parked) == (True, 0)
    assert sink.rows == ROWS
    assert shelf.letters() == []


@pytest.mark.parametrize("name", ["generator", "future", "awaitable", "texts for ids"])
def test_an_answer_of_store_many_that_is_none_means_so_too(shelf: Shelf, name: str) -> None:
    says: list[Callable[[Any], Any]] = [NOT_YET[name]] * 3
    rows: dict[Any, Any] = {}

    def store_many(values: Mapping[Any, Any]) -> Any:
        if says:
            return says.pop()([Op(id, None, id=id) for id in values])  # type: ignore[arg-type]
        rows.update(values)
        return "3 rows"

    book = shelf.book(store_many=store_many)
    book.put_many(ROWS)
    flushed = book.flush(LONG)
    assert (flushed.complete, flushed.parked) == (True, 0)
    assert rows == ROWS


@pytest.mark.parametrize(
    "says",
    [
        lambda ops: ValueError("no"),
        lambda ops: [ValueError("no") for _ in ops],
        lambda ops: (None, ValueError("no"), None)[: len(ops) + 1],
        lambda ops: {op.id: ValueError("no") for op in ops},
    ],
    ids=["an error", "errors", "an error among them", "errors by id"],
)
def test_errors_that_are_answered_are_as_if_raised(
    shelf: Shelf, says: Callable[[Sequence[Op]], Any]
) -> None:
    sink = Sink()
    sink.says = says
    book = shelf.book(sink.write_many)
    book.put_many(ROWS)
    flushed = book.flush(LONG)
    assert (flushed.applied, flushed.parked, flushed.left) == (0, 3, 0)
    assert [letter.error for letter in shelf.letters()] == ["ValueError: no"] * 3


def test_an_outage_that_is_answered_parks_nothing(shelf: Shelf) -> None:
    """As ``asyncio.gather(..., return_exceptions=True)`` gives it."""
    sink = Sink()
    sink.says = lambda ops: [ConnectionResetError("away") for _ in ops]
    book = shelf.book(sink.write_many, delay=0.01)
    book.put_many(ROWS)
    wait_for(lambda: sink.calls >= 4)
    sink.says = None
    assert book.flush(LONG).complete
    assert (sink.rows, shelf.letters()) == (ROWS, [])


class _Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("has no text")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("caf\udce9.txt"), "ValueError: caf\\udce9.txt"),
        (_Mute(), "_Mute"),
        (ValueError("x" * 5000), "ValueError: " + "x" * 1988),
        (ValueError("nul\0 and \u20ac"), "ValueError: nul\0 and \u20ac"),
    ],
    ids=["half a surrogate pair", "no text", "long", "odd"],
)
def test_a_row_whose_error_has_an_odd_text_is_parked_and_blocks_nobody(
    shelf: Shelf, error: Exception, text: str
) -> None:
    sink = Sink()

    def refuse(ops: Sequence[Op]) -> Any:
        if any(op.id == 2 for op in ops):
            raise error
        return Ledger.write_many(sink, ops)

    sink.says = refuse
    cache = shelf.cache()
    book = shelf.book(sink.write_many, cache)
    book.put_many(ROWS)
    flushed = book.flush(LONG)
    assert (flushed.applied, flushed.parked, flushed.left) == (2, 1, 0)
    assert flushed.errors == [text]
    assert [letter.error for letter in shelf.letters()] == [text]
    assert sink.rows == {1: "a", 3: "c"}
    assert count(cache, "worker_errors") == 0


def _repository() -> Exception:
    error = RuntimeError("the repository gave up")
    error.__cause__ = ConnectionError("refused")
    return error


OUTAGES: list[Exception] = [
    ExceptionGroup("tasks", [ConnectionError("down"), TimeoutError()]),
    ExceptionGroup("tasks", [ExceptionGroup("more", [ConnectionError("down")])]),
    socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
    OSError(errno.EHOSTUNREACH, "No route to host"),
    OSError(errno.ENETUNREACH, "Network is unreachable"),
    OSError(errno.EMFILE, "Too many open files"),
    OSError(errno.ENOSPC, "No space left on device"),
    _repository(),
    concurrent.futures.CancelledError(),
    QueueFull("the next queue is full"),
    BackendUnavailable("the next cache is away"),
    WriteBackClosed("the next queue is closed"),
    ConfigurationError("one lane a batch"),
]


@pytest.mark.parametrize("error", OUTAGES, ids=lambda error: type(error).__name__)
def test_an_outage_is_waited_out_and_told_once(
    shelf: Shelf, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    sink = Sink()

    def fail(ops: Sequence[Op]) -> None:
        raise error

    sink.says = fail
    cache = shelf.cache()
    book = shelf.book(
        sink.write_many, cache, delay=0.01, retry=Retrying(attempts=1, base=0, cap=0.01)
    )
    with caplog.at_level(logging.WARNING, logger="cachekit"):
        book.put_many(ROWS)
        wait_for(lambda: sink.calls >= 5)
        flushed = book.flush(0.05)
    assert (flushed.applied, flushed.parked, flushed.left) == (0, 0, 3)
    assert type(error).__name__ in flushed.errors[0]
    told = [each.getMessage() for each in caplog.records]
    assert len([text for text in told if type(error).__name__ in text]) == 1, told
    assert count(cache, "source_outages") >= 5
    sink.says = None
    flushed = book.flush(LONG)
    assert (flushed.complete, flushed.parked, flushed.errors) == (True, 0, [])
    assert sink.rows == ROWS


def _in_passing() -> Exception:
    """Raised while an outage was handled, and not from it."""
    try:
        try:
            raise ConnectionError("the first replica is away")
        except ConnectionError:
            raise RuntimeError("no such column")
    except RuntimeError as error:
        return error


class IntegrityError(Exception):
    """Of a driver whose errors are known by their names."""


def _because_of_an_outage(error: Exception) -> Exception:
    error.__cause__ = ConnectionError("the lookup failed")
    return error


def _in_a_circle() -> Exception:
    one, two = RuntimeError("one"), RuntimeError("two")
    one.__cause__, two.__cause__ = two, one
    return one


@pytest.mark.parametrize(
    "error",
    [
        ExceptionGroup("tasks", [ConnectionError("down"), ValueError("no")]),
        FileNotFoundError(errno.ENOENT, "No such file"),
        CodecError("not as JSON"),
        KeyEncodingError("no text form"),
        _in_passing(),
        _because_of_an_outage(ValueError("no")),
        _because_of_an_outage(IntegrityError("no")),
        _in_a_circle(),
    ],
    ids=[
        "mixed group",
        "OSError",
        "CodecError",
        "KeyEncodingError",
        "in passing",
        "blames a value",
        "blames a row",
        "causes in a circle",
    ],
)
def test_what_may_be_a_rows_fault_is_not_taken_for_an_outage(
    shelf: Shelf, error: Exception
) -> None:
    """Else one such row would stand in the way of all others for good."""
    sink = Sink()

    def refuse(ops: Sequence[Op]) -> Any:
        if any(op.id == 1 for op in ops):
            raise error
        return Ledger.write_many(sink, ops)

    sink.says = refuse
    book = shelf.book(sink.write_many)
    book.put_many(ROWS)
    flushed = book.flush(LONG)
    assert (flushed.applied, flushed.parked, flushed.left) == (2, 1, 0)
    assert sink.rows == {2: "b", 3: "c"}


def test_a_task_group_over_a_source_that_is_away_parks_nothing(shelf: Shelf) -> None:
    rows: dict[Any, Any] = {}
    tries: list[int] = []

    async def one(id: Any, value: Any) -> None:
        if len(tries) <= 3:
            raise ConnectionError("away")
        rows[id] = value

    async def store_many(values: Mapping[Any, Any]) -> None:
        tries.append(len(values))
        async with asyncio.TaskGroup() as tasks:
            for id, value in values.items():
                tasks.create_task(one(id, value))

    async def main() -> None:
        book = shelf.book(store_many=store_many)
        await book.aio.put_many(ROWS)
        flushed = await book.aio.flush(LONG)
        assert (flushed.complete, flushed.parked) == (True, 0)
        await book.aio.close(1)

    asyncio.run(main())
    assert rows == ROWS


def test_a_sink_that_finds_its_own_queue_full_is_tried_again(shelf: Shelf) -> None:
    ledger, refused = Ledger(), []

    def write_many(ops: Sequence[Op]) -> None:
        if ops[0].id == 1 and not refused:
            try:
                book.put(2, "follows from 1")
            except QueueFull as error:
                refused.append(error)
                raise
        ledger.write_many(ops)

    book = shelf.book(write_many, max_pending=1, block=0.05)
    book.put(1, "a")
    assert book.flush(LONG).complete
    assert len(refused) == 1
    assert (ledger.rows, shelf.letters()) == ({1: "a"}, [])


@pytest.mark.parametrize("attempts", [1, 4])
def test_a_letter_says_how_often_its_row_was_tried(shelf: Shelf, attempts: int) -> None:
    alone: list[Any] = []

    def write_many(ops: Sequence[Op]) -> None:
        if len(ops) == 1:
            alone.append(ops[0].id)
        if any(op.id == 2 for op in ops):
            raise ValueError("no")

    book = shelf.book(write_many, retry=Retrying(attempts=attempts, base=0, cap=0.01))
    book.put_many(ROWS)
    assert book.flush(LONG).parked == 1
    assert [letter.attempts for letter in shelf.letters()] == [alone.count(2)] == [attempts]
