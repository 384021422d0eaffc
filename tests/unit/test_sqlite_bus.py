"""The bus of a SQLite file: other processes, forks, trimming, files that go away, stopping."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cachekit.backends import sqlite_rows
from cachekit.backends.sqlite import SQLiteBackend, SQLiteDriver
from cachekit.backends.sqlite_bus import SQLiteBus
from cachekit.core.deadline import Deadline
from cachekit.protocols import Note, NoteKind
from cachekit.runtime import Runtime

SPAWN = multiprocessing.get_context("spawn")


def late(seconds: float = 5.0) -> Deadline:
    return Deadline(seconds, time.monotonic)


class Ears:
    def __init__(self, on_heard: Callable[[], Any] = lambda: None) -> None:
        self.calls: list[str] = []
        self.notes: list[Note] = []
        self.lags: list[float] = []
        self.foreigners = 0
        self._on_heard = on_heard

    def joined(self) -> None:
        self.calls.append("joined")

    def heard(self, notes: Sequence[Note]) -> None:
        self.notes += notes
        self.calls.append("heard")
        self._on_heard()

    def lost(self) -> None:
        self.calls.append("lost")

    def lag(self, seconds: float) -> None:
        self.lags.append(seconds)

    def foreign(self, count: int) -> None:
        self.foreigners += count

    def names(self) -> list[str]:
        return [note.name for note in self.notes]


def until(fact: Callable[[], object], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.005)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "made" / "cache.db"


@pytest.fixture
def driver(path: Path) -> Iterator[SQLiteDriver]:
    driver = SQLiteDriver(str(path), "")
    yield driver
    driver.close()


@contextlib.contextmanager
def listening(path: Path, ears: Ears) -> Iterator[Callable[[], None]]:
    stop = SQLiteBus(str(path), "").listen(ears)
    try:
        until(lambda: "joined" in ears.calls)
        yield stop
    finally:
        stop()


# -- notes


def _void(path: str, keys: list[str]) -> None:
    driver = SQLiteDriver(path, "")
    for key in keys:
        driver.void([key], late(20))
    driver.close()


def test_another_processs_invalidations_are_heard_once_and_in_order(
    driver: SQLiteDriver, path: Path
) -> None:
    ears = Ears()
    keys = [f"k{number}" for number in range(50)]
    with listening(path, ears):
        process = SPAWN.Process(target=_void, args=(str(path), keys))
        process.start()
        process.join(30)
        driver.drop_tags(["own"], late())
        until(lambda: "own" in ears.names())
    assert ears.names() == [*keys, "own"]
    senders = [note.sender for note in ears.notes]
    assert len(set(senders)) == 2
    assert senders[-1] == driver.sender
    assert (ears.notes[-1].kind, ears.notes[-1].name) == (NoteKind.TAG, "own")


def test_threads_that_write_at_once_are_all_heard(driver: SQLiteDriver, path: Path) -> None:
    ears = Ears()

    def work(number: int) -> None:
        for step in range(25):
            driver.void([f"{number}-{step}"], late(20))

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(4)]
    with listening(path, ears):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        until(lambda: len(ears.notes) >= 100)
    assert len(ears.notes) == 100
    for number in range(4):
        mine = [name for name in ears.names() if name.startswith(f"{number}-")]
        assert mine == [f"{number}-{step}" for step in range(25)]


def test_a_step_that_failed_is_not_heard(driver: SQLiteDriver, path: Path) -> None:
    ears = Ears()
    with listening(path, ears):
        with pytest.raises(Exception, match="arguments"):
            driver.void(["fine", "k" * 231], late())  # no such key can be noted, so none is void
        driver.void(["next"], late())
        until(lambda: ears.notes)
    assert ears.names() == ["next"]


def test_what_is_no_note_is_counted_and_nothing_else(driver: SQLiteDriver, path: Path) -> None:
    ears = Ears()
    with listening(path, ears):
        db = sqlite3.connect(path)
        with db:
            for garbage in (b"", b"x" * 5000, "text", 7, b"ck\x01" + b"\xff" * 40):
                db.execute("INSERT INTO notes (space, note) VALUES ('', ?)", (garbage,))
        db.close()
        driver.void(["k"], late())
        until(lambda: ears.notes)
        until(lambda: ears.foreigners == 5)
    assert ears.names() == ["k"]


def test_the_table_keeps_the_newest_notes_and_a_small_file_fewer(path: Path) -> None:
    assert sqlite_rows.Rows("", 2**30)._notes == 10_000
    driver = SQLiteDriver(str(path), "", max_bytes=2**20)
    driver.void([f"k{number}" for number in range(1500)], late())
    driver.close()
    db = sqlite3.connect(path)
    ids = [row[0] for row in db.execute("SELECT id FROM notes ORDER BY id")]
    db.close()
    assert 256 <= len(ids) < 256 + sqlite_rows.TRIM_EVERY
    assert ids == list(range(1501 - len(ids), 1501))


def test_a_listener_that_comes_too_late_for_what_was_trimmed_has_lost_and_joins_anew(
    path: Path,
) -> None:
    let = threading.Event()
    ears = Ears(lambda: let.wait(10))
    driver = SQLiteDriver(str(path), "", max_bytes=2**20)
    with listening(path, ears):
        driver.void(["first"], late())
        until(lambda: ears.notes)
        driver.void([f"k{number}" for number in range(600)], late())
        let.set()
        until(lambda: ears.calls.count("joined") == 2)
        driver.void(["after"], late())
        until(lambda: "after" in ears.names())
    driver.close()
    assert ears.names() == ["first", "after"]
    assert ears.calls == ["joined", "heard", "lost", "joined", "heard"]


def test_a_listener_that_raises_is_heard_of_once_and_hears_on(
    driver: SQLiteDriver, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ValueError("a mistake of the listener")

    ears = Ears(fail)
    with caplog.at_level(logging.ERROR, "cachekit"), listening(path, ears):
        for key in ("a", "b"):
            driver.void([key], late())
            until(lambda key=key: key in ears.names())  # type: ignore[misc]
        until(lambda: ears.calls.count("joined") == 3)
    assert ears.calls == ["joined", *["heard", "lost", "joined"] * 2]
    assert len(caplog.records) == 1


def test_the_lag_is_measured_while_nothing_happens(driver: SQLiteDriver, path: Path) -> None:
    ears = Ears()
    with listening(path, ears):
        until(lambda: len(ears.lags) > 5)
    assert all(lag > 0.0 for lag in ears.lags)
    assert ears.calls == ["joined"]


# -- files


def test_a_backend_listens_only_when_told_to(path: Path) -> None:
    before = threading.active_count()
    backend = SQLiteBackend(f"sqlite:///{path}")
    backend.open(Runtime().threads)
    assert backend.bus is not None
    assert not path.parent.exists()
    assert threading.active_count() == before


def test_a_file_of_before_the_bus_is_given_its_table(path: Path) -> None:
    path.parent.mkdir()
    old = sqlite3.connect(path)
    tables = sqlite_rows.TABLES.partition("CREATE TABLE IF NOT EXISTS notes")[0]
    old.executescript(
        f"PRAGMA journal_mode=WAL; {tables.replace('IF NOT EXISTS ', '')}"
        f"PRAGMA application_id={sqlite_rows.MARK}; PRAGMA user_version={sqlite_rows.VERSION};"
    )
    old.execute("INSERT INTO records VALUES ('', 'kept', 0, NULL, x'01')")
    old.commit()
    old.close()
    driver, ears = SQLiteDriver(str(path), ""), Ears()
    assert driver.get_many(["kept"], late()) == [b"\1"]
    with listening(path, ears):
        driver.void(["k"], late())
        until(lambda: ears.notes)
    driver.close()


@pytest.mark.parametrize("how", ["deleted", "replaced", "garbage"])
def test_a_file_that_went_away_is_lost_and_the_next_is_joined(path: Path, how: str) -> None:
    driver, ears = SQLiteDriver(str(path), ""), Ears()
    with listening(path, ears):
        driver.void(["old"], late())
        until(lambda: ears.notes)
        if how == "deleted":
            for suffix in ("-wal", "-shm", ""):  # the file last: a new one is made at once
                Path(f"{path}{suffix}").unlink()
        else:
            other = path.parent / "other.db"
            if how == "replaced":
                there = SQLiteDriver(str(other), "")
                there.void(["a", "b", "c"], late())
                there.close()
            else:
                other.write_bytes(b"garbage" * 999)
            for suffix in ("-wal", "-shm"):
                Path(f"{path}{suffix}").unlink()
            other.replace(path)
        until(lambda: ears.calls.count("joined") == 2)
        driver.void(["new"], late())
        until(lambda: "new" in ears.names())
    driver.close()
    assert ears.names() == ["old", "new"]
    assert ears.calls == ["joined", "heard", "lost", "joined", "heard"]


def test_a_file_that_can_not_be_read_is_lost_within_the_bound(
    driver: SQLiteDriver, path: Path
) -> None:
    ears = Ears()
    with listening(path, ears):
        until(lambda: ears.lags)
        aside, link = path.with_name("aside.db"), path.with_name("link.db")
        os.link(path, aside)
        link.symlink_to(aside)  # refused, as long as it is there
        began = time.monotonic()
        link.replace(path)  # in one step: a file that is missing would be made anew
        until(lambda: "lost" in ears.calls)
        assert time.monotonic() - began < SQLiteBus.bound + 1.0
        time.sleep(0.2)
        assert ears.calls == ["joined", "lost"]
        aside.replace(path)
        until(lambda: ears.calls.count("joined") == 2)
        driver.void(["k"], late())
        until(lambda: ears.notes)


# -- threads and processes


def test_stopping_ends_the_thread_and_leaves_no_descriptor(path: Path) -> None:
    for _ in range(3):
        ears = Ears()
        with listening(path, ears) as stop:
            began = time.monotonic()
            stop()
            assert time.monotonic() - began < 0.5
            stop()
            calls = list(ears.calls)
    until(lambda: "cachekit-sqlite-bus" not in {t.name for t in threading.enumerate()})
    assert ears.calls == calls == ["joined"]
    if os.path.isdir("/proc/self/fd"):
        numbers = [number for number in Path("/proc/self/fd").iterdir() if number.is_symlink()]
        assert not [number for number in numbers if str(path) in os.readlink(number)]


def test_a_listener_may_stop_itself(driver: SQLiteDriver, path: Path) -> None:
    stops: list[Callable[[], None]] = []
    ears = Ears(lambda: stops[0]())
    with listening(path, ears) as stop:
        stops.append(stop)
        driver.void(["k"], late())
        until(lambda: ears.notes)
        driver.void(["l"], late())
        time.sleep(0.15)
    assert ears.names() == ["k"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_after_a_fork_the_parent_hears_on_and_a_child_that_listens_anew(
    driver: SQLiteDriver, path: Path
) -> None:
    ears = Ears()
    with listening(path, ears):
        mine = driver.sender
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                own = Ears()
                with listening(path, own):
                    driver.void(["child"], late())
                    until(lambda: own.names() == ["child"])
                names = [t.name for t in threading.enumerate()]
                good = own.notes[0].sender == driver.sender != mine and not ears.notes
                code = 0 if good and "cachekit-sqlite-bus" not in names else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        # Its connection was closed for the fork: what came meanwhile counts as missed.
        until(lambda: ears.calls[-2:] == ["lost", "joined"] or "child" in ears.names())
        driver.void(["parent"], late())
        until(lambda: "parent" in ears.names())
        assert next(n.sender for n in ears.notes if n.name == "parent") == mine
