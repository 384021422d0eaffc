"""Exceptions out of signal handlers, at any moment of a put or get: Ctrl-C in a notebook, the soft
time limits of task queues. Nothing that waits for a lock afterwards may wait for ever."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlite_log_desk import PATIENT, Plain

from cachekit import Cache, WriteBack
from cachekit.backends.sqlite_gate import gate
from cachekit.logs.sqlite import SQLiteLog
from cachekit.logs.sqlite_turns import Turns

STORM = 2.5  # seconds of interrupts in each process

HEAD = """
import faulthandler, json, os, random, signal, sys, time
import cachekit
from cachekit.backends.sqlite_gate import gate

faulthandler.dump_traceback_later(25, exit=True)  # whoever waits for ever, and where

class Soft(Exception):
    pass

def interrupt(*_):
    raise Soft

signal.signal(signal.SIGALRM, interrupt)
log, seconds = sys.argv[1], float(sys.argv[2])
rows = {}
book = cachekit.WriteBack(
    cachekit.Cache(), key="k:{id}", name="q", load=rows.get, store_many=rows.update, log=log,
    delay=0.02, block=2.0, max_pending=100_000,
)

def in_child(work):
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(15)  # whoever hangs is ended
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    took = time.monotonic() - began
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), took

older = []

def use(n):
    book.put(1000, n)
    if book.get(1000) != n:
        older.append(1000)

def tell(**found):
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps(found), flush=True)
"""

PUTS = """
acknowledged, hits, odd, n = {}, 0, [], 0
end = time.monotonic() + seconds
while time.monotonic() < end:
    n += 1
    try:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 4e-4))
        for i in range(20):
            book.put(i, n)
            acknowledged[i] = n
            book.get(i)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Soft:
        hits += 1
    except Exception as error:
        odd.append(repr(error))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0)
    except Soft:
        pass
    if n % 50 == 0:
        use(n)
older += [i for i, value in acknowledged.items() if book.get(i) < value]
flushed = book.flush(10)
unwritten = [i for i, value in acknowledged.items() if rows[i] < value]
code, took = in_child(lambda: use(n + 1))
use(n + 2)
tell(hits=hits, odd=sorted(set(odd))[:9], older=older, left=flushed.left,
     unwritten=unwritten, child=code)
"""


Process = subprocess.Popen[str]


def _started(script: str, *args: str) -> Process:
    return subprocess.Popen(
        [sys.executable, "-c", HEAD + textwrap.dedent(script), *args],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _told(process: Process) -> dict[str, Any]:
    try:
        out, err = process.communicate(timeout=45)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, err[-3000:]
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def storms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Process]:
    """A process over each log, in a storm of interrupts."""
    url = f"sqlite:///{tmp_path_factory.mktemp('storm')}/q.log"
    return {log: _started(PUTS, log, str(STORM)) for log in (url, "memory")}


@pytest.fixture(scope="module", params=["sqlite", "memory"])
def storm(request: pytest.FixtureRequest, storms: dict[str, Process]) -> dict[str, Any]:
    """How the process ended."""
    (process,) = (each for log, each in storms.items() if log.startswith(request.param))
    return _told(process)


def test_interrupts_of_puts_and_gets_leave_no_lock_behind(storm: dict[str, Any]) -> None:
    assert storm["hits"] > 100
    assert (storm["unwritten"], storm["left"], storm["child"]) == ([], 0, 0)


def test_reads_after_interrupts_are_not_older_than_what_was_acknowledged(
    storm: dict[str, Any],
) -> None:
    assert storm["older"] == []


def test_what_a_signal_handler_raises_comes_out_as_it_is(storm: dict[str, Any]) -> None:
    # But for threading's own KeyError, where the start of a thread was interrupted; and for a codec
    # that was: the code of a value may raise anything, which is told as the codec's error.
    known = ("KeyError(<Thread", "CodecError(")
    assert [text for text in storm["odd"] if not text.startswith(known)] == []


def test_a_fork_waits_for_nothing_that_an_interrupt_kept_from_leaving(tmp_path: Path) -> None:
    """The thread that forks is inside no step, whatever the books say."""
    process = _started(
        """
        use(1)
        gate.__enter__()
        code, took = in_child(lambda: use(2))
        use(3)
        again = in_child(lambda: use(4))
        tell(child=[code, again[0]], took=[took, again[1]], cut=gate.cut)
        """,
        f"sqlite:///{tmp_path}/q.log", "0",
    )  # fmt: skip
    found = _told(process)
    assert (found["child"], found["cut"]) == ([0, 0], False)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Plain]:
    found = Plain(SQLiteLog(tmp_path / "q.log", "q"))
    yield found
    found.log._file.close_idle()


def test_a_turn_that_was_taken_before_an_interrupt_is_gone_on_with(log: Plain) -> None:
    log.put("a")
    turns = log.log._file._turns
    assert turns.enter_now()  # and whoever took it never came to its ``try``
    log.put("b")
    others: list[Any] = []
    other = threading.Thread(target=lambda: others.append(log.put("c")), daemon=True)
    other.start()
    other.join(PATIENT)
    assert len(others) == 1
    assert [key for _, key in log.all()] == ["a", "b", "c"]


def test_a_turn_is_one_threads_own() -> None:
    turns = Turns()
    assert turns.enter_now()
    assert turns.enter_now()
    seen: list[bool] = []
    other = threading.Thread(target=lambda: seen.append(turns.enter_now()))
    other.start()
    other.join()
    turns.leave()
    other = threading.Thread(target=lambda: seen.append(turns.enter_now()))
    other.start()
    other.join()
    assert seen == [False, True]


def test_who_is_inside_twice_leaves_twice() -> None:
    me = threading.get_ident()
    with gate:
        with gate:
            assert gate._inside[me] == 2
        assert gate._inside[me] == 1
    assert me not in gate._inside


class _Soft(Exception):
    pass


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("log_of", ["sqlite", "memory"])
def test_an_interrupt_of_the_workers_start_leaves_one_worker_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_of: str, moment: str
) -> None:
    rows: dict[int, str] = {}
    name = f"q{os.getpid()}-{log_of}-{moment}"
    start = threading.Thread.start
    interrupted: list[str] = []

    def started(thread: threading.Thread) -> None:
        if thread.name == f"cachekit-flush-{name}" and not interrupted:
            interrupted.append(thread.name)
            if moment == "after":
                start(thread)
            raise _Soft
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", started)
    cache = Cache()
    log = "memory" if log_of == "memory" else f"sqlite:///{tmp_path}/q.log"
    book = WriteBack(cache, key="k:{id}", name=name, log=log, delay=0.01, store_many=rows.update)
    with pytest.raises(_Soft):
        book.put(1, "a")
    book.put(2, "b")
    end = time.monotonic() + PATIENT
    while rows != {1: "a", 2: "b"} and time.monotonic() < end:
        time.sleep(0.005)
    assert rows == {1: "a", 2: "b"}
    assert sum(each.name == f"cachekit-flush-{name}" for each in threading.enumerate()) == 1
    assert book.flush(PATIENT).complete
    cache.close(timeout=PATIENT)
