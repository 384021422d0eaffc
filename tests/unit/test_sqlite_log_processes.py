"""A SQLite log between processes: kill -9 at random moments, two writers and a settler, fork."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sqlite_log_desk import OWNER, PATIENT, Plain

from cachekit.logs.sqlite import SQLiteLog

ROUNDS = 12

# Appends until it is killed, from two threads and one to three operations at a time, and prints
# what was acknowledged only then.
WRITER = """
import sys, threading
from cachekit.core.ops import OpKind
from cachekit.logs.sqlite import SQLiteLog
from cachekit.protocols import Record
from cachekit.runtime import Runtime, drive

path, name, most = sys.argv[1], sys.argv[2], int(sys.argv[3])
log, world = SQLiteLog(path, "orders"), Runtime().threads

def write(thread):
    number = 0
    while number < most:
        keys = [f"{name}{thread}-{number + each}" for each in range(1 + number % 3)]
        records = [Record(key, OpKind.PUT, b"v" * 100) for key in keys]
        versions = drive(log.append(world, records, world.deadline(30)))
        for key, version in zip(keys, versions):
            sys.stdout.write(f"{key} {version}\\n")
        sys.stdout.flush()
        number += len(keys)

threads = [threading.Thread(target=write, args=(n,)) for n in range(2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def writer(path: str, name: str, most: int = 10**9) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, path, name, str(most)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def acknowledged(lines: str) -> dict[int, str]:
    """Version -> key of every whole line."""
    found = [line.split() for line in lines.splitlines(keepends=True) if line.endswith("\n")]
    versions = {int(version): key for key, version in found}
    assert len(versions) == len(found), "a version was given twice"
    return versions


def in_order(keys: list[str]) -> bool:
    """Whether each thread's operations are in the order of its appends, none twice or missing."""
    numbers: dict[str, list[int]] = {}
    for key in keys:
        name, _, number = key.partition("-")
        numbers.setdefault(name, []).append(int(number))
    return all(each == list(range(len(each))) for each in numbers.values())


def test_what_was_acknowledged_survives_kill_9_at_any_moment(tmp_path: Path) -> None:
    path = str(tmp_path / "orders.log")
    log = Plain(SQLiteLog(path, "orders"))
    rng = random.Random(5)
    settled: dict[int, str] = {}
    newest = 0
    epoch = log.claim(0, OWNER, 1000.0)
    for round in range(ROUNDS):
        child = writer(path, f"r{round}t")
        assert child.stdout is not None
        first = child.stdout.readline()
        timer = threading.Timer(rng.uniform(0.0, 0.12), child.send_signal, (signal.SIGKILL,))
        timer.start()
        while timer.is_alive() and round % 2:  # every other round, what is there is settled
            batch = log.read(0, 0, 50)
            settled.update((each.version, each.key) for each in batch)
            assert log.settle(0, epoch, [(each.key, each.version) for each in batch], [])
        rest, _ = child.communicate(timeout=60)
        assert child.returncode == -signal.SIGKILL
        told = acknowledged(first + rest)
        there = log.all()
        everything = {**settled, **dict(there)}
        assert len(everything) == len(settled) + len(there), "settled, and there again"
        assert {version: everything.get(version) for version in told} == told
        mine = [key for version, key in sorted(everything.items()) if version > newest]
        assert in_order(mine)
        assert min(told) > newest
        assert log.standing()[0] == len(there)
        newest = max(everything)
        settled = everything
        assert log.settle(0, epoch, [(key, version) for version, key in there], [])
        assert log.standing()[:4] == (0, 0, None, (newest,))
    assert newest > ROUNDS * 4
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_two_processes_append_while_one_settles(tmp_path: Path) -> None:
    path = str(tmp_path / "orders.log")
    log = Plain(SQLiteLog(path, "orders"))
    epoch = log.claim(0, OWNER, 1000.0)
    children = [writer(path, name, 1500) for name in ("a", "b")]
    seen: list[tuple[int, str]] = []
    mark, told = log.look([], 0).mark, set()
    end = time.monotonic() + 60
    while any(child.poll() is None for child in children) or log.standing().depth:
        assert time.monotonic() < end
        batch = log.read(0, 0, 100)
        seen += [(each.version, each.key) for each in batch]
        assert log.settle(0, epoch, [(each.key, each.version) for each in batch], [])
        look = log.look([batch[-1].key] if batch else [], mark)
        assert look.pending in ([], [None])
        mark = look.mark
        told.update(look.settled)
    lines = [child.communicate(timeout=60)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    answers = acknowledged("".join(lines))
    assert dict(seen) == answers
    assert seen == sorted(answers.items())
    assert [version for version, _ in seen] == list(range(1, len(seen) + 1))
    for name in ("a", "b"):
        assert in_order([key for _, key in seen if key.startswith(name)])
    assert told == set(answers.values())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_and_its_parent_both_go_on(tmp_path: Path) -> None:
    log = Plain(SQLiteLog(tmp_path / "orders.log", "orders"))
    assert log.put("before") == [1]
    assert log.look(["before"], 0).pending[0].version == 1
    stop = threading.Event()
    written: list[int] = []

    def write() -> None:
        while not stop.is_set():
            written.extend(log.put("parent"))
            time.sleep(0.0005)

    threads = [threading.Thread(target=write, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    children = []
    try:
        for _ in range(5):
            pid = os.fork()
            if not pid:
                status = 1
                try:
                    fine = [log.put("child")[0] is not None for _ in range(20)]
                    fine.append(log.look(["before"], 0).pending[0].version == 1)
                    status = 0 if all(fine) else 2
                finally:
                    os._exit(status)
            children.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    finally:
        stop.set()
    for thread in threads:
        thread.join(PATIENT)
    assert codes == [0] * 5
    there = log.all()
    assert sorted(key for _, key in there if key == "child") == ["child"] * 100
    assert {version for version, key in there if key == "parent"} == set(written)
    assert [version for version, _ in there] == list(range(1, len(there) + 1))


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="this system has no /proc")
def test_a_forked_child_inherits_no_connection(tmp_path: Path) -> None:
    path = os.path.realpath(tmp_path / "orders.log")
    log = Plain(SQLiteLog(path, "orders"))
    log.put("k")
    log.look(["k"], 0)

    def held() -> list[str]:
        found = []
        for number in os.listdir("/proc/self/fd"):
            try:
                found.append(os.readlink(f"/proc/self/fd/{number}"))
            except FileNotFoundError:
                continue  # the listing's own
        return [name for name in found if name.startswith(path)]

    assert held()
    pid = os.fork()
    if not pid:
        os._exit(3 if held() else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert log.put("k") == [2]
