"""Who else writes to a SQLite log: other processes' locks, threads that commit together."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlite_log_desk import (
    OTHER,
    OWNER,
    PATIENT,
    Plain,
    Turn,
    in_threads,
    wait_for_waiting,
)

from cachekit.core.deadline import Deadline
from cachekit.errors import BackendRefused, BackendTimeout
from cachekit.logs.sqlite import SQLiteLog
from cachekit.logs.sqlite_turns import Append, Ticket, Turns
from cachekit.protocols import Bounds, Letter
from cachekit.runtime import Runtime, drive


def soon(seconds: float = PATIENT) -> Deadline:
    return Deadline(seconds, time.monotonic)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "folder" / "orders.log")


@pytest.fixture
def log(path: str) -> Plain:
    return Plain(SQLiteLog(path, "orders"))


@pytest.fixture
def blocker(path: str, log: Plain) -> Iterator[sqlite3.Connection]:
    """Another process's connection, that holds the write lock."""
    log.put("first")
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    db.execute("BEGIN IMMEDIATE")
    yield db
    db.close()


# -- other writers


def test_a_put_behind_another_process_ends_at_its_deadline_and_a_look_does_not_wait(
    path: str, blocker: sqlite3.Connection
) -> None:
    hasty = Plain(SQLiteLog(path, "orders"), 0.2)
    for verb in (
        lambda: hasty.put("k"),
        lambda: hasty.settle(0, 1, [], []),
        lambda: hasty.claim(0, OWNER, 1.0),
    ):
        begun = time.monotonic()
        with pytest.raises(BackendTimeout):
            verb()
        assert time.monotonic() - begun < 5
    assert hasty.look(["first"], 0).pending[0].version == 1
    assert hasty.standing().depth == 1
    blocker.execute("COMMIT")
    assert hasty.put("k") == [2]
    assert hasty.all() == [(1, "first"), (2, "k")]


def test_a_put_waits_for_another_process(log: Plain, blocker: sqlite3.Connection) -> None:
    threads, results = in_threads(lambda: log.put("k"))
    threads[0].join(0.1)
    assert results == [None]
    blocker.execute("COMMIT")
    threads[0].join(PATIENT)
    assert results == [[2]]


def test_who_finds_the_queue_full_needs_no_lock(path: str, blocker: sqlite3.Connection) -> None:
    full = Plain(SQLiteLog(path, "orders", bounds=Bounds(operations=1)), 0.5)
    assert full.put("k") == [None]
    assert full.put("k", "l") == [None, None]


def test_a_claim_of_an_owned_queue_needs_no_lock(log: Plain, path: str) -> None:
    log.claim(0, OWNER, PATIENT)
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    assert Plain(log.log, 0.5).claim(0, OTHER, PATIENT) is None
    db.close()


def test_outdating_without_a_letter_needs_no_lock(path: str, blocker: sqlite3.Connection) -> None:
    hasty = Plain(SQLiteLog(path, "orders"), 0.5)
    hasty.outdate(["first", "unknown"])
    blocker.execute("COMMIT")
    hasty.settle(0, hasty.claim(0, OWNER, PATIENT), [], [Letter(hasty.read(0, 0, 1)[0], "no")])
    blocker.execute("BEGIN IMMEDIATE")
    hasty.outdate(["unknown"])
    with pytest.raises(BackendTimeout):
        hasty.outdate(["unknown", "first"])
    blocker.execute("COMMIT")
    assert [letter.outdated for letter in hasty.letters(0, 10)] == [False]
    hasty.outdate(["first"])
    assert [letter.outdated for letter in hasty.letters(0, 10)] == [True]


# -- closing


def _is_closed(log: Plain) -> bool:
    file = log.log._file
    return file._writer is None and not file._readers


def test_closing_leaves_the_file_to_a_write_that_takes_long(log: Plain) -> None:
    close, threads = log.log.close, Runtime().threads
    log.put("first")
    assert log.all() == [(1, "first")]
    turn = Turn(log)
    begun = time.monotonic()
    drive(close(threads))
    assert time.monotonic() - begun < 3
    assert not _is_closed(log)  # the writer is at work
    turn.let_go()
    assert _is_closed(log)
    assert log.put("second") == [2]
    assert log.put("third") == [3]
    assert not _is_closed(log)
    drive(close(threads))
    assert _is_closed(log)


def test_who_waits_for_a_turn_writes_though_the_file_is_closed_meanwhile(log: Plain) -> None:
    log.put("first")
    turn = Turn(log)
    threads, results = in_threads(*[lambda n=n: log.put(f"k{n}", f"l{n}") for n in range(4)])
    wait_for_waiting(log, 4)
    drive(log.log.close(Runtime().threads))
    turn.let_go()
    for thread in threads:
        thread.join(PATIENT)
    assert sorted(results) == [[n, n + 1] for n in range(2, 10, 2)]
    assert len(log.all()) == 9


# -- group commit


def test_appends_that_wait_are_one_transaction(log: Plain, path: str) -> None:
    other = Plain(SQLiteLog(path, "other", bounds=Bounds(operations=2)))
    log.put("first")
    turn = Turn(log)
    jobs = [lambda n=n: log.put(f"k{n}", f"l{n}") for n in range(12)]
    threads, results = in_threads(*jobs, *[lambda: other.put("k")] * 3)
    wait_for_waiting(log, 15)
    writer = log.log._file._writer
    assert writer is not None
    statements: list[str] = []
    writer.db.set_trace_callback(statements.append)
    turn.let_go()
    for thread in threads:
        thread.join(PATIENT)
    writer.db.set_trace_callback(None)
    assert statements.count("BEGIN IMMEDIATE") == 1
    assert sorted(results[:12]) == [[n, n + 1] for n in range(2, 26, 2)]
    assert sorted(results[12:], key=str) == [[1], [2], [None]]
    there = dict(log.all())
    for number, versions in enumerate(results[:12]):
        assert [there[version] for version in versions] == [f"k{number}", f"l{number}"]
    assert log.put("last") == [26]


def test_a_follower_whose_deadline_passes_while_it_waits_wrote_nothing(
    log: Plain, path: str
) -> None:
    log.put("first")
    turn = Turn(log)
    with pytest.raises(BackendTimeout):
        Plain(log.log, 0.05).put("late")
    with pytest.raises(BackendTimeout):
        Plain(log.log, 0.05).release(0, OWNER, 1)
    turn.let_go()
    assert log.put("next") == [2]
    assert log.all() == [(1, "first"), (2, "next")]


def test_what_one_append_is_refused_does_not_fail_those_written_along(log: Plain) -> None:
    turn = Turn(log)
    threads, results = in_threads(
        lambda: log.put("good"), lambda: log.put("bad \ud800"), lambda: log.put("fine")
    )
    wait_for_waiting(log, 3)
    turn.let_go()
    for thread in threads:
        thread.join(PATIENT)
    assert isinstance(results[1], BackendRefused)
    assert sorted([results[0], results[2]]) == [[1], [2]]
    assert sorted(key for _, key in log.all()) == ["fine", "good"]


def test_followers_outlive_a_leader_in_a_hurry(log: Plain, blocker: sqlite3.Connection) -> None:
    """It can not write, for another process does; each of them has a deadline of its own."""
    turns, hasty = log.log._file._turns, Plain(log.log, 1.0)
    assert turns.enter(Ticket(), soon())
    threads, results = [], []
    for job in (lambda: hasty.put("hasty"), lambda: log.put("k"), lambda: log.put("l", "m")):
        more, result = in_threads(job)
        threads += more
        results.append(result)
        wait_for_waiting(log, len(threads))
    turns.leave()  # to the first of them
    threads[0].join(PATIENT)
    assert isinstance(results[0][0], BackendTimeout)
    blocker.execute("COMMIT")
    for thread in threads:
        thread.join(PATIENT)
    assert [results[1], results[2]] == [[[2]], [[3, 4]]]
    assert [key for _, key in log.all()] == ["first", "k", "l", "m"]


# -- turns


def one() -> Append:
    return Append("q", [], Bounds())


def test_turns_are_given_in_the_order_of_arrival() -> None:
    turns, order = Turns(), []
    assert turns.enter(Ticket(), soon())

    def work(number: int) -> None:
        assert turns.enter(Ticket(), soon())
        order.append(number)
        turns.leave()

    threads = []
    for number in range(5):
        threads += in_threads(lambda number=number: work(number))[0]
        while len(turns._waiting) <= number:
            time.sleep(0.001)
    turns.leave()
    for thread in threads:
        thread.join(PATIENT)
    assert order == list(range(5))
    assert turns.enter(Ticket(), soon(0))


def test_a_rider_that_gave_up_is_not_given_the_turn() -> None:
    """Nobody would give it back."""
    turns = Turns()
    assert turns.enter(one(), soon())
    ((thread,), results) = in_threads(lambda: turns.enter(one(), soon(0.2)))
    riders: list[Append] = []
    while not (riders := turns.riders(9)):
        time.sleep(0.001)
    thread.join(PATIENT)
    assert isinstance(results[0], TimeoutError)
    turns.back(riders)  # its leader could not write
    turns.leave()
    assert turns.enter(Ticket(), soon(1.0))


def test_a_rider_that_was_written_has_no_turn() -> None:
    turns = Turns()
    assert turns.enter(one(), soon())
    ((thread,), results) = in_threads(lambda: turns.enter(one(), soon()))
    riders: list[Append] = []
    while not (riders := turns.riders(9)):
        time.sleep(0.001)
    turns.done(riders)
    thread.join(PATIENT)
    assert results == [False]
    turns.leave()
    assert turns.enter(Ticket(), soon(0))


def test_a_turn_whose_holder_is_not_at_work_any_more_is_taken_from_it() -> None:
    def work(turns: Turns, hold: threading.Event | None) -> None:
        turns.enter(Ticket(), Deadline(15.0, time.monotonic))
        held.set()
        if hold is not None:
            hold.wait(15)

    held, hold, end = threading.Event(), threading.Event(), threading.Event()
    for at_work in (True, False):
        turns = Turns([work.__code__])
        held.clear()

        def run(turns: Turns = turns, at_work: bool = at_work) -> None:
            work(turns, hold if at_work else None)  # ends with the turn taken
            end.wait(15)

        thread = threading.Thread(target=run)
        thread.start()
        assert held.wait(15)
        if at_work:
            with pytest.raises(TimeoutError):
                turns.enter(Ticket(), Deadline(0.3, time.monotonic))
        else:
            assert turns.enter(Ticket(), Deadline(15.0, time.monotonic))
            turns.leave()
    hold.set()
    end.set()


def test_a_late_owner_of_a_file_that_was_begun_anew_takes_out_nothing_of_other_keys(
    log: Plain,
) -> None:
    log.put("a", "b", "c")
    epoch = log.claim(0, b"owner", 10.0)
    # Versions and epoch as in the file before, keys not.
    assert log.settle(0, epoch, [("x", 1), ("y", 2), ("z", 3)], [])
    assert log.all() == [(1, "a"), (2, "b"), (3, "c")]
    assert log.settle(0, epoch, [("a", 1), ("y", 2), ("c", 3)], [])
    assert log.all() == [(2, "b")]
