"""The SQLite backend's file: its privacy, its locks, damage, bounds, processes and clocks."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cachekit.backends import sqlite_rows
from cachekit.backends.sqlite import SQLiteBackend, SQLiteDriver
from cachekit.core.deadline import Deadline
from cachekit.errors import BackendRefused, BackendTimeout, ConfigurationError
from cachekit.protocols import Item, SlotState
from cachekit.runtime import Runtime, drive

SPAWN = multiprocessing.get_context("spawn")


def late(seconds: float = 5.0) -> Deadline:
    return Deadline(seconds, time.monotonic)


def ident() -> bytes:
    return os.urandom(16)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "made" / "here" / "cache.db"


@pytest.fixture
def driver(path: Path) -> Iterator[SQLiteDriver]:
    driver = SQLiteDriver(str(path), "")
    yield driver
    driver.close()


# -- the URL and the file


def test_a_path_of_three_slashes_is_relative_and_of_four_absolute(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert SQLiteBackend("sqlite:///a/b.db").path == str(tmp_path / "a/b.db")
    assert SQLiteBackend("sqlite:////var/a%20b.db?max_bytes=5").path == "/var/a b.db"


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///", "sqlite:////", "sqlite://cache.db", "sqlite:///a/"]
)
def test_a_url_without_a_file_says_what_to_write(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"write sqlite:///cache\.db"):
        SQLiteBackend(url)


@pytest.mark.parametrize("option", ["max_byte=1", "max_bytes=0", "max_bytes=x"])
def test_an_unknown_option_or_a_bound_that_is_none_is_refused(option: str) -> None:
    with pytest.raises(ConfigurationError, match="max_bytes"):
        SQLiteBackend(f"sqlite:///cache.db?{option}")


def test_opening_touches_nothing_before_the_first_call(path: Path) -> None:
    SQLiteBackend(f"sqlite:///{path}").open(Runtime().threads)
    assert not path.parent.exists()


def test_the_file_is_private_in_a_private_folder(driver: SQLiteDriver, path: Path) -> None:
    old = os.umask(0)
    try:
        driver.set_many([Item("k", b"1", None)], late())
    finally:
        os.umask(old)
    assert {stat.S_IMODE(os.stat(each).st_mode) for each in path.parent.iterdir()} == {0o600}
    for folder in (path.parent, path.parent.parent):
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700


@pytest.mark.parametrize("target", ["", "SQLite format 3"])
def test_a_symbolic_link_is_refused(driver: SQLiteDriver, path: Path, target: str) -> None:
    path.parent.mkdir(parents=True)
    elsewhere = path.parent / "elsewhere"
    elsewhere.write_text(target)
    path.symlink_to(elsewhere)
    with pytest.raises(BackendRefused, match="symbolic link"):
        driver.set_many([Item("k", b"1", None)], late())
    assert elsewhere.read_text() == target


def test_a_folder_is_refused_and_keeps_its_mode(driver: SQLiteDriver, path: Path) -> None:
    path.mkdir(parents=True, mode=0o755)
    path.chmod(0o755)
    with pytest.raises(BackendRefused, match="no regular file"):
        driver.set_many([Item("k", b"1", None)], late())
    assert path.stat().st_mode & 0o777 == 0o755


def test_another_applications_database_is_refused_and_left_alone(
    driver: SQLiteDriver, path: Path
) -> None:
    path.parent.mkdir(parents=True)
    theirs = sqlite3.connect(path)
    theirs.execute("CREATE TABLE slots (mine)")
    theirs.close()
    before = path.read_bytes()
    with pytest.raises(BackendRefused, match="another application"):
        driver.get_many(["k"], late())
    assert path.read_bytes() == before


# -- damage


@pytest.mark.parametrize("garbage", [b"\0" * 5000, b"garbage" * 1000, b"SQLite format 3\0" * 99])
def test_a_garbage_file_is_moved_aside_and_counts_as_empty(
    driver: SQLiteDriver, path: Path, garbage: bytes
) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(garbage)
    assert driver.get_many(["k"], late()) == [None]
    driver.set_many([Item("k", b"1", None)], late())
    assert driver.get_many(["k"], late()) == [b"1"]
    (aside,) = path.parent.glob("cache.db.corrupt-*")
    assert aside.read_bytes() == garbage


def test_a_file_of_a_few_bytes_counts_as_empty(driver: SQLiteDriver, path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    driver.set_many([Item("k", b"1", None)], late())
    assert driver.get_many(["k"], late()) == [b"1"]


def test_a_file_damaged_under_way_is_replaced_without_an_error(
    driver: SQLiteDriver, path: Path
) -> None:
    driver.set_many([Item(f"k{n}", b"x" * 500, None) for n in range(400)], late())
    driver.close()  # the journal goes into the file
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xa5" * (len(whole) - 4096))
    again = SQLiteDriver(str(path), "")
    assert again.get_many([f"k{n}" for n in range(400)], late()) == [None] * 400
    again.set_many([Item("k", b"1", None)], late())
    assert again.get_many(["k"], late()) == [b"1"]
    again.close()


def test_a_file_that_was_deleted_or_replaced_is_not_written_to_any_more(
    driver: SQLiteDriver, path: Path
) -> None:
    stamp = ident()
    assert driver.put("k", stamp, b"old", None, late())
    for each in path.parent.iterdir():
        each.unlink()
    neighbour = SQLiteDriver(str(path), "")
    assert neighbour.put("k", ident(), b"new", None, late())
    driver.void(["k"], late())
    assert neighbour.read(["k"], [], late()).slots[0].state is SlotState.NOTHING
    neighbour.close()


# -- locks and processes


def _hold_the_lock(path: str, held: Any, release: Any) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    held.set()
    release.wait(20)


@pytest.mark.parametrize("world", ["threads", "asyncio"])
def test_a_file_locked_by_another_process_costs_the_deadline_and_reads_go_on(
    path: Path, world: str
) -> None:
    import asyncio

    backend = SQLiteBackend(f"sqlite:///{path}")
    runtime = Runtime()
    held, release = SPAWN.Event(), SPAWN.Event()

    async def body() -> None:
        here = runtime.threads if world == "threads" else runtime.asyncio()
        store = backend.open(here)
        await store.set_many([Item("k", b"1", None)], here.deadline(5))
        process = SPAWN.Process(target=_hold_the_lock, args=(str(path), held, release))
        process.start()
        try:
            assert held.wait(20)
            for _ in range(2):
                begun = time.monotonic()
                with pytest.raises(BackendTimeout):
                    await store.slots.void(["k"], here.deadline(0.2))
                assert time.monotonic() - begun < 0.2 + 0.15
            assert await store.get_many(["k"], here.deadline(0.2)) == [b"1"]
        finally:
            release.set()
            process.join(20)
        await store.slots.void(["k"], here.deadline(5))
        await store.close()

    try:
        if world == "threads":
            drive(body())
        else:
            asyncio.run(body())
    finally:
        runtime.close()


def _acquire_all(path: str, start: Any, answers: Any) -> None:
    driver = SQLiteDriver(path, "")
    driver.get_many(["warm"], late(20))
    start.wait(20)
    answers.put([driver.acquire(f"k{n}", ident(), 60, late(20)).granted for n in range(60)])
    driver.close()


def test_two_processes_that_ask_for_one_key_get_one_grant(path: Path) -> None:
    start, answers = SPAWN.Barrier(2), SPAWN.Queue()
    workers = [
        SPAWN.Process(target=_acquire_all, args=(str(path), start, answers)) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    one, other = answers.get(timeout=30), answers.get(timeout=30)
    for worker in workers:
        worker.join(20)
    assert [a + b for a, b in zip(one, other, strict=True)] == [1] * 60


def test_a_forked_child_opens_its_own_connection(driver: SQLiteDriver) -> None:
    driver.set_many([Item("k", b"1", None)], late())
    (mine,) = driver._file._pool._idle
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            read = driver.get_many(["k"], late()) == [b"1"]
            driver.set_many([Item("child", b"2", None)], late())
            code = 0 if read and mine not in driver._file._pool._idle else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert driver.get_many(["k", "child"], late()) == [b"1", b"2"]


def test_threads_that_write_at_once_lose_nothing(driver: SQLiteDriver) -> None:
    barrier = threading.Barrier(8)
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            barrier.wait(10)
            for n in range(25):
                driver.set_many([Item(f"{number}-{n}", b"x", None)], late(20))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []
    keys = [f"{number}-{n}" for number in range(8) for n in range(25)]
    assert driver.get_many(keys, late()) == [b"x"] * 200


# -- bounds


def _count(path: Path, table: str) -> int:
    connection = sqlite3.connect(path)
    try:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
    finally:
        connection.close()


def test_the_file_stays_within_its_bound_and_keeps_blocks_and_nonces(path: Path) -> None:
    bound = 4 * 2**20
    driver = SQLiteDriver(str(path), "", max_bytes=bound)
    writer = ident()
    driver.seize(["blocked"], writer, 0.5 + 60, late())
    nonces = driver.nonces(["k"], ["t"], ident, 60, late())
    for n in range(1500):
        ttl = None if n % 3 == 0 else 3600.0 + n
        driver.put(f"k{n}", ident(), os.urandom(10_000), ttl, late())
    assert path.stat().st_size < bound * 1.5
    assert driver.read(["blocked"], [], late()).slots[0].state is SlotState.BLOCK
    assert driver.nonces(["k"], ["t"], ident, 60, late()) == nonces
    assert 100 < _count(path, "slots") < 420
    newest = driver.read(["k1499"], [], late()).slots[0]
    assert newest.state is SlotState.ENTRY
    driver.close()


def test_what_has_expired_is_taken_out_little_by_little(path: Path) -> None:
    now = [1000.0]
    driver = SQLiteDriver(str(path), "", wall=lambda: now[0])
    driver.set_many([Item(f"r{n}", b"x", 10.0) for n in range(100)], late())
    for n in range(100):
        driver.put(f"s{n}", ident(), b"x", 10.0, late())
    now[0] += 20
    for n in range(4 * sqlite_rows.TEND_EVERY):
        driver.put(f"t{n}", ident(), b"x", None, late())
    assert _count(path, "records") == 0
    assert _count(path, "slots") == 4 * sqlite_rows.TEND_EVERY
    driver.close()


def test_a_value_sqlite_can_not_hold_is_refused_and_the_older_is_gone(
    driver: SQLiteDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert driver.put("k", ident(), b"old", None, late())
    (connection,) = driver._file._pool._idle
    connection.db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 10_000)
    with pytest.raises(BackendRefused) as refused:
        driver.put("k", ident(), b"x" * 20_000, None, late())
    assert refused.value.key == "k"
    assert driver.read(["k"], [], late()).slots[0].state is SlotState.NOTHING


def test_a_tag_that_many_writers_block_keeps_a_bounded_row_and_stays_blocked(
    driver: SQLiteDriver, path: Path
) -> None:
    writers = [ident() for _ in range(3 * sqlite_rows.MAX_WRITERS)]
    for writer in writers:
        driver.seize_tags(["t"], writer, 60, late())
    connection = sqlite3.connect(path)
    ((size,),) = connection.execute("SELECT length(nonce) FROM nonces").fetchall()
    connection.close()
    assert size <= 1 + 16 * sqlite_rows.MAX_WRITERS
    for writer in writers:  # some ids were left out: then time alone ends the block
        driver.end_tags(["t"], writer, late())
    assert driver.nonces([], ["t"], ident, None, late()).tags == [None]


# -- clocks


@pytest.mark.parametrize("jump", [-3600.0, -400 * 86400.0])
def test_a_clock_that_steps_back_frees_leases_and_keeps_no_entry_longer(
    path: Path, jump: float
) -> None:
    now = [1.8e9]
    driver = SQLiteDriver(str(path), "", wall=lambda: now[0])
    token, stamp, refresh = ident(), ident(), ident()
    assert driver.acquire("token", token, 30, late()).granted
    assert driver.put("entry", stamp, b"x", 10.0, late())
    assert driver.put("kept", stamp, b"x", None, late())
    assert driver.acquire("kept", refresh, 30, late(), over=stamp, keep=True).granted
    driver.seize(["block"], ident(), 30, late())
    driver.seize_tags(["tag"], ident(), 30, late())
    now[0] += jump
    assert driver.nonces([], ["tag"], ident, None, late()).tags == [None]
    slots = driver.read(["token", "entry", "block"], [], late()).slots
    assert [slot.state for slot in slots] == [SlotState.NOTHING, SlotState.NOTHING, SlotState.BLOCK]
    assert not driver.fill("token", token, b"late", None, late())
    assert driver.acquire("token", ident(), 30, late()).granted
    assert driver.acquire("kept", ident(), 30, late(), over=stamp, keep=True).granted


def test_a_namespace_of_any_text_is_its_own(path: Path) -> None:
    spaces = ["", "a", "a\0", "A", "é", "\ud800", "a'; DROP TABLE slots; --", "\\x00", "\0"]
    drivers = [SQLiteDriver(str(path), space) for space in spaces]
    for n, driver in enumerate(drivers):
        driver.put("k", ident(), b"%d" % n, None, late())
    for n, driver in enumerate(drivers):
        assert driver.read(["k"], [], late()).slots[0].data == b"%d" % n
        driver.close()
