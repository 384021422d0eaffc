"""P41 for several write-back strategies: one close timeout for all that a process has, and what
is well is written though it comes last."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

PATIENCE = 40.0
ILL = 4
T = 1.5  # the close timeout in these processes; one after another they would take ILL * T

# Argument 1: a file of the rows that the source took.
HEAD = f"""
import asyncio, atexit, logging, sys, threading, time
import cachekit
from cachekit.strategies import endings

logging.basicConfig(format="%(message)s")
endings.CLOSE_TIMEOUT = {T}
folder = sys.argv[1]

def note(name, rows):
    with open(folder + "/rows", "a") as file:
        file.writelines(f"{{name}} {{id}}\\n" for id in rows)

def hang(rows):
    time.sleep(60)

async def hang_async(rows):
    await asyncio.sleep(60)

def down(rows):
    raise ConnectionError("down")

async def down_async(rows):
    raise ConnectionError("down")

def book(name, sink=None, log=LOG, is_async=ASYNC, **options):
    def plain(rows):
        time.sleep(0.15)  # three batches: more than anybody's least
        note(name, rows)
    async def of_loop(rows):
        await asyncio.sleep(0.15)
        note(name, rows)
    if log == "sqlite":
        log = f"sqlite:///{{folder}}/log"
    sink = sink or (of_loop if is_async else plain)
    given = dict(log=log, delay=3600, batch=10, **options)
    return cachekit.WriteBack(
        cachekit.Cache(), key=name + ":{{id}}", name=name, store_many=sink, **given
    )

async def fill(books):
    for one in books:
        for n in range(25):
            await one.aio.put(n, n)
"""

ILLS = """
ills = [hang_async, down_async] if ASYNC else [hang, down]
well_first = [book("first")]  # its turn at the exit comes last
ill = [book(f"ill{n}", ills[n % 2]) for n in range(ILL)]
well_last = [book("last")]
asyncio.run(fill(well_first + ill + well_last))
"""


class Ended:
    def __init__(
        self,
        script: str,
        folder: Path,
        log: str = "memory",
        *,
        is_async: bool = False,
        broken_off: bool = False,
        code: int = 0,
    ) -> None:
        for name, value in (("LOG", repr(log)), ("ASYNC", str(is_async)), ("ILL", str(ILL))):
            script = script.replace(name, value)
        head = HEAD.replace("LOG", repr(log)).replace("ASYNC", str(is_async))
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-W", "ignore::DeprecationWarning", "-c", head + script, str(folder)],
            stderr=subprocess.PIPE, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        self.took = time.monotonic() - began
        self.told = done.stderr
        assert done.returncode == code, self.told
        troubles = ("Traceback", "new thread", "never awaited", "was destroyed")
        for trouble in () if broken_off else troubles:
            assert trouble not in self.told, self.told
        found = folder / "rows"
        self.rows = found.read_text().splitlines() if found.exists() else []

    def has(self, name: str, count: int = 25) -> None:
        assert {f"{name} {n}" for n in range(count)} <= set(self.rows), self.told

    def lines(self, text: str) -> int:
        return sum(text in line for line in self.told.splitlines())


@pytest.mark.parametrize("log", ["memory", "sqlite"])
@pytest.mark.parametrize("is_async", [False, True], ids=["plain sink", "async sink"])
def test_an_exit_takes_one_close_timeout_for_all_strategies(
    log: str, is_async: bool, tmp_path: Path
) -> None:
    ended = Ended(ILLS, tmp_path, log, is_async=is_async)
    ended.has("first")
    ended.has("last")
    assert ended.took < ILL * T - 1.0
    what = "ends with 25 writes lost" if log == "memory" else "25 writes are left in the log"
    assert ended.lines(what) == ILL, ended.told


def test_an_exit_of_plain_and_async_sinks_takes_one_close_timeout(tmp_path: Path) -> None:
    script = """
both = [book("plain", is_async=False), book("async", is_async=True)]
ill = [book("a", hang, is_async=False), book("b", hang_async, is_async=True)]
more = [book("c", hang, is_async=False), book("d", hang_async, is_async=True)]
asyncio.run(fill(both + ill + more))
"""
    ended = Ended(script, tmp_path)
    ended.has("plain")
    ended.has("async")
    assert ended.took < ILL * T - 1.0


@pytest.mark.parametrize("log", ["memory", "sqlite"])
def test_puts_that_come_while_the_process_ends_are_written_by_whoever_can(
    log: str, tmp_path: Path
) -> None:
    """CPython 3.12 starts no thread then. Before their turns comes one whose source hangs."""
    script = """
books = [book("late0", lambda rows: note("late0", rows)), book("late1")]
ill = book("ill", down)
hangs = book("hangs", hang)
hangs.put(1, 1)
def refuse(thread):
    raise RuntimeError("no thread at interpreter shutdown")
def late():
    threading.Thread.start = refuse
    for one in (ill, *books):
        for n in range(25):
            one.put(n, n)
atexit.register(late)
"""
    ended = Ended(script, tmp_path, log)
    ended.has("late0")
    ended.has("late1")
    assert ended.took < T + 4.0


@pytest.mark.parametrize("log", ["memory", "sqlite"])
def test_one_strategy_that_could_start_no_worker_is_written_at_its_turn(
    log: str, tmp_path: Path
) -> None:
    script = """
own = book("own")
def refuse(thread):
    raise RuntimeError("no thread at interpreter shutdown")
def late():
    threading.Thread.start = refuse
    for n in range(25):
        own.put(n, n)
atexit.register(late)
"""
    ended = Ended(script, tmp_path, log)
    ended.has("own")
    assert not ended.told


def test_handlers_of_the_user_may_put_between_the_turns_of_two_strategies(tmp_path: Path) -> None:
    """Resources that were opened after a strategy go before its turn, and may still write to it."""
    script = """
first = book("first")
def between():
    for n in range(25):
        first.put(n, n)
atexit.register(between)
last = book("last")
for n in range(25):
    last.put(n, n)
"""
    ended = Ended(script, tmp_path)
    ended.has("first")
    ended.has("last")
    assert not ended.told


@pytest.mark.parametrize("registered", ["before", "after"])
@pytest.mark.parametrize("is_async", [False, True], ids=["plain sink", "async sink"])
def test_a_cache_that_is_closed_at_the_exit_writes_what_waits(
    registered: str, is_async: bool, tmp_path: Path
) -> None:
    script = """
cache = cachekit.Cache()
BEFORE
def writer(rows):
    note("row", rows)
async def writer_async(rows):
    note("row", rows)
own = cachekit.WriteBack(
    cache, key="r:{id}", store_many=writer_async if ASYNC else writer, log="memory", delay=3600
)
AFTER
asyncio.run(fill([own]))
"""
    at = "atexit.register(cache.close, 5)"
    script = script.replace(registered.upper(), at)
    script = script.replace("BEFORE", "").replace("AFTER", "")
    ended = Ended(script, tmp_path, is_async=is_async)
    ended.has("row")
    assert not ended.told


@pytest.mark.parametrize("again", [False, True], ids=["once", "and again"])
def test_a_close_that_was_cancelled_leaves_the_rest_to_the_exit(
    again: bool, tmp_path: Path
) -> None:
    script = """
async def slow(rows):
    await asyncio.sleep(0.3)
    note("row", rows)
own = book("row", slow, is_async=True)
async def main():
    await fill([own])
    try:
        async with asyncio.timeout(0.4):
            await own.aio.close()
    except TimeoutError:
        note("cancelled", [0])
    if AGAIN:
        assert (await own.aio.close(20)).complete
asyncio.run(main())
""".replace("AGAIN", str(again))
    ended = Ended(script, tmp_path, is_async=True)
    ended.has("cancelled", 1)
    ended.has("row")
    assert not ended.told


def test_an_exit_waits_for_a_close_that_another_thread_is_at(tmp_path: Path) -> None:
    script = """
def slow(rows):
    time.sleep(0.3)
    note("row", rows)
own = book("row", slow)
asyncio.run(fill([own]))
threading.Thread(target=own.close, args=(20,), daemon=True).start()
time.sleep(0.1)
"""
    ended = Ended(script, tmp_path)
    ended.has("row")
    assert not ended.told


def test_an_exit_waits_for_the_loop_of_another_thread_that_still_turns(tmp_path: Path) -> None:
    """It is at a batch: nothing is written beside it, so that no older write comes last."""
    script = """
atexit.register(time.sleep, 1.0)  # after the turn of what follows
async def slow(rows):
    await asyncio.sleep(0.6 if "old" in rows.values() else 0.0)
    note("row", [f"{id}={value}" for id, value in rows.items()])
own = book("row", slow, is_async=True)
ready = threading.Event()
async def main():
    for n in range(10):
        await own.aio.put(n, "old")
    await asyncio.sleep(0.1)
    for n in range(10):
        await own.aio.put(n, "new")
    ready.set()
    await asyncio.sleep(60)
threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start()
ready.wait()
"""
    ended = Ended(script, tmp_path, is_async=True)
    newest = dict(row.split(" ")[1].split("=") for row in ended.rows)
    assert newest == {str(n): "new" for n in range(10)}, ended.told
    assert [row.endswith("new") for row in ended.rows].count(True) == 10


def test_a_signal_that_breaks_off_the_last_flush_is_heard_and_what_is_lost_is_told(
    tmp_path: Path,
) -> None:
    script = """
import os, signal
cachekit.install_signal_handlers()
endings.CLOSE_TIMEOUT = 30
own = book("own", hang)
asyncio.run(fill([own]))
threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
again = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
again.daemon = True
atexit.register(again.start)
time.sleep(60)
"""
    ended = Ended(script, tmp_path, broken_off=True, code=143)
    assert ended.lines("the process ends with 25 writes lost") == 1, ended.told
    assert ended.took < 15
