"""The SQLite log beyond the contract: group commit, other writers, refusals, damage, leases."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlite_log_desk import OTHER, OWNER, PATIENT, Plain

from cachekit.core.ops import OpKind
from cachekit.errors import BackendRefused, ConfigurationError
from cachekit.logs import sqlite as sqlite_log
from cachekit.logs import sqlite_settling
from cachekit.logs.sqlite import SQLiteLog
from cachekit.protocols import Bounds, Letter, Record, World
from cachekit.runtime import Runtime, drive


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "folder" / "orders.log")


@pytest.fixture
def log(path: str) -> Plain:
    return Plain(SQLiteLog(path, "orders"))


@pytest.fixture
def neighbour(path: str, log: Plain) -> Plain:
    """The same queue over connections of its own, as another process has them."""
    return Plain(SQLiteLog(path, "orders", level="host"))


# -- levels and files


def test_the_levels_are_those_of_sqlite(path: str, log: Plain, neighbour: Plain) -> None:
    assert (log.log.level, neighbour.log.level) == ("process", "host")
    for plain, synchronous in ((log, 1), (neighbour, 2)):
        plain.put("k")
        writer = plain.log._file._writer
        assert writer is not None
        assert writer.db.execute("PRAGMA synchronous").fetchone() == (synchronous,)
        assert writer.db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    for level in ("replicated", "memory", ""):
        with pytest.raises(ConfigurationError):
            SQLiteLog(path, "q", level=level)
    with pytest.raises(ConfigurationError):
        SQLiteLog(path, "")


def test_nothing_is_opened_before_the_first_use_and_the_file_is_private(path: str) -> None:
    log = Plain(SQLiteLog(path, "q"))
    assert not os.path.exists(os.path.dirname(path))
    log.look(["k"], 0)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700


def test_a_symbolic_link_is_refused(path: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    os.mkdir(os.path.dirname(path))
    os.symlink(target, path)
    with pytest.raises(ConfigurationError, match="symbolic link"):
        Plain(SQLiteLog(path, "q")).put("k")
    assert not target.exists()


def test_a_newer_version_or_anothers_database_is_left_alone(log: Plain, path: str) -> None:
    log.put("k")
    drive(log.log.close(Runtime().threads))
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(ConfigurationError, match="newer"):
        log.put("k")
    os.remove(path)
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE theirs (x)")
    with pytest.raises(ConfigurationError, match="another application"):
        log.look(["k"], 0)
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]


def test_a_damaged_file_is_refused_and_kept(log: Plain, path: str) -> None:
    log.put("k")
    drive(log.log.close(Runtime().threads))
    content = b"this is no database" * 1000
    Path(path).write_bytes(content)
    for verb in (lambda: log.put("k"), lambda: log.look(["k"], 0), lambda: log.read(0, 0, 9)):
        with pytest.raises(BackendRefused, match="left as it is"):
            verb()
    assert Path(path).read_bytes() == content
    assert len(os.listdir(os.path.dirname(path))) == 1


def test_a_file_that_was_deleted_is_begun_anew(log: Plain, neighbour: Plain, path: str) -> None:
    mark = log.look(["k"], 0).mark
    assert log.put("k", "other") == [1, 2]
    epoch = log.claim(0, OWNER, PATIENT)
    log.settle_all(epoch)
    mark = log.look(["k"], mark).mark
    for name in os.listdir(os.path.dirname(path)):
        os.remove(os.path.join(os.path.dirname(path), name))
    time.sleep(0.06)  # longer than the moment in which it may not be noticed
    assert log.look(["k"], mark) == ([None], None, 1)
    assert log.put("new") == [1]
    assert neighbour.all() == log.all() == [(1, "new")]
    assert not log.settle(0, epoch, [("new", 1)], [])


def test_what_an_owner_of_a_deleted_file_had_done_takes_nothing_out_of_a_new_one(
    log: Plain, path: str
) -> None:
    assert log.put("a", "b", "c") == [1, 2, 3]
    epoch = log.claim(0, OWNER, PATIENT)
    done = [(key, version) for version, key in log.all()]
    for name in os.listdir(os.path.dirname(path)):
        os.remove(os.path.join(os.path.dirname(path), name))
    time.sleep(0.06)
    assert log.put("x", "b", "z") == [1, 2, 3]
    assert log.claim(0, OTHER, PATIENT) == epoch  # both count from the beginning
    log.settle(0, epoch, done, [])
    assert [key for _, key in log.all() if key != "b"] == ["x", "z"]
    assert log.standing().depth == len(log.all())


def test_of_a_key_that_was_put_again_all_up_to_its_newest_leaves(log: Plain) -> None:
    assert log.put("a", "b", "c", "b", "d", "b") == [1, 2, 3, 4, 5, 6]
    epoch = log.claim(0, OWNER, PATIENT)
    # In the order of each key's oldest operation, as a worker takes them.
    assert log.settle(0, epoch, [("a", 1), ("b", 4), ("c", 3)], [])
    assert log.all() == [(5, "d"), (6, "b")]
    assert log.standing().depth == 2


# -- versions and counts that are known by heart


def test_a_writer_sees_what_its_neighbour_appended_and_settled(
    log: Plain, neighbour: Plain
) -> None:
    """Each step goes by the other's, whatever the connection has in mind from before."""
    assert log.put("a") == [1]
    assert neighbour.put("b") == [2]
    assert log.put("c") == [3]
    epoch = neighbour.claim(0, OWNER, PATIENT)
    neighbour.settle_all(epoch)
    assert log.put("d") == [4]
    assert neighbour.put("e") == [5]
    neighbour.settle_all(epoch)  # the newest of all, given by the neighbour, is gone
    assert log.put("f") == [6]
    assert log.standing()[:2] == (1, len("f" + "value"))
    neighbour.settle_all(epoch)
    drive(log.log.close(Runtime().threads))
    drive(neighbour.log.close(Runtime().threads))
    assert log.standing()[:4] == (0, 0, None, (6,))
    assert log.put("g") == [7]


@pytest.mark.parametrize("bounds", [Bounds(operations=3), Bounds(size=3 * len("kvalue"))])
def test_the_bound_holds_for_one_put_after_the_other(path: str, bounds: Bounds) -> None:
    log = Plain(SQLiteLog(path, "orders", bounds=bounds))
    assert [log.put(key) for key in "abcde"] == [[1], [2], [3], [None], [None]]
    log.settle_all(log.claim(0, OWNER, PATIENT))
    assert [log.put(key) for key in "abcd"] == [[4], [5], [6], [None]]


def test_the_bound_holds_for_neighbours_together(path: str, log: Plain) -> None:
    bounds = Bounds(operations=3)
    mine = Plain(SQLiteLog(path, "orders", bounds=bounds))
    theirs = Plain(SQLiteLog(path, "orders", level="host", bounds=bounds))
    assert [mine.put("a"), theirs.put("b"), theirs.put("c")] == [[1], [2], [3]]
    assert mine.put("d") == [None]
    epoch = theirs.claim(0, OWNER, PATIENT)
    assert theirs.settle(0, epoch, [("b", 2)], [])
    assert mine.put("d", "e") == [4, None]
    assert theirs.put("e") == [None]
    assert theirs.settle(0, epoch, [], [Letter(theirs.read(0, 0, 9)[0], "no")])
    assert [theirs.put("e"), mine.put("f")] == [[5], [None]]


def test_a_letter_that_was_revived_does_not_come_back_by_a_step_done_twice(log: Plain) -> None:
    log.put("k")
    epoch = log.claim(0, OWNER, PATIENT)
    step = (0, epoch, [], [Letter(log.read(0, 0, 9)[0], "no")])
    assert log.settle(*step)
    assert log.revive([1], False) == [1]
    assert log.settle(*step)
    assert log.letters(0, 9) == []
    assert log.all() == [(2, "k")]


def test_settled_keys_are_told_up_to_a_number(
    log: Plain, neighbour: Plain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_settling, "SETTLED", 10)
    first = log.look([], 0).mark
    epoch = log.claim(0, OWNER, PATIENT)
    marks = []
    for number in range(8):
        log.put(*(f"k{number}-{each}" for each in range(3)))
        log.settle_all(epoch)
        marks.append(log.look([], 0).mark)
    assert neighbour.look([], first).settled is None
    assert neighbour.look([], marks[0]).settled is None
    last = [f"k{number}-{each}" for number in (5, 6, 7) for each in range(3)]
    assert sorted(neighbour.look([], marks[4]).settled) == last
    assert neighbour.look(["x", "y"], marks[-1]).settled in ([], ())
    assert neighbour.look(["x"], marks[-1] + 1).settled is None
    with sqlite3.connect(log.log._file.path) as db:
        assert db.execute("SELECT count(*) FROM settled").fetchone()[0] <= 4


# -- refusals


@pytest.mark.parametrize("refuse", ["PRAGMA max_page_count=16", "PRAGMA query_only=ON"])
def test_a_disk_that_is_full_or_read_only_acknowledges_nothing(log: Plain, refuse: str) -> None:
    log.put("first")
    writer = log.log._file._writer
    assert writer is not None
    writer.db.execute(refuse)
    accepted = ["first"]
    with pytest.raises(BackendRefused):
        for number in range(100):
            log.append([Record(f"k{number}", OpKind.PUT, os.urandom(5000))])
            accepted.append(f"k{number}")
    assert [key for _, key in log.all()] == accepted
    assert log.standing().depth == len(accepted)
    assert log.put("after") == [len(accepted) + 1]  # it had been mended meanwhile


# -- leases


def test_a_lease_ends_with_the_boot(log: Plain, monkeypatch: pytest.MonkeyPatch) -> None:
    if not sqlite_log._boot():
        pytest.skip("this system does not name its boots")
    epoch = log.claim(0, OWNER, 1000.0)
    assert log.claim(0, OTHER, 1000.0) is None
    monkeypatch.setattr(sqlite_log, "_boot", lambda: "another")
    assert log.claim(0, OTHER, 1000.0) == epoch + 1
    assert not log.renew(0, OWNER, epoch, 1000.0)


def test_where_boots_have_no_name_leases_follow_the_wall_clock(
    log: Plain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_log, "_boot", lambda: "")
    now = time.time()
    monkeypatch.setattr(sqlite_log.time, "time", lambda: now)
    assert log.claim(0, OWNER, 5.0) == 1
    now += 4.9
    assert log.claim(0, OTHER, 5.0) is None
    now += 0.2
    assert log.claim(0, OTHER, 5.0) == 2


# -- event loops


def test_an_event_loop_looks_in_place_and_writes_in_threads(log: Plain) -> None:
    async def body() -> None:
        world = Runtime().asyncio()
        plain, ran = log.log, []

        class Counting:
            name = world.name

            async def run(self, fn: Callable[..., Any], *args: Any) -> Any:
                ran.append(fn.__name__)
                return await world.run(fn, *args)

        counting: World = Counting()  # type: ignore[assignment]  # as much as a log needs
        late = world.deadline(PATIENT)
        records = [Record(f"k{n}", OpKind.PUT, b"v") for n in range(200)]
        answers = await asyncio.gather(*(plain.append(counting, [r], late) for r in records))
        assert sorted(answers) == [[n] for n in range(1, 201)]
        await plain.look(counting, ["warm"], 0, late)
        ran.clear()
        for number, record in enumerate(records):
            (seen,) = (await plain.look(counting, [record.key], 0, late)).pending
            assert seen is not None
            assert [seen.version] == answers[number]
        assert ran == []
        await plain.close(counting)

    asyncio.run(body())
