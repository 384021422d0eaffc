"""The queue of invalidations that could not be told, in memory and in its file."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cachekit import Cache
from cachekit.errors import ConfigurationError
from cachekit.observe import Meter
from cachekit.pending import MAX_PENDING, SPACE, Name, Pending
from cachekit.testing.servers import RedisServer


def _left(path: str) -> list[Name]:
    """What a successor finds in the file, and takes over."""
    successor = Pending(Meter(), path)
    successor.load()
    try:
        return list(successor.take())
    finally:
        successor.close()


SOME: list[Name] = [("key", "k"), ("tag", "t"), ("event", b"\x00\xff")]


def _file(folder: Path) -> str:
    return str(folder / "inside" / "pending.db")


@pytest.mark.parametrize("kept", [False, True])
def test_the_last_one_of_a_name_wins_and_is_done_only_if_none_came_after(
    tmp_path: Path, kept: bool
) -> None:
    pending = Pending(Meter(), _file(tmp_path) if kept else None)
    pending.add(SOME)
    pending.add([("key", "k")])
    assert len(pending) == 3
    taken = pending.take()
    pending.add([("tag", "t")])  # while the replay is under way
    pending.done(taken)
    assert list(pending.take()) == [("tag", "t")]
    if kept:
        pending.close()
        again = Pending(Meter(), _file(tmp_path))
        assert again.load()
        assert list(again.take()) == [("tag", "t")]
        again.done(again.take())
        again.close()
        assert _left(_file(tmp_path)) == []


@pytest.mark.parametrize("kept", [False, True])
def test_too_many_become_one_of_the_whole_namespace(tmp_path: Path, kept: bool) -> None:
    pending = Pending(Meter(), _file(tmp_path) if kept else None)
    pending.add(("key", str(n)) for n in range(MAX_PENDING + 1))
    assert list(pending.take()) == [SPACE]
    pending.close()
    if kept:
        assert _left(_file(tmp_path)) == [SPACE]


def test_what_one_process_replayed_another_still_owes(tmp_path: Path) -> None:
    one, two = (Pending(Meter(), _file(tmp_path)) for _ in range(2))
    one.add([("key", "k")])
    taken = one.take()
    two.add([("key", "k")])  # a later invalidation of the same key, elsewhere
    one.done(taken)
    one.close()
    two.close()  # killed before it could replay
    assert _left(_file(tmp_path)) == [("key", "k")]


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = Path(_file(tmp_path))
    pending = Pending(Meter(), str(path))
    pending.add(SOME)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    link = tmp_path / "link.db"
    link.symlink_to(path)
    with pytest.raises(ConfigurationError, match="symbolic"):
        Pending(Meter(), str(link))


def test_a_file_that_can_not_be_used_is_counted_and_the_queue_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "file"
    folder.write_text("not a folder")
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"not a database" * 1000)
    for path in (folder / "pending.db", broken):
        meter = Meter()
        pending = Pending(meter, str(path))
        pending.add(SOME)
        assert len(pending) == 3
        pending.done(pending.take())
        assert len(pending) == 0
        assert meter.counts["replay_log_errors"] >= 1


def test_a_forked_child_leaves_its_parents_rows_alone(tmp_path: Path) -> None:
    pending = Pending(Meter(), _file(tmp_path))
    pending.add(SOME)
    child = os.fork()
    if child == 0:
        pending.reset_after_fork()
        pending.done(pending.take())
        os._exit(len(pending))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with sqlite3.connect(_file(tmp_path)) as db:
        assert db.execute("SELECT count(*) FROM pending").fetchone() == (3,)


_DIES = """
import os, signal, sys
from cachekit import Cache
options = {"namespace": "owed", "invalidation": "replay", "timeout": 0.2}
cache = Cache(sys.argv[1], replay_log=sys.argv[2], **options)
cache.invalidate(keys=["k"], tags=["t"])
assert cache.stats().pending_invalidations == 2
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_owed_is_replayed_by_the_next(tmp_path: Path) -> None:
    log = _file(tmp_path)
    with RedisServer() as server:
        with Cache(server.url, namespace="owed", timeout=2.0) as cache:
            cache.set("k", "old")
            cache.set("tagged", "old", tags=["t"])
            server.pause()
            try:
                died = subprocess.run(
                    [sys.executable, "-c", _DIES, server.url, log], cwd=tmp_path, timeout=60
                )
            finally:
                server.resume()
            assert died.returncode == -signal.SIGKILL
        with Cache(server.url, namespace="owed", timeout=2.0, replay_log=log) as after:
            assert after.get_many(["k", "tagged"]) == {}
            assert after.stats().pending_invalidations == 0
        assert _left(log) == []
