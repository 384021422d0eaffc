"""Write-back over a process's life: exits flush, forks inherit nothing, loops come and go."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from stage import Rows

from cachekit import Cache, WriteBack

# Every write of the sink is one line: the process that wrote it, the key, the value.
HEAD = """
import asyncio, atexit, os, sys, threading
import cachekit

path = sys.argv[1]

def write(values):
    with open(path, "a") as file:
        for id, value in values.items():
            file.write(f"{os.getpid()} {id} {value}\\n")

async def write_async(values):
    write(values)

def down(values):
    raise ConnectionError("the source is down")

def strategy(sink=write, **options):
    return cachekit.WriteBack(
        cachekit.Cache(), key="row:{id}", log="memory", delay=3600, store_many=sink, **options
    )
"""


def _run(tmp_path: Path, script: str, *, within: float = 20.0) -> tuple[int, list[list[str]], str]:
    """Exit code, the sink's lines, and stderr of a script that is its own process."""
    out = tmp_path / "sink"
    out.touch()
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore::DeprecationWarning", "-c",
         HEAD + textwrap.dedent(script), str(out)],
        capture_output=True, text=True, timeout=within, check=False,
    )  # fmt: skip
    return done.returncode, [line.split() for line in out.read_text().splitlines()], done.stderr


@pytest.mark.parametrize(
    ("ending", "code"),
    [("", 0), ("sys.exit(3)", 3), ("raise RuntimeError('uncaught')", 1)],
    ids=["end-of-script", "sys.exit", "uncaught-exception"],
)
def test_the_end_of_the_interpreter_flushes_what_was_acknowledged(
    tmp_path: Path, ending: str, code: int
) -> None:
    returned, lines, told = _run(
        tmp_path,
        f"""
        s = strategy()
        for n in range(10):
            s.put(n, n * n)
        {ending}
        """,
    )
    assert returned == code, told
    assert [line[1:] for line in lines] == [[str(n), str(n * n)] for n in range(10)]
    assert "new thread" not in told


def test_the_first_put_of_a_dying_interpreter_is_flushed_too(tmp_path: Path) -> None:
    """A user's own exit handler may put; it runs before ours if it was registered later."""
    returned, lines, told = _run(
        tmp_path,
        """
        s = strategy()
        atexit.register(lambda: s.put(1, "last"))
        """,
    )
    assert returned == 0, told
    assert [line[1:] for line in lines] == [["1", "last"]]


def test_an_async_sink_is_flushed_by_the_end_of_the_interpreter_though_its_loop_is_gone(
    tmp_path: Path,
) -> None:
    began = time.monotonic()
    returned, lines, told = _run(
        tmp_path,
        """
        s = strategy(write_async)
        async def main():
            await s.aio.put(1, "a")
        asyncio.run(main())
        """,
    )
    assert returned == 0, told
    assert [line[1:] for line in lines] == [["1", "a"]], told
    assert time.monotonic() - began < 8
    assert "never awaited" not in told
    assert "destroyed but it is pending" not in told


def test_what_one_loop_left_the_next_one_writes() -> None:
    rows: dict[int, str] = {}

    async def store_many(values: dict[int, str]) -> None:
        rows.update(values)

    cache = Cache()
    strategy = WriteBack(cache, key="row:{id}", log="memory", delay=3600, store_many=store_many)

    async def put() -> None:
        await strategy.aio.put(1, "a")
        await asyncio.sleep(0)  # its worker has begun

    async def flush() -> None:
        assert (await strategy.aio.flush(5)).complete

    asyncio.run(put())
    asyncio.run(flush())
    assert rows == {1: "a"}

    async def close() -> None:
        assert (await strategy.aio.close(5)).complete

    asyncio.run(close())
    cache.close()


def test_a_source_that_stays_down_does_not_hold_up_the_exit_for_ever(tmp_path: Path) -> None:
    returned, _, told = _run(
        tmp_path,
        """
        s = strategy(down)
        s.put(1, "lost with the process: the memory level says so")
        atexit.register(lambda: s.close(0.3))
        """,
        within=30,
    )
    assert returned == 0, told


def test_a_forked_child_flushes_nothing_of_its_parents_and_has_a_live_flusher(
    tmp_path: Path,
) -> None:
    returned, lines, told = _run(
        tmp_path,
        """
        s = strategy()
        s.put(1, "parents")
        child = os.fork()
        if child == 0:
            assert s.depth() == 0, "the child has the parent's operations"
            assert s.flush(5).applied == 0
            s.put(2, "childs")
            assert s.get(2) == "childs"
            assert s.flush(5).complete
            s.put(3, "at exit")
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert s.depth() == 1
        assert s.flush(5).applied == 1
        print(os.getpid(), child)
        """,
    )
    assert returned == 0, told
    by_value = {" ".join(line[2:]): line[0] for line in lines}
    assert set(by_value) == {"parents", "childs", "at exit"}
    assert by_value["childs"] == by_value["at exit"] != by_value["parents"]
    assert len(lines) == 3


def test_a_fork_while_the_worker_is_busy_and_puts_are_under_way_does_not_hang(
    tmp_path: Path,
) -> None:
    returned, lines, told = _run(
        tmp_path,
        """
        s = strategy(batch=2)
        go = True
        def busy():
            n = 100
            while go:
                s.put(n % 50 + 100, n)
                n += 1
        threads = [threading.Thread(target=busy) for _ in range(4)]
        for t in threads: t.start()
        children = []
        for n in range(5):
            child = os.fork()
            if child == 0:
                s.put(n, "child")
                flushed = s.flush(5)
                os._exit(0 if flushed.complete else 9)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children]
        go = False
        for t in threads: t.join()
        assert codes == [0] * 5, codes
        """,
    )
    assert returned == 0, told
    assert sorted(line[1] for line in lines if line[2] == "child") == list("01234")


def test_a_strategy_that_nobody_holds_any_more_does_not_leave_its_thread_busy() -> None:
    rows = Rows()
    cache = Cache()
    strategy = WriteBack(
        cache, key="row:{id}", log="memory", delay=0.01, store_many=rows.store_many
    )
    strategy.put(1, "a")
    cache.close()
    assert rows.rows == {1: "a"}
    mine = f"cachekit-flush-{strategy.name}"
    end = time.monotonic() + 5
    while any(t.name == mine for t in threading.enumerate()) and time.monotonic() < end:
        time.sleep(0.01)
    assert not any(t.name == mine for t in threading.enumerate())


def test_no_thread_runs_before_the_first_put() -> None:
    before = set(threading.enumerate())
    with Cache() as cache:
        WriteBack(cache, key="row:{id}", log="memory", store_many=lambda values: None)
        assert set(threading.enumerate()) == before


def test_closing_the_cache_drains_its_strategies() -> None:
    rows = Rows()
    cache = Cache()
    first = WriteBack(cache, key="a:{id}", log="memory", delay=3600, store_many=rows.store_many)
    second = WriteBack(cache, key="b:{id}", log="memory", delay=3600, store_many=rows.store_many)
    first.put(1, "a")
    second.put(2, "b")
    assert [f.complete for f in cache.flush(5)] == [True, True]
    first.put(3, "c")
    cache.close()
    assert rows.rows == {1: "a", 2: "b", 3: "c"}
    cache.close()


def test_closing_the_async_face_drains_async_sinks() -> None:
    rows: dict[int, str] = {}

    async def store_many(values: dict[int, str]) -> None:
        rows.update(values)

    async def main() -> None:
        cache = Cache()
        strategy = WriteBack(cache, key="a:{id}", log="memory", delay=3600, store_many=store_many)
        async with cache.aio:
            await strategy.aio.put(1, "a")
        assert rows == {1: "a"}
        cache.close(timeout=1)

    asyncio.run(main())


def test_a_put_while_no_thread_starts_any_more_is_written_at_the_exit(tmp_path: Path) -> None:
    """Python 3.12 and later refuse new threads once the interpreter ends."""
    returned, lines, told = _run(
        tmp_path,
        """
        s = strategy()
        def refuse(thread):
            raise RuntimeError("can't create new thread at interpreter shutdown")
        threading.Thread.start = refuse
        s.put(1, "a")
        """,
    )
    assert returned == 0, told
    assert [line[1:] for line in lines] == [["1", "a"]]


def test_writes_lost_with_the_process_are_told(tmp_path: Path) -> None:
    returned, _, told = _run(
        tmp_path,
        """
        import logging
        logging.basicConfig()
        async def down_async(values):
            raise ConnectionError("the source is down")
        s = strategy(down_async)
        asyncio.run(s.aio.put(1, "a"))
        """,
    )
    assert returned == 0
    assert "1 writes lost" in told
